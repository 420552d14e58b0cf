"""What is probably wrong with an engine that finds other things than its reference, in a sentence.

Known mistakes are tried out on the reference (see :mod:`yolact_deploy.evaluation.mistakes`). Where none explains the
difference, the figures of the tensors have to tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.agreement import SCORE_THRESHOLD
from yolact_deploy.evaluation.mistakes import Case, Explained, Image, alike, mistakes
from yolact_deploy.evaluation.taps import INPUT
from yolact_deploy.evaluation.trunk_comparison import TrunkComparison
from yolact_deploy.runtime.predictor import Predictor

#: similarity from which nothing is looked for, and from which what is left is not called a mistake
AGREE, _MOSTLY = 0.95, 0.9
#: a mistake explains the difference when with it the models are this similar, and at least this share of it is gone
_EXPLAINS, _SHARE = 0.8, 0.5
#: of two mistakes that explain as much, the first is taken
_TIE = 1e-9


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        kind: "agree", "labels", "masks", "channels", "picture", "boxes", "nothing found", "not finite", "input",
            "layer" or "unknown"
        sentence: in words
        similarity: of the two models, see :attr:`~yolact_deploy.evaluation.mistakes.Explained.similarity`
        explained: similarity once the reference makes the same mistake; None where none was found
    """

    kind: str
    sentence: str
    similarity: float
    explained: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def diagnose(
    reference: Predictor,
    engine: Predictor,
    pictures: Sequence[Image],
    *,
    score_threshold: float = SCORE_THRESHOLD,
    trunk: TrunkComparison | None = None,
) -> Diagnosis:
    """Say what is probably wrong with ``engine``, by trying mistakes on ``reference``.

    Args:
        reference, engine: of the same classes, both with score threshold 0
        pictures: a few BGR images on which they differ; each is run about ten times
        trunk: the two compared layer by layer, where that could be done
    """
    cases = [Case(reference, engine, picture) for picture in pictures]
    plain = _explained(cases, lambda case: case.expected, score_threshold)
    assert plain is not None  # no mistake, nothing that may be missing
    if not is_suspicious(plain.similarity, trunk):
        return agreeing(plain.similarity)
    broken = _broken(cases, score_threshold)
    if broken:
        return Diagnosis(*broken, plain.similarity)
    best: tuple[float, str, str] | None = None
    for kind, describe, detect in mistakes(cases, score_threshold):
        explained = _explained(cases, detect, score_threshold)
        if explained is not None and (best is None or explained.similarity > best[0] + _TIE):
            best = explained.similarity, kind, describe(explained)
    if best and best[0] >= _EXPLAINS and 1 - best[0] <= _SHARE * (1 - plain.similarity):
        return Diagnosis(best[1], best[2], plain.similarity, best[0])
    if plain.similarity >= _MOSTLY:
        text = f"the models mostly agree (similarity {plain.similarity:.3f}); no common mistake explains the rest"
        return Diagnosis("agree", text, plain.similarity)
    return Diagnosis(*_by_layers(trunk), plain.similarity)


def is_suspicious(similarity: float, trunk: TrunkComparison | None) -> bool:
    """Whether to look for a mistake: detections differ, or what enters the networks does."""
    first = None if trunk is None else trunk.first_over
    return similarity < AGREE or (first is not None and first.name == INPUT)


def agreeing(similarity: float) -> Diagnosis:
    """That nothing is wrong."""
    return Diagnosis("agree", f"the models agree (similarity {similarity:.3f})", similarity)


def _explained(
    cases: Sequence[Case], detect: Callable[[Case], Detections | None], score_threshold: float
) -> Explained | None:
    images = []
    for case in cases:
        expected = detect(case)
        if expected is None:
            return None
        images.append(alike(expected, case.found, score_threshold))
    return Explained(tuple(images))


def _broken(cases: Sequence[Case], score_threshold: float) -> tuple[str, str] | None:
    """Engines whose output is none."""
    for case in cases:
        for name, value in case.engine_outputs._asdict().items():
            if not np.isfinite(value).all():
                return "not finite", (
                    f"{name} of the engine has values that are not finite (NaN or infinity): something overflows, in "
                    "FP16 beyond 65504; compare layers to see where, and keep those in FP32"
                )
    if not any((case.found.scores > score_threshold).any() for case in cases):
        return "nothing found", (
            f"the engine finds nothing that scores above {score_threshold:g}: are its weights loaded, its input in "
            "0..255, and its scores after softmax?"
        )
    return None


def _by_layers(trunk: TrunkComparison | None) -> tuple[str, str]:
    """What the layers tell where no known mistake explains the difference."""
    nothing = "no common mistake (labels, masks, boxes, channels, mirrored pictures) explains the difference"
    if trunk is None:
        return "unknown", f"{nothing}; compare layers to see where it begins"
    first = trunk.first_over
    if first is None:
        return "unknown", f"{nothing}, and no layer is off: look at what follows the trunk (box decoding, NMS, masks)"
    how = f"relative RMS error {first.relative_rms:.2g}"
    if first.name == INPUT:
        return "input", f"{nothing}; the input of the first layer is off already ({how}): normalisation or resizing"
    return "layer", f"{nothing}; the first layer that is off is {first.name} ({how}): its weights or its precision"
