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
        limit: how many graphs are kept; those that were not used for longest go first

    Attributes:
        refused: why the last work that could not be captured could not be; empty when all could
    """

    def __init__(self, stream: Stream, limit: int = 64) -> None:
        self.refused = ""
        self._stream, self._limit = stream, limit
        self._graphs: OrderedDict[Key, Graph] = OrderedDict()
        # What came before, and whether it may be captured; worth far less memory than a graph.
        self._seen: OrderedDict[Key, bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def comes_again(self, key: Key) -> bool:
        """Whether work of this key came before and may be captured; from now on it came before."""
        again = self._seen.get(key)
        if again is None:
            self._note(key, True)
        return bool(again)

    def launch(self, key: Key, work: Work) -> bool:
        """Launch the graph of ``key``, captured now if need be; False, and nothing done, where that is impossible."""
        graph = self._graphs.get(key) or self._capture(key, work)
        if graph is None:
            return False
        self._graphs.move_to_end(key)
        graph.launch(self._stream)
        return True

    def run(self, key: Key, work: Work) -> None:
        """Do the work, by a graph when it comes again."""
        if not (self.comes_again(key) and self.launch(key, work)):
            work()

    def drop(self, wanted: Callable[[Key], bool] = lambda key: True) -> None:
        """Destroy the graphs of the keys that are chosen; they are captured anew when they come again."""
        for key in [key for key in self._graphs if wanted(key)]:
            self._graphs.pop(key).close()

    def _capture(self, key: Key, work: Work) -> Graph | None:
        try:
            with self._stream.capture() as graph:
                work()
        except BackendError as error:
            self.refused = str(error)
            self._note(key, False)
            return None
        self._graphs[key] = graph
        if len(self._graphs) > self._limit:
            self._graphs.popitem(last=False)[1].close()
        return graph

    def _note(self, key: Key, capturable: bool) -> None:
        self._seen[key] = capturable
        if len(self._seen) > 16 * self._limit:
            self._seen.popitem(last=False)
