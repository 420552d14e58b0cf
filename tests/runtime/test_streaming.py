"""`Predictor.stream` and `track`: the same as frame by frame, whatever overlaps and however frames are batched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import numbered, write_clip
from few import few
from numpy.typing import NDArray
from scripted_backend import ScriptedBackend

from yolact_deploy import samples
from yolact_deploy.datasets.shape_videos import render_video
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.loading import load
from yolact_deploy.runtime import streaming
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import DetectionOutputs
from yolact_deploy.streams.byte_track import ByteTracker
from yolact_deploy.streams.timed_frames import ReadOptions
from yolact_deploy.streams.video import read_ahead

pytest.importorskip("av")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("yolact-")] == []


@pytest.mark.parametrize("multiframe", few([None, 1, 4], 2))
def test_the_same_as_frame_by_frame(tmp_path: Path, multiframe: int | None) -> None:
    pytest.importorskip("torch")
    frames = [frame.image for frame in render_video(2, frames=7)]
    with load(samples.DEMO_MODEL, threads=1) as model:
        expected = [model(frame) for frame in frames]
        results = list(model.stream(frames, multiframe=multiframe))
        assert [frame is given for (frame, _), given in zip(results, frames, strict=True)] == [True] * 7
        for (_, ours), theirs in zip(results, expected, strict=True):
            assert ours.labels.tolist() == theirs.labels.tolist()
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.05)
            assert np.mean(ours.masks != theirs.masks) < 1e-3
        assert model.timings["network+nms+assembly" if "network+nms+assembly" in model.timings else "network"] > 0


def test_options_reach_the_reader(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 10)
    model = Predictor(ScriptedBackend())
    options = ReadOptions(stride=2, start=0.3)
    assert sum(1 for _ in model.stream(clip, options=options)) == 4
    with pytest.raises(InputError, match="no such video"):
        model.stream(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="takes batches of 1 to 1"):
        model.stream(clip, multiframe=2)


def test_track_needs_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("lap")
    clip = write_clip(tmp_path / "a.mp4", 4)
    model = Predictor(ScriptedBackend())
    tracker = ByteTracker(fps=10)
    for (_, ours), frame in zip(model.track(clip), read_ahead(clip), strict=True):
        expected = tracker.track(model(frame))
        assert ours.track_ids is not None
        assert expected.track_ids is not None
        assert ours.track_ids.tolist() == expected.track_ids.tolist()
    assert ours.track_ids is not None
    assert ours.track_ids.tolist() == [1, 2]


def test_a_failing_network_ends_the_stream_after_what_was_done() -> None:
    class Failing(ScriptedBackend):
        def run(self, images: NDArray[Any]) -> DetectionOutputs:
            self.fail = self.calls == 5
            return super().run(images)

    model = Predictor(Failing())
    taken: list[object] = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for index in range(1000):
            yield numbered(index)

    def take() -> None:
        for pair in model.stream(frames()):
            taken.append(pair)  # noqa: PERF402  # kept when it fails

    with pytest.raises(BackendError, match="failed"):
        take()
    assert len(taken) == 5


class Several(ScriptedBackend):
    """Has a form for two callers, which fails at a call, or in which each call waits for another one beside it."""

    def __init__(self, fail_at: int = -1, meet: threading.Barrier | None = None) -> None:
        super().__init__()
        self.opened: list[Several] = []
        self.closed = False
        self.fail_at, self.meet = fail_at, meet
        self.lock = threading.Lock()

    def for_callers(self, most: int) -> Backend | None:
        self.opened.append(Several(self.fail_at, self.meet))
        self.opened[-1].callers = min(2, most)
        return self.opened[-1]

    def run(self, images: NDArray[Any]) -> DetectionOutputs:
        if self.callers > 1 and self.meet is not None:
            self.meet.wait()
        with self.lock:
            self.fail = self.callers > 1 and self.calls == self.fail_at
            return super().run(images)

    def close(self) -> None:
        self.closed = True


ALONE = streaming._BATCHES_ALONE


def some(count: int) -> Iterator[NDArray[np.uint8]]:
    return (numbered(index) for index in range(count))


@pytest.mark.parametrize(("frames", "copies"), [(1, 0), (ALONE, 0), (ALONE + 2, 1), (ALONE + 10, 1)])
def test_from_some_frame_on_batches_run_at_the_same_time(frames: int, copies: int) -> None:
    backend = Several(meet=threading.Barrier(2, timeout=20))
    model = Predictor(backend)
    given = list(some(frames))
    assert [frame is one for (frame, _), one in zip(model.stream(given), given, strict=True)] == [True] * frames
    assert backend.calls == min(frames, ALONE)
    assert [one.calls for one in backend.opened] == [frames - ALONE] * copies
    if copies:  # kept for the next stream
        assert sum(1 for _ in model.stream(some(4))) == 4
        assert (len(backend.opened), backend.calls, backend.opened[0].calls) == (1, ALONE, frames - ALONE + 4)
    model.close()
    assert [one.closed for one in (backend, *backend.opened)] == [True] * (1 + copies)


def test_a_failure_while_batches_run_at_the_same_time() -> None:
    backend = Several(fail_at=6)
    taken: list[object] = []
    with pytest.raises(BackendError, match="failed"):
        taken.extend(Predictor(backend).stream(some(1000)))
    assert ALONE + 5 <= len(taken) <= ALONE + 7  # the failing call may be of any of the frames on their way


def test_a_stream_left_while_batches_run_at_the_same_time() -> None:
    backend = Several()
    stream = Predictor(backend).stream(some(1000))
    for _ in range(ALONE + 5):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert ALONE < backend.calls + backend.opened[0].calls < ALONE + 30


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_network_for_several_callers_computes_the_same(runtime: str, demo_onnx: Path) -> None:
    pytest.importorskip(runtime)
    with load(demo_onnx, backend=runtime, threads=2) as model:
        inputs = [model.preprocess([frame.image]) for frame in render_video(3, frames=6)]
        expected = [model.backend.run(one) for one in inputs]
        several = model.backend.for_callers(2)
        assert several is not None
        assert several.callers == 2
        assert several.describe()["threads"] == 1
        with ThreadPoolExecutor(2) as threads:
            for ours, theirs in zip(threads.map(several.run, inputs), expected, strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    np.testing.assert_array_equal(one, other)
        several.close()
        assert load(demo_onnx, backend=runtime, threads=1).backend.for_callers(2) is None


@pytest.mark.slow
def test_memory_and_threads_do_not_grow(tmp_path: Path) -> None:
    process = pytest.importorskip("psutil").Process()
    clip, model = write_clip(tmp_path / "a.mp4", 100), Predictor(ScriptedBackend())
    used: list[int] = []
    threads: list[int] = []
    for _ in range(200):
        assert sum(1 for _ in model.stream(clip)) == 100
        used.append(process.memory_info().rss)
        threads.append(threading.active_count())
    assert max(threads) == min(threads)
    # The first fifth warms caches up.
    assert np.median(used[-20:]) < 1.01 * np.median(used[40:60])
