"""Each kind of source: clips as phones and cameras make them, addresses that fail, standard input."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import audio_packets, frame_times, numbered, write_clip
from mjpeg_server import serving

from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.streams.readers.kinds import kind_of, open_reader
from yolact_deploy.streams.sources import NamedStream, find_sources
from yolact_deploy.streams.timed_frames import ReadOptions, TimedFrame, without_password
from yolact_deploy.streams.video import FrameStream, probe_video, read_timed
from yolact_deploy.streams.writers import VideoWriter

pytest.importorskip("av")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("yolact-")] == []


def read(source: object, **options: object) -> list[TimedFrame]:
    with read_timed(str(source), options=ReadOptions(**options)) as frames:  # type: ignore[arg-type]
        return list(frames)


def numbers(frames: list[TimedFrame]) -> list[int]:
    """The numbers of :func:`clips.numbered` frames, by the gray level of their middle."""
    return [round(float(frame.image[30:34, 46:50].mean()) / 20) for frame in frames]


@pytest.mark.parametrize("decoder", ["av", "opencv"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_phone_clip_is_upright(tmp_path: Path, decoder: str, rotation: int) -> None:
    frames = read(write_clip(tmp_path / "phone.mp4", 4, rotation=rotation), decoder=decoder)
    expected = np.rot90(numbered(2), rotation // 90)
    assert frames[2].image.shape == expected.shape
    assert frames[2].image.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(frames[2].image.astype(int), expected, atol=40)
    assert np.abs(frames[2].image.astype(int) - expected).mean() < 4


TIMES = (0.0, 0.01, 0.5, 0.54, 2.0, 6.0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("decoder", ["av", "opencv"])
def test_times_of_a_variable_rate(tmp_path: Path, suffix: str, decoder: str) -> None:
    frames = read(write_clip(tmp_path / f"a{suffix}", len(TIMES), seconds=TIMES), decoder=decoder)
    assert [frame.seconds for frame in frames] == pytest.approx(TIMES, abs=1e-3)
    assert numbers(frames) == list(range(len(TIMES)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_written_file_has_the_times_and_the_audio(tmp_path: Path, suffix: str) -> None:
    clip = write_clip(tmp_path / "a.mp4", len(TIMES), seconds=TIMES, audio=True)
    out = tmp_path / f"out{suffix}"
    with VideoWriter(out, 10, (96, 64), audio=clip) as writer:
        for frame in read(clip):
            writer.write(frame.image, frame.seconds)
    assert frame_times(out) == pytest.approx(TIMES, abs=1e-3)
    assert numbers(read(out)) == list(range(len(TIMES)))
    copied, original = audio_packets(out), audio_packets(clip)
    assert len(original) > 5
    assert copied == (original if suffix == ".mp4" else original[1:])  # without what comes before the first sound


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 10, (97, 63)) as writer:
        writer.write(numbered(4, 97, 63))
    assert probe_video(tmp_path / "a.mp4")[:2] == (98, 64)


def test_audio_that_a_container_cannot_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_clip(tmp_path / "a.mp4", 5, audio=True)
    with VideoWriter(tmp_path / "out.avi", 10, (96, 64), audio=clip) as writer:
        writer.write(numbered(0))
    assert audio_packets(tmp_path / "out.avi") or "the audio is left out" in caplog.text


def test_stride_start_and_duration(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 10)
    for decoder in ("av", "opencv"):
        assert numbers(read(clip, stride=3, decoder=decoder)) == [0, 3, 6, 9]
        frames = read(clip, start=0.4, duration=0.3, decoder=decoder)
        assert numbers(frames) == [4, 5, 6]
        assert frames[0].seconds == pytest.approx(0.4)
    with pytest.raises(InputError, match="no frame that can be decoded after 5 s"):
        read(clip, start=5)


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.ts", {})])
def test_a_clip_that_is_cut(
    tmp_path: Path, name: str, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_clip(tmp_path / name, 30, options=options, noise=25)
    data = whole.read_bytes()
    whole.write_bytes(data[: int(0.6 * len(data))])
    with read_timed(str(whole)) as frames:
        count = sum(1 for _ in frames)
        assert 10 < count < 30
    if name == "a.mp4":
        assert frames.counts.damaged <= 1, "none if it is cut between two packets"
        assert "ended after" in caplog.text


def test_a_cut_clip_with_its_index_at_the_end(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 30)
    clip.write_bytes(clip.read_bytes()[:-600])
    with pytest.raises(InputError, match=r"cannot read video .*a\.mp4: damaged, incomplete"):
        read(clip)


def test_damaged_packets_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_clip(tmp_path / "a.ts", 40, noise=25)
    data = bytearray(clip.read_bytes())
    random = np.random.default_rng(0)
    for place in random.integers(2000, len(data) - 2000, 60):
        data[place] ^= 0xFF
    clip.write_bytes(bytes(data))
    with read_timed(str(clip)) as frames:
        assert sum(1 for _ in frames) > 5
    assert frames.counts.damaged > 0
    assert "packets or frames are damaged" in caplog.text


def test_files_without_frames(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        sound = out.add_stream("aac", rate=16000, layout="mono")
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
        piece.sample_rate = 16000
        out.mux(sound.encode(piece))
        out.mux(sound.encode(None))
    with pytest.raises(InputError, match="has no video, only audio"):
        read(tmp_path / "sound.mp4")
    clip = write_clip(tmp_path / "a.mkv", 3)
    data = clip.read_bytes()
    clip.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75") + 20])  # up to the first cluster of frames
    with pytest.raises(InputError, match=r"no frame that can be decoded|cannot read video"):
        read(clip)


# -- addresses ------------------------------------------------------------------------------------------------------


def test_a_live_source_that_is_cut_twice() -> None:
    with serving(cuts=(40, 100), pause=0.001) as server:
        with read_timed(f"{server.address}/live", options=ReadOptions(buffer="all")) as frames:
            assert frames.live
            taken = [next(frames) for _ in range(150)]
        assert frames.counts.reconnects == 2
        assert server.connections == 3
    assert all(one.image.shape == (64, 96, 3) for one in taken)
    seconds = [one.seconds for one in taken]
    assert seconds == sorted(seconds)


def test_the_newest_frame_wins_and_others_are_counted() -> None:
    with serving(pause=0.001) as server, read_timed(f"{server.address}/live") as frames:
        first = next(frames)
        while frames.counts.dropped < 20:
            pass
        later = next(frames)
        assert later.seconds > first.seconds
        assert frames.counts.frames > 20


@pytest.mark.parametrize("decoder", ["av", "opencv"])
def test_a_source_that_stays_silent(decoder: str) -> None:
    with (
        serving(last=12) as server,
        read_timed(f"{server.address}/live", options=ReadOptions(timeout=1.0, buffer="all", decoder=decoder)) as frames,
    ):
        with pytest.raises(InputError, match=r"has sent no frame for .* s, after \d+ frames"):
            for _ in frames:
                pass
        assert frames.counts.frames >= 10


def test_one_picture_from_a_server() -> None:
    with serving() as server:
        (frame,) = read(f"{server.address}/picture.jpg")
    assert numbers([frame]) == [3]


@pytest.mark.parametrize("decoder", ["av", "opencv"])
def test_nobody_answers(decoder: str) -> None:
    with pytest.raises(InputError, match="cannot connect to") as caught:
        read("rtsp://user:secret@127.0.0.1:9/cam1", decoder=decoder, timeout=2.0)
    assert "secret" not in str(caught.value)


def test_a_live_source_has_no_start() -> None:
    with serving() as server, pytest.raises(InputError, match="is live: it cannot start 2 s later"):
        read(f"{server.address}/live", start=2.0)


def test_passwords() -> None:
    assert without_password("rtsp://a:b@c/d") == "rtsp://***@c/d"
    stream = NamedStream("rtsp://a:b@cam.local:554/d?x=1")
    assert str(stream) == "rtsp://***@cam.local:554/d?x=1"
    assert "b" not in stream.stem.split("_")[1]


# -- other kinds ----------------------------------------------------------------------------------------------------


def test_kinds() -> None:
    names = {"0": "camera", "/dev/video2": "camera", "rtsp://a/b": "address", "HTTP://a/b.m3u8": "address",
             "-": "standard input", "gst:a ! b": "GStreamer pipeline", "screen:": "screen", "a.mp4": "video file",
             "http:": "video file"}  # fmt: skip
    assert {name: kind_of(name) for name in names} == names


@pytest.mark.parametrize("kind", ["mjpeg", "ts", "raw"])
def test_standard_input(tmp_path: Path, kind: str) -> None:
    if kind == "raw":
        data, more = b"".join(numbered(i).tobytes() for i in range(5)), "raw_size=(96, 64)"
    else:
        codec = "mjpeg" if kind == "mjpeg" else "libx264"
        data, more = write_clip(tmp_path / f"a.{kind}", 5, codec=codec).read_bytes(), ""
    code = (
        "from yolact_deploy.streams.video import read_timed\n"
        "from yolact_deploy.streams.timed_frames import ReadOptions\n"
        f"frames = read_timed('-', options=ReadOptions({more}))\n"
        "print([round(float(frame.image[30:34, 46:50].mean()) / 20) for frame in frames])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, cwd=root, capture_output=True, env={**os.environ}, timeout=60
    )
    assert done.stdout.decode().strip() == "[0, 1, 2, 3, 4]", done.stderr.decode()


def test_standard_input_that_is_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        buffer = io.BytesIO(b"no video" * 100)

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Pipe())
    with pytest.raises(InputError, match="cannot read video standard input"):
        read("-")
    with pytest.raises(InputError, match="ended before the first raw frame"):
        read("-", raw_size=(96, 64))


def test_gstreamer_and_screen_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="built without GStreamer"):
        open_reader("gst:videotestsrc ! appsink")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(InputError, match="no display"):
        open_reader("screen:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride: expected 1 or more"),
        ({"start": -1.0}, "start: expected seconds from 0"),
        ({"duration": 0.0}, "duration: expected more than 0"),
        ({"timeout": 0.0}, "timeout: expected"),
        ({"buffer": "some"}, "buffer: expected one of latest, all"),
        ({"decoder": "x"}, "decoder: expected one of av, opencv"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReadOptions(**options)  # type: ignore[arg-type]


# -- names ----------------------------------------------------------------------------------------------------------


def test_lists_patterns_and_folders(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mp4", "sub/c.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_clip(tmp_path / name, 2)
    (tmp_path / "all.txt").write_text("# cameras\nrtsp://a/1\n\na.mp4\nb.mp4\n")
    listed = find_sources([str(tmp_path / "all.txt")])
    assert [stream.name for stream in listed.streams] == [
        "rtsp://a/1",
        str(tmp_path / "a.mp4"),
        str(tmp_path / "b.mp4"),
    ]
    assert len(listed.groups()) == 1
    matched = find_sources([str(tmp_path / "*.mp4")])
    assert [Path(stream.name).name for stream in matched.streams] == ["a.mp4", "b.mp4"]
    assert len(matched.groups()) == 2
    inside = find_sources([str(tmp_path)], recursive=True)
    assert [str(stream.folder / stream.stem) for stream in inside.streams] == ["a", "b", "sub/c"]
    with pytest.raises(InputError, match="nothing matches the pattern"):
        find_sources([str(tmp_path / "*.avi")])
    (tmp_path / "all.txt").write_text("missing.mp4\n")
    with pytest.raises(InputError, match=r"all\.txt lists sources, one a line: no such picture"):
        find_sources([str(tmp_path / "all.txt")])
    (tmp_path / "all.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="expected 1 to 100000 sources"):
        find_sources([str(tmp_path / "all.txt")])


def test_a_stream_that_is_never_read_is_closed(tmp_path: Path) -> None:
    stream: FrameStream = read_timed(str(write_clip(tmp_path / "a.mp4", 2)))
    stream.close()
    stream.close()
