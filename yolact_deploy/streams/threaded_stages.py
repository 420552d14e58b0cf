"""Threads with bounded queues between them: each stage of work on a stream runs while the others do.

The order of items is kept. When a stage fails, what came before the failure still passes through the later stages; then
the error is raised where the results are taken, and all threads end.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: a stage takes an iterator of items and yields the results; it runs in its own thread
Stage = Callable[[Iterator[Any]], Iterable[Any]]

#: seconds between the checks of a waiting thread for a signal, which only the main thread receives
_POLL = 0.2
#: seconds to wait for a thread: an iterable of the caller may block forever; a file or a camera answers soon
_PATIENCE = 10.0


class Channel(Generic[T]):
    """A bounded queue between two threads that either side can close.

    Args:
        depth: items that wait before :meth:`put` blocks
        latest: instead of blocking, drop the oldest item and count it in :attr:`dropped`
    """

    def __init__(self, depth: int = 4, *, latest: bool = False) -> None:
        self._items: deque[T] = deque()
        self._depth, self._latest = max(1, depth), latest
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self.dropped = 0

    def put(self, item: T) -> bool:
        """Add an item; False if the receiver has closed the channel."""
        with self._changed:
            while len(self._items) >= self._depth and not self._closed:
                if self._latest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait(_POLL)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def end(self, error: BaseException | None = None) -> None:
        """No item follows; ``error`` is why, if something failed."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """The receiver takes no more: :meth:`put` returns False from now on."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    @property
    def error(self) -> BaseException | None:
        """Why the channel ended, once it has; None for a good end."""
        return self._error

    def take(self, most: int, *, wait: bool = True) -> list[T]:
        """The next items, at least one and up to ``most``; empty at the end.

        Args:
            wait: for ``most`` of them, or take those that are there
        """
        with self._changed:
            # More than fit never come at once.
            enough = min(most, self._depth) if wait else 1
            while len(self._items) < enough and not self._ended and not self._closed:
                self._changed.wait(_POLL)
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._changed.notify_all()
        if wait and 0 < len(taken) < most and not self._ended:
            return taken + self.take(most - len(taken))
        return taken

    def __iter__(self) -> Iterator[T]:
        """The items until the end, without raising :attr:`error`."""
        while items := self.take(1):
            yield items[0]


class Pipeline(Generic[T]):
    """Stages in threads of their own; iterate for what the last one yields.

    >>> with Pipeline(range(3), lambda items: (2 * item for item in items)) as doubled:
    ...     list(doubled)
    [0, 2, 4]

    Args:
        source: iterated in a thread, and closed there if it can be closed
        stages: each takes an iterator of what the one before yields
        depth: items that wait between two stages
        latest: drop what nobody has taken from ``source`` in time
        name: of the threads, after "yolact-"
    """

    def __init__(
        self, source: Iterable[Any], *stages: Stage, depth: int = 4, latest: bool = False, name: str = "stage"
    ) -> None:
        self._channels: list[Channel[Any]] = [Channel(1 if latest else depth, latest=latest)]
        self._channels += [Channel(depth) for _ in stages]
        works: list[Callable[[], Iterable[Any]]] = [lambda: source]
        works += [self._fed(stage, channel) for stage, channel in zip(stages, self._channels, strict=False)]
        inputs: list[Channel[Any] | None] = [None, *self._channels]
        self._threads = [
            threading.Thread(target=_work, args=(work, inbox, out), name=f"yolact-{name}-{number}", daemon=True)
            for number, (work, inbox, out) in enumerate(zip(works, inputs, self._channels, strict=False))
        ]
        self._started = False

    @staticmethod
    def _fed(stage: Stage, inbox: Channel[Any]) -> Callable[[], Iterable[Any]]:
        return lambda: stage(ChannelIterator(inbox))

    @property
    def dropped(self) -> int:
        """Items of the source that a newer one replaced."""
        return self._channels[0].dropped

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self.start()
        last = self._channels[-1]
        taken = last.take(1)
        if taken:
            return taken[0]  # type: ignore[no-any-return]
        if last.error is not None:
            error, last._error = last.error, None
            raise error
        raise StopIteration

    def start(self) -> None:
        """Start the threads, which the first item does as well."""
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        """Let all threads end, without waiting for them."""
        for channel in self._channels:
            channel.close()

    def close(self) -> bool:
        """End all threads; what has not been taken is lost. Closing again does nothing.

        Returns:
            whether all have ended; one that waits for its source may take longer
        """
        self.stop()
        if self._started:
            for thread in self._threads:
                thread.join(_PATIENCE)
        return not any(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Pipeline[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ChannelIterator(Generic[T]):
    """What a stage iterates over; :meth:`take` gives several items at once."""

    def __init__(self, channel: Channel[T]) -> None:
        self._channel = channel

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        taken = self._channel.take(1)
        if not taken:
            raise StopIteration
        return taken[0]

    def take(self, most: int, *, wait: bool = True) -> list[T]:
        """As :meth:`Channel.take`."""
        return self._channel.take(most, wait=wait)


def each(work: Callable[[Any], Any]) -> Stage:
    """A stage that turns each item into one."""
    return lambda items: map(work, items)


def in_batches(most: int, *, wait: bool = True) -> Stage:
    """A stage that collects up to ``most`` items in lists; ``wait`` for full ones."""

    def collect(items: Iterator[Any]) -> Iterator[list[Any]]:
        assert isinstance(items, ChannelIterator)
        while taken := items.take(most, wait=wait):
            yield taken

    return collect


def _work(work: Callable[[], Iterable[Any]], inbox: Channel[Any] | None, out: Channel[Any]) -> None:
    """The body of a thread: put all results into ``out``, then its end and, in order, the error that caused it."""
    error: BaseException | None = None
    results: Any = None
    try:
        results = work()
        for result in results:
            if not out.put(result):
                break
    except BaseException as failure:  # raised where the results are taken
        error = failure
    finally:
        if inbox is not None:
            error = error or inbox.error
            inbox.close()  # the stages before this one stop
        # Free what a generator holds in the thread that used it.
        close = getattr(results, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                close()
        out.end(error)
