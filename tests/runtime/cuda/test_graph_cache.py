"""When work is captured and when it is not, without CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.graph_cache import GraphCache


class FakeGraph:
    def __init__(self, diary: list[str]) -> None:
        self.diary = diary
        self.work: list[str] = []

    def launch(self, stream: Any) -> None:
        self.diary += [f"graph {item}" for item in self.work]

    def close(self) -> None:
        self.diary.append(f"close {' '.join(self.work)}")


class FakeStream:
    def __init__(self) -> None:
        self.diary: list[str] = []
        self.recorded: list[str] | None = None

    @contextlib.contextmanager
    def capture(self) -> Iterator[FakeGraph]:
        graph = FakeGraph(self.diary)
        self.recorded = graph.work
        try:
            yield graph
        finally:
            self.recorded = None

    def do(self, item: str) -> None:
        if self.recorded is None:
            self.diary.append(item)
        else:
            self.recorded.append(item)


@pytest.fixture
def stream() -> FakeStream:
    return FakeStream()


def run(cache: GraphCache, stream: FakeStream, *items: str) -> list[str]:
    """What was done for each item in turn."""
    stream.diary.clear()
    for item in items:
        cache.run((item,), lambda item=item: stream.do(item))  # type: ignore[misc]
    return list(stream.diary)


def test_first_directly_then_by_a_graph(stream: FakeStream) -> None:
    cache = GraphCache(stream)  # type: ignore[arg-type]
    assert run(cache, stream, "a", "b", "a", "a", "b") == ["a", "b", "graph a", "graph a", "graph b"]
    assert len(cache) == 2


def test_what_cannot_be_captured_is_done_directly(stream: FakeStream) -> None:
    cache = GraphCache(stream)  # type: ignore[arg-type]
    captures = []

    def work() -> None:
        if stream.recorded is not None:
            captures.append(1)
            raise BackendError("it allocates")
        stream.do("a")

    for _ in range(4):
        cache.run(("a",), work)
    assert stream.diary == ["a"] * 4
    assert captures == [1], "tried once"
    assert cache.refused == "it allocates"


def test_errors_of_other_kinds_are_not_hidden(stream: FakeStream) -> None:
    cache = GraphCache(stream)  # type: ignore[arg-type]

    def work() -> None:
        if stream.recorded is not None:
            raise ZeroDivisionError

    cache.run(("a",), work)
    with pytest.raises(ZeroDivisionError):
        cache.run(("a",), work)


def test_the_longest_unused_graph_goes_when_it_is_stale(stream: FakeStream) -> None:
    cache = GraphCache(stream, limit=2, patience=3)  # type: ignore[arg-type]
    run(cache, stream, "a", "a", "b", "b")
    assert run(cache, stream, "a", "a", "a", "c", "c") == ["graph a"] * 3 + ["c", "close b", "graph c"]
    assert run(cache, stream, "b") == ["b"], "it came before, but not since its graph was closed"


def test_more_kinds_of_work_than_graphs_do_not_chase_each_other(stream: FakeStream) -> None:
    """Otherwise a dataset with many picture sizes would capture a graph for nearly every picture."""
    cache = GraphCache(stream, limit=2, patience=100)  # type: ignore[arg-type]
    done = run(cache, stream, *"abcde" * 10)
    assert "close a" not in done
    assert done[-5:] == ["graph a", "graph b", "c", "d", "e"]


def test_dropping_some(stream: FakeStream) -> None:
    cache = GraphCache(stream)  # type: ignore[arg-type]
    run(cache, stream, "a", "b", "a", "b", "ab")
    stream.diary.clear()
    cache.drop(lambda key: "a" in key[0])
    assert stream.diary == ["close a"]
    assert run(cache, stream, "a", "b", "a", "ab", "ab") == ["a", "graph b", "graph a", "ab", "graph ab"]
    cache.drop()
    assert len(cache) == 0


def test_what_came_once_is_not_remembered_for_ever(stream: FakeStream) -> None:
    cache = GraphCache(stream, limit=2)  # type: ignore[arg-type]
    run(cache, stream, *(str(number) for number in range(1000)))
    assert len(cache._seen) <= 16 * 2
