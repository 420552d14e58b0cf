"""Compares two networks tensor by tensor through the trunk: the first layer that differs, and those that differ most.

Tensors are read in portions, so that not all are in memory at once; each portion is a run of both networks.

Legend: N images, S input side. Names are those of :mod:`yolact_deploy.graph.trunk_graph`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import InputError
from yolact_deploy.evaluation.taps import INPUT, Tap
from yolact_deploy.progress import SILENT, Progress

#: maximum relative RMS error of a layer; 34 dB. Rounding gives up to 1e-5 in FP32 and 1e-2 in FP16
LAYER_THRESHOLD = 0.02
#: memory of the tensors read at once, on both sides together
MEMORY_BYTES = 256 << 20


@dataclass(frozen=True)
class LayerError:
    """The error of one tensor against the reference, over all images.

    Attributes:
        name: name of the layer, or of an operation that follows it (``proto_net.10/Relu``)
        max_error: largest absolute difference
        relative_rms: root mean square of the difference over that of the reference; infinite if the engine has values
            that are not finite where those of the reference are
    """

    name: str
    max_error: float
    relative_rms: float

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio in decibels; infinite if nothing differs."""
        return sqnr_db(self.relative_rms)

    def to_json(self) -> dict[str, Any]:
        figures = {"max_error": self.max_error, "relative_rms": self.relative_rms, "sqnr_db": self.sqnr_db}
        return {"name": self.name, **{key: finite_or_none(value) for key, value in figures.items()}}


@dataclass(frozen=True)
class TrunkComparison:
    """The tensors of two trunks, in the order in which the reference computes them.

    Attributes:
        unmatched: number of tensors that only one of the two has, for example because an operation was fused
    """

    images: int
    threshold: float
    layers: tuple[LayerError, ...]
    unmatched: int

    @property
    def first_over(self) -> LayerError | None:
        """The first tensor whose relative RMS error is over the threshold."""
        return next((layer for layer in self.layers if not layer.relative_rms <= self.threshold), None)

    def worst(self, count: int) -> list[LayerError]:
        """The tensors with the largest relative RMS error, the worst first."""
        return sorted(self.layers, key=lambda layer: -layer.relative_rms)[:count]

    def to_json(self) -> dict[str, Any]:
        first = self.first_over
        return {
            "images": self.images,
            "threshold": self.threshold,
            "first_over": None if first is None else first.name,
            "unmatched": self.unmatched,
            "layers": [layer.to_json() for layer in self.layers],
        }


def sqnr_db(relative_rms: float) -> float:
    """Relative RMS error as signal-to-noise ratio in decibels.

    >>> sqnr_db(0.01)
    40.0
    """
    if relative_rms == 0:
        return math.inf
    return -math.inf if math.isinf(relative_rms) else -20 * math.log10(relative_rms)


def finite_or_none(value: float) -> float | None:
    """The value, or None if it is not finite, since JSON has no infinity."""
    return value if math.isfinite(value) else None


class ErrorMeter:
    """Accumulates the difference of one tensor over images."""

    def __init__(self) -> None:
        self._max, self._noise, self._signal = 0.0, 0.0, 0.0

    def add(self, expected: NDArray[Any], actual: NDArray[Any]) -> None:
        """Add the tensors of one image, in any floating type."""
        reference = expected.astype(np.float64)
        with np.errstate(invalid="ignore"):
            difference = np.abs(actual - reference)
        if not np.isfinite(difference).all():
            difference = np.where(np.isfinite(reference) & ~np.isfinite(difference), np.inf, 0.0)
        self._max = max(self._max, float(difference.max(initial=0)))
        self._noise += float(np.square(difference).sum())
        self._signal += float(np.square(reference[np.isfinite(reference)]).sum())

    def error(self, name: str) -> LayerError:
        return LayerError(name, self._max, self.relative_rms)

    @property
    def relative_rms(self) -> float:
        if self._noise == 0:
            return 0.0
        return math.sqrt(self._noise / self._signal) if self._signal else math.inf


def compare_trunks(
    reference: Tap,
    engine: Tap,
    images: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    *,
    threshold: float = LAYER_THRESHOLD,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress = SILENT,
) -> TrunkComparison:
    """Compare the tensors that both networks have.

    Args:
        images: the inputs [N, S, S, 3] of both; only the first image of each counts
        memory_bytes: memory of the tensors read at once; a single tensor may be larger

    Raises:
        InputError: the trunks have nothing in common.
    """
    pairs = _aligned(reference, engine)
    meters = {name: ErrorMeter() for name, _ in pairs}
    portions = list(_portions(pairs, reference, engine, memory_bytes))
    for portion in progress.track(portions, "comparing layers", unit="portions"):
        ours, theirs = zip(*portion, strict=True)
        with reference.open(ours) as read_reference, engine.open(theirs) as read_engine:
            for a, b in images:
                expected, actual = read_reference(a), read_engine(b)
                for name, other in portion:
                    _check_shapes(name, expected[name], actual[other])
                    meters[name].add(expected[name][:1], actual[other][:1])
    layers = tuple(meter.error(name) for name, meter in meters.items())
    unmatched = len(reference.sizes) + len(engine.sizes) - 2 * len(pairs)
    return TrunkComparison(len(images), threshold, layers, unmatched)


def _aligned(reference: Tap, engine: Tap) -> list[tuple[str, str]]:
    """Pairs of names of the same tensor on both sides: by name, or in order if only the operators are the same."""
    common = [(name, name) for name in reference.sizes if name in engine.sizes]
    if len(common) > 1:  # the input has the same name everywhere
        return common
    if reference.kinds == engine.kinds:
        return list(zip(reference.sizes, engine.sizes, strict=True))
    raise InputError(
        f"the two trunks have no layer in common (the first are {_first_layer(reference)} and {_first_layer(engine)}): "
        "compare files of the same network, or leave the layers out with --layer-images 0"
    )


def _first_layer(tap: Tap) -> str:
    return next((name for name in tap.sizes if name != INPUT), "none")


def _portions(
    pairs: Sequence[tuple[str, str]], reference: Tap, engine: Tap, memory_bytes: int
) -> Iterator[list[tuple[str, str]]]:
    portion: list[tuple[str, str]] = []
    used = 0
    for name, other in pairs:
        size = reference.sizes[name] + engine.sizes[other]
        if portion and used + size > memory_bytes:
            yield portion
            portion, used = [], 0
        portion.append((name, other))
        used += size
    yield portion


def _check_shapes(name: str, expected: NDArray[Any], actual: NDArray[Any]) -> None:
    if expected.shape[1:] != actual.shape[1:]:
        raise InputError(
            f"{name} is {list(expected.shape[1:])} in one trunk and {list(actual.shape[1:])} in the other: compare "
            "files of the same network and input size"
        )
