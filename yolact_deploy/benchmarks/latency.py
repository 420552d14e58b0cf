"""Latency of the whole way from a picture's file to pasted masks.

Several models are measured in turns on each picture, in changing order, so that whatever else the machine does hits
all alike. All times are milliseconds.

The whole is the wall-clock time of one call. Its stages are timed inside the same calls, by the host's clock where the
host works and by the GPU's events where it does not wait, so that measuring them makes the whole no longer. What they
leave is unaccounted for: the predictor's own Python, freeing of memory, launches, and waiting. Encoding masks as COCO
RLE is no part of a call, and is timed after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.runtime.predictor import Predictor

MEBIBYTE = 1 << 20

#: called with the picture's number and what each model found, in the first round
OnResult = Callable[[int, dict[str, Detections]], None]


@dataclass(frozen=True)
class Latency:
    """Times of one model, one image a call.

    Attributes:
        samples: wall-clock time of each call, in the order of the pictures and rounds
        stages: mean time of each of the predictor's ``stages``, in their order
        stages_p50: median time of each
        encode_samples: time to encode the masks of each picture of the first round as COCO RLE, after the call
    """

    samples: tuple[float, ...]
    stages: dict[str, float]
    stages_p50: dict[str, float] = field(default_factory=dict)
    encode_samples: tuple[float, ...] = ()

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.samples, q))

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def mean(self) -> float:
        return sum(self.samples) / len(self.samples)

    @property
    def unaccounted_ms(self) -> float:
        """Mean time of a call that is in none of its stages."""
        return self.mean - sum(self.stages.values())

    @property
    def encode_ms(self) -> float | None:
        """Mean time to encode the masks of a picture, on top of the call; None where it was not measured."""
        return sum(self.encode_samples) / len(self.encode_samples) if self.encode_samples else None

    @property
    def images_per_second(self) -> float:
        return 1e3 / self.mean

    def to_json(self) -> dict[str, Any]:
        return {
            "p50_ms": self.p50,
            "p90_ms": self.percentile(90),
            "p99_ms": self.percentile(99),
            "mean_ms": self.mean,
            "images_per_s": self.images_per_second,
            "calls": len(self.samples),
            "stages_mean_ms": self.stages,
            "stages_p50_ms": self.stages_p50,
            "unaccounted_ms": self.unaccounted_ms,
            "encode_mean_ms": self.encode_ms,
        }


def measure(predictor: Predictor, images: Sequence[Path], *, warmup: int = 3, repeats: int = 1) -> Latency:
    """Latency of one model; see :func:`measure_interleaved`."""
    return measure_interleaved({"": predictor}, images, warmup=warmup, repeats=repeats)[""]


def measure_interleaved(
    predictors: Mapping[str, Predictor],
    images: Sequence[Path],
    *,
    warmup: int = 3,
    repeats: int = 1,
    on_result: OnResult | None = None,
    after_step: Callable[[int], None] | None = None,
    each: Callable[[Sequence[int]], Any] = iter,
) -> dict[str, Latency]:
    """Latency of several models on the same pictures.

    Args:
        predictors: with ``lazy_masks=False``, so that pasting is inside the call
        images: paths, so that decoding is inside the call
        warmup: calls of each model before the measurement
        repeats: rounds over all pictures
        on_result: gets the detections of the first round, outside the measured time
        after_step: is called with the number of each step when all models have run, outside the measured time
        each: wraps the sequence of steps (one a picture and round), to show progress

    Raises:
        InputError: no pictures, counts out of range, a picture that cannot be read, or lazy masks.
    """
    if not images or not predictors:
        raise InputError("nothing to measure: give at least one picture and one model")
    if warmup < 0 or repeats < 1:
        raise InputError(f"expected warmup >= 0 and repeats >= 1, got {warmup} and {repeats}")
    if any(predictor.lazy_masks for predictor in predictors.values()):
        raise InputError("lazy masks would leave pasting out of the measurement: load with lazy_masks=False")
    for predictor in predictors.values():
        warm_up(predictor, images, warmup)
    names = list(predictors)
    measured = {name: _Samples(predictors[name].stages) for name in names}
    for step in each(range(repeats * len(images))):
        turn, index = step % len(names), step % len(images)
        found = {}
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            found[name] = predictors[name](images[index])
            measured[name].add((time.perf_counter() - start) * 1e3, predictors[name].timings)
        if step < len(images):
            for name, detections in found.items():
                measured[name].encode(detections)
            if on_result is not None:
                on_result(index, found)
        if after_step is not None:
            after_step(step)
    return {name: samples.latency() for name, samples in measured.items()}


class _Samples:
    """What was measured of one model so far."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._whole: list[float] = []
        self._stages: dict[str, list[float]] = {stage: [] for stage in stages}
        self._encode: list[float] = []

    def add(self, whole: float, stages: Mapping[str, float]) -> None:
        """One call."""
        self._whole.append(whole)
        for stage, spent in self._stages.items():
            spent.append(stages[stage])

    def encode(self, found: Detections) -> None:
        """Time the encoding of what a call found."""
        start = time.perf_counter()
        found.rle()
        self._encode.append((time.perf_counter() - start) * 1e3)

    def latency(self) -> Latency:
        return Latency(
            tuple(self._whole),
            {stage: sum(spent) / len(spent) for stage, spent in self._stages.items()},
            {stage: float(np.median(spent)) for stage, spent in self._stages.items()},
            tuple(self._encode),
        )


def warm_up(predictor: Predictor, images: Sequence[Path], times: int) -> None:
    """Run the first pictures, so that start-up work is done; pictures repeat where there are fewer."""
    for i in range(times):
        predictor(images[i % len(images)])
