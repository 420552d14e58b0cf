"""Latency of the complete path from an image file to pasted masks, in milliseconds.

Several models take turns on each image, in changing order, so that other work on the machine affects all of them alike.

The whole is the wall-clock time of one call. Its stages are timed inside the same calls, by the host's clock where the
host works and by GPU events where the host does not wait, so timing them adds no synchronization. The remainder is
unaccounted for: the predictor's own Python, freeing memory, launches and waiting. Encoding masks as COCO RLE is not
part of a call and is timed after it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.benchmarks.record import Latency
from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.runtime.predictor import Image, Predictor

MEBIBYTE = 1 << 20

#: called with the index of the image and the detections of each model, in the first round
OnResult = Callable[[int, dict[str, Detections]], None]


def measure_interleaved(
    predictors: Mapping[str, Predictor],
    images: Sequence[Image | Path],
    *,
    warmup: int = 3,
    repeats: int = 1,
    on_result: OnResult = lambda index, detections: None,
    after_step: Callable[[int], None] = lambda step: None,
    each: Callable[[Sequence[int]], Any] = iter,
) -> dict[str, Latency]:
    """Latency of several models on the same images.

    Args:
        predictors: with ``lazy_masks=False``, so that pasting is inside the call
        images: paths, so that decoding is inside the call, or decoded images
        warmup: calls of each model before the measurement
        repeats: rounds over all images
        on_result: gets the detections of the first round, outside the measured time
        after_step: called with the number of each step when all models have run, outside the measured time
        each: wraps the sequence of steps (one per image and round), to show progress

    Raises:
        InputError: no images, counts out of range, an image that cannot be read, or lazy masks.
    """
    _check(predictors, images, warmup, repeats)
    with stages_on(predictors.values()):
        return _interleaved(predictors, images, warmup, repeats, on_result, after_step, each)


@contextlib.contextmanager
def stages_on(predictors: Iterable[Predictor]) -> Iterator[None]:
    """Time the stages on the GPU in the body of a ``with`` statement."""
    before = [(predictor, predictor.stage_times) for predictor in predictors]
    for predictor, _ in before:
        predictor.stage_times = True
    try:
        yield
    finally:
        for predictor, on in before:
            predictor.stage_times = on


def _interleaved(
    predictors: Mapping[str, Predictor],
    images: Sequence[Image | Path],
    warmup: int,
    repeats: int,
    on_result: OnResult,
    after_step: Callable[[int], None],
    each: Callable[[Sequence[int]], Any],
) -> dict[str, Latency]:
    for predictor in predictors.values():
        warm_up(predictor, images, warmup)
    names = list(predictors)
    measured = {name: _Samples(predictors[name].stages) for name in names}
    for step in each(range(repeats * len(images))):
        turn, index = step % len(names), step % len(images)
        detections = {}
        for name in names[turn:] + names[:turn]:
            detections[name] = measured[name].call(predictors[name], images[index])
        if step < len(images):
            for name, of_model in detections.items():
                measured[name].encode(of_model)
            on_result(index, detections)
        after_step(step)
    return {name: samples.latency() for name, samples in measured.items()}


def _check(predictors: Mapping[str, Predictor], images: Sequence[Image | Path], warmup: int, repeats: int) -> None:
    if not images or not predictors:
        raise InputError("nothing to measure: give at least one image and one model")
    if warmup < 0 or repeats < 1:
        raise InputError(f"expected warmup >= 0 and repeats >= 1, got {warmup} and {repeats}")
    if any(predictor.lazy_masks for predictor in predictors.values()):
        raise InputError("lazy masks would leave pasting out of the measurement: load with lazy_masks=False")


class _Samples:
    """Times of one model so far."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._whole: list[float] = []
        self._stages: dict[str, list[float]] = {stage: [] for stage in stages}
        self._encode: list[float] = []

    def call(self, predictor: Predictor, image: Image | Path) -> Detections:
        """Time one call."""
        start = time.perf_counter()
        detections = predictor(image)
        self._whole.append((time.perf_counter() - start) * 1e3)
        for stage, times in self._stages.items():
            times.append(predictor.timings[stage])
        return detections

    def encode(self, detections: Detections) -> None:
        """Time the encoding of one call's masks."""
        start = time.perf_counter()
        detections.rle()
        self._encode.append((time.perf_counter() - start) * 1e3)

    def latency(self) -> Latency:
        return Latency.of(
            tuple(self._whole),
            {stage: sum(times) / len(times) for stage, times in self._stages.items()},
            {stage: float(np.median(times)) for stage, times in self._stages.items()},
            sum(self._encode) / len(self._encode),
        )


def warm_up(predictor: Predictor, images: Sequence[Image | Path], times: int) -> None:
    """Run the first images, again and again where there are fewer, so that start-up work is done."""
    for i in range(times):
        predictor(images[i % len(images)])
