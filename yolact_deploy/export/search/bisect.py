"""Measures which layers cost most in a lower precision, and finds the fewest to keep in FP32 so that a target is met.

The cost of a layer or block is measured alone: that one in the lower precision, all others in FP32. The noise of single
layers adds up closely enough to decide in which order to keep them; the mixed graphs themselves are run to decide how
many. The order follows the noise of the raw outputs, never average precision: the change that a single layer makes to
AP is chance on any practical number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from yolact_deploy.datasets.image_sets import CocoImages
from yolact_deploy.errors import ArtifactError, DatasetError, InputError
from yolact_deploy.evaluation.agreement import SCORE_THRESHOLD
from yolact_deploy.export.search.changes import half_precision
from yolact_deploy.export.search.trials import HEADS, Change, Measured, Trials
from yolact_deploy.graph.half_precision import HALF_TYPES
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.graph.trunk_graph import layer_blocks
from yolact_deploy.progress import SILENT, Progress

#: relative noise in place of values that are not finite; larger than any finite one
_BROKEN = 1e12


@dataclass(frozen=True)
class Target:
    """What a mixed-precision graph must reach: one or several of these.

    Attributes:
        agreement: minimum share of the FP32 graph's detections that it also has: same class, box IoU of 0.5 or more
        sqnr: minimum signal-to-noise ratio of each of boxes, scores, coeff and proto, dB
        max_ap_drop: points of AP (of 100) that boxes and masks may each lose against the FP32 graph
        min_agreement: minimum share (0 to 1) of detections on which both agree, see ``Measured.agreed``
    """

    agreement: float | None = None
    sqnr: float | None = None
    max_ap_drop: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if all(value is None for value in (self.agreement, self.sqnr, self.max_ap_drop, self.min_agreement)):
            raise InputError("expected a target: a share of detections, decibels, or points of AP")
        if self.agreement is not None and not 0 < self.agreement <= 1:
            raise InputError(f"--target-agreement: expected 0 < share <= 1, got {self.agreement}")
        if self.sqnr is not None and not 0 < self.sqnr <= 120:
            raise InputError(f"--target-sqnr: expected 0 < dB <= 120 (the limit of FP32 itself), got {self.sqnr}")
        if self.max_ap_drop is not None and not 0 <= self.max_ap_drop < 100:
            raise InputError(f"points of AP that may be lost: expected 0 <= points < 100, got {self.max_ap_drop}")
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise InputError(f"--min-agreement: expected 0 < share <= 1, got {self.min_agreement}")

    @property
    def of_detections(self) -> bool:
        """Whether it takes detections, not only raw outputs, to judge it."""
        return self.sqnr is None

    def check_measurable(self, reference: Measured) -> None:
        """Raise :class:`DatasetError` if the FP32 graph itself has nothing to lose on these images."""
        if self.max_ap_drop is not None and not reference.ap:
            raise DatasetError(
                "a limit on the loss of AP needs ground truth: give images with annotations that have objects"
            )
        if self.max_ap_drop is not None and not any(reference.ap.values()):
            raise DatasetError(
                "the FP32 network detects none of the annotated objects (AP 0), so none can be lost: are these images "
                "and annotations of the classes that it was trained on?"
            )
        if self.min_agreement is not None and reference.agreed is None:
            raise DatasetError("the FP32 network detects nothing in these images: give images with objects")

    def met_by(self, measured: Measured) -> bool:
        if self.sqnr is not None and measured.least_sqnr_db < self.sqnr:
            return False
        if self.agreement is not None and measured.agreement is not None and measured.agreement < self.agreement:
            return False
        if self.min_agreement is not None and measured.agreed is not None and measured.agreed < self.min_agreement:
            return False
        return self.max_ap_drop is None or worst_drop(measured) <= self.max_ap_drop

    def to_json(self) -> dict[str, float | None]:
        return {
            "agreement": self.agreement,
            "sqnr_db": self.sqnr,
            "max_ap_drop_points": self.max_ap_drop,
            "min_agreement": self.min_agreement,
        }

    def __str__(self) -> str:
        parts = []
        if self.sqnr is not None:
            parts.append(f"{self.sqnr:g} dB in each output")
        if self.agreement is not None:
            parts.append(f"{100 * self.agreement:g} % of the detections")
        if self.max_ap_drop is not None:
            parts.append(f"at most {self.max_ap_drop:g} points of AP lost")
        if self.min_agreement is not None:
            parts.append(f"agreement on {100 * self.min_agreement:g} % of the detections")
        return " and ".join(parts)


def worst_drop(measured: Measured) -> float:
    """Points of AP lost by boxes or masks, whichever is more; 0 without ground truth."""
    return 100 * max(measured.ap_drop.values(), default=0.0)


@dataclass(frozen=True)
class BisectResult:
    """Costs of all blocks and layers, and the layers to keep if there was a target.

    Attributes:
        images: number of images on which costs were measured
        judged: number of images on which the target was judged
        blocks: each block in the lower precision alone, the most expensive first
        costs: each layer in the lower precision alone, the most expensive first
        lowered: all layers in the lower precision
        keep_fp32: the layers to keep; none of them can be left out
        mixed: the graph that keeps them; None without a target
    """

    model: str
    precision: str
    images: int
    judged: int
    blocks: tuple[tuple[str, Measured], ...]
    costs: tuple[tuple[str, Measured], ...]
    lowered: Measured
    target: Target | None
    keep_fp32: tuple[str, ...]
    mixed: Measured | None

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "precision": self.precision,
            "images": self.images,
            "judged": self.judged,
            "target": None if self.target is None else self.target.to_json(),
            "keep_fp32": list(self.keep_fp32),
            "mixed": None if self.mixed is None else self.mixed.to_json(),
            "lowered": self.lowered.to_json(),
            "blocks": costs_json("block", self.blocks),
            "costs": costs_json("layer", self.costs),
        }


def bisect_precision(
    path: Path,
    images: CocoImages,
    *,
    precision: str = "fp16",
    change: Change | None = None,
    target: Target | None = None,
    judged: CocoImages | None = None,
    score_threshold: float = SCORE_THRESHOLD,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> BisectResult:
    """Measure what each layer of an FP32 file costs in ``precision``, and find the layers to keep.

    Args:
        path: the FP32 file
        images: images on which costs are measured, in AP as well if they have annotations
        precision: "fp16" or "bf16", or the name of what ``change`` does
        change: from :mod:`yolact_deploy.export.search.changes`; by default the emulation of ``precision``
        judged: images on which the target is judged, by default the same

    Raises:
        ArtifactError: a file of another precision than FP32, or without layers.
        InputError: an unknown precision, or no pictures.
    """
    if change is None and precision not in HALF_TYPES:
        raise InputError(f"--bisect supports {', '.join(HALF_TYPES)} and int8, not {precision}")
    if not len(images):
        raise InputError("--bisect needs at least one picture: raise --layer-images")
    model = read_onnx(path)
    metadata = onnx_metadata(model, path)
    if metadata.precision != "fp32":
        raise ArtifactError(f"{path} is {metadata.precision}: --bisect starts from FP32, export it with --fp32")
    make_trials = partial(
        Trials, model, metadata, change=change or half_precision(precision),
        score_threshold=score_threshold, threads=threads, source=str(path),
    )  # fmt: skip
    ranking = make_trials(images)
    judging = ranking if judged is None else make_trials(judged, raw_outputs=not (target and target.of_detections))
    return _bisect(path.name, precision, ranking, judging, target, progress)


def _bisect(
    model: str, precision: str, ranking: Trials, judging: Trials, target: Target | None, progress: Progress
) -> BisectResult:
    if target is not None:
        target.check_measurable(judging.reference)
    blocks = measure_alone(ranking, layer_blocks(ranking.layers), "measuring blocks", progress)
    costs = measure_alone(ranking, {layer: [layer] for layer in ranking.layers}, "measuring layers", progress)
    lowered = ranking.run(())
    keep = [] if target is None else fewest(keep_order(costs), lambda kept: target.met_by(judging.run(kept)))
    return BisectResult(
        model, precision, len(ranking.images), len(judging.images), ranked(blocks), ranked(costs), lowered, target,
        tuple(keep), None if target is None else judging.run(keep),
    )  # fmt: skip


def measure_alone(
    ranking: Trials, groups: Mapping[str, Sequence[str]], description: str, progress: Progress
) -> dict[str, Measured]:
    """Measure each group of layers alone in the precision, with all others in FP32."""
    every = set(ranking.layers)
    unit = description.rpartition(" ")[2]
    return {
        name: ranking.run(every.difference(layers))
        for name, layers in progress.track(groups.items(), description, unit=unit)
    }


def costs_json(kind: str, costs: Iterable[tuple[str, Measured]]) -> list[dict[str, Any]]:
    """JSON-ready costs of blocks or layers."""
    return [{kind: name, **cost.to_json()} for name, cost in costs]


def ranked(costs: Mapping[str, Measured]) -> tuple[tuple[str, Measured], ...]:
    """The most expensive first, by the noise of the output with the most."""
    return tuple(sorted(costs.items(), key=lambda item: -max(_noise(item[1]).values())))


def keep_order(costs: Mapping[str, Measured]) -> list[str]:
    """The layers in the order in which to keep them: each time the one that adds most noise to the worst output.

    Assumes that the noise power of single layers adds up.
    """
    noise = {layer: _noise(cost) for layer, cost in costs.items()}
    left = {head: sum(values[head] for values in noise.values()) for head in HEADS}
    order = []
    while noise:
        head = max(left, key=lambda name: left[name])
        layer = max(noise, key=lambda name: noise[name][head])
        for name, value in noise.pop(layer).items():
            left[name] -= value
        order.append(layer)
    return order


def fewest(order: Sequence[str], good: Callable[[Sequence[str]], bool]) -> list[str]:
    """The shortest good prefix of ``order``, without the items that can be left out of it.

    All of ``order`` must be good. Assumes that every extension of a good prefix is good.
    """
    low, high = 0, len(order)  # the first ``high`` items are good, fewer than ``low`` are not
    while low < high:
        middle = (low + high) // 2
        if good(order[:middle]):
            high = middle
        else:
            low = middle + 1
    kept = list(order[:high])
    for name in reversed(order[:high]):
        rest = [other for other in kept if other != name]
        if len(rest) < len(kept) and good(rest):
            kept = rest
    return kept


def _noise(cost: Measured) -> dict[str, float]:
    """Noise power of each output relative to its signal, finite."""
    return {name: min(error**2, _BROKEN) for name, error in cost.relative_rms.items()}
