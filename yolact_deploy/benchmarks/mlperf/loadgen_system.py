"""The system that LoadGen drives: a predictor that answers its queries, and the images it requests.

LoadGen is C++ and cannot be unwound: an exception that leaves one of our callbacks ends the process. So failures are
stored, further queries are answered at once without work, and the thread that waits for the run raises the failure.
"""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.predictor import Image, Predictor

_MEBIBYTE = 1 << 20
#: batches per call of a predictor that overlaps them
_OVERLAPPED_BATCHES = 8
#: seconds after which a thread of the server scenario yields to a waiting one; Python's default is ten times that
_SERVER_SWITCH_INTERVAL = 5e-4
#: different images for the calls timed before a run
_TIMED_PICTURES = 16


class PictureLibrary:
    """Images by index, decoded when LoadGen loads them and dropped when it unloads them.

    Args:
        paths: the first ones are used, as many as fit into ``memory_mib``
        from_files: keep paths instead of decoded images; then all of them are used

    Raises:
        InputError: no images, one that cannot be decoded, or none that fits.
    """

    def __init__(self, paths: Iterable[Path], *, from_files: bool, memory_mib: int) -> None:
        self.from_files = from_files
        self.paths: list[Path] = []
        self._loaded: dict[int, Image] = {}
        left = memory_mib * _MEBIBYTE
        for path in paths:
            # Decoded in either case, to detect a damaged image before the run.
            size = read_image(path).nbytes
            left -= 0 if from_files else size
            if left < 0:
                break
            self.paths.append(path)
        if not self.paths:
            raise InputError(
                f"no image fits into {memory_mib} MiB: raise --memory-mib, or decode in the run with --from-files"
                if left < 0
                else "no images: give at least one"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, indices: Iterable[int]) -> None:
        if not self.from_files:
            self._loaded |= {index: read_image(self.paths[index]) for index in set(indices)}

    def unload(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._loaded.pop(index, None)  # multi-stream pads its set with repetitions

    def get(self, indices: Iterable[int]) -> list[Image | Path]:
        return [self.paths[index] if self.from_files else self._loaded[index] for index in indices]


@dataclass(frozen=True)
class _Waiting:
    """A query of the server scenario in the queue; without an id, a warm-up call."""

    started_ns: int
    id: int | None
    index: int


class SystemUnderTest:
    """Answers LoadGen's queries with a predictor, and times each query itself.

    The thread that issues queries answers them, except in the server scenario, where queries arrive while earlier ones
    are processed: there a separate thread answers them in order, one at a time.

    Args:
        images_per_call: images of a query that go into one call of the predictor
        queued: answer in a separate thread
    """

    def __init__(
        self,
        loadgen: ModuleType,
        predictor: Predictor,
        library: PictureLibrary,
        *,
        images_per_call: int,
        queued: bool,
    ) -> None:
        self._loadgen, self._predictor, self._library = loadgen, predictor, library
        self._images_per_call = images_per_call
        #: from issue to completion of its query, for each image in the order of completion
        self.latencies_ns: list[int] = []
        #: the first failure; after it nothing is computed any more
        self.error: BaseException | None = None
        #: set by a failure, or when LoadGen has finished
        self.over = threading.Event()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._unanswered = 0
        self._thread = threading.Thread(target=self._serve, name="yolact-server") if queued else None

    def __enter__(self) -> SystemUnderTest:
        if self._thread is not None:
            # The issuing thread must get its turn while the other one runs Python code.
            self._switch_interval = sys.getswitchinterval()
            sys.setswitchinterval(_SERVER_SWITCH_INTERVAL)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            sys.setswitchinterval(self._switch_interval)

    def fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.over.set()

    # -- callbacks of LoadGen; nothing may be raised here -------------------------------------------------------------

    def load(self, indices: Sequence[int]) -> None:
        """Load images, and make one warm-up call in the thread that will make all calls."""
        try:
            self._library.load(indices)
        except Exception as error:
            self.fail(error)
        if self._thread is None:
            self._predict(list(itertools.islice(itertools.cycle(indices), self._images_per_call)))
        else:
            self._enqueue(_Waiting(0, None, indices[0]))
            self.flush()

    def unload(self, indices: Sequence[int]) -> None:
        self._library.unload(indices)

    def issue(self, samples: Sequence[Any]) -> None:
        started = time.perf_counter_ns()
        queries = [(sample.id, sample.index) for sample in samples]
        if self._thread is not None:
            for number, index in queries:
                self._enqueue(_Waiting(started, number, index))
            return
        for first in range(0, len(queries), self._images_per_call):
            part = queries[first : first + self._images_per_call]
            self._predict([index for _, index in part])
            self._complete([number for number, _ in part], started)

    def flush(self) -> None:
        """Wait until all issued queries are answered."""
        with self._idle:
            self._idle.wait_for(lambda: not self._unanswered)

    # -- work ---------------------------------------------------------------------------------------------------------

    def _predict(self, indices: Sequence[int]) -> None:
        if self.error is None:
            try:
                self._predictor(self._library.get(indices))
            except Exception as error:
                self.fail(error)

    def _complete(self, numbers: Sequence[int], started_ns: int) -> None:
        responses = [self._loadgen.QuerySampleResponse(number, 0, 0) for number in numbers]
        self.latencies_ns += [time.perf_counter_ns() - started_ns] * len(numbers)
        self._loadgen.QuerySamplesComplete(responses)

    def _enqueue(self, waiting: _Waiting) -> None:
        with self._idle:
            self._unanswered += 1
        self._queue.put(waiting)

    def _serve(self) -> None:
        while (waiting := self._queue.get()) is not None:
            self._predict([waiting.index])
            if waiting.id is not None:
                self._complete([waiting.id], waiting.started_ns)
            with self._idle:
                self._unanswered -= 1
                self._idle.notify_all()


def images_per_call(predictor: Predictor, scenario: str, samples_per_query: int) -> int:
    """Images of a query that go into one call: all for multi-stream; for offline, whose query has thousands, one batch,
    or several if the backend prepares a batch while it processes another.
    """
    if scenario == "multi-stream":
        return samples_per_query
    if scenario == "offline":
        batches = 1 if predictor.backend.frames is None else _OVERLAPPED_BATCHES
        return predictor.backend.max_batch * batches
    return 1


def time_calls(
    predictor: Predictor, library: PictureLibrary, count: int, *, calls: int, seconds: float
) -> tuple[float, ...]:
    """Milliseconds of calls with ``count`` images, for at least ``calls`` and ``seconds``, after a warm-up call."""
    indices = range(min(len(library), max(count, _TIMED_PICTURES)))
    library.load(indices)
    pictures = itertools.cycle(library.get(indices))
    library.unload(indices)
    predictor(list(itertools.islice(pictures, count)))
    times: list[float] = []
    while len(times) < calls or sum(times) < seconds * 1e3:
        images = list(itertools.islice(pictures, count))
        start = time.perf_counter_ns()
        predictor(images)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return tuple(times)
