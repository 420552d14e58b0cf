"""``build`` on a file of a small network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolact_deploy.cache import file_lock
from yolact_deploy.cli import main as cli
from yolact_deploy.engine_file import read_engine_metadata

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from exports import needs_rtx

from yolact_deploy.export.engine import import_tensorrt


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.model.checkpoint import load_model
    from yolact_deploy.samples import DEMO_MODEL

    path = tmp_path_factory.mktemp("build") / "small.onnx"
    export_onnx(load_model(DEMO_MODEL, image_size=128), path, ExportSpec(precision="fp16"))
    yield path
    path.unlink()


@pytest.fixture
def file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``small.onnx``, alone in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.onnx"
    path.hardlink_to(source)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@needs_rtx
def test_beside_the_onnx_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "small.onnx"]) == 0
    assert names(file.parent) == ["small.onnx", "small.trt"]
    assert read_engine_metadata("small.trt").config.image_size == 128
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("wrote small.trt (")
    assert "TensorRT for RTX " in first
    assert first.endswith(" s, for compute capability 8.0 and later")
    assert second.startswith("plugins: none. TensorRT for RTX ")
    assert err.startswith("building small.trt ...\n")


@needs_rtx
def test_json_and_options(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--engine", "rtx", "--workspace", "256", "--optimization-level", "0", "--plugin", "off"]
    options += ["--target-sm", "8.9,8.6", "--target-sm", "120", "--timing-cache", "off", "--wait", "0"]
    assert cli.main(["build", "small.onnx", "-o", "out/e.plan", *options, "--json", "--quiet"]) == 0
    assert names(file.parent / "out") == ["e.plan"]
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    assert result == {
        "path": "out/e.plan",
        "bytes": Path("out/e.plan").stat().st_size,
        "seconds": result["seconds"],
        "tensorrt": "rtx",
        "version": import_tensorrt("rtx").__version__,
        "plugin": "none",
        "plugin_reason": result["plugin_reason"],
        "profiles": [[1, 1, 1]],
        "target": "SM89, SM86, SM120",
        "cached": False,
    }
    assert result["seconds"] > 0


@needs_rtx
def test_cache(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "kept"))
    assert cli.main(["build", "small.onnx", "--cache"]) == 0
    assert capsys.readouterr().out.startswith("wrote small.trt (")
    assert cli.main(["build", "small.onnx", "--cache", "-o", "again.trt"]) == 0
    assert capsys.readouterr().out.startswith("taken from the cache again.trt (")
    assert Path("again.trt").read_bytes() == Path("small.trt").read_bytes()
    assert names(file.parent) == ["again.trt", "kept", "small.onnx", "small.trt"]


@needs_rtx
def test_another_build_is_running(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with file_lock(".small.trt.lock", 0):
        assert cli.main(["build", "small.onnx", "--wait", "0"]) == 2
    check_failure(capsys, "another build of small.trt has been running for more than 0 s: raise --wait")
    with file_lock(".small.trt.lock", 0):
        assert cli.main(["build", "small.onnx", "--wait", "0.2"]) == 2
    assert "another build of small.trt is running: waiting for it\n" in capsys.readouterr().err
    assert names(file.parent) == ["small.onnx"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workspace", "0"],
        ["--workspace", "much"],
        ["--wait", "-1"],
        ["--wait", "inf"],
        ["--wait", "long"],
        ["--profile", "4:2:1"],
        ["--plugin", "maybe"],
        ["--engine", "none"],
    ],
)
def test_wrong_arguments(file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["build", "small.onnx", *arguments])
    assert caught.value.code == 2
    assert "yolact-deploy build: error: " in capsys.readouterr().err
    assert names(file.parent) == ["small.onnx"]


def check_failure(capsys: pytest.CaptureFixture[str], message: str) -> None:
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("building ")]
    assert len(lines) == 1
    assert lines[0].startswith("yolact-deploy: error: ")
    assert message in lines[0]
    assert out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such ONNX file: other.onnx"),
        (b"text\n" * 99, "other.onnx is not an ONNX file"),
        (b"", "other.onnx is not an ONNX file"),
    ],
)
def test_wrong_files(file: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str) -> None:
    if content is not None:
        Path("other.onnx").write_bytes(content)
    before = names(file.parent)
    assert cli.main(["build", "other.onnx"]) == 2
    check_failure(capsys, message)
    assert names(file.parent) == before


@needs_rtx
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-sm", "12345"], "got '12345'"),
        (["--target-sm", "86,current"], "cannot be combined with others"),
        (["--profile", "1:2:4"], "small.onnx has a fixed batch of 1, which --profile cannot change"),
        (["--timing-cache", "t.cache"], "--timing-cache requires TensorRT"),
        (["--plugin", "on"], "plugins are untested on TensorRT for RTX"),
        (["--plugin", "aot"], "no ahead-of-time plugins"),
        (["-o", "small.onnx/e.trt"], "cannot write small.onnx/e.trt: "),
    ],
)
def test_wrong_options(file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(["build", "small.onnx", *arguments]) == 2
    check_failure(capsys, message)
    assert names(file.parent) == ["small.onnx"]


def test_no_tensorrt(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    assert cli.main(["build", "small.onnx"]) == 2
    check_failure(capsys, "no TensorRT is installed. For RTX cards: python -m pip install 'yolact-deploy[rtx]'")
    assert cli.main(["build", "small.onnx", "--engine", "tensorrt"]) == 2
    check_failure(capsys, "'yolact-deploy[tensorrt]'")
    assert names(file.parent) == ["small.onnx"]


@needs_rtx
def test_the_source_is_not_overwritten(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``-o`` names the ONNX file itself."""
    data = file.read_bytes()
    assert cli.main(["build", "small.onnx", "-o", "small.onnx"]) == 2
    assert file.read_bytes() == data
