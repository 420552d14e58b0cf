"""Captured graphs by what they do, so that work that comes again costs one launch.

Work is done directly when it comes for the first time (libraries load kernels and allocate then, which no capture
allows) and captured when it comes again. What cannot be captured goes on being done directly, and why is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.driver import Graph, Stream

Work = Callable[[], None]
#: tells one work from another; hashable
Key = tuple[Any, ...]


class GraphCache:
    """Graphs of one stream; used by one thread at a time.

    Args:
        stream: on which the work is enqueued
        limit: how many graphs are kept
        patience: a graph makes room for another one when so many launches passed without it: capturing takes
            milliseconds, so more kinds of work than graphs must not chase each other out

    Attributes:
        refused: why the last work that could not be captured could not be; empty when all could
    """

    def __init__(self, stream: Stream, limit: int = 64, patience: int = 1000) -> None:
        self.refused = ""
        self._stream, self._limit, self._patience = stream, limit, patience
        self._launches = 0
        self._graphs: OrderedDict[Key, tuple[Graph, int]] = OrderedDict()  #: and the number of its last launch
        # What came before, and whether it may be captured; worth far less memory than a graph.
        self._seen: OrderedDict[Key, bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def comes_again(self, key: Key) -> bool:
        """Whether work of this key came before and may be captured; from now on it came before."""
        if key in self._graphs:
            return True
        again = self._seen.get(key)
        if again is None:
            self._note(key, True)
        return bool(again)

    def launch(self, key: Key, work: Work) -> bool:
        """Launch the graph of ``key``, captured now if need be; False, and nothing done, where that is impossible."""
        self._launches += 1
        held = self._graphs.get(key)
        graph = held[0] if held else self._capture(key, work)
        if graph is None:
            return False
        self._graphs[key] = graph, self._launches
        self._graphs.move_to_end(key)
        graph.launch(self._stream)
        return True

    def run(self, key: Key, work: Work) -> None:
        """Do the work, by a graph when it comes again."""
        if not (self.comes_again(key) and self.launch(key, work)):
            work()

    def drop(self, wanted: Callable[[Key], bool] = lambda key: True) -> None:
        """Destroy the graphs of the chosen keys, and forget them: to be captured, they must come twice again."""
        for key in [key for key in self._graphs if wanted(key)]:
            self._close(key)
        for key in [key for key in self._seen if wanted(key)]:
            del self._seen[key]

    def _capture(self, key: Key, work: Work) -> Graph | None:
        if not self._make_room():
            return None
        try:
            with self._stream.capture() as graph:
                work()
        except BackendError as error:
            self.refused = str(error)
            self._note(key, False)
            return None
        return graph

    def _make_room(self) -> bool:
        if len(self._graphs) < self._limit:
            return True
        key, (_, last) = next(iter(self._graphs.items()))
        if self._launches - last <= self._patience:
            return False
        self._close(key)
        return True

    def _close(self, key: Key) -> None:
        self._graphs.pop(key)[0].close()
        self._seen.pop(key, None)

    def _note(self, key: Key, capturable: bool) -> None:
        self._seen[key] = capturable
        if len(self._seen) > 16 * self._limit:
            self._seen.popitem(last=False)
