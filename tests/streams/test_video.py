"""Reading ahead and writing videos: order, errors, threads that end, files that are whole or absent."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from yolact_deploy.errors import InputError, OutputError
from yolact_deploy.streams import video, writers
from yolact_deploy.streams.readers.opencv_reader import OpenCvReader
from yolact_deploy.streams.threaded_stages import Channel
from yolact_deploy.streams.timed_frames import VideoInfo
from yolact_deploy.streams.video import probe_video, read_ahead
from yolact_deploy.streams.writers import VideoWriter

DATA = Path(os.environ.get("YOLACT_DATA", Path(__file__).parents[2] / "../shared/data"))
Image = NDArray[np.uint8]


def frame(value: int, width: int = 96, height: int = 64) -> Image:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 24, (96, 64)) as writer:
        for index in range(10):
            writer.write(frame(index * 20))
    return path


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("yolact-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def test_probe(clip: Path) -> None:
    assert probe_video(clip) == VideoInfo(96, 64, 24.0, 10)


def test_reads_all_frames_in_order(clip: Path) -> None:
    means = [one.mean() for one in read_ahead(clip)]
    assert len(means) == 10
    np.testing.assert_allclose(means, np.arange(10) * 20, atol=6)


def test_path_as_text(clip: Path) -> None:
    assert sum(1 for _ in read_ahead(str(clip), depth=1)) == 10


def test_iterable() -> None:
    assert [int(one[0, 0, 0]) for one in read_ahead(frame(i) for i in range(5))] == list(range(5))


def test_reads_ahead_but_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    handed, made = queue.Queue[int](), list[int]()
    put = Channel.put

    def noted(channel: Channel[Image], item: Image) -> bool:
        handed.put(len(made))
        return put(channel, item)

    def frames() -> Iterator[Image]:
        for index in range(100):
            made.append(index)
            yield frame(index)

    monkeypatch.setattr(Channel, "put", noted)
    reader = read_ahead(frames(), depth=3)
    for taken in range(1, 60):  # one taken, three in the queue, one in the thread's hand, which waits
        next(reader)
        while handed.get() < taken + 4:
            pass
        assert len(made) == taken + 4
    reader.close()


def test_error_of_the_source_reaches_the_consumer() -> None:
    def frames() -> Iterator[Image]:
        yield frame(1)
        raise RuntimeError("camera unplugged")

    reader = read_ahead(frames())
    next(reader)
    with pytest.raises(RuntimeError, match="unplugged"):
        next(reader)


def test_stopping_early_ends_the_thread_and_closes_the_source(clip: Path) -> None:
    closed = threading.Event()

    def frames() -> Iterator[Image]:
        try:
            while True:
                yield frame(0)
        finally:
            closed.set()

    reader = read_ahead(frames())
    next(reader)
    assert threads() == ["yolact-read-ahead-0"]
    reader.close()
    assert closed.is_set()
    for _ in read_ahead(clip):
        break


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 50])
def test_unreadable_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read video"):
        read_ahead(path)
    with pytest.raises(InputError, match="cannot read video"):
        probe_video(path)


def test_missing_video_folder_and_camera(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such video"):
        read_ahead(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="is a folder"):
        read_ahead(tmp_path)
    with pytest.raises(InputError, match="cannot open camera 99"):
        read_ahead("99")
    with pytest.raises(InputError, match="got float"):
        read_ahead(1.5)  # type: ignore[arg-type]


class FakeCapture:
    """Frames with these times, in milliseconds, under a header that promises ``expected`` of them."""

    def __init__(self, stamps: tuple[float, ...], expected: int = 0) -> None:
        self.stamps, self.expected, self.shown = stamps, expected, -1

    def read(self) -> tuple[bool, Image]:
        self.shown += 1
        return self.shown < len(self.stamps), frame(0)

    def get(self, key: int) -> float:
        facts = {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: self.expected}
        return self.stamps[self.shown] if key == cv2.CAP_PROP_POS_MSEC else facts.get(key, 64)

    def release(self) -> None:
        pass


def test_cut_short(caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(OpenCvReader(FakeCapture((0.0, 100.0, 200.0), 10), "a.mp4").frames())) == 3
    assert "a.mp4 ended after 3 of 10 frames" in caplog.text


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ((0.0, 100.0, 1000.0), [0.0, 0.1, 1.0]),
        ((40.0, 80.0, 120.0), [0.04, 0.08, 0.12]),
        ((0.0, 0.0, 0.0), [0.0, 0.1, 0.2]),
        ((-5.0, 500.0, 300.0), [0.0, 0.5, 0.6]),
        ((float("nan"), float("nan"), 900.0), [0.0, 0.1, 0.9]),
    ],
)
def test_times_of_a_stream(stamps: tuple[float, ...], expected: list[float]) -> None:
    timed = OpenCvReader(FakeCapture(stamps), "a.mp4").frames()
    assert [one.seconds for one in timed] == pytest.approx(expected)


def test_times_of_a_file(clip: Path) -> None:
    assert [one.seconds for one in video.read_timed(clip)] == pytest.approx(np.arange(10) / 24, abs=1e-3)


def test_writer_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with VideoWriter(tmp_path / "out.mp4", 24, (96, 64)) as writer:
            writer.write(frame(0))
            raise RuntimeError("network")

    with pytest.raises(RuntimeError, match="network"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 24, (96, 64)) as writer:
        writer.write(frame(0))
        assert not path.exists()
    assert path.exists()
    with pytest.raises(OutputError, match="closed"):
        writer.write(frame(0))


def test_wrong_frame(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"expected frames uint8 BGR \[64, 96, 3\]"),
        VideoWriter(tmp_path / "out.mp4", 24, (96, 64)) as writer,
    ):
        writer.write(frame(0, width=95))
    assert list(tmp_path.iterdir()) == []


def test_no_frame(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame was written"), VideoWriter(tmp_path / "out.mp4", 24, (96, 64)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lost_frames_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "probe_video", lambda path: VideoInfo(96, 64, 24.0, 1))
    writer = VideoWriter(tmp_path / "o.mp4", 24, (96, 64))
    writer.write(frame(0))
    writer.write(frame(0))
    with pytest.raises(OutputError, match="has 1 of 2 frames"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark at the end of the file no longer fits."""
    opened = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "ab":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    with (
        pytest.raises(OutputError, match=r"out.mp4: No space left on device: free some space or choose another place"),
        VideoWriter(tmp_path / "out.mp4", 24, (96, 64)) as writer,
    ):
        writer.write(frame(1))
    assert list(tmp_path.iterdir()) == []


def test_ffmpeg_is_left_alone_after_an_error(tmp_path: Path) -> None:
    """It crashes where the disk was full in the middle of a file and the encoder is emptied into it all the same."""
    pytest.importorskip("av")
    encoder: Any = writers.open_encoder(tmp_path / "a.mp4", tmp_path / "out.mp4", 24, (96, 64))
    container, calls = encoder._container, list[str]()

    class FullDisk:
        def mux(self, packets: Any) -> None:
            calls.append("mux")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            calls.append("close")
            container.close()

    encoder.encode(frame(0), None)
    encoder._container = FullDisk()
    with pytest.raises(OSError, match="No space left on device"):
        encoder.encode(frame(1), None)
    encoder.close()
    assert calls == ["mux", "close"]


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        VideoWriter(tmp_path / "file" / "out.mp4", 24, (96, 64))
    with pytest.raises(OutputError, match="no mp4v encoder"):
        VideoWriter(tmp_path / "out.xyz", 24, (96, 64), encoder="opencv")
    pytest.importorskip("av")
    with pytest.raises(OutputError, match=r"use \.mp4 or \.mkv"):
        VideoWriter(tmp_path / "out.xyz", 24, (96, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_real_video() -> None:
    path = DATA / "video" / "street_8frames_1080p.mp4"
    if not path.exists():
        pytest.skip(f"no {path}")
    info = probe_video(path)
    frames = list(read_ahead(path))
    assert (info.width, info.height, info.frames) == (1920, 1080, 8)
    assert [one.shape for one in frames] == [(1080, 1920, 3)] * 8
