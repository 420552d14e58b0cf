"""One sentence that says what is probably wrong with an engine whose detections differ from its reference's.

Known mistakes are tried on the reference (see :mod:`yolact_deploy.evaluation.mistakes`). If none explains the
difference, the layer-by-layer comparison narrows it down.
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

#: similarity above which no mistake is searched for; above which an unexplained rest is not called a mistake
AGREE, _MOSTLY = 0.95, 0.9
#: a mistake explains the difference if it makes the models this similar and removes at least this share of it
_EXPLAINS, _SHARE = 0.8, 0.5
#: of two mistakes that explain equally much, the first wins
_TIE = 1e-9


@dataclass(frozen=True)
class Diagnosis:
    """The probable cause of a difference.

    Attributes:
        kind: "agree", "labels", "masks", "channels", "picture", "boxes", "nothing found", "not finite", "input",
            "layer" or "unknown"
        sentence: the diagnosis in words
        similarity: of the two models, see :attr:`~yolact_deploy.evaluation.mistakes.Explained.similarity`
        explained: similarity once the reference makes the same mistake; None if no mistake was identified
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
    """Diagnose what is probably wrong with ``engine`` by trying mistakes on ``reference``.

    Args:
        reference, engine: models of the same classes, both with score threshold 0
        pictures: a few BGR images on which they differ; each is run about ten times
        trunk: layer-by-layer comparison of the two, if available
    """
    cases = [Case(reference, engine, picture) for picture in pictures]
    plain = _explained(cases, lambda case: case.expected, score_threshold)
    assert plain is not None
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
    """Whether to search for a mistake: the detections differ, or the network inputs do."""
    first = None if trunk is None else trunk.first_over
    return similarity < AGREE or (first is not None and first.name == INPUT)


def agreeing(similarity: float) -> Diagnosis:
    """The diagnosis that nothing is wrong."""
    return Diagnosis("agree", f"the models agree (similarity {similarity:.3f})", similarity)


def _explained(
    cases: Sequence[Case], detect: Callable[[Case], Detections | None], score_threshold: float
) -> Explained | None:
    images = []
    for case in cases:
        expected = detect(case)
        if expected is None:
            return None
        images.append(alike(expected, case.detections, score_threshold))
    return Explained(tuple(images))


def _broken(cases: Sequence[Case], score_threshold: float) -> tuple[str, str] | None:
    """A diagnosis for outputs that are not finite or detect nothing."""
    for case in cases:
        for name, value in case.engine_outputs._asdict().items():
            if value is not None and not np.isfinite(value).all():
                return "not finite", (
                    f"{name} of the engine has values that are not finite (NaN or infinity): a layer overflows (FP16 "
                    "ends at 65504); compare layers to see which, and keep it in FP32"
                )
    if not any((case.detections.scores > score_threshold).any() for case in cases):
        return "nothing found", (
            f"the engine detects nothing that scores above {score_threshold:g}: are its weights loaded, its input in "
            "0..255, and its scores after softmax?"
        )
    return None


def _by_layers(trunk: TrunkComparison | None) -> tuple[str, str]:
    """A diagnosis from the layers, for differences that no known mistake explains."""
    nothing = "no common mistake (labels, masks, boxes, channels, mirrored pictures) explains the difference"
    if trunk is None:
        return "unknown", f"{nothing}; compare layers to see where it starts"
    first = trunk.first_over
    if first is None:
        return "unknown", f"{nothing}, and no layer deviates: check what follows the trunk (box decoding, NMS, masks)"
    error = f"relative RMS error {first.relative_rms:.2g}"
    if first.name == INPUT:
        return (
            "input",
            f"{nothing}; the first layer's input already deviates ({error}): check normalization and resizing",
        )
    return "layer", f"{nothing}; the first layer to deviate is {first.name} ({error}): check its weights and precision"
