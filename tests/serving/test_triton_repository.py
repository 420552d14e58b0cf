"""Model repositories for Triton: files, shapes, and what runs in the Python backend, on a stand-in for its module."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pictures import encoded

import yolact_deploy
from yolact_deploy.artifact import Metadata
from yolact_deploy.cli.main import main
from yolact_deploy.config import get_config
from yolact_deploy.datasets.shapes import render
from yolact_deploy.serving.triton_config import (
    TritonSettings,
    Word,
    network_config,
    pictures_config,
    to_pbtxt,
)

ONNX_TYPES = {"float32": 1, "int32": 6, "float16": 10}


def test_text() -> None:
    fields = [("a", 1), ("b", 'x"\\\ny'), ("c", [1, 2]), ("d", [("e", True), ("f", Word("KIND"))]), ("g", [])]
    assert to_pbtxt(fields) == 'a: 1\nb: "x\\"\\\\\\ny"\nc: [1, 2]\nd {\n  e: true\n  f: KIND\n}\ng: []\n'


@pytest.mark.parametrize(
    "options",
    [
        {"tail": "heads", "batch": (1, 2, 4)},
        {"cross_class": True},
        pytest.param({"precision": "fp16"}, marks=pytest.mark.slow),
    ],
)
def test_shapes_are_those_of_the_file(export: Callable[..., Path], options: dict[str, Any]) -> None:
    onnx = pytest.importorskip("onnx")
    path = export("small", 138, **options)
    model = onnx.load(path)
    metadata = Metadata.from_json(next(p.value for p in model.metadata_props if p.key == "yolact_deploy"), "file")
    stated = {
        value.name: (value.type.tensor_type.elem_type, [d.dim_value for d in value.type.tensor_type.shape.dim][1:])
        for value in model.graph.output
    }
    assert {name: (ONNX_TYPES[dtype], shape) for name, dtype, shape in metadata.output_shapes} == stated


def settings(**changes: Any) -> TritonSettings:
    return TritonSettings(**{"backend": "tensorrt", "gpu": True, "instances": 1, **changes})


def test_batches() -> None:
    metadata = Metadata(config=get_config("yolact_resnet50"), batch=(1, 4, 8))
    text = network_config("m_network", metadata, settings(), {})
    for line in ("max_batch_size: 8", "  dims: [550, 550, 3]", "  preferred_batch_size: [4, 8]", "  kind: KIND_GPU",
                 "    max_queue_size: 64", 'default_model_filename: "model.plan"'):  # fmt: skip
        assert f"{line}\n" in text
    assert 'name: "num_detections"\n  data_type: TYPE_INT32\n  dims: [1]\n  reshape {\n    shape: []\n' in text
    fixed = Metadata(config=get_config("yolact_resnet50"), batch=(4, 4, 4))
    text = network_config("m_network", fixed, settings(), {})
    assert "max_batch_size: 0\n" in text
    assert "  dims: [4, 550, 550, 3]\n" in text
    assert "dynamic_batching" not in text
    assert "  count: 3\n  kind: KIND_CPU\n" in pictures_config("m", metadata, settings(), 3)


def test_files(demo_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["triton", str(demo_onnx), "-o", str(tmp_path), "--name", "demo"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(Path(file).relative_to(tmp_path)) for file in result["files"]} == files
    assert files == {
        "model_analyzer.yaml", "demo/config.pbtxt", "demo/labels.txt", "demo/1/model.py",
        "demo_network/config.pbtxt", "demo_network/labels.txt", "demo_network/1/model.onnx",
    }  # fmt: skip
    assert (tmp_path / "demo_network/1/model.onnx").read_bytes() == demo_onnx.read_bytes()
    assert "tritonserver --model-repository=" in result["start"][1]
    compile((tmp_path / "demo/1/model.py").read_text(), "model.py", "exec")
    assert main(command) == 2
    assert "demo exists: choose another --name, or replace it with --overwrite" in capsys.readouterr().err
    (tmp_path / "demo" / "old").touch()
    assert main([*command, "--overwrite", "--quiet"]) == 0
    assert not (tmp_path / "demo" / "old").exists()


@pytest.mark.slow
def test_openvino_format(demo_onnx: Path, tmp_path: Path) -> None:
    """Triton's OpenVINO backend gets a file that gives the same detections."""
    openvino = pytest.importorskip("openvino")
    assert main(["triton", str(demo_onnx), "-o", str(tmp_path), "--backend", "openvino", "--quiet"]) == 0
    from yolact_deploy.runtime.openvino import shared_core

    path = tmp_path / f"{demo_onnx.stem}_network" / "1" / "model.xml"
    compiled = openvino.compile_model(shared_core().read_model(path), "CPU")
    images = np.stack([np.ascontiguousarray(render(3, height=320, width=320).image)])
    results = compiled(images)
    with yolact_deploy.load(f"{demo_onnx}@openvino:threads=1,tail=graph") as model:
        expected = model.backend.run(images)
    assert [output.get_any_name() for output in compiled.outputs] == list(expected._fields[:5])
    assert np.array_equal(results["num_detections"], expected.num_detections)  # type: ignore[union-attr]
    assert np.allclose(results["boxes"], expected.boxes, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--backend", "tensorrt"], "backend 'tensorrt' does not run such a file; expected one of onnxruntime"),
        (["--name", "a/b"], "model name 'a/b'"),
        (["--backend", "openvino", "--device", "gpu"], "Triton's backend openvino does not run there"),
        (["--score-threshold", "1"], "--score-threshold: expected"),
        (["--max-delay-us", "-1"], "--max-delay-us: expected"),
    ],
)
def test_errors(
    demo_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert main(["triton", str(demo_onnx), "-o", str(tmp_path / "models"), *change]) == 2
    assert message in capsys.readouterr().err


def test_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content, message in (
        ("m.pth", b"x", "Triton runs ONNX files and engines"),
        ("m.onnx", b"x", "m.onnx"),
        ("m.trt", b"x", "is not a TensorRT engine"),
    ):
        (tmp_path / name).write_bytes(content)
        assert main(["triton", str(tmp_path / name), "-o", str(tmp_path / "models")]) == 2
        assert message in capsys.readouterr().err
    assert main(["triton", "missing.onnx", "-o", str(tmp_path)]) == 2
    assert main(["triton", f"{tmp_path}/m.onnx@openvino", "-o", str(tmp_path)]) == 2


# -- the Python backend -----------------------------------------------------------------------------------------------


class _Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self._array = name, array

    def as_numpy(self) -> Any:
        return self._array


class _Response:
    def __init__(self, output_tensors: list[_Tensor], error: Any = None) -> None:
        self.tensors, self._error = {tensor.name: tensor for tensor in output_tensors}, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Any:
        return self._error


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the module that Triton gives to its Python backend; ``models`` are those of the server."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.models = {}
    module.Tensor, module.InferenceResponse = _Tensor, _Response
    module.TritonError = lambda text: SimpleNamespace(message=lambda: text)
    module.TRITONSERVER_MEMORY_CPU, module.PreferredMemory = 0, lambda kind: kind
    module.get_input_tensor_by_name = lambda request, name: request[name]
    module.get_output_tensor_by_name = lambda response, name: response.tensors[name]

    def make_request(*, model_name: str, inputs: list[_Tensor], **options: Any) -> Any:
        request = {tensor.name: tensor for tensor in inputs}
        return SimpleNamespace(exec=lambda: module.models[model_name].execute([request])[0])

    module.InferenceRequest = make_request
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module


@pytest.fixture
def models(utils: Any, demo_onnx: Path, tmp_path: Path) -> Any:
    """Both models of a repository, initialized as Triton does it."""
    command = ["triton", str(demo_onnx), "-o", str(tmp_path), "--name", "demo", "--backend", "python", "--quiet"]
    assert main(command) == 0
    for name in ("demo_network", "demo"):
        names: dict[str, Any] = {}
        exec((tmp_path / name / "1" / "model.py").read_text(), names)
        utils.models[name] = names["TritonPythonModel"]()
        utils.models[name].initialize(
            {
                "model_name": name,
                "model_version": "1",
                "model_repository": str(tmp_path / name),
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
                "model_config": json.dumps({"parameters": string_parameters(tmp_path / name / "config.pbtxt")}),
            }
        )
    return utils.models


def string_parameters(path: Path) -> dict[str, Any]:
    """The parameters of a file, by their lines."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    found = {}
    for i, line in enumerate(lines):
        if line == "parameters {":
            key, value = (json.loads(lines[i + at].partition(": ")[2]) for at in (1, 3))
            found[key] = {"string_value": value}
    return found


def request_of(*contents: bytes) -> dict[str, _Tensor]:
    return {"image": _Tensor("image", np.array(contents, dtype=np.object_))}


def test_step_and_network(models: Any, demo_onnx: Path, gray_jpeg: bytes) -> None:
    images = [render(i).image for i in (3, 4, 5)]
    with yolact_deploy.load(f"{demo_onnx}@onnxruntime:threads=1,tail=graph") as model:
        expected = [one.to_json() for one in model(images)]
    contents = [encoded(image, ".png") for image in images]
    first, bad, second = models["demo"].execute(
        [request_of(*contents[:2]), request_of(gray_jpeg[:-300]), request_of(contents[2])]
    )
    texts = [json.loads(text) for one in (first, second) for text in one.tensors["detections"].as_numpy()]
    assert texts == expected
    assert first.tensors["num_detections"].as_numpy().tolist() == [len(one["detections"]) for one in expected[:2]]
    assert "image 0" in bad.error().message()


def test_a_network_that_fails(models: Any, utils: Any, gray_jpeg: bytes) -> None:
    failure = _Response([], utils.TritonError("out of memory"))
    utils.models["demo_network"] = SimpleNamespace(execute=lambda requests: [failure])
    answers = models["demo"].execute([request_of(gray_jpeg), request_of()])
    assert "out of memory" in answers[0].error().message()


def test_no_pictures(models: Any) -> None:
    (answer,) = models["demo"].execute([request_of()])
    assert "at least one picture" in answer.error().message()
