"""The network as stages of a pipeline: prepare, run and finish batches of frames, each in a thread of its own.

A backend with a frame hook does all three on the GPU, where batches overlap by themselves: one stage feeds it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import Outputs
from yolact_deploy.streams.threaded_stages import ChannelIterator, Stage
from yolact_deploy.streams.timed_frames import Image

if TYPE_CHECKING:
    from yolact_deploy.runtime.backend import FrameHook
    from yolact_deploy.runtime.predictor import Predictor

#: batches of a stream after which a network for several threads is loaded: shorter streams would not regain the time
_BATCHES_ALONE = 32
#: most batches that a CPU computes at the same time: each holds its own intermediate tensors
_BATCHES_AT_ONCE = 4

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


class _Prepared(NamedTuple):
    """A batch that the network takes."""

    group: list[StreamFrame]
    inputs: NDArray[Any]
    timer: StageTimer


class _Ran(NamedTuple):
    """A batch with the network's outputs."""

    group: list[StreamFrame]
    outputs: Outputs
    timer: StageTimer


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

    def prepare(jobs: Iterator[StreamFrame]) -> Iterator[_Prepared]:
        for group in _batches(jobs, batch, wait):
            for _, same in itertools.groupby(group, lambda job: model.config_for(job.image.shape).input_shape):
                together, timer = list(same), StageTimer(model.stages)
                with timer.stage("preprocess"):
                    inputs = model.preprocess([job.image for job in together])
                yield _Prepared(together, inputs, timer)

    def run(prepared: Iterator[_Prepared]) -> Iterator[_Ran]:
        for ran in _run(model, prepared, several=wait):
            yield ran
            if stopped():
                return

    def finish(done: Iterator[_Ran]) -> Iterator[StreamFrame]:
        for group, outputs, timer in done:
            for index, job in enumerate(group):
                job.detections = model.postprocess(outputs, index, job.image.shape, timer, lazy_masks=False)
            group[0].spent = timer.spent
            yield from group

    return prepare, run, finish


def _run(model: Predictor, prepared: Iterator[_Prepared], *, several: bool) -> Iterator[_Ran]:
    """Batches through the network, in order; from :data:`_BATCHES_ALONE` on ``several`` at once, where it pays."""
    alone = _BATCHES_ALONE if several and not model.has_several else 0
    for group, inputs, timer in itertools.islice(prepared, alone) if several else prepared:
        yield _Ran(group, model.run_prepared(inputs, timer), timer)
    following = next(prepared, None)
    if following is None:
        return
    prepared = itertools.chain([following], prepared)
    backend = model.several(_BATCHES_AT_ONCE)
    if backend is None:
        yield from _run(model, prepared, several=False)
        return
    threads = ThreadPoolExecutor(backend.callers, "yolact-network")

    def start(batch: _Prepared) -> tuple[_Prepared, Future[Outputs]]:
        return batch, threads.submit(model.run_prepared, batch.inputs, batch.timer, backend)

    try:
        # One more waits, so that no caller does where a batch takes longer than the next one.
        for batch, outputs in ahead(prepared, start, backend.callers + 1):
            yield _Ran(batch.group, outputs.result(), batch.timer)
    finally:
        threads.shutdown(cancel_futures=True)


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
