"""``export --int8``: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from few import few

from yolact_deploy.artifact import Metadata
from yolact_deploy.cli import main as cli
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.preprocess import read_image
from yolact_deploy.samples import DEMO_MODEL, sample_images

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.export import calibration, pipeline
from yolact_deploy.graph import tensor_probe

DEMO = ["--weights", str(DEMO_MODEL), "--size", "128"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Thirty-six parts of the samples."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(36):
        image = read_image(sample_images()[i % 3])
        cv2.imwrite(str(folder / f"{i:02}.png"), image[3 * i : 200 + 3 * i, 2 * i : 250 + 2 * i])
    return folder


def metadata_of(path: str) -> Metadata:
    return onnx_metadata(read_onnx(path), path)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("yolact-deploy: error: ")
    return last


@pytest.mark.usefixtures("short_check")
@pytest.mark.parametrize("again", few([False, True], 0))  # test_quantize.py makes the other form, too
def test_a_file_for_all_runtimes(here: Path, pictures: Path, capsys: pytest.CaptureFixture[str], again: bool) -> None:
    arguments = ["export", "--int8", *DEMO, "--calibration", str(pictures), "--engine", "none", "-o", "m"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "calibrating: 36/36, " in err
    assert "warning" not in err
    assert "calibrated on 36 images (percentile)" in out
    assert "signal to noise of " in out
    assert "FAILED" not in out
    metadata = metadata_of("m.onnx")
    assert metadata.precision == "int8"
    assert metadata.quantization is not None
    assert metadata.quantization["images_sha256"] != ""
    assert {k: v for k, v in metadata.quantization.items() if k != "images_sha256"} == {
        "target": "symmetric",
        "method": "percentile",
        "images": 36,
    }
    assert cli.main(["inspect", "m.onnx"]) == 0
    assert "int8" in capsys.readouterr().out

    assert Path("m.onnx").stat().st_size < 0.35 * 7.6e6
    if not again:
        return
    more = ["--keep-fp32", "proto_net", "--calibration-method", "mse", "--target", "onnxruntime", "--json"]
    assert cli.main([*arguments[:-1], "n", *more]) == 0
    out, err = capsys.readouterr()
    assert "calibrating" not in err, "what was gathered is there"
    result = json.loads(out)
    assert (result["precision"], result["keep_fp32"], result["notes"]) == ("int8", ["proto_net"], [])
    assert result["quantization"] == metadata_of("n.onnx").quantization
    assert (result["quantization"]["target"], result["quantization"]["method"]) == ("onnxruntime", "mse")
    assert result["parity"]["noise"][0]["sqnr_db"] > 14


@pytest.mark.slow
def test_the_rest_in_fp16(here: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--int8", "--fp16", *DEMO, "--calibration", str(pictures), "--images", "6"]
    assert cli.main([*arguments, "--engine", "none", "-o", "m"]) == 0
    out, err = capsys.readouterr()
    assert "exporting shapes_demo (int8, the rest in fp16) to m.onnx ..." in out
    assert "checking for overflow: 9/9, " in err
    assert "no layer overflows in 9 images" in out
    assert "calibrated on 6 images (percentile)" in out
    assert "FAILED" not in out
    metadata = metadata_of("m.onnx")
    assert (metadata.precision, metadata.half) == ("int8", "fp16")
    assert cli.main(["inspect", "m.onnx"]) == 0
    assert "the rest in FP16" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["predict", "m.onnx", str(sample_images()[0]), "--json"]) == 0


@pytest.mark.slow
def test_few_pictures_are_told(here: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--calibration", str(pictures), "--images", "5", "--engine", "none", "--tail", "heads"]
    assert cli.main(["export", "--int8", *DEMO, *arguments, "-o", "m"]) == 0
    assert "warning: only 5 pictures for the calibration: larger values of other pictures" in capsys.readouterr().err
    assert metadata_of("m.onnx").tail == "heads"


@pytest.mark.slow
@pytest.mark.parametrize("factor", [100.0, pytest.param(0.01, marks=pytest.mark.slow)])
def test_a_calibration_that_does_not_fit_is_refused(
    here: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """One tensor is enough; nothing is written."""
    calibrate = calibration.calibrate

    def doctored(*args: Any, **options: Any) -> Any:
        found = calibrate(*args, **options)
        name = next(name for name in found.ranges if name.startswith("add"))
        low, high = found.ranges[name]
        return replace(found, ranges={**found.ranges, name: (factor * low, factor * high)})

    monkeypatch.setattr(pipeline, "calibrate", doctored)
    arguments = ["--calibration", str(pictures), "--images", "3", "--engine", "none", "-o", "m"]
    assert cli.main(["export", "--int8", *DEMO, *arguments]) == 2
    message = error_of(capsys)
    assert "the calibration does not fit 1 of " in message
    assert "calibrate with more pictures like those" in message
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_interrupted(
    here: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half-written is left, and the second run goes on."""
    monkeypatch.setattr(calibration, "_SECONDS_BETWEEN_SAVES", 0.0)
    calls: list[Path] = []

    def interrupt(path: Path) -> Any:
        if path.parent == pictures:  # not the check images
            calls.append(path)
            if len(calls) == 9:
                raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(tensor_probe, "read_image", interrupt)
    arguments = ["export", "--int8", *DEMO, "--calibration", str(pictures), "--engine", "none", "-o", "m"]
    assert cli.main(arguments) == 2
    assert "interrupted" in error_of(capsys)
    assert list(here.iterdir()) == []
    assert cli.main(arguments) == 0
    assert "calibrating (8 known already): 28/28, " in capsys.readouterr().err
    assert 0 <= len(calls) - (9 + 28) <= tensor_probe._AT_ONCE, "none is read again but those that were at work"


def test_useless_pictures(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "gray"
    folder.mkdir()
    for shade in range(4):
        cv2.imwrite(str(folder / f"{shade}.png"), np.full((40, 40, 3), 50 * shade, np.uint8))
    assert cli.main(["export", "--int8", *DEMO, "--calibration", str(folder), "--engine", "none", "-o", "m"]) == 2
    assert "of 4 calibration pictures, 4 have a single color (first: 0.png)" in error_of(capsys)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "--int8 requires pictures to choose ranges on"),
        (["--int8", "--calibration", "nowhere"], "--calibration: expected a folder with pictures, there is none"),
        (["--calibration", "."], "--calibration requires --int8, or --fp16"),
        (["--fp16", "--calibration-method", "mse"], "--calibration-method requires --int8"),
        (["--images", "5"], "--images requires --calibration"),
        (["--fp16", "--images", "5"], "--images requires --calibration"),
        (
            ["--int8", "--calibration", "{}", "--target", "onnxruntime", "--engine", "rtx"],
            "TensorRT cannot read files for --target onnxruntime",
        ),
    ],
)
def test_arguments_that_do_not_fit(
    here: Path, pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [argument.format(pictures) for argument in arguments]
    assert cli.main(["export", *DEMO, *given]) == 2
    assert message in error_of(capsys)
    assert list(here.iterdir()) == []
