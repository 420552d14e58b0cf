"""Which layers' precision costs most, and the fewest layers to keep in FP32 so that a target is met.

The cost of a layer is measured alone: that layer in half precision, all others in FP32. Noise of single layers adds up
closely enough to say in which order to keep them; how many it takes is found by running the mixed graphs themselves.
They are emulated in ONNX Runtime on the CPU (see :func:`yolact_deploy.export.mixed_precision.lower_trunk`): operators
compute in FP32 and what enters and leaves them is rounded. An engine that fuses operators rounds less often, one that
also adds up in half precision is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.agreement import SCORE_THRESHOLD, AgreementMeter
from yolact_deploy.benchmarks.taps import open_cpu_session
from yolact_deploy.benchmarks.trunk import ErrorMeter, finite_or_none, sqnr_db
from yolact_deploy.console import progress
from yolact_deploy.detections import Detections
from yolact_deploy.errors import ArtifactError, InputError
from yolact_deploy.export.mixed_precision import LOW_TYPES, lower_trunk
from yolact_deploy.export.trunk_graph import layer_names, trunk_nodes
from yolact_deploy.runtime.backend import HeadOutputs
from yolact_deploy.runtime.onnx_graph import cut_tail, onnx_metadata, read_onnx
from yolact_deploy.runtime.predictor import Predictor

HEADS = HeadOutputs._fields
#: relative noise that stands for values that are not finite; larger than any that is
_BROKEN = 1e12


@dataclass(frozen=True)
class Target:
    """What a mixed-precision graph must reach; one of the two.

    Attributes:
        agreement: share of the FP32 graph's detections that are found, of the same class with a box IoU of 0.5 or more
        sqnr: decibels that each of boxes, scores, coeff and proto must have
    """

    agreement: float | None = None
    sqnr: float | None = None

    def __post_init__(self) -> None:
        if (self.agreement is None) == (self.sqnr is None):
            raise InputError("expected one target: a share of detections (--target-agreement) or decibels")
        if self.agreement is not None and not 0 < self.agreement <= 1:
            raise InputError(f"--target-agreement: expected 0 < share <= 1, got {self.agreement}")
        if self.sqnr is not None and not 0 < self.sqnr <= 120:
            raise InputError(f"--target-sqnr: expected 0 < dB <= 120 (the limit of FP32 itself), got {self.sqnr}")

    def met_by(self, found: Measured) -> bool:
        if self.sqnr is not None:
            return found.least_sqnr_db >= self.sqnr
        return found.agreement is None or found.agreement >= (self.agreement or 0)

    def __str__(self) -> str:
        if self.sqnr is not None:
            return f"{self.sqnr:g} dB in each output"
        return f"{100 * (self.agreement or 0):g} % of the detections"


@dataclass(frozen=True)
class Measured:
    """A graph against the FP32 graph, over all images.

    Attributes:
        relative_rms: of boxes, scores, coeff and proto
        agreement: share of the FP32 graph's detections that were found, None where it has none
    """

    relative_rms: dict[str, float]
    agreement: float | None

    @property
    def least_sqnr_db(self) -> float:
        return min(sqnr_db(error) for error in self.relative_rms.values())

    def to_json(self) -> dict[str, Any]:
        decibels = {name: finite_or_none(sqnr_db(error)) for name, error in self.relative_rms.items()}
        return {"sqnr_db": decibels, "agreement": self.agreement}


@dataclass(frozen=True)
class BisectResult:
    """Costs of all layers, and where there was a target the layers to keep.

    Attributes:
        costs: each layer in half precision alone, the most expensive first
        lowered: all layers in half precision
        keep_fp32: the layers to keep; none of them can be left out
        mixed: the graph that keeps them, as it ran; None without a target
    """

    model: str
    precision: str
    images: int
    costs: tuple[tuple[str, Measured], ...]
    lowered: Measured
    target: Target | None
    keep_fp32: tuple[str, ...]
    mixed: Measured | None

    def to_json(self) -> dict[str, Any]:
        target = self.target
        return {
            "model": self.model,
            "precision": self.precision,
            "images": self.images,
            "target": None if target is None else {"agreement": target.agreement, "sqnr_db": target.sqnr},
            "keep_fp32": list(self.keep_fp32),
            "mixed": None if self.mixed is None else self.mixed.to_json(),
            "lowered": self.lowered.to_json(),
            "costs": [{"layer": layer, **cost.to_json()} for layer, cost in self.costs],
        }


def bisect_precision(
    path: Path,
    predictor: Predictor,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    precision: str = "fp16",
    target: Target | None = None,
    score_threshold: float = SCORE_THRESHOLD,
    threads: int | None = None,
    quiet: bool = False,
) -> BisectResult:
    """Measure what each layer of an FP32 file costs in ``precision``, and find the layers to keep.

    Args:
        path: the FP32 file
        predictor: of the same network, for what comes before and after it; with score threshold 0
        pictures: BGR images
        precision: "fp16" or "bf16"

    Raises:
        ArtifactError: a file of another precision than FP32, or without layers.
        InputError: an unknown precision, or no pictures.
    """
    if precision not in LOW_TYPES:
        raise InputError(f"--bisect knows {' and '.join(LOW_TYPES)}, not {precision}")
    if not pictures:
        raise InputError("--bisect needs a picture at least: raise --layer-images")
    trial = _Trial(path, predictor, pictures, precision, score_threshold, threads)
    costs = {
        layer: trial.run(set(trial.layers) - {layer})
        for layer in progress(trial.layers, "measuring layers", quiet=quiet, unit="layers")
    }
    lowered = trial.run(set())
    keep: list[str] = []
    mixed = None
    if target is not None:
        keep = fewest(keep_order(costs), lambda kept: target.met_by(trial.run(set(kept))))
        mixed = trial.run(set(keep))
    ranked = tuple(sorted(costs.items(), key=lambda item: -max(_noise(item[1]).values())))
    return BisectResult(path.name, precision, len(pictures), ranked, lowered, target, tuple(keep), mixed)


def keep_order(costs: Mapping[str, Measured]) -> list[str]:
    """The layers in the order in which to keep them: each is the one that relieves the then worst output the most.

    Noise power of single layers is taken to add up.
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
    """The shortest beginning of ``order`` that is good, less every item that can be left out of it.

    All of ``order`` must be good, and what begins with something good is taken to be so.
    """
    low, high = 0, len(order)  # as many are good, and fewer than low are not
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


class _Trial:
    """Runs graphs of one file that keep some layers in FP32, against the one that keeps all."""

    def __init__(
        self,
        path: Path,
        predictor: Predictor,
        pictures: Sequence[NDArray[np.uint8]],
        precision: str,
        score_threshold: float,
        threads: int | None,
    ) -> None:
        model = read_onnx(path)
        metadata = onnx_metadata(model, path)
        if metadata.precision != "fp32":
            raise ArtifactError(f"{path} is {metadata.precision}: --bisect starts from FP32, export it with --fp32")
        if metadata.tail == "functions":
            cut_tail(model)
        self._model, self._path = model, path
        self._predictor, self._pictures = predictor, pictures
        self._precision, self._score_threshold, self._threads = precision, score_threshold, threads
        self.layers = layer_names(trunk_nodes(model.graph))
        if not self.layers:
            raise ArtifactError(f"{path} has no layers with weights: nothing to keep in FP32")
        self._measured: dict[frozenset[str], Measured] = {}
        self._expected = [(heads, self._detect(heads, i)) for i, heads in enumerate(self._outputs(model))]

    def run(self, kept: set[str]) -> Measured:
        """The graph with these layers in FP32; asking again costs nothing."""
        key = frozenset(kept)
        if key not in self._measured:
            model = type(self._model)()
            model.CopyFrom(self._model)
            lower_trunk(model, sorted(kept), precision=self._precision, emulate=True)
            self._measured[key] = self._compare(self._outputs(model))
        return self._measured[key]

    def _outputs(self, model: Any) -> list[HeadOutputs]:
        session = open_cpu_session(model.SerializeToString(), self._threads, str(self._path))
        inputs = (self._predictor.preprocess([picture]) for picture in self._pictures)
        return [HeadOutputs(*session.run(None, {"images": images})) for images in inputs]

    def _detect(self, heads: HeadOutputs, index: int) -> Detections:
        return self._predictor.postprocess(heads, 0, self._pictures[index].shape)

    def _compare(self, outputs: Sequence[HeadOutputs]) -> Measured:
        meters = {name: ErrorMeter() for name in HEADS}
        agreement = AgreementMeter(self._score_threshold)
        for i, ((expected, detections), found) in enumerate(zip(self._expected, outputs, strict=True)):
            for name, a, b in zip(HEADS, expected, found, strict=True):
                meters[name].add(a[:1], b[:1])
            agreement.add(detections, self._detect(found, i))
        errors = {name: meter.relative_rms for name, meter in meters.items()}
        return Measured(errors, agreement.result().matched_share)


def least_decibels(cost: Measured) -> str:
    """The lowest signal to noise ratio of the outputs as text, with the output that has it."""
    name = max(cost.relative_rms, key=lambda head: cost.relative_rms[head])
    decibels = cost.least_sqnr_db
    if math.isinf(decibels):
        return "exact" if decibels > 0 else f"not finite ({name})"
    return f"{decibels:.1f} dB ({name})"
