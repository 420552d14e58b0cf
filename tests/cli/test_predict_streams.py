"""`predict` of streams on a scripted network: several at once, failures, ids in every file, watching."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from clips import audio_packets, frame_times, numbered, write_clip
from mjpeg_server import serving
from scripted_backend import ScriptedBackend, install

from yolact_deploy.cli import main as cli
from yolact_deploy.streams.sinks.sink_table import SINKS
from yolact_deploy.streams.video import probe_video, read_ahead

pytest.importorskip("av")

SIZES = ((96, 64), (64, 96), (160, 120), (80, 80))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    return install(monkeypatch)


def predict(*arguments: object) -> int:
    return cli.main(["predict", "model.onnx", *map(str, arguments), "--quiet"])


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("yolact-")] == []


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def four(folder: Path) -> Path:
    """A list of four clips of different sizes and lengths."""
    for number, size in enumerate(SIZES):
        write_clip(folder / f"clip{number}.mp4", 8 + 3 * number, size=size)
    (folder / "all.txt").write_text("".join(f"clip{number}.mp4\n" for number in range(4)))
    return folder / "all.txt"


def test_four_streams_in_one_batch(backend: ScriptedBackend, tmp_path: Path) -> None:
    backend.max_batch = 4
    assert predict(four(tmp_path), "-o", tmp_path / "out") == 0
    for number, size in enumerate(SIZES):
        count = 8 + 3 * number
        found = lines(tmp_path / "out" / f"clip{number}.jsonl")
        assert [line["frame"] for line in found] == list(range(count))
        assert [line["time"] for line in found] == pytest.approx(np.arange(count) / 10, abs=2e-3)
        assert {(line["width"], line["height"]) for line in found} == {size}
        overlay = tmp_path / "out" / f"clip{number}_overlay.mp4"
        assert probe_video(overlay)[:2] == size
        # The corner of a numbered frame stays as it is; the middle shows which frame it was.
        grays = [float(image[2:6, 2:6].mean()) for image in read_ahead(overlay)]
        assert len(grays) == count
    frames = sum(8 + 3 * number for number in range(4))
    assert frames / 4 <= backend.calls < frames


def test_one_stream_fails_and_the_others_run(
    backend: ScriptedBackend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backend.max_batch = 4
    listed = four(tmp_path)
    (tmp_path / "clip1.mp4").write_bytes(b"nothing" * 100)
    clip = write_clip(tmp_path / "clip2.mkv", 3)
    data = clip.read_bytes()
    clip.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75") + 30])
    listed.write_text(listed.read_text() + "clip2.mkv\n")
    assert predict(listed, "-o", tmp_path / "out", "--format", "json") == 2
    error = capsys.readouterr().err
    assert "clip1.mp4" in error
    assert "clip2.mkv" in error
    assert written(tmp_path / "out") == ["clip0.jsonl", "clip2.jsonl", "clip3.jsonl"]


def test_a_live_source_that_ends_keeps_its_file(
    backend: ScriptedBackend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = write_clip(tmp_path / "a.mp4", 5)
    with serving(last=15) as server:
        code = predict(f"{server.address}/live", clip, "-o", tmp_path / "out", "--timeout", 1, "--buffer", "all")
    assert code == 2
    assert "has sent no frame for" in capsys.readouterr().err
    (live,) = (path for path in (tmp_path / "out").glob("*.jsonl") if path.name != "a.jsonl")
    assert len(lines(live)) >= 12
    assert len(lines(tmp_path / "out" / "a.jsonl")) == 5


@pytest.mark.parametrize("frames", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_live_source_is_found_again(
    backend: ScriptedBackend, tmp_path: Path, frames: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(cuts=(frames // 2,), pause=0.001) as server:
        arguments = ["predict", "m.onnx", f"{server.address}/live", "-o", str(tmp_path / "out"), "--json"]
        assert cli.main([*arguments, "--max-frames", str(frames), "--buffer", "all", "--format", "json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["streams"]
    assert facts["reconnects"] == 1
    (path,) = (tmp_path / "out").iterdir()
    found = lines(path)
    assert [line["frame"] for line in found] == list(range(frames))
    seconds = [line["time"] for line in found]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_audio_and_times_are_kept(backend: ScriptedBackend, tmp_path: Path, container: str) -> None:
    seconds = (0.0, 0.1, 0.5, 0.6, 1.4)
    clip = write_clip(tmp_path / "a.mp4", 5, seconds=seconds, audio=True)
    assert predict(clip, "-o", tmp_path / "out", "--container", container) == 0
    overlay = tmp_path / "out" / f"a_overlay.{container}"
    assert frame_times(overlay) == pytest.approx(seconds, abs=2e-3)
    assert audio_packets(overlay)[-3:] == audio_packets(clip)[-3:]
    assert predict(clip, "-o", tmp_path / "out", "--container", container) == 0, "our own file is replaced"
    assert predict(clip, "-o", tmp_path / "later", "--start", 0.5, "--format", "json") == 0
    assert [line["time"] for line in lines(tmp_path / "later" / "a.jsonl")] == [0.5, 0.6, 1.4]


def test_an_upright_overlay_of_a_phone_clip(backend: ScriptedBackend, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 4, rotation=90)
    assert predict(clip, "-o", tmp_path / "out") == 0
    assert probe_video(tmp_path / "out" / "a_overlay.mp4")[:2] == (64, 96)
    assert lines(tmp_path / "out" / "a.jsonl")[0]["width"] == 64


def test_ids_are_the_same_in_every_file(
    backend: ScriptedBackend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lap")
    clip, out = write_clip(tmp_path / "a.mp4", 6), tmp_path / "out"
    formats = ",".join(["overlay", "json", *SINKS])
    arguments = ["predict", "m.onnx", str(clip), "-o", str(out), "--format", formats, "--track", "--json",
                 "--count-line", "10,0,10,64", "--count-zone", "0,0,48,0,48,64,0,64"]  # fmt: skip
    assert cli.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert all(Path(path).is_file() for path in summary["outputs"])
    tracked = [[one["track"] for one in line["detections"]] for line in lines(out / "a.jsonl")]
    assert tracked == [[1, 2]] * 6
    with (out / "csv" / "detections.csv").open() as file:
        assert [row["track"] for row in csv.DictReader(file)] == ["1", "2"] * 6
    mot = [line.split(",")[:2] for line in (out / "mot" / "a.txt").read_text().splitlines()]
    assert mot == [[str(frame), track] for frame in range(1, 7) for track in ("1", "2")]
    results = json.loads((out / "ytvis" / "results.json").read_text())
    assert [[mask is not None for mask in one["segmentations"]] for one in results] == [[True] * 6] * 2
    ids = cv2.imread(str(out / "masks" / "a" / "000003.png"), cv2.IMREAD_UNCHANGED)
    assert ids is not None
    assert set(np.unique(ids)) == {0, 1, 2}
    line, zone = summary["streams"][0]["counts"]
    assert (line["left"], line["right"]) == (0, 0)
    assert zone["total"] == 1
    assert predict(clip, "-o", out, "--format", formats, "--track") == 0, "our own folders are used again"


def test_sinks_of_pictures(backend: ScriptedBackend, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"p{index}.png"), numbered(index))
    assert predict(folder, "-o", tmp_path / "out", "--format", "csv,yolo,labelme,masks,crops,cutouts") == 0
    out = tmp_path / "out"
    assert [path.name for path in sorted((out / "yolo").glob("*.txt"))] == ["p0.txt", "p1.txt", "p2.txt"]
    content = json.loads((out / "labelme" / "p1.json").read_text())
    assert (out / "labelme" / content["imagePath"]).resolve() == (folder / "p1.png").resolve()
    assert len(list((out / "crops").rglob("*.jpg"))) == 6
    (out / "masks" / ".written_by.json").unlink()
    assert predict(folder, "-o", out, "--format", "masks") == 2
    assert predict(folder, "-o", out, "--format", "masks", "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "mot"], "--format mot needs the ids of tracked objects"),
        (["--color", "track"], "add --track"),
        (["--count-line", "1,1,2,2"], "--count-line needs the ids"),
        (["--track", "--count-line", "1,1,1,1"], "two different points"),
        (["--track", "--count-line", "1,1,2,2,3,3"], "expected two points"),
        (["--track", "--count-zone", "1,1,2,2"], "three corners"),
        (["--track", "--track-score", "2"], "expected 0 to 1"),
        (["--video-multiframe", "2"], "this model takes batches of 1 to 1 images, got 2"),
        (["--vid-stride", "2", "--start", "-1"], "start: expected seconds from 0"),
        (["--show"], "--show needs"),
    ],
)
def test_refused(
    backend: ScriptedBackend, tmp_path: Path, arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    clip = write_clip(tmp_path / "a.mp4", 3)
    assert predict(clip, "-o", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--hide", "eyes"], ["--serve-mjpeg", "70000"], ["--count-zone", "1,2,x"], ["--raw-size", "9"]]
)
def test_refused_by_the_parser(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        predict(tmp_path / "a.mp4", *arguments)
    assert caught.value.code == 2


def test_serving_and_drawing_options(
    backend: ScriptedBackend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = write_clip(tmp_path / "a.mp4", 4, size=(320, 240))
    arguments = ["predict", "m.onnx", str(clip), "-o", str(tmp_path / "out"), "--serve-mjpeg", "0", "--show-fps"]
    assert cli.main([*arguments, "--hide", "boxes,masks,labels,scores"]) == 0
    assert "serving drawn frames at http://127.0.0.1:" in capsys.readouterr().err
    drawn = list(read_ahead(tmp_path / "out" / "a_overlay.mp4"))
    plain = list(read_ahead(clip))
    assert np.abs(drawn[2][60:].astype(int) - plain[2][60:]).mean() < 3
    assert np.abs(drawn[2][:30].astype(int) - plain[2][:30]).max() > 60, "the rate is written at the top"


def test_stride_and_multiframe(backend: ScriptedBackend, tmp_path: Path) -> None:
    backend.max_batch = 3
    clip = write_clip(tmp_path / "a.mp4", 10)
    arguments = ["--format", "json", "--vid-stride", 2, "--video-multiframe", 3]
    assert predict(clip, "-o", tmp_path / "out", *arguments) == 0
    assert [line["time"] for line in lines(tmp_path / "out" / "a.jsonl")] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert backend.calls == 2
