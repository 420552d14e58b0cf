"""The network as stages of a pipeline: prepare, run and finish batches of frames, each in a thread of its own.

A backend with a frame hook does all three on the GPU, where batches overlap by themselves: one stage feeds it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.streams.threaded_stages import ChannelIterator, Stage
from yolact_deploy.streams.timed_frames import Image

if TYPE_CHECKING:
    from yolact_deploy.runtime.backend import FrameHook
    from yolact_deploy.runtime.predictor import Predictor

_Item = TypeVar("_Item")
_Started = TypeVar("_Started")


@dataclass
class StreamFrame:
    """A frame on its way through the stages.

    Attributes:
        image: uint8 BGR [H, W, 3]
        tag: the caller's, untouched
        detections: once the last stage has made them
        drawn: the frame with detections on it, if a later stage draws
        spent: milliseconds of the predictor's stages, of a whole batch in its first frame and empty in the others
    """

    image: Image
    tag: Any = None
    detections: Detections | None = None
    drawn: Image | None = None
    spent: dict[str, float] = field(default_factory=dict)


def check_multiframe(model: Predictor, multiframe: int | None) -> int:
    """Frames a batch of a stream: by default one, or as many as a file of a fixed batch takes.

    Raises:
        InputError: more than the model takes.
    """
    most = model.backend.max_batch
    if multiframe is None:
        return most if model.backend.fixed_batch else 1
    if not 1 <= multiframe <= most:
        raise InputError(
            f"multiframe: this model takes batches of 1 to {most} images, got {multiframe}: export with a larger "
            "--batch"
        )
    return multiframe


def detect_stages(
    model: Predictor, batch: int, *, wait: bool = True, stopped: Callable[[], bool] = lambda: False
) -> tuple[Stage, ...]:
    """Stages from :class:`StreamFrame` without detections to the same with them, in order.

    Args:
        batch: frames at once
        wait: for full batches; live sources do not
        stopped: asked after each batch; True ends the stream with it
    """
    if model.slicing is not None:
        return (lambda jobs: _one_by_one(model, jobs, stopped),)
    hook = model._hook
    if hook is not None:
        return (lambda jobs: through_hook(model, hook, _batches(jobs, batch, wait), stopped),)

    def prepare(jobs: Iterator[StreamFrame]) -> Iterator[tuple[list[StreamFrame], Any, StageTimer]]:
        for group in _batches(jobs, batch, wait):
            for _, same in itertools.groupby(group, lambda job: model.config_for(job.image.shape).input_shape):
                together, timer = list(same), StageTimer(model.stages)
                with timer.stage("preprocess"):
                    inputs = model.preprocess([job.image for job in together])
                yield together, inputs, timer

    def run(prepared: Iterator[Any]) -> Iterator[tuple[list[StreamFrame], Any, StageTimer]]:
        for group, inputs, timer in prepared:
            yield group, model.run_prepared(inputs, timer), timer
            if stopped():
                return

    def finish(done: Iterator[Any]) -> Iterator[StreamFrame]:
        for group, outputs, timer in done:
            for index, job in enumerate(group):
                job.detections = model.postprocess(outputs, index, job.image.shape, timer, lazy_masks=False)
            group[0].spent = timer.spent
            yield from group

    return prepare, run, finish


def _one_by_one(model: Predictor, jobs: Iterable[StreamFrame], stopped: Callable[[], bool]) -> Iterator[StreamFrame]:
    """Each frame through a call of the predictor, which makes batches of its tiles."""
    for job in jobs:
        job.detections, job.spent = model(job.image), model.timings
        yield job
        if stopped():
            return


def in_lists(items: Iterable[StreamFrame], most: int) -> Iterator[list[StreamFrame]]:
    """The items in lists of up to ``most``."""
    items = iter(items)
    while group := list(itertools.islice(items, most)):
        yield group


def ahead(items: Iterable[_Item], start: Callable[[_Item], _Started], depth: int) -> Iterator[_Started]:
    """The results of ``start`` in order, each yielded once ``depth`` items are in flight or the last one is."""
    in_flight: deque[_Started] = deque()
    for item in items:
        in_flight.append(start(item))
        if len(in_flight) == depth:
            yield in_flight.popleft()
    yield from in_flight


def _batches(jobs: Iterator[StreamFrame], batch: int, wait: bool) -> Iterator[list[StreamFrame]]:
    assert isinstance(jobs, ChannelIterator)
    while group := jobs.take(batch, wait=wait):
        yield group


def through_hook(
    model: Predictor, hook: FrameHook, groups: Iterator[list[StreamFrame]], stopped: Callable[[], bool] = lambda: False
) -> Iterator[StreamFrame]:
    """Batches through a frame hook, several in flight."""

    def start(group: list[StreamFrame]) -> tuple[list[StreamFrame], Any, StageTimer]:
        timer = StageTimer(model.stages)
        return group, model._submit(hook, [job.image for job in group], timer), timer

    for group, ticket, timer in ahead(groups, start, hook.depth):
        for job, detections in zip(group, model._collect(ticket, timer), strict=True):
            job.detections = detections
        group[0].spent = timer.spent
        yield from group
        if stopped():
            return
