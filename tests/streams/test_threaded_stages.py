"""Overlapping stages: order, failures in each place, threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from yolact_deploy.streams.threaded_stages import Channel, ChannelIterator, Pipeline, Stage, each, in_batches


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("yolact-")] == []


def test_order_is_kept() -> None:
    stages = (each(lambda n: n + 1), each(lambda n: 2 * n), each(str))
    with Pipeline[str](range(200), *stages, depth=2) as done:
        assert list(done) == [str(2 * (n + 1)) for n in range(200)]


def test_batches() -> None:
    with Pipeline[list[int]](range(10), in_batches(4)) as done:
        assert list(done) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with Pipeline[list[int]](range(11), in_batches(7), depth=2) as done:
        assert list(done) == [list(range(7)), list(range(7, 11))]


def take_all(pipeline: Pipeline[Any], taken: list[Any]) -> None:
    with pipeline as done:
        taken += done


@pytest.mark.parametrize("place", range(3))
def test_what_came_before_a_failure_arrives_first(place: int) -> None:
    def stage(here: int) -> Stage:
        def work(number: int) -> int:
            if number == 5 and place == here:
                raise RuntimeError(f"stage {place}")
            return number

        return each(work)

    taken: list[int] = []
    with pytest.raises(RuntimeError, match=f"stage {place}"):
        take_all(Pipeline(range(1000), *map(stage, range(3))), taken)
    assert taken == [0, 1, 2, 3, 4]


def test_a_failing_source() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("unplugged")

    taken: list[list[int]] = []
    with pytest.raises(OSError, match="unplugged"):
        take_all(Pipeline(source(), in_batches(4)), taken)
    assert taken == [[1, 2]], "what is there of a batch is not lost"


def test_leaving_early_stops_the_source() -> None:
    made, closed = [], threading.Event()

    def source() -> Iterator[int]:
        try:
            for number in range(10**9):
                made.append(number)
                yield number
        finally:
            closed.set()

    with Pipeline[int](source(), each(lambda n: n), depth=2) as done:
        assert [next(done) for _ in range(3)] == [0, 1, 2]
    assert closed.is_set()
    assert len(made) < 20
    never: Pipeline[int] = Pipeline(source())
    never.close()
    never.close()


def test_stages_overlap() -> None:
    """Two stages meet, so they run at the same time: each waits for the other at a barrier."""
    barrier = threading.Barrier(2, timeout=20)

    def first(number: int) -> int:
        if number > 0:
            barrier.wait()
        return number

    def second(number: int) -> int:
        if number < 9:
            barrier.wait()
        return number

    with Pipeline[int](range(10), each(first), each(second)) as done:
        assert list(done) == list(range(10))


def test_the_newest_item_wins() -> None:
    channel: Channel[int] = Channel(1, latest=True)
    for number in range(10):
        assert channel.put(number)
    assert channel.take(1) == [9]
    assert channel.dropped == 9


def test_a_bounded_channel_blocks_until_something_is_taken() -> None:
    channel: Channel[int] = Channel(2)
    passed: list[bool] = []

    def fill() -> None:
        passed.extend(channel.put(number) for number in range(6))

    thread = threading.Thread(target=fill)
    thread.start()
    while len(passed) < 2:
        time.sleep(0.001)
    time.sleep(0.02)
    assert passed == [True, True]
    assert [channel.take(1)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    channel.close()
    thread.join()
    assert passed[:5] == [True] * 5


def test_what_is_there_is_taken_without_waiting() -> None:
    channel: Channel[int] = Channel(4)
    for number in range(3):
        channel.put(number)
    assert ChannelIterator(channel).take(4, wait=False) == [0, 1, 2]
    channel.end()
    assert ChannelIterator(channel).take(4) == []
