"""Finds the fewest layers to keep in FP32 so that a quantized network keeps within a limit, in few trials.

INT8 in all layers is measured first; if that is enough, nothing else runs. Otherwise the noise of each block alone
decides in which order to keep blocks, and trials find the fewest that must be kept. Only the layers of these blocks are
measured alone, and the fewest of them are found in the same way. Each decision about the limit is a run of the mixed
graph itself over the judged images, and the last run is the proof.

The judged images both choose the layers and prove the result. So its figures are slightly better than on other images;
the more images, the smaller the difference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from yolact_deploy.artifact import Metadata
from yolact_deploy.datasets.calibration_images import spread
from yolact_deploy.datasets.image_sets import CocoImages, plain_images
from yolact_deploy.errors import GateError, InputError
from yolact_deploy.evaluation.bootstrap import Interval
from yolact_deploy.export.calibration import Calibration
from yolact_deploy.export.search.bisect import Target, costs_json, fewest, keep_order, measure_alone, ranked, worst_drop
from yolact_deploy.export.search.changes import int8
from yolact_deploy.export.search.trials import Measured, Trials, least_decibels
from yolact_deploy.graph.onnx_int8 import wants_unsigned
from yolact_deploy.graph.trunk_graph import layer_blocks
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress

#: images on which the noise of blocks and layers is measured; it varies little from image to image
RANKING_IMAGES = 4


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        precision: precision of the layers that are not kept
        ranking_images: number of images on which the noise of blocks and layers was measured
        judged_images: number of images on which the limit was judged
        fp32, lowered, mixed: the FP32 graph, the one with all layers in the precision, and the resulting one
        signed: the last one as runtimes with signed activations compute it, if they differ
        lowered_intervals, mixed_intervals, signed_intervals: AP minus that of the FP32 graph with its 95 % interval;
            empty without ground truth
        layers: number of layers of the network
        blocks: each block in the precision alone, the most expensive first; empty if ``lowered`` met the target
        costs: each layer of the blocks to keep, in the precision alone, the most expensive first
        keep_fp32: the layers to keep; none of them can be left out
        always: layers that the user keeps, whatever they cost
        trials: number of graphs that were run
    """

    precision: str
    target: Target
    ranking_images: int
    judged_images: int
    fp32: Measured
    lowered: Measured
    mixed: Measured
    signed: Measured | None
    lowered_intervals: dict[str, Interval]
    mixed_intervals: dict[str, Interval]
    signed_intervals: dict[str, Interval]
    layers: int
    blocks: tuple[tuple[str, Measured], ...]
    costs: tuple[tuple[str, Measured], ...]
    keep_fp32: tuple[str, ...]
    always: tuple[str, ...]
    trials: int
    seconds: float

    @property
    def reasons(self) -> dict[str, str]:
        """The layers to keep, each with the reason."""
        alone = dict(self.costs)
        return {
            layer: f"{self.target}; {self.precision} in this layer alone: {least_decibels(alone[layer])}"
            for layer in self.keep_fp32
        }

    def to_json(self) -> dict[str, Any]:
        def side(measured: Measured, intervals: dict[str, Interval]) -> dict[str, Any]:
            differences = {kind: interval.to_json() for kind, interval in intervals.items()}
            return {**measured.to_json(), **({"ap_difference": differences} if differences else {})}

        return {
            "keep_fp32": [*self.always, *self.keep_fp32],
            "found": list(self.keep_fp32),
            "precision": self.precision,
            "target": self.target.to_json(),
            "layers": self.layers,
            "ranking_images": self.ranking_images,
            "judged_images": self.judged_images,
            "fp32": side(self.fp32, {}),
            "lowered": side(self.lowered, self.lowered_intervals),
            "mixed": side(self.mixed, self.mixed_intervals),
            "signed": None if self.signed is None else side(self.signed, self.signed_intervals),
            "blocks": costs_json("block", self.blocks),
            "costs": costs_json("layer", self.costs),
            "trials": self.trials,
            "seconds": round(self.seconds, 1),
        }


def search_int8_layers(
    graph: Any,
    metadata: Metadata,
    calibration: Calibration,
    pictures: Sequence[Path],
    judged: CocoImages,
    target: Target,
    *,
    form: str,
    rest: str = "fp32",
    progress: Progress = SILENT,
) -> SearchResult:
    """Find the layers of an FP32 graph to keep in FP32 when it is quantized; see :func:`search_layers`.

    Args:
        graph: ``ModelProto`` in FP32; it is not changed
        metadata: of the graph; what its ``keep_fp32`` names is kept in every trial
        pictures: those of the calibration; the noise of layers is measured on a few of them
        judged: images that the target is about
        form: one of :data:`yolact_deploy.vocabulary.QUANTIZATION_FORMS`
        rest: one of :data:`yolact_deploy.vocabulary.INT8_RESTS`
    """
    change, always = int8(calibration, form, rest=rest), metadata.keep_fp32
    few = plain_images(_readable(pictures, RANKING_IMAGES))
    ranking = Trials(graph, metadata, few, change, always=always)
    judging = Trials(graph, metadata, judged, change, always=always, raw_outputs=False)
    signed = None
    if form == "symmetric" and wants_unsigned():
        signed = judging.changed_by(int8(calibration, form, unsigned=False, rest=rest))
    return search_layers(ranking, judging, target, signed=signed, progress=progress)


def _readable(pictures: Sequence[Path], count: int) -> list[Path]:
    """Up to ``count`` readable pictures from all over the list; a calibration skips those that cannot be read."""
    readable: list[Path] = []
    for path in dict.fromkeys([*spread(pictures, count), *pictures]):
        try:
            read_image(path)
        except InputError:
            continue
        readable.append(path)
        if len(readable) == count:
            break
    return readable


def search_layers(
    ranking: Trials,
    judging: Trials,
    target: Target,
    *,
    signed: Trials | None = None,
    precision: str = "int8",
    progress: Progress = SILENT,
) -> SearchResult:
    """Find the layers to keep in FP32.

    Args:
        ranking: trials with raw outputs, on a few images
        judging: trials of the same graph, on the images that the target is about
        signed: the same as runtimes with signed activations compute it. The result must meet the target there as well.
            These are slow, so they run once, and more often only if it does not
        progress: also gets a note before each long step

    Raises:
        DatasetError: images on which the target cannot be judged.
        GateError: no graph with any layer in the precision meets the target; the message describes the best one.
    """
    start = time.perf_counter()
    target.check_measurable(judging.reference)
    free = [layer for layer in judging.layers if layer not in judging.always]
    lowered = judging.run(())
    kept = _Kept()
    if not target.met_by(lowered):
        kept = _search_blocks(ranking, (judging,), free, target, precision, lowered, progress)
    if signed is not None and not target.met_by(signed.run(kept.layers)):
        progress.note("with signed activations, as in TensorRT and OpenVINO, that is not enough")
        kept = _search_blocks(ranking, (judging, signed), free, target, precision, signed.run(()), progress)
    if len(kept.layers) == len(free) > 0:
        raise GateError(_unreachable(judging, target, precision))
    return _result(precision, target, ranking, judging, signed, kept, time.perf_counter() - start)


class _Kept(NamedTuple):
    """Layers to keep in FP32, and the costs by which they were chosen."""

    layers: Sequence[str] = ()
    blocks: Mapping[str, Measured] = MappingProxyType({})
    costs: Mapping[str, Measured] = MappingProxyType({})


def _result(
    precision: str, target: Target, ranking: Trials, judging: Trials, signed: Trials | None, kept: _Kept, seconds: float
) -> SearchResult:
    return SearchResult(
        precision=precision,
        target=target,
        ranking_images=len(ranking.images),
        judged_images=len(judging.images),
        fp32=judging.reference,
        lowered=judging.run(()),
        mixed=judging.run(kept.layers),
        signed=None if signed is None else signed.run(kept.layers),
        lowered_intervals=judging.intervals(()),
        mixed_intervals=judging.intervals(kept.layers),
        signed_intervals={} if signed is None else signed.intervals(kept.layers),
        layers=len(judging.layers),
        blocks=ranked(kept.blocks),
        costs=ranked(kept.costs),
        keep_fp32=tuple(layer for layer in judging.layers if layer in kept.layers),
        always=tuple(layer for layer in judging.layers if layer in judging.always),
        trials=sum(trials.trials for trials in (ranking, judging, signed) if trials is not None),
        seconds=seconds,
    )


def _search_blocks(
    ranking: Trials,
    judges: Sequence[Trials],
    free: Sequence[str],
    target: Target,
    precision: str,
    loss: Measured,
    progress: Progress,
) -> _Kept:
    """The fewest blocks to keep, and the fewest layers in them.

    Args:
        judges: trials that must all meet the target
        free: layers that may be lowered
        loss: result with all of them lowered
    """
    groups = layer_blocks(free)
    progress.note(
        f"{precision} in all {len(free)} layers: {shortfall(loss)}; required: {target}. Searching for the layers "
        f"to keep, about {_estimate(ranking, judges, len(groups), len(free))}"
    )
    blocks = measure_alone(ranking, groups, "measuring blocks", progress)
    chosen = _search(keep_order(blocks), groups, judges, target, "searching blocks", progress)
    inside = {layer: [layer] for block in chosen for layer in groups[block]}
    costs = measure_alone(ranking, inside, "measuring layers", progress)
    return _Kept(_search(keep_order(costs), inside, judges, target, "searching layers", progress), blocks, costs)


def shortfall(measured: Measured) -> str:
    """What a graph loses against FP32, in words."""
    parts = [
        f"{kind} AP {100 * value:.2f} ({0 - 100 * measured.ap_drop[kind]:+.2f})"
        for kind, value in sorted(measured.ap.items())
    ]
    if measured.agreed is not None:
        parts.append(f"agrees with FP32 on {100 * measured.agreed:.1f} % of the detections")
    return ", ".join(parts)


def _search(
    order: Sequence[str],
    groups: dict[str, list[str]],
    judges: Sequence[Trials],
    target: Target,
    description: str,
    progress: Progress,
) -> list[str]:
    """The fewest groups to keep; see :func:`~yolact_deploy.export.search.bisect.fewest`."""
    most = _most_trials(len(order))
    with progress.steps(f"{description} on {len(judges[0].images)} images") as step:
        done = 0

        def good(names: Sequence[str]) -> bool:
            nonlocal done
            step(f"{len(names)} kept", min(done, most), most)
            done += 1
            kept = [layer for name in names for layer in groups[name]]
            return all(target.met_by(trials.run(kept)) for trials in judges)

        return fewest(order, good)


def _most_trials(items: int) -> int:
    """Number of trials of a search that keeps about a fifth of the items."""
    return math.ceil(math.log2(items + 1)) + math.ceil(items / 5)


def _estimate(ranking: Trials, judges: Sequence[Trials], blocks: int, layers: int) -> str:
    """Time that a search needs, in words; assumes that half of the layers are in the blocks to keep."""
    seconds = (blocks + layers / 2) * ranking.seconds
    seconds += (_most_trials(blocks) + _most_trials(layers // 2)) * sum(trials.seconds for trials in judges)
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"


def _unreachable(judging: Trials, target: Target, precision: str) -> str:
    def loss(measured: Measured) -> tuple[float, float]:
        return worst_drop(measured), -(measured.agreed or 0.0)

    kept, best = min(judging.tried(), key=lambda trial: loss(trial[1]))
    left = len(judging.layers) - len(kept)
    layers = "one layer" if left == 1 else f"{left} layers"
    return (
        f"{target}: not reached with any layer in {precision}, so nothing was written. The best graph tried has "
        f"{layers} of {len(judging.layers)} in {precision}: {shortfall(best)}. Relax the limit, calibrate on more "
        "images or with another method, or export with --fp16 or --bf16"
    )
