"""A cache of captured graphs, so that repeated work costs one launch.

Work runs directly the first time (libraries then load kernels and allocate, which a capture does not allow) and is
captured the second time. Work that cannot be captured keeps running directly; the reason is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.driver import Graph, Stream

Work = Callable[[], None]
#: identifies work; hashable
Key = tuple[Any, ...]


class _Held:
    """A graph and the number of its last launch."""

    __slots__ = ("graph", "launch")

    def __init__(self, graph: Graph) -> None:
        self.graph, self.launch = graph, 0


class GraphCache:
    """Graphs of one stream; used by one thread at a time.

    Args:
        stream: the stream on which the work is enqueued
        limit: maximum number of graphs
        patience: number of launches after which an unused graph may be replaced; capturing takes milliseconds, so more
            kinds of work than graphs must not keep evicting each other

    Attributes:
        refused: why the last capture failed; empty if none did
    """

    def __init__(self, stream: Stream, limit: int = 64, patience: int = 1000) -> None:
        self.refused = ""
        self._stream, self._limit, self._patience = stream, limit, patience
        self._launches = 0
        self._graphs: OrderedDict[Key, _Held] = OrderedDict()
        # Work seen before, and whether it can be captured; takes far less memory than a graph.
        self._seen: OrderedDict[Key, bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def nodes(self) -> int:
        """Nodes of the graph launched last, 0 without one."""
        return next((held.graph.nodes for held in reversed(self._graphs.values())), 0)

    def comes_again(self, key: Key) -> bool:
        """Whether work with this key was seen before and can be captured; marks it as seen."""
        if key in self._graphs:
            return True
        again = self._seen.get(key)
        if again is None:
            self._note(key, True)
        return bool(again)

    def launch(self, key: Key, work: Work) -> bool:
        """Launch the graph of ``key``, capturing it first if necessary; False, with nothing done, if that fails."""
        self._launches += 1
        held = self._graphs.get(key)
        if held is None:
            graph = self._capture(key, work)
            if graph is None:
                return False
            self._graphs[key] = held = _Held(graph)
        held.launch = self._launches
        self._graphs.move_to_end(key)
        held.graph.launch(self._stream)
        return True

    def run(self, key: Key, work: Work) -> None:
        """Do the work, through a graph if it was seen before."""
        if not (self.comes_again(key) and self.launch(key, work)):
            work()

    def drop(self, chosen: Callable[[Key], bool] = lambda key: True) -> None:
        """Destroy the graphs of the chosen keys and forget them: they must be seen twice again before a capture."""
        for key in [key for key in self._graphs if chosen(key)]:
            self._close(key)
        for key in [key for key in self._seen if chosen(key)]:
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
        key, held = next(iter(self._graphs.items()))
        if self._launches - held.launch <= self._patience:
            return False
        self._close(key)
        return True

    def _close(self, key: Key) -> None:
        self._graphs.pop(key).graph.close()
        self._seen.pop(key, None)

    def _note(self, key: Key, capturable: bool) -> None:
        self._seen[key] = capturable
        if len(self._seen) > 16 * self._limit:
            self._seen.popitem(last=False)
