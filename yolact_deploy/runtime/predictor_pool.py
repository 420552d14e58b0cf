"""`PredictorPool`: several predictors of one model, each in a process of its own, for work on many pictures.

On a CPU, one network with all cores keeps them less busy than one network for each core with one thread: an operator
ends when its slowest thread does, and everything outside the network runs on one core. The pool runs whole pictures at
the same time, with the results of a single predictor, in their order.

It serves whatever maps pictures to results: evaluation, calibration, folders of pictures. Starting takes as long as
loading the model, so it pays for many pictures only (:func:`worker_count`).

What crosses between the processes is pickled: ``load``, ``work``, the items and the results. ``work`` is a function at
the top of a module, or a :func:`functools.partial` of one. Processes are spawned, so a script that uses a pool needs
``if __name__ == "__main__":``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import queue
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from yolact_deploy import errors
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import BackendError, InputError, YolactDeployError
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.machine.sysfiles import ROOT, read_text
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.vocabulary import MAX_THREADS

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

#: pictures that each process needs for its start to pay
_PICTURES_EACH = 50
#: most processes where the user names no number: each holds the weights
_MOST = 8
#: items sent to a process ahead of its results, so that it never waits
_AHEAD = 2
#: memory of a process without the model, and copies of the weights while it loads
_BYTES_EACH = 400 * 2**20
_COPIES = 6
#: what makes the libraries under NumPy and the runtimes start threads
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SECONDS_TO_END = 10


def worker_count(pictures: int, *, threads: int | None = None, on_gpu: bool = False, model_bytes: int = 0) -> int:
    """How many predictors are worth their start for a number of pictures: one for each core, or one alone.

    Args:
        threads: CPU threads that the user named; then there is one predictor, which has them
        on_gpu: a GPU works for one predictor at a time
        model_bytes: size of the model's file, from which the memory of a process is estimated
    """
    if on_gpu or threads is not None:
        return 1
    most = min(usable_cores(), _MOST, pictures // _PICTURES_EACH)
    free = _free_bytes()
    if free is not None:
        most = min(most, free // 2 // (_BYTES_EACH + _COPIES * model_bytes))
    return max(1, most)


def _free_bytes() -> int | None:
    """Memory that is free or can be freed at once; None where the system does not say (not Linux)."""
    match = re.search(r"^MemAvailable:\s*(\d+) kB", read_text(ROOT / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


class PredictorPool(Generic[Item, Result]):
    """Predictors in processes; a context manager that ends them.

    Args:
        load: makes the predictor of each process; it should load it with few threads
        work: the result of one item
        workers: number of processes
        threads: that each process may use outside the network

    Attributes:
        config: of the model
        load_s: seconds until all predictors were loaded

    Raises:
        YolactDeployError: what ``load`` raises.
        BackendError: a process ended unexpectedly.
    """

    def __init__(
        self, load: Callable[[], Predictor], work: Callable[[Predictor, Item], Result], workers: int, threads: int = 1
    ) -> None:
        if not 1 <= workers <= MAX_THREADS:
            raise InputError(f"workers: expected a number from 1 to {MAX_THREADS}, got {workers}")
        start = time.perf_counter()
        self._links: list[Connection] = []
        self._processes: list[BaseProcess] = []
        try:
            self._start(load, work, workers, threads)
            self.config = self._config()
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - start

    def _start(self, load: Any, work: Any, workers: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        with _variables(dict.fromkeys(_THREAD_VARIABLES, str(threads))):
            for number in range(workers):
                ours, theirs = context.Pipe()
                self._links.append(ours)
                process = context.Process(target=_serve, args=(theirs, load, work, threads, number == 0), daemon=True)
                process.start()
                theirs.close()  # so that the end of the process ends the connection
                self._processes.append(process)

    def _config(self) -> YolactConfig:
        """Wait until all predictors are loaded."""
        for link in self._links:
            answer = self._receive(link)
            if isinstance(answer, YolactDeployError):
                raise answer
        config: YolactConfig = answer
        return config

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """The result of each item, in the order of the items; a few items are taken ahead.

        Raises:
            YolactDeployError: what ``work`` raises, after the results before it.
            BackendError: for any other exception, and if a process ended unexpectedly.
        """
        left, places = iter(items), [deque[int]() for _ in self._links]
        done: dict[int, Any] = {}
        sent, given = self._fill(left, places, 0, 0), 0
        while given < sent:
            waiting = [link for link, numbers in zip(self._links, places, strict=True) if numbers]
            for link in wait(waiting):
                assert isinstance(link, Connection)
                done[places[self._links.index(link)].popleft()] = self._receive(link)
            while given in done:
                result = done.pop(given)
                if isinstance(result, YolactDeployError):
                    raise result
                sent = self._fill(left, places, sent, given)
                given += 1
                yield result
            sent = self._fill(left, places, sent, given)

    def _fill(self, left: Iterator[Item], places: Sequence[deque[int]], sent: int, given: int) -> int:
        """Give each process items to do; the number of items sent so far.

        A result that is late holds back those after it, so no more are computed than fit between.
        """
        for _ in range(_AHEAD):
            for index, numbers in enumerate(places):
                if len(numbers) < _AHEAD and sent - given < 4 * _AHEAD * len(places):
                    for item in itertools.islice(left, 1):
                        try:
                            self._links[index].send(item)
                        except OSError:
                            raise self._ended(index) from None
                        numbers.append(sent)
                        sent += 1
        return sent

    def _receive(self, link: Connection) -> Any:
        """The next result of a process, or the error in its place."""
        while True:
            try:
                kind, value = link.recv()
            except (EOFError, OSError):
                raise self._ended(self._links.index(link)) from None
            if kind == "log":
                _log.log(*value)
            else:
                return _error(*value) if kind == "error" else value

    def _ended(self, index: int) -> BackendError:
        process = self._processes[index]
        process.join(_SECONDS_TO_END)
        why = "the system ended it, usually for lack of memory" if process.exitcode == -9 else "see its message above"
        return BackendError(
            f"process {index + 1} of {len(self._processes)} ended with {process.exitcode}: {why}. Use fewer --workers"
        )

    def close(self) -> None:
        """End the processes; work that was sent is dropped."""
        for link in self._links:
            link.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_SECONDS_TO_END)
            if process.is_alive():
                process.kill()

    def __enter__(self) -> PredictorPool[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- in the processes -----------------------------------------------------------------------------------------------


class _Forward(logging.Handler):
    """Sends warnings to the process that started this one."""

    def __init__(self, link: Connection) -> None:
        super().__init__(logging.WARNING)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        self._link.send(("log", (record.levelno, "%s", record.getMessage())))


def _serve(link: Connection, load: Callable[[], Predictor], work: Any, threads: int, first: bool) -> None:
    """Load the predictor, then answer each item, until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one decides
    # Every process says the same while it loads.
    logger = logging.getLogger("yolact_deploy")
    logger.addHandler(_Forward(link) if first else logging.NullHandler())
    logger.propagate = False
    import cv2

    cv2.setNumThreads(threads)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        try:
            predictor = load()
        except Exception as error:
            link.send(("error", (type(error).__name__, str(error))))
            return
        with predictor:
            link.send(("done", predictor.config))
            for item in _received(link):
                try:
                    answer: tuple[str, Any] = ("done", work(predictor, item))
                except Exception as error:
                    answer = ("error", (type(error).__name__, str(error)))
                link.send(answer)


def _received(link: Connection) -> Iterator[Any]:
    """The items, read by a thread, so that the other process never waits to send one while this one sends a result."""
    items: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                items.put((link.recv(),))
        items.put(())

    threading.Thread(target=read, daemon=True).start()
    while entry := items.get():
        yield entry[0]


def _error(name: str, text: str) -> YolactDeployError:
    """An error of another process: of the same kind if it is one of ours."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, YolactDeployError):
        return kind(text)
    return BackendError(f"{name}: {text}")
