"""Forms of the demo model for other runtimes: each is written, run and compared; wrong ones are not kept."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _module in ("torch", "onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(_module)

import cv2

from yolact_deploy import load
from yolact_deploy.artifact import Metadata
from yolact_deploy.cli import main as cli
from yolact_deploy.datasets.shapes import render
from yolact_deploy.errors import ArtifactError, BackendError, ExportError, InputError
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.export.targets import registry
from yolact_deploy.export.targets.agreement_check import check_agreement
from yolact_deploy.export.targets.registry import TARGETS, check_available, write_target
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.inspection import inspect_file
from yolact_deploy.model.checkpoint import load_model
from yolact_deploy.samples import DEMO_MODEL, sample_images
from yolact_deploy.vocabulary import EXPORT_FORMATS

CLIENT = Path(__file__).resolve().parents[2] / "examples/clients/cpp_openvino"


@pytest.fixture
def source(demo_onnx: Path, tmp_path: Path) -> TargetSource:
    """A copy of the demo model, in a folder of its own."""
    path = Path(shutil.copy(demo_onnx, tmp_path / "demo.onnx"))
    return TargetSource(onnx_path=path, metadata=onnx_metadata(read_onnx(path), path), model=load_model(DEMO_MODEL))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_word_is_a_target() -> None:
    assert ("onnx", *TARGETS) == EXPORT_FORMATS
    with pytest.raises(InputError, match=r"format: expected one of openvino, .*, got 'onx'"):
        check_available("onx")


def test_openvino(source: TargetSource) -> None:
    ov = pytest.importorskip("openvino")
    written = write_target("openvino", source)
    folder = source.onnx_path.with_name("demo_openvino_model")
    assert sorted(written) == [folder / "demo.bin", folder / "demo.xml"]
    assert files(source.onnx_path.parent) == [
        "demo.onnx",
        "demo_openvino_model/demo.bin",
        "demo_openvino_model/demo.xml",
    ]
    model = ov.Core().read_model(folder / "demo.xml")
    text = model.get_rt_info("yolact_deploy").astype(str)
    assert Metadata.from_json(text, "xml") == source.metadata
    assert model.get_rt_info(["model_info", "labels"]).astype(str).split() == list(source.metadata.config.class_names)
    (folder / "mine.txt").write_text("stays")
    write_target("openvino", source)
    assert files(folder) == ["demo.bin", "demo.xml", "mine.txt"]


def test_opencv(source: TargetSource) -> None:
    if int(cv2.__version__.partition(".")[0]) < 5:
        with pytest.raises(BackendError, match="the format opencv is for OpenCV 5"):
            write_target("opencv", source)
        return
    write_target("opencv", source)
    folder = source.onnx_path.with_name("demo_opencv_model")
    assert files(folder) == ["demo.onnx", "metadata.json"]
    assert Metadata.from_json((folder / "metadata.json").read_text(), "json") == source.metadata


def test_ncnn(source: TargetSource) -> None:
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    write_target("ncnn", source)
    folder = source.onnx_path.with_name("demo_ncnn_model")
    assert files(folder) == ["metadata.json", "model.ncnn.bin", "model.ncnn.param"]


def test_ncnn_of_a_file_in_half_precision(tmp_path: Path) -> None:
    """Where the file has casts, the order of the channels is folded into the first convolution all the same."""
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    path = tmp_path / "half.onnx"
    spec = ExportSpec(precision="fp16", overflow_check=False)
    export_model(str(DEMO_MODEL), path, spec, check_images=sample_images(load_model(DEMO_MODEL).config.class_names)[:1])
    source = TargetSource(onnx_path=path, metadata=onnx_metadata(read_onnx(path), path))
    write_target("ncnn", source)
    assert files(tmp_path / "half_ncnn_model") == ["metadata.json", "model.ncnn.bin", "model.ncnn.param"]


@pytest.mark.slow  # half a minute: traces and converts
# coremltools uses what it has deprecated itself, and leaves temporary folders to the garbage collector
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_coreml(source: TargetSource) -> None:
    ct = pytest.importorskip("coremltools")
    write_target("coreml", source)
    package = source.onnx_path.with_name("demo.mlpackage")
    assert "Manifest.json" in files(package)
    spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    assert [value.name for value in spec.description.output] == ["boxes", "scores", "coeff", "proto"]
    assert list(spec.description.input[0].type.multiArrayType.shape) == [1, 320, 320, 3]


@pytest.mark.slow  # a minute: traces and converts
@pytest.mark.filterwarnings("ignore")  # of JAX and the converter
def test_tflite(source: TargetSource) -> None:
    """Converted, run in LiteRT by the check and as a backend, and described."""
    for module in ("litert_torch", "ai_edge_litert"):
        pytest.importorskip(module)
    write_target("tflite", source)
    folder = source.onnx_path.with_name("demo_tflite_model")
    assert files(folder) == ["metadata.json", "model.tflite"]
    facts = inspect_file(folder / "model.tflite")
    assert (facts["kind"], facts["metadata"]["config"]["name"]) == ("TFLite", "shapes_demo")
    meter = AgreementMeter()
    with load(f"{folder}@litert", threads=1) as model, load(source.onnx_path) as reference:
        for number in range(3):
            picture = render(number, height=320, width=320).image
            meter.add(reference(picture), model(picture))
        described = model.backend.describe()
    assert (described["backend"], described["tail"], described["threads"]) == ("litert", "host", 1)
    agreed = meter.result()
    assert (agreed.missed, agreed.extra) == (0, 0)
    assert agreed.reference_detections > 8
    (folder / "model.tflite").write_bytes((folder / "model.tflite").read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="LiteRT cannot read"):
        load(f"{folder}@litert")


def test_a_form_that_disagrees_is_not_kept(source: TargetSource, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from yolact_deploy.export.targets import openvino_ir

    def check(source: TargetSource, run: Any, **options: Any) -> None:
        check_agreement(source, lambda images: run(images[..., ::-1].copy()), **options)

    monkeypatch.setattr(openvino_ir, "check_agreement", check)
    with pytest.raises(ExportError, match=r"the openvino form disagrees .* it misses \d+ and returns \d+ others"):
        write_target("openvino", source)
    assert files(source.onnx_path.parent) == ["demo.onnx"]


def test_a_file_in_the_way(source: TargetSource) -> None:
    pytest.importorskip("openvino")
    source.onnx_path.with_name("demo_openvino_model").write_text("mine")
    with pytest.raises(InputError, match="demo_openvino_model is in the way"):
        write_target("openvino", source)


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    arguments = ["--weights", str(DEMO_MODEL), "--engine", "none", "--format", "openvino", "--inline", "--json"]
    assert cli.main(["export", *arguments, "-o", str(tmp_path / "m")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(form["format"], form["files"]) for form in result["formats"]] == [
        ("inlined", ["m_inlined.onnx"]),
        ("openvino", ["m.xml", "m.bin"]),
    ]
    assert files(tmp_path) == ["m.onnx", "m_inlined.onnx", "m_openvino_model/m.bin", "m_openvino_model/m.xml"]


def test_what_is_missing_is_said_before_the_export(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    needs = registry.ExportTarget("_x", "x", (("no_such_module", "ncnn"),))
    monkeypatch.setitem(TARGETS, "ncnn", needs)
    arguments = ["--weights", str(DEMO_MODEL), "--engine", "none", "--format", "ncnn"]
    assert cli.main(["export", *arguments, "-o", str(tmp_path / "m")]) == 2
    assert "pip install 'yolact-deploy[ncnn]'" in capsys.readouterr().err
    assert files(tmp_path) == []


@pytest.mark.slow
def test_the_client_in_cpp(source: TargetSource, tmp_path: Path) -> None:
    """The example compiles against OpenVINO's wheel, and prints what this package detects."""
    ov = pytest.importorskip("openvino")
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("cmake and g++ are not installed")
    assert len((CLIENT / "main.cpp").read_text().splitlines()) <= 60
    build = tmp_path / "build"
    found = f"-DOpenVINO_DIR={Path(ov.__file__).parent / 'cmake'}"
    for command in (["cmake", "-S", CLIENT, "-B", build, found], ["cmake", "--build", build]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    write_target("openvino", source)
    xml = source.onnx_path.with_name("demo_openvino_model") / "demo.xml"
    with load(source.onnx_path, score_threshold=0.2) as model:
        # Of its own kind, where a gray level changes little; the first needs no resizing.
        for picture in (render(8, height=320, width=320).image, render(9).image):
            cv2.imwrite(str(tmp_path / "picture.ppm"), picture)
            arguments = [str(build / "detect"), str(xml), str(tmp_path / "picture.ppm"), "0.2"]
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            rows = np.array([line.split() for line in done.stdout.splitlines()], float).reshape(-1, 7)
            expected = model(picture)
            assert len(expected) > 0
            # Scores that are nearly equal swap places.
            rows = rows[np.lexsort((rows[:, 3].round(-1), rows[:, 2].round(-1), rows[:, 0]))]
            expected = expected[
                np.lexsort((expected.boxes[:, 1].round(-1), expected.boxes[:, 0].round(-1), expected.labels))
            ]
            np.testing.assert_array_equal(rows[:, 0], expected.labels)
            # OpenCV resizes in fixed point, the client in floating point: a gray level here and there.
            np.testing.assert_allclose(rows[:, 1], expected.scores, atol=0.02)
            np.testing.assert_allclose(rows[:, 2:6], expected.boxes, atol=1)
            np.testing.assert_allclose(rows[:, 6], expected.masks.sum(axis=(1, 2)), rtol=0.03, atol=20)
    assert subprocess.run([build / "detect", xml], capture_output=True, check=False).returncode == 2
