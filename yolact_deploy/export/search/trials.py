"""Runs graphs with some layers changed against the original graph on the CPU: raw outputs, detections, AP.

A change is emulated half precision or INT8. Each trial is a copy of the FP32 graph, changed in memory and opened in
ONNX Runtime; the same layers are never run twice.

Per image, the detections of the FP32 graph are kept with their masks as bits, and its raw outputs only if those are
compared: they are 4 MB at 320 x 320 and 12 MB at 550 x 550. Only one trial's graph is in memory at a time.

Legend: N images per call, S input side.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.datasets.image_sets import CocoImage, CocoImages
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ArtifactError
from yolact_deploy.evaluation.accuracy import AccuracyMeter, scoring_limit
from yolact_deploy.evaluation.agreement import SCORE_THRESHOLD, AgreementMeter
from yolact_deploy.evaluation.bootstrap import Interval, PairedBootstrap
from yolact_deploy.evaluation.matches import Matches
from yolact_deploy.evaluation.trunk_comparison import ErrorMeter, finite_or_none, sqnr_db
from yolact_deploy.graph.cpu_session import open_cpu_session
from yolact_deploy.graph.onnx_graph import copy_model, fit_trunk, mask_iou_net
from yolact_deploy.graph.trunk_graph import layer_names, select_layers, trunk_nodes
from yolact_deploy.mask_forms import MaskCrops, PackedMasks
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import HeadOutputs, HostTail

HEADS = HeadOutputs._fields

#: changes all layers of a ``ModelProto`` except the named ones, in place
Change = Callable[[Any, Sequence[str]], None]


@dataclass(frozen=True)
class Measured:
    """A graph against the FP32 graph, over all images.

    Attributes:
        relative_rms: error of boxes, scores, coeff and proto; empty if raw outputs were not compared
        agreement: share of the FP32 graph's detections that this graph has as well (same class, box IoU of 0.5 or
            more); None if the FP32 graph has none
        agreed: share of the detections of either graph on which both agree (same class, IoU of box and mask of 0.9 or
            more), see ``Agreement.agreed_share``; None if there are none
        ap: average precision, 0..1, of "box" and "mask"; empty without ground truth
        ap_drop: by how much AP is below that of the FP32 graph, 0..1
    """

    relative_rms: dict[str, float]
    agreement: float | None
    agreed: float | None = None
    ap: dict[str, float] = field(default_factory=dict)
    ap_drop: dict[str, float] = field(default_factory=dict)

    @property
    def least_sqnr_db(self) -> float:
        return min(sqnr_db(error) for error in self.relative_rms.values())

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"agreement": self.agreement, "agreed_share": self.agreed}
        if self.relative_rms:
            values["sqnr_db"] = {name: finite_or_none(sqnr_db(error)) for name, error in self.relative_rms.items()}
        if self.ap:
            values |= {"ap": self.ap, "ap_drop": self.ap_drop}
        return values


class Trials:
    """Runs graphs that keep some layers as they are in FP32, against the one that keeps all.

    Args:
        model: ``ModelProto`` in FP32, with or without its tail; it is not changed
        metadata: of the model
        images: images to run on
        change: changes all layers except those to keep
        always: layers, or modules that hold some, to keep in every trial
        raw_outputs: compare boxes, scores, coeff and proto as well
        threads: threads of ONNX Runtime
        source: what errors call the model

    Raises:
        ArtifactError: a graph without layers.
        DatasetError: annotations of classes that the model does not have.
        ExportError: a name in ``always`` that is no layer.
    """

    def __init__(
        self,
        model: Any,
        metadata: Metadata,
        images: CocoImages,
        change: Change,
        *,
        always: Sequence[str] = (),
        raw_outputs: bool = True,
        score_threshold: float = SCORE_THRESHOLD,
        threads: int | None = None,
        source: str = "the graph",
    ) -> None:
        self._category_ids = images.category_ids(metadata.config)
        self._backend = _MemoryBackend(metadata, mask_iou_net(model) if metadata.tail == "functions" else None)
        self._model = copy_model(model)
        fit_trunk(self._model)
        self.layers = layer_names(trunk_nodes(self._model.graph))
        if not self.layers:
            raise ArtifactError(f"{source} has no layers with weights: nothing to keep in FP32")
        self.always = frozenset(select_layers(always, self.layers))
        self.images, self._change, self._source = images, change, source
        self._raw_outputs, self._score_threshold, self._threads = raw_outputs, score_threshold, threads
        self._predictor = Predictor(self._backend, score_threshold=0.0)
        self._done: dict[frozenset[str], tuple[Measured, dict[str, Matches]]] = {}
        self.seconds = 0.0  #: that the last trial took
        self._expected: list[_Expected] = []
        self.reference = self._measure_reference()

    @property
    def trials(self) -> int:
        """Number of graphs that were run besides the FP32 one."""
        return len(self._done) - 1

    def run(self, kept: Sequence[str] | set[str]) -> Measured:
        """The graph with these layers in FP32."""
        key = self.always.union(kept)
        if key not in self._done:
            start = time.perf_counter()
            self._done[key] = self._compare(self._outputs(self._changed(sorted(key))))
            self.seconds = time.perf_counter() - start
        return self._done[key][0]

    def changed_by(self, change: Change) -> Trials:
        """Trials of another change of the same graph on the same images, without running the FP32 graph again."""
        other = copy.copy(self)
        every = frozenset(self.layers)
        other._change, other._done = change, {every: self._done[every]}
        return other

    def _changed(self, kept: Sequence[str]) -> Any:
        model = copy_model(self._model)
        self._change(model, kept)
        return model

    def expected(self, index: int) -> Detections:
        """The detections of the FP32 graph in an image."""
        return self._expected[index].detections()

    def tried(self) -> list[tuple[frozenset[str], Measured]]:
        """The layers kept in each trial and its result, without the FP32 graph itself."""
        return [(kept, measured) for kept, (measured, _) in self._done.items() if len(kept) < len(self.layers)]

    def intervals(self, kept: Sequence[str] | set[str]) -> dict[str, Interval]:
        """AP of the graph minus that of the FP32 graph with its 95 % interval, of "box" and "mask"; after ``run``."""
        matches, reference = self._done[self.always.union(kept)][1], self._done[frozenset(self.layers)][1]
        return {kind: PairedBootstrap(reference[kind]).difference(own) for kind, own in matches.items()}

    def _measure_reference(self) -> Measured:
        start = time.perf_counter()
        scores = self._accuracy_meter()
        for image, heads, found in self._outputs(self._model):
            self._expected.append(_Expected(heads if self._raw_outputs else None, _packed(found)))
            if scores:
                scores.add(image.image_id, found.to_coco(image.image_id, self._category_ids))
        ap, matches = _score(scores)
        self.seconds = time.perf_counter() - start
        judged = any(expected.packed.scores.max(initial=0) > self._score_threshold for expected in self._expected)
        share = 1.0 if judged else None
        same = Measured(
            dict.fromkeys(HEADS, 0.0) if self._raw_outputs else {}, share, share, ap, dict.fromkeys(ap, 0.0)
        )
        self._done[frozenset(self.layers)] = same, matches
        return same

    def _compare(
        self, outputs: Iterator[tuple[CocoImage, HeadOutputs, Detections]]
    ) -> tuple[Measured, dict[str, Matches]]:
        meters = {name: ErrorMeter() for name in HEADS} if self._raw_outputs else {}
        agreement = AgreementMeter(self._score_threshold)
        scores = self._accuracy_meter()
        for expected, (image, heads, found) in zip(self._expected, outputs, strict=True):
            for name, meter in meters.items():
                meter.add(getattr(expected.heads, name), getattr(heads, name))
            agreement.add(expected.detections(), found)
            if scores:
                scores.add(image.image_id, found.to_coco(image.image_id, self._category_ids))
        total = agreement.result()
        ap, matches = _score(scores)
        measured = Measured(
            {name: meter.relative_rms for name, meter in meters.items()},
            total.matched_share,
            total.agreed_share,
            ap,
            {kind: self.reference.ap[kind] - value for kind, value in ap.items()},
        )
        return measured, matches

    def _outputs(self, model: Any) -> Iterator[tuple[CocoImage, HeadOutputs, Detections]]:
        """Raw outputs [1, ...] and detections of each image."""
        source = f"{self._source}, changed in memory"
        self._backend.session = open_cpu_session(model.SerializeToString(), self._threads, source)
        del model
        step = self._backend.max_batch if self._backend.fixed_batch else 1
        for first in range(0, len(self.images), step):
            batch = self.images.images[first : first + step]
            pictures = [read_image(image.path) for image in batch]
            outputs = self._backend.run(self._predictor.preprocess(pictures))
            for i, (image, picture) in enumerate(zip(batch, pictures, strict=True)):
                # a copy: a view would hold the whole batch
                heads = HeadOutputs(*(values[i : i + 1].copy() for values in outputs))
                yield image, heads, self._predictor.postprocess(outputs, i, picture.shape)
        self._backend.session = None  # before the next graph is made

    def _accuracy_meter(self) -> AccuracyMeter | None:
        content = self.images.content
        limit = scoring_limit(self._backend.metadata.config)
        return None if content is None else AccuracyMeter(content, self.images.image_ids, max_detections=limit)


class _MemoryBackend(Backend):
    """Runs graphs in memory that end in heads in ONNX Runtime, one graph after the other."""

    name = "onnxruntime"

    def __init__(self, metadata: Metadata, mask_iou: Any) -> None:
        self.metadata, self.precision = replace(metadata, tail="heads"), metadata.precision
        self.tail = HostTail(metadata.config, mask_iou)
        self.session: Any = None

    def run(self, images: NDArray[Any]) -> HeadOutputs:
        return HeadOutputs(*self.session.run(None, {"images": images}))

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name}


@dataclass(frozen=True)
class _Expected:
    """Results of the FP32 graph for one image."""

    heads: HeadOutputs | None
    packed: Detections

    def detections(self) -> Detections:
        """With masks that are unpacked when they are asked for, and forgotten with what is returned."""
        return replace(self.packed)


def _packed(found: Detections) -> Detections:
    return replace(found, mask_data=pack_masks(found.crops))


def pack_masks(masks: MaskCrops) -> PackedMasks:
    """Masks at image size as one bit a pixel, each only where it has pixels."""
    windows, pieces, words = [], [np.zeros(0, np.uint8)], 0
    for (x, y), crop in zip(masks.offsets.tolist(), masks.crops, strict=True):
        height, width = crop.shape
        shift = x % 8 if width else 0
        rows = np.packbits(np.pad(crop, ((0, 0), (shift, 0))), axis=1)
        row_words = math.ceil(rows.shape[1] / 4)
        windows.append((x - shift, y, width + shift, height, row_words, words))
        pieces.append(np.pad(rows, ((0, 0), (0, 4 * row_words - rows.shape[1]))).ravel())
        words += height * row_words
    table = np.array(windows, np.int32).reshape(-1, 6)
    return PackedMasks(table, np.concatenate(pieces).view(np.uint32), masks.height, masks.width)


def _score(meter: AccuracyMeter | None) -> tuple[dict[str, float], dict[str, Matches]]:
    """AP of "box" and "mask" if there are objects, and the matches behind them."""
    if meter is None:
        return {}, {}
    result = meter.result()
    figures: Mapping[str, Any] = {"box": result.box, "mask": result.mask}
    ap = {kind: figure.ap for kind, figure in figures.items() if figure is not None and figure.ap is not None}
    return ap, {kind: matches for kind, matches in meter.matches().items() if kind in ap}


def least_decibels(cost: Measured) -> str:
    """The lowest signal-to-noise ratio of the outputs as text, with the name of the output."""
    name = max(cost.relative_rms, key=lambda head: cost.relative_rms[head])
    decibels = cost.least_sqnr_db
    if math.isinf(decibels):
        return "exact" if decibels > 0 else f"not finite ({name})"
    return f"{decibels:.1f} dB ({name})"
