"""`predict` on a scripted network: what is written, and what is refused before a model is loaded."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scripted_backend import ScriptedBackend, install

from yolact_deploy import loading
from yolact_deploy.cli import main as cli
from yolact_deploy.config import get_config
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import DetectionOutputs
from yolact_deploy.streams import video
from yolact_deploy.streams.readers.opencv_reader import OpenCvReader
from yolact_deploy.streams.sources import UniqueNames, image_ids
from yolact_deploy.streams.writers import VideoWriter

DATA = Path(os.environ.get("YOLACT_DATA", Path(__file__).parents[2] / "../shared/data"))
CONFIG = get_config("yolact_resnet50").with_size(64)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    return install(monkeypatch)


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Predictor:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(loading, "load", load)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.jpg", "a.png", "000000000139.jpg", "sub/b.jpg"):
        assert cv2.imwrite(str(folder / name), np.full((90, 120, 3), 60, np.uint8))
    (folder / "notes.txt").write_text("no picture")
    return folder


def predict(*arguments: object) -> int:
    return cli.main(["predict", "model.onnx", *map(str, arguments), "--quiet"])


def raise_and_wait(number: int) -> None:
    """Raise a signal in this thread and wait until the main thread has handled it."""
    handler = signal.getsignal(number)
    signal.raise_signal(number)
    while signal.getsignal(number) is handler:
        time.sleep(0.001)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder(backend: ScriptedBackend, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(pictures, "-o", out) == 0
    assert written(out) == [
        "000000000139.json",
        "000000000139_overlay.jpg",
        "a.json",
        "a_overlay.png",
        "b.json",
        "b_overlay.jpg",
    ]
    found = json.loads((out / "a.json").read_text())
    assert [d["name"] for d in found["detections"]] == ["person", "dog"]
    assert (found["width"], found["height"]) == (120, 90)
    assert found["detections"][0]["box"] == [0, 18, 60, 72]
    overlay = cv2.imread(str(out / "a_overlay.png"))
    assert overlay is not None
    assert overlay.shape == (90, 120, 3)
    assert (overlay[45, 25] != 60).any()


def test_equal_stems_do_not_overwrite_each_other(backend: ScriptedBackend, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(pictures, "--recursive", "-o", out, "--format", "json") == 0
    assert written(out) == ["000000000139.json", "a.json", "b.json", "sub"]
    assert written(out / "sub") == ["b.json"]
    assert predict(pictures / "b.jpg", pictures / "sub" / "b.jpg", "-o", out / "flat", "--format", "json") == 0
    assert written(out / "flat") == ["b-2.json", "b.json"]


def test_coco(backend: ScriptedBackend, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(pictures, "-o", out, "--format", "coco") == 0
    assert written(out) == ["detections.coco.json", "detections.images.json"]
    results = json.loads((out / "detections.coco.json").read_text())
    images = json.loads((out / "detections.images.json").read_text())["images"]
    assert {image["id"]: Path(image["file_name"]).name for image in images} == {
        139: "000000000139.jpg",
        1: "a.png",
        2: "b.jpg",
    }
    assert len(results) == 6
    assert {result["image_id"] for result in results} == {139, 1, 2}
    assert {result["category_id"] for result in results} == {1, 18}  # COCO's person and dog
    assert results[0]["segmentation"]["size"] == [90, 120]
    assert {Path(result["file_name"]).name for result in results} == {"000000000139.jpg", "a.png", "b.jpg"}


def _listed(folder: Path, *names: str, **more: Any) -> Path:
    """A COCO file whose images have the ids 70, 71, ..."""
    images = [{"id": 70 + i, "file_name": name, "width": 120, "height": 90} for i, name in enumerate(names)]
    (folder / "images.json").write_text(json.dumps({"images": images, "categories": [], **more}))
    return folder / "images.json"


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (("b.jpg", "a.png", "000000000139.jpg"), {}),  # as COCO's image_info of test-dev
        (("x\\b.jpg", "x\\a.png", "x\\000000000139.jpg"), {"annotations": []}),
        (("pictures/b.jpg", "pictures/a.png", "pictures/000000000139.jpg", "pictures/else.jpg"), {}),
    ],
)
def test_ids_of_annotations(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, names: tuple[str, ...], more: dict[str, Any]
) -> None:
    out, file = tmp_path / "out", _listed(tmp_path, *names, **more)
    assert predict(pictures, "-o", out, "--format", "coco", "--annotations", file) == 0
    images = json.loads((out / "detections.images.json").read_text())["images"]
    assert {Path(image["file_name"]).name: image["id"] for image in images} == {
        "b.jpg": 70,
        "a.png": 71,
        "000000000139.jpg": 72,
    }
    results = json.loads((out / "detections.coco.json").read_text())
    assert {result["image_id"] for result in results} == {70, 71, 72}
    assert not any("file_name" in result for result in results)


def test_pictures_that_annotations_do_not_list(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [pictures, "-o", tmp_path / "out", "--annotations"]
    assert predict(*arguments, _listed(tmp_path, "a.png"), "--format", "coco", "--json") == 0
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert len(left_out["pictures that images.json does not list"]) == 2
    assert len(json.loads((tmp_path / "out" / "detections.images.json").read_text())["images"]) == 1
    for names, more, message in (
        (["c.png"], ["--format", "coco"], "lists none of the 3 pictures"),
        (["a.png"], [], "--annotations gives the image ids of --format coco"),
        ([], ["--format", "coco"], "no images"),
    ):
        assert predict(*arguments, _listed(tmp_path, *names), *more) == 2
        assert message in capsys.readouterr().err


def test_batches(backend: ScriptedBackend, pictures: Path, tmp_path: Path) -> None:
    backend.max_batch = 2
    assert predict(pictures, "-o", tmp_path / "out", "--format", "json") == 0
    assert backend.calls == 2
    assert len(written(tmp_path / "out")) == 3


def test_class_filter(backend: ScriptedBackend, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(pictures / "a.png", "-o", out, "--format", "json", "--class", "dog") == 0
    found = json.loads((out / "a.json").read_text())["detections"]
    assert [d["name"] for d in found] == ["dog"]


def test_selection(backend: ScriptedBackend, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, names in (
        (["--classes", "dog,cat"], ["dog"]),
        (["--class", "dog", "--classes", "person"], ["person", "dog"]),
        (["--max-detections", "1"], ["person"]),
        (["--score-threshold", "0.2,person=0.99"], ["dog"]),
    ):
        assert predict(pictures / "a.png", "-o", out, "--format", "json", *options) == 0
        assert [d["name"] for d in json.loads((out / "a.json").read_text())["detections"]] == names


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--score-threshold", "much"], "score_threshold: expected a number"),
        (["--score-threshold", "0.3,persn=0.5"], "did you mean 'person'?"),
        (["--classes", "dog,persn"], "did you mean 'person'?"),
        (["--max-detections", "0"], "max_detections: expected a number of 1 or more"),
        (["--top-k", "0"], "top_k: expected"),
        (["--nms-iou", "7"], "iou_threshold: expected"),
        (["--nms", "traditional", "--top-k", "9"], "top_k has no effect"),
    ],
)
def test_impossible_selection(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str],
    text: str,
) -> None:  # fmt: skip
    assert predict(pictures, "-o", tmp_path / "out", *options) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_class(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(pictures, "-o", tmp_path / "out", "--class", "persn") == 2
    assert "did you mean 'person'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_json_summary(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "m.onnx", str(pictures), "-o", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert captured.err == ""
    assert (summary["images"], summary["detections"], summary["failed"]) == (3, 6, [])
    assert len(summary["outputs"]) == 6
    for stage in ("decode", "preprocess", "network+nms+assembly", "detect", "paste", "draw", "write"):
        assert summary["mean_ms"][stage] > 0


def test_text_summary_and_progress(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "m.onnx", str(pictures), "-o", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "3 images, 6 detections in" in captured.out
    assert "network" in captured.out
    assert "predict: 3/3, " in captured.err


def test_one_damaged_picture_of_several(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "a.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    assert predict(pictures, "-o", out, "--format", "json,coco") == 2
    error = capsys.readouterr().err
    assert "error: cannot decode image" in error
    assert "a.png" in error
    assert written(out) == ["000000000139.json", "b.json", "detections.coco.json", "detections.images.json"]
    assert len(json.loads((out / "detections.coco.json").read_text())) == 4


def test_damaged_last_picture_of_a_batch(backend: ScriptedBackend, pictures: Path, tmp_path: Path) -> None:
    backend.max_batch = 4
    (pictures / "b.jpg").write_bytes(b"not a picture")
    assert predict(pictures, "-o", tmp_path / "out", "--format", "json") == 2
    assert written(tmp_path / "out") == ["000000000139.json", "a.json"]


def test_only_picture_is_damaged(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "a.png").write_bytes(b"not a picture")
    assert predict(pictures / "a.png", "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("yolact-deploy: error: cannot decode image")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("never_loaded")
class TestRefusedBeforeLoading:
    def test_missing_source(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert predict(tmp_path / "none.jpg") == 2
        assert "no such picture, folder or video" in capsys.readouterr().err

    def test_empty_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert predict(tmp_path) == 2
        assert "no pictures or videos in folder" in capsys.readouterr().err

    def test_output_is_a_file(self, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert predict(pictures, "-o", pictures / "a.png") == 2
        assert "cannot write to folder" in capsys.readouterr().err

    def test_damaged_video(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.mp4").write_bytes(b"nothing" * 100)
        assert predict(tmp_path / "a.mp4") == 2
        assert "cannot read video" in capsys.readouterr().err

    def test_coco_of_a_video(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert predict(make_video(tmp_path / "a.mp4"), "--format", "coco") == 2
        assert "--format coco requires pictures" in capsys.readouterr().err

    def test_format(self, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            predict(pictures, "--format", "xml")
        assert caught.value.code == 2
        assert "expected a comma-separated list of overlay, json, coco, csv" in capsys.readouterr().err


def make_video(path: Path, frames: int = 6) -> Path:
    with VideoWriter(path, 12, (96, 64)) as writer:
        for index in range(frames):
            writer.write(np.full((64, 96, 3), index * 20, np.uint8))
    return path


def test_video(backend: ScriptedBackend, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(make_video(tmp_path / "drive.mp4"), "-o", out) == 0
    assert written(out) == ["drive.jsonl", "drive_overlay.mp4"]
    assert video.probe_video(out / "drive_overlay.mp4") == (96, 64, 12.0, 6)
    lines = [json.loads(line) for line in (out / "drive.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    assert lines[3]["time"] == 0.25
    assert lines[0]["detections"][1]["name"] == "dog"


def test_video_cut_to_some_frames(backend: ScriptedBackend, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(make_video(tmp_path / "drive.mp4"), "-o", out, "--max-frames", 2, "--format", "json") == 0
    assert len((out / "drive.jsonl").read_text().splitlines()) == 2


def test_damaged_video_among_pictures(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 100)
    out = tmp_path / "out"
    assert predict(tmp_path / "bad.mp4", pictures / "a.png", "-o", out, "--format", "json") == 2
    assert "cannot read video" in capsys.readouterr().err
    assert written(out) == ["a.json"]


def test_failing_network_leaves_no_video(backend: ScriptedBackend, tmp_path: Path) -> None:
    backend.fail = True
    assert predict(make_video(tmp_path / "drive.mp4"), "-o", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_camera_until_interrupt(backend: ScriptedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        def __init__(self) -> None:
            self.read_frames = 0

        def isOpened(self) -> bool:  # noqa: N802  # OpenCV's name
            return True

        def read(self) -> tuple[bool, NDArray[np.uint8]]:
            self.read_frames += 1
            return True, np.zeros((64, 96, 3), np.uint8)

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", lambda number: Camera())
    run = backend.run

    def run_and_interrupt(images: NDArray[Any]) -> DetectionOutputs:
        if backend.calls == 5:
            raise_and_wait(signal.SIGINT)
        return run(images)

    monkeypatch.setattr(backend, "run", run_and_interrupt)
    assert predict("0", "-o", tmp_path / "out", "--format", "json") == 0
    lines = (tmp_path / "out" / "camera0.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- nothing is lost ------------------------------------------------------------------------------------------------

OUTPUTS = ("a.json", "a_overlay.png", "drive.jsonl", "drive_overlay.mp4")


@pytest.mark.parametrize("name", OUTPUTS)
def test_files_of_others_are_not_overwritten(
    name: str, backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    sources = [pictures / "a.png", pictures / "b.jpg", make_video(tmp_path / "drive.mp4", 2)]
    out.mkdir()
    (out / name).write_bytes(b'{"shapes": []}')
    for _ in range(2):  # our own files of the first run are replaced in the second
        assert predict(*sources, "-o", out) == 2
        assert f"{name} exists, and no earlier run wrote it" in capsys.readouterr().err
        assert (out / name).read_bytes() == b'{"shapes": []}'
        own = name.split("_")[0].split(".")[0]
        assert written(out) == sorted(
            [name, *(file for file in (*OUTPUTS, "b.json", "b_overlay.jpg") if not file.startswith(own))]
        )
    assert predict(*sources, "-o", out, "--overwrite") == 0
    assert (out / name).stat().st_size > 100
    assert predict(*sources, "-o", out) == 0


@pytest.mark.parametrize("names", [["detections.coco.json"], ["detections.images.json"]])
def test_coco_files_of_others_are_not_overwritten(
    names: list[str], backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text("[]")
    assert predict(pictures, "-o", out, "--format", "coco") == 2
    assert f"{names[0]} exists" in capsys.readouterr().err
    assert written(out) == names
    assert backend.calls == 0
    assert predict(pictures, "-o", out, "--format", "coco", "--overwrite") == 0
    assert predict(pictures, "-o", out, "--format", "coco") == 0


def test_output_beside_the_input_twice(backend: ScriptedBackend, pictures: Path) -> None:
    for _ in range(2):
        assert predict(pictures, "-o", pictures) == 0
        assert len(written(pictures)) == 5 + 6


def test_what_cannot_be_written_ends_that_picture_only(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, long = tmp_path / "out", "n" * 250
    (pictures / f"{long}.jpg").write_bytes((pictures / "b.jpg").read_bytes())  # its overlay's name is too long
    fits = "m" * 240
    (pictures / f"{fits}.jpg").write_bytes((pictures / "b.jpg").read_bytes())
    (out / "b.json").mkdir(parents=True)
    assert predict(pictures, "-o", out, "--format", "overlay,json,coco") == 2
    error = capsys.readouterr().err
    assert "b.json exists" in error
    assert "File name too long. Shorten the name" in error
    assert {"a.json", f"{fits}.json", f"{fits}_overlay.jpg", "000000000139.json"} <= set(written(out))
    images = json.loads((out / "detections.images.json").read_text())["images"]
    assert {Path(image["file_name"]).stem for image in images} == {"000000000139", "a", fits, long}


def test_a_full_disk_ends_the_run(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert predict(pictures, "-o", tmp_path / "out", "--format", "json") == 2
    assert backend.calls <= len(written(pictures))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["video", "pictures"])
def test_an_interrupt_keeps_what_is_done(
    kind: str, number: int, backend: ScriptedBackend, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, out = backend.run, tmp_path / "out"

    def run_and_interrupt(images: NDArray[Any]) -> DetectionOutputs:
        if backend.calls == 1:
            raise_and_wait(number)
        return run(images)

    monkeypatch.setattr(backend, "run", run_and_interrupt)
    if kind == "video":
        assert (
            predict(make_video(tmp_path / "drive.mp4"), pictures / "a.png", "-o", out, "--format", "overlay,json") == 2
        )
        assert video.probe_video(out / "drive_overlay.mp4").frames == 1  # the picture came first
        assert len((out / "drive.jsonl").read_text().splitlines()) == 1
    else:
        assert predict(pictures, "-o", out, "--format", "json,coco") == 2
        assert written(out) == ["000000000139.json", "a.json", "detections.coco.json", "detections.images.json"]
        assert len(json.loads((out / "detections.coco.json").read_text())) == 4
    assert "error: interrupted: " in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failing_network_keeps_what_is_done(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = backend.run, tmp_path / "out"

    def run_twice(images: NDArray[Any]) -> DetectionOutputs:
        backend.fail = backend.calls == 2
        return run(images)

    monkeypatch.setattr(backend, "run", run_twice)
    assert predict(pictures, "-o", out, "--format", "coco") == 2
    assert len(json.loads((out / "detections.coco.json").read_text())) == 4
    backend.calls, backend.fail = 0, False
    assert predict(make_video(tmp_path / "drive.mp4"), "-o", out, "--format", "json") == 2
    assert len((out / "drive.jsonl").read_text().splitlines()) == 2


# -- nothing is silent ----------------------------------------------------------------------------------------------


def test_what_a_folder_run_leaves_out_is_named(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".hidden.png", "labels.json"):
        (pictures / name).write_bytes((pictures / "a.png").read_bytes() if name.endswith("png") else b"{}")
    (pictures / "dead.png").symlink_to(tmp_path / "nothing.png")
    for name in ("c.jfif", "d.gif", "no_suffix"):
        suffix = {"c.jfif": ".jpg", "d.gif": ".gif"}.get(name, ".png")
        (pictures / name).write_bytes(cv2.imencode(suffix, np.full((9, 9, 3), 9, np.uint8))[1].tobytes())
    out = tmp_path / "out"
    arguments = ["predict", "m.onnx", str(pictures), "-o", str(out), "--format", "json"]
    assert cli.main(arguments) == 0
    error = capsys.readouterr().err
    assert written(out) == ["000000000139.json", "a.json", "b.json", "c.json", "d.json", "no_suffix.json"]
    for reason in ("1 hidden files", "2 files that OpenCV cannot read", "1 dead links", "1 folders (--rec"):
        assert f"left out {reason}" in error
    assert str(pictures / "labels.json") in error
    assert cli.main([*arguments, "--json"]) == 0
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert left_out["dead links"] == [str(pictures / "dead.png")]


def test_links_to_folders_are_followed_once(
    backend: ScriptedBackend, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "e.png").write_bytes((pictures / "a.png").read_bytes())
    (pictures / "a_link").symlink_to(tmp_path / "elsewhere")
    (pictures / "sub" / "round").symlink_to(pictures)
    (tmp_path / "elsewhere" / "also round").symlink_to(pictures / "sub")
    out = tmp_path / "out"
    arguments = ["predict", "m.onnx", str(pictures), "-o", str(out), "--format", "json", "--recursive"]
    assert cli.main(arguments) == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.json")) == [
        "000000000139.json", "a.json", "a_link/deep/e.json", "b.json", "sub/b.json",
    ]  # fmt: skip
    error = capsys.readouterr().err
    assert "followed 1 links to folders" in error
    assert "left out 2 links to folders that are searched anyway" in error


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("IMG_1.HEIC", b"\0\0\0\x18ftypheic" + bytes(400), "cannot read pictures of this kind (HEIC)"),
        ("a.cr2", bytes(100), "cannot read pictures of this kind (camera raw)"),
        ("notes.md", b"text" * 50, "neither a picture nor a video"),
    ],
)
@pytest.mark.usefixtures("never_loaded")
def test_other_kinds_are_refused_before_loading(
    name: str, data: bytes, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(data)
    assert predict(tmp_path / name) == 2
    assert expected in capsys.readouterr().err


def test_times_of_frames_come_from_the_stream(
    backend: ScriptedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, seconds = make_video(tmp_path / "drive.mp4", 3), iter((0.0, 0.5, 3.25))

    def varying(reader: OpenCvReader) -> Any:
        for timed in frames(reader):
            yield timed._replace(seconds=next(seconds))

    frames = OpenCvReader.frames
    monkeypatch.setattr(OpenCvReader, "frames", varying)
    monkeypatch.setattr("yolact_deploy.cli.prediction.has_av", lambda: False)
    arguments = ["predict", "m.onnx", str(clip), "-o", str(tmp_path / "out"), "--decoder", "opencv"]
    assert cli.main(arguments) == 0
    lines = (tmp_path / "out" / "drive.jsonl").read_text().splitlines()
    assert [json.loads(line)["time"] for line in lines] == [0.0, 0.5, 3.25]
    assert "the time between frames varies; the overlay plays at a constant 12 frames/s" in capsys.readouterr().err


def test_unique_names() -> None:
    names = UniqueNames()
    assert [names(stem) for stem in ("a", "a", "a-2", "A")] == ["a", "a-2", "a-2-2", "A-3"]


def test_image_ids_are_distinct() -> None:
    paths = [Path("x/1.jpg"), Path("y/1.jpg"), Path("2.jpg"), Path("c.jpg")]
    assert image_ids(paths) == [1, 3, 2, 4]


@pytest.fixture
def demo_pictures() -> list[Path]:
    folder = DATA / "demo"
    if not folder.is_dir():
        pytest.skip(f"no demo pictures in {folder}")
    return sorted(folder.glob("*.jpg"))


def test_real_pictures(backend: ScriptedBackend, demo_pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(*demo_pictures, "-o", out) == 0
    assert len(written(out)) == 2 * len(demo_pictures)
