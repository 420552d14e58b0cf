"""The predictors of one model behind a bounded queue, each in a thread of its own.

On the CPU, N networks with one thread each beat one network with N threads, and batches gain nothing: each thread
decodes, detects and encodes one picture after the other. On a GPU one network takes batches: pictures are decoded and
answers encoded by other threads, and the network's thread collects what is ready, up to a time limit.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError, YolactDeployError
from yolact_deploy.loading import ModelSpec, load
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import Outputs, output_axes
from yolact_deploy.serving.kserve_tensors import datatype
from yolact_deploy.serving.service_errors import RequestError, bad_request, ending, overloaded, too_late
from yolact_deploy.serving.service_metrics import ServiceMetrics
from yolact_deploy.serving.service_settings import ServiceSettings

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]


@dataclass(eq=False)
class Job:
    """One picture, or one input of the network, on its way through a pool.

    Attributes:
        deadline: seconds of ``time.monotonic``
        decode: gives the picture, uint8 BGR [H, W, 3], or raises :class:`InputError` or :class:`RequestError`
        encode: makes the answer of the picture, its detections and the milliseconds of its stages
        tensors: an input of the network [N, S, S, 3] instead of a picture; the answer is the network's outputs and the
            milliseconds of its stages
        answer: what ``encode`` returned, or the error
    """

    deadline: float
    decode: Callable[[], Image] | None = None
    encode: Callable[[Image, Detections, dict[str, float]], Any] | None = None
    tensors: NDArray[Any] | None = None
    answer: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)
    image: Image | None = None


class ModelPool:
    """The predictors of one model.

    Args:
        name: of the model, for metrics and errors
        spelling: of the model, as :func:`yolact_deploy.load` takes it

    Raises:
        YolactDeployError: the model cannot be loaded.
    """

    def __init__(self, name: str, spelling: str, settings: ServiceSettings, metrics: ServiceMetrics) -> None:
        self.name, self.settings, self._metrics = name, settings, metrics
        self._predictors = _load_all(spelling, settings)
        first = self._predictors[0]
        self.metadata, self.config = first.backend.metadata, first.config
        self.description = first.backend.describe()
        limit = first.backend.max_batch
        #: largest batch of one call of the network
        self.max_batch = min(settings.max_batch or (limit if _on_gpu(first) else 1), limit)
        self.network_batch, self.fixed_batch = limit, first.backend.fixed_batch
        self.tail = first.backend.tail.name
        #: datatype of KServe and shape behind the batch axis of each output of the network, if it can be called alone;
        #: -1 depends on the size of the input
        self.network_outputs = _network_outputs(first)
        self._ready: queue.Queue[Job | None] = queue.Queue()
        self._lock, self._waiting, self._closed = threading.Lock(), 0, False
        self._idle = threading.Condition(self._lock)
        # Pictures are decoded ahead of the network only where it takes batches.
        self._helpers = ThreadPoolExecutor(usable_cores(), f"{name}-codec") if self.max_batch > 1 else None
        self._decoded = threading.Semaphore(2 * self.max_batch * len(self._predictors))
        self._threads = [
            threading.Thread(target=self._work, args=(predictor,), name=f"{name}-{i}", daemon=True)
            for i, predictor in enumerate(self._predictors)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def predictors(self) -> int:
        return len(self._predictors)

    @property
    def waiting(self) -> int:
        """Accepted pictures that are not finished."""
        return self._waiting

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether the network has an input of this height and width."""
        sizes = self.metadata.sizes
        return shape == self.config.input_shape or (sizes is not None and len(shape) == 2 and sizes.holds(shape))

    def submit(self, *jobs: Job) -> None:
        """Accept all jobs, or none.

        Raises:
            RequestError: the queue has no room, or the pool is closed.
        """
        room = self.settings.queue + len(self._predictors) * self.max_batch
        with self._lock:
            if self._closed:
                raise ending()
            if self._waiting + len(jobs) > room:
                raise overloaded()
            self._waiting += len(jobs)
        self._metrics.waiting.labels(self.name).inc(len(jobs))
        for job in jobs:
            if self._helpers is not None and job.tensors is None:
                self._helpers.submit(self._decode_ahead, job)
            else:
                self._ready.put(job)

    def close(self) -> None:
        """Refuse new jobs, finish the accepted ones, and free the networks."""
        with self._lock:
            self._closed = True
            self._idle.wait_for(lambda: self._waiting == 0, timeout=self.settings.shutdown_s)
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join(self.settings.shutdown_s)
        if self._helpers is not None:
            self._helpers.shutdown(cancel_futures=True)
        if not any(thread.is_alive() for thread in self._threads):
            for predictor in self._predictors:
                predictor.close()

    # -- in the threads ---------------------------------------------------------------------------------------------

    def _work(self, predictor: Predictor) -> None:
        while (batch := self._next_batch()) is not None:
            self._run_safely(predictor, batch)

    def _next_batch(self) -> list[Job] | None:
        """Wait for a job, and collect others until the batch is full or its time is over."""
        first = self._ready.get()
        if first is None:
            return None
        batch, end = [first], time.monotonic() + self.settings.max_delay_ms / 1e3
        while first.tensors is None and len(batch) < self.max_batch:
            try:
                job = self._ready.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if job is None or job.tensors is not None:
                self._ready.put(job)
                break
            batch.append(job)
        return batch

    def _run_safely(self, predictor: Predictor, batch: Sequence[Job]) -> None:
        try:
            self._run(predictor, batch)
        except Exception as error:  # the thread has to live on
            _log.exception("internal error in %s", self.name)
            for job in batch:
                self._fail(job, error)

    def _run(self, predictor: Predictor, batch: Sequence[Job]) -> None:
        if self._helpers is None:
            jobs = [job for job in batch if self._start(job) and (job.tensors is not None or self._decode(job))]
        else:
            jobs = [job for job in batch if job.tensors is None or self._start(job)]
            for job in jobs:
                if job.tensors is None:
                    self._decoded.release()
        if not jobs:
            return
        if jobs[0].tensors is not None:
            self._run_network(predictor, jobs[0])
            return
        try:
            results = predictor([job.image for job in jobs if job.image is not None])
        except YolactDeployError as error:
            for job in jobs:
                self._fail(job, error)
            return
        self._metrics.batch_size.labels(self.name).observe(len(jobs))
        for job, detections in zip(jobs, results, strict=True):
            job.spent.update({stage: ms / len(jobs) for stage, ms in predictor.timings.items() if stage != "decode"})
            if self._helpers is None:
                self._encode(job, detections)
            else:
                self._helpers.submit(self._encode, job, detections)

    def _run_network(self, predictor: Predictor, job: Job) -> None:
        assert job.tensors is not None
        timer = StageTimer()
        try:
            outputs: Outputs = predictor.backend.run_timed(job.tensors, timer)
        except YolactDeployError as error:
            self._fail(job, error)
            return
        self._finish(job, lambda: job.answer.set_result((outputs, timer.spent)))

    def _decode_ahead(self, job: Job) -> None:
        """On a helper's thread: at most so many pictures are decoded as the next batches need."""
        self._decoded.acquire()
        if self._start(job) and self._decode(job):
            self._ready.put(job)
        else:
            self._decoded.release()

    def _start(self, job: Job) -> bool:
        """Whether the job is still wanted: its client is there, and its time is not over."""
        if not job.answer.set_running_or_notify_cancel():
            self._leave()
            return False
        if time.monotonic() > job.deadline:
            self._fail(job, too_late(self.settings.timeout_s))
            return False
        job.spent["queue"] = (time.monotonic() - job.arrived) * 1e3
        return True

    def _decode(self, job: Job) -> bool:
        assert job.decode is not None
        try:
            with _timed(job.spent, "decode"):
                job.image = job.decode()
        except InputError as error:
            self._fail(job, bad_request(str(error), reason="picture"))
        except Exception as error:
            self._fail(job, error)
        return job.image is not None

    def _encode(self, job: Job, detections: Detections) -> None:
        assert job.encode is not None
        assert job.image is not None
        try:
            with _timed(job.spent, "encode"):
                answer = job.encode(job.image, detections, job.spent)
        except Exception as error:
            self._fail(job, error)
            return
        self._metrics.detections.labels(self.name).inc(len(detections))
        self._finish(job, lambda: job.answer.set_result(answer))

    def _fail(self, job: Job, error: BaseException) -> None:
        if job.answer.done():
            return
        if not isinstance(error, RequestError):
            self._metrics.failures.labels(self.name).inc()
        self._finish(job, lambda: job.answer.set_exception(error))

    def _finish(self, job: Job, answer: Callable[[], None]) -> None:
        self._metrics.pictures.labels(self.name).inc()
        for stage, ms in job.spent.items():
            self._metrics.stage_seconds.labels(self.name, stage).observe(ms / 1e3)
        job.image = None
        answer()
        self._leave()

    def _leave(self) -> None:
        self._metrics.waiting.labels(self.name).dec()
        with self._lock:
            self._waiting -= 1
            self._idle.notify_all()


def _on_gpu(predictor: Predictor) -> bool:
    return predictor.backend.frames is not None or predictor.backend.name == "tensorrt"


def _network_outputs(predictor: Predictor) -> dict[str, tuple[str, tuple[int, ...]]]:
    backend = predictor.backend
    if backend.tail.name not in ("host", "graph"):
        return {}  # outputs that stay in the runtime's own memory
    count = backend.max_batch if backend.fixed_batch else 1
    outputs = backend.run(np.zeros((count, *predictor.config.input_shape, 3), backend.metadata.input_dtype))
    varying = "" if backend.metadata.sizes is None else "Phw"
    axes = output_axes(outputs)
    return {
        name: (
            datatype(value.dtype),
            tuple(-1 if axis in varying else side for axis, side in zip(axes[name][1:], value.shape[1:], strict=True)),
        )
        for name, value in outputs._asdict().items()
        if value is not None
    }


def _load_all(spelling: str, settings: ServiceSettings) -> list[Predictor]:
    """The predictors of a model, warm."""
    spec = ModelSpec.parse(spelling)
    share = max(1, usable_cores() // settings.workers)
    on_cpu = spec.gpu is None and spec.chosen_backend != "tensorrt" and spec.provider in (None, "cpu")
    count = settings.predictors or (share if on_cpu else 1)
    if settings.threads:
        spec = spec.updated(threads=settings.threads)
    elif on_cpu and spec.threads is None:
        spec = spec.updated(threads=max(1, share // count))
    predictors: list[Predictor] = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            # Masks are pasted in the answer, where their form is known.
            predictors.append(stack.enter_context(load(spec, score_threshold=settings.score_threshold)))
            predictors[-1].warm_up()
        stack.pop_all()
    return predictors


@contextlib.contextmanager
def _timed(spent: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        spent[stage] = (time.perf_counter() - start) * 1e3
