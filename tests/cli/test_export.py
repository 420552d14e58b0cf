"""``export`` from a checkpoint to files and a table, at a small size."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolact_deploy.artifact import sha256_file
from yolact_deploy.cli import main as cli
from yolact_deploy.engine_file import read_engine_metadata
from yolact_deploy.errors import ExportError
from yolact_deploy.samples import DEMO_MODEL

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from exports import needs_rtx

from yolact_deploy.export import pipeline
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx

SMALL = ["--size", "97"]
#: a trained model, whose trace at this size other tests share
DEMO = ["--weights", str(DEMO_MODEL), "--size", "128"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def never_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export_model", lambda *args, **options: pytest.fail("the export was begun"))


@needs_rtx
def test_fp16_onnx_and_engine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the README: both files in the current folder, named after the configuration."""
    assert cli.main(["export", *DEMO, "--fp16", "--engine", "rtx"]) == 0
    assert names(here) == ["shapes_demo.onnx", "shapes_demo.trt"]
    metadata = onnx_metadata(read_onnx("shapes_demo.onnx"), "")
    assert metadata.precision == "fp16"
    assert metadata.config.image_size == 128
    assert metadata.weights_sha256 == sha256_file(DEMO_MODEL)
    assert read_engine_metadata("shapes_demo.trt").config == metadata.config
    out, err = capsys.readouterr()
    assert out.startswith("exporting shapes_demo (fp16) to shapes_demo.onnx ...\n")
    assert "no layer overflows in 3 images: values up to " in out
    assert "ONNX Runtime against eager FP32, 3 images" in out
    for word in ("boxes", "scores", "coeff", "proto", "ok", "eager model", "NumPy tail"):
        assert word in out
    assert "FAILED" not in out
    assert "wrote shapes_demo.onnx (3." in out
    assert "wrote shapes_demo.trt (" in out
    assert "TensorRT for RTX " in out
    assert "building shapes_demo.trt ...\n" in err


@pytest.mark.slow  # a trace of its own
@pytest.mark.usefixtures("short_check")
def test_json_and_options(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tail", "heads", "--batch", "2", "--input", "float32", "--engine", "none", "-o", "out/net.onnx"]
    assert cli.main(["export", "--json", "--weights", str(DEMO_MODEL), *SMALL, *arguments]) == 0
    assert names(here) == ["out"]
    assert names(here / "out") == ["net.onnx"]
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == ""
    path = Path(result["onnx"]["path"])
    assert path == Path("out/net.onnx")
    assert result["onnx"]["bytes"] == path.stat().st_size
    assert (result["config"], result["precision"], result["engine"]) == ("shapes_demo", "fp32", None)
    assert [tensor["name"] for tensor in result["parity"]["tensors"]] == ["boxes", "scores", "coeff", "proto"]
    assert result["parity"]["tail"] is None
    metadata = onnx_metadata(read_onnx(path), path)
    assert (metadata.tail, metadata.batch, metadata.input_dtype) == ("heads", (2, 2, 2), "float32")


@pytest.mark.usefixtures("short_check")
def test_layers_kept_in_fp32(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "keep.json").write_text(json.dumps({"keep_fp32": ["proto_net.10", "fpn"]}))
    arguments = ["--fp16", "--keep-fp32", "keep.json", "--engine", "none", "-o", "m"]
    assert cli.main(["export", "--json", *DEMO, *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["precision"], result["keep_fp32"]) == ("fp16", ["proto_net.10", "fpn"])
    assert onnx_metadata(read_onnx("m.onnx"), "").keep_fp32 == ("proto_net.10", "fpn")
    assert cli.main(["inspect", "m.onnx"]) == 0
    assert "proto_net.10, fpn" in capsys.readouterr().out


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """A checkpoint whose head has values past 65504 between two of its layers, and is the same network otherwise."""
    from yolact_deploy.model.checkpoint import load_model, save_checkpoint

    model = load_model(DEMO_MODEL)
    head: Any = model.prediction_layers[0]
    for parameter in head.upfeature[0].parameters():
        parameter.data *= 2.0**15
    for layer in (head.bbox_layer, head.conf_layer, head.mask_layer):
        layer.weight.data /= 2.0**15
    save_checkpoint(model, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.slow
@pytest.mark.usefixtures("short_check")
def test_layers_that_overflow(overflowing: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named with the reason, kept, and told by inspect; without the search nothing broken is written."""
    arguments = ["--weights", str(overflowing), "--size", "128", "--engine", "none", "-o", "m"]
    assert cli.main(["export", "--fp16", "--no-overflow-check", *arguments]) == 2
    assert "disagrees with the eager model: boxes differ by nan" in error_of(capsys)
    assert names(here) == []

    more = here.parent / "more"
    more.mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(more / f"{seed}.png"), noise)
    given = ["--keep-fp32", "proto_net.10", "--calibration", str(more)]
    assert cli.main(["export", "--fp16", *given, *arguments]) == 0
    out = capsys.readouterr().out
    assert "4 of 65 layers exceed FP16 in 5 images" in out  # three are samples
    for layer in ("upfeature.0", "bbox_layer", "conf_layer", "mask_layer"):
        assert f"prediction_layers.0.{layer} " in out
    assert "values up to " in out
    metadata = onnx_metadata(read_onnx("m.onnx"), "")
    assert metadata.keep_fp32[0] == "proto_net.10"
    assert len(metadata.keep_fp32) == 5
    assert cli.main(["--json", "inspect", "m.onnx"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"]["keep_reasons"] == metadata.keep_reasons
    assert cli.main(["inspect", "m.onnx"]) == 0
    told = "".join(capsys.readouterr().out.split())
    assert "proto_net.10,prediction_layers.0.upfeature.0(valuesupto" in told


@needs_rtx
@pytest.mark.usefixtures("short_check")
def test_bf16(overflowing: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the range of FP32, so that nothing is looked for and nothing is kept."""
    arguments = ["--weights", str(overflowing), "--size", "128", "--engine", "rtx", "-o", "m"]
    assert cli.main(["export", "--bf16", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("exporting shapes_demo (bf16) to m.onnx ...\n")
    assert "overflow" not in out
    for line in ("boxes before rounding", "proto before rounding", "boxes ", "proto "):
        assert line in out
    for metadata in (onnx_metadata(read_onnx("m.onnx"), ""), read_engine_metadata("m.trt")):
        assert (metadata.precision, metadata.keep_fp32) == ("bf16", ())
    assert cli.main(["--json", "inspect", "m.onnx"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"]["bfloat16"]["bytes"] == 2 * facts["parameters"]["bfloat16"]["values"] > 3e6


@pytest.mark.usefixtures("short_check")
def test_quiet_without_any_tensorrt(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolact_deploy.export import engine as tensorrt

    monkeypatch.setattr(tensorrt, "available_flavour", lambda: None)
    arguments = [*DEMO, "-o", "m", "--cross-class"]
    assert cli.main(["--quiet", "export", *arguments]) == 0
    assert names(here) == ["m.onnx"]
    assert onnx_metadata(read_onnx("m.onnx"), "").cross_class
    assert "exporting" not in capsys.readouterr().out

    monkeypatch.setattr(pipeline, "export_model", stop)
    assert cli.main(["export", *arguments]) == 2
    assert "TensorRT is not installed here: writing the ONNX file only" in capsys.readouterr().out


def stop(*args: Any, **options: Any) -> None:
    raise ExportError("far enough")


def test_options_reach_the_export(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs: list[ExportSpec] = []

    def begin(model: object, output: object, spec: ExportSpec, **others: Any) -> None:
        specs.append(spec)
        stop()

    monkeypatch.setattr(pipeline, "export_model", begin)
    arguments = ["--tail", "heads", "--batch", "2", "--input", "float32", "--engine", "none", "-o", "out/net.onnx"]
    assert cli.main(["export", "--json", *DEMO, *arguments]) == 2
    assert error_of(capsys).endswith("far enough\n")
    (spec,) = specs
    assert (spec.tail, spec.batch, spec.input_dtype, spec.size) == ("heads", (2, 2, 2), "float32", 128)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr, the only one besides progress."""
    *progress, err = capsys.readouterr().err.splitlines(keepends=True)
    assert err.startswith("yolact-deploy: error: ")
    assert not [line for line in progress if not line.startswith(("tracing ", "writing "))]
    return err


@pytest.mark.usefixtures("never_exported")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.pth"], "no such weights file: none.pth"),
        (["--weights", "text.pth"], "text.pth is not a weights file, or it is damaged"),
        (["--weights", "yolact_bas"], "did you mean yolact_base?"),
        (["--weights", "W", "--config", "yolact_resnet51"], "did you mean yolact_resnet50?"),
        (["--weights", "W", "--config", "yolact_resnet50_pascal"], "weights and configuration differ"),
        (["--weights", "W", "--config", "yolact_base"], "weights and configuration differ"),
        (["--weights", "W", "--size", "20"], "image_size: expected 64 to 4096, got 20"),
        (
            ["--weights", "W", "-o", "folder"],
            "folder is a folder: give -o the common stem of the files, such as folder/yolact",
        ),
        (["--weights", "W", "--engine", "tensorrt"], "'yolact-deploy[tensorrt]'"),
        (
            ["--weights", "W", "--keep-fp32", "proto_net"],
            "--keep-fp32 requires --fp16, --bf16 or --int8: without them all",
        ),
        (
            ["--weights", "W", "--no-overflow-check"],
            "--no-overflow-check requires --fp16: no other precision",
        ),
        (["--weights", "W", "--fp16", "--fp32"], "--fp16 cannot be combined with --fp32: choose one"),
        (["--weights", "W", "--fp16", "--bf16"], "--fp16 cannot be combined with --bf16: choose one"),
        (["--weights", "W", "--bf16", "--no-overflow-check"], "--no-overflow-check requires --fp16"),
        (["--weights", "W", "--fp16", "--keep-fp32", "none.json"], "no such list of layers: none.json"),
    ],
)
def test_mistakes_are_found_before_the_work(
    resnet50_checkpoint: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (here / "text.pth").write_text("not weights")
    (here / "folder").mkdir()
    before = names(here)
    given = [str(resnet50_checkpoint) if argument == "W" else argument for argument in arguments]
    if "--engine" not in given:
        given += ["--engine", "none"]
    assert cli.main(["export", *given]) == 2
    assert message in error_of(capsys)
    assert names(here) == before
    assert names(here / "folder") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--weights", "w.pth", "--bf16", "--fp32"],
        ["--weights", "w.pth", "--batch", "0"],
        ["--weights", "w.pth", "--batch", "4:2:1"],
        ["--weights", "w.pth", "--batch", "1:2"],
        ["--weights", "w.pth", "--batch", "many"],
        ["--weights", "w.pth", "--tail", "nms"],
        ["--weights", "w.pth", "--engine", "tflite"],
        ["--weights", "w.pth", "--optimization-level", "9"],
    ],
)
def test_wrong_arguments(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["export", *arguments])
    assert caught.value.code == 2
    assert "yolact-deploy export: error: " in capsys.readouterr().err
    assert names(here) == []


def test_an_open_batch() -> None:
    arguments = cli.command_parser("export").parse_args(["--weights", "w.pth", "--batch", "1:2:4"])
    assert arguments.batch == (1, 2, 4)


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (stop, "far enough"),
        (lambda *args: signal.default_int_handler(2, None), "interrupted; no partial files were left"),
    ],
)
def test_a_failing_export(
    resnet50_checkpoint: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[..., None],
    message: str,
) -> None:
    def check_parity(*args: Any) -> None:
        fail()

    monkeypatch.setattr(pipeline, "trace", lambda model, metadata: None)
    monkeypatch.setattr(pipeline, "write_onnx", lambda graph, metadata, path: path.write_bytes(b"half"))
    monkeypatch.setattr(pipeline, "check_parity", check_parity)
    assert cli.main(["export", "--weights", str(resnet50_checkpoint), *SMALL, "--engine", "none"]) == 2
    assert message in error_of(capsys)
    assert names(here) == []


@needs_rtx
@pytest.mark.usefixtures("short_check")
def test_a_failing_build_keeps_the_onnx_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was checked, and can be built elsewhere."""
    arguments = [*DEMO, "--quiet", "--engine", "rtx", "--target-sm", "12345"]
    assert cli.main(["export", *arguments]) == 2
    assert "got '12345'" in error_of(capsys)
    assert names(here) == ["shapes_demo.onnx"]
