"""tritonclient and a real Triton, as far as nvidia-pytriton carries one: its Python backend, without a GPU.

They need other versions of protobuf and NumPy than the rest, so they run in a Python of their own:
``YOLACT_TRITON_PYTHON`` names it. It needs nvidia-pytriton, tritonclient[http,grpc], onnxruntime, onnx, OpenCV, psutil,
pycocotools and msgspec.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import cv2
import pytest
from served import served

import yolact_deploy
from yolact_deploy.cli.main import main
from yolact_deploy.datasets.shapes import render, write_shapes

PYTHON = os.environ.get("YOLACT_TRITON_PYTHON", "")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not PYTHON, reason="YOLACT_TRITON_PYTHON names no Python with tritonclient")


def child(*words: str | Path) -> Any:
    script = ROOT / "tests" / "helpers" / "triton_child.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PYTHON, str(script), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in (3, 4)]
    for path in paths:
        cv2.imwrite(str(path), render(int(path.stem)).image)
    return paths


def same(a: Any, b: Any) -> bool:
    """Detections of two versions of NumPy and OpenCV: the same objects, scores and masks, but for rounding."""
    from yolact_deploy.datasets.rle import decode

    if (a["width"], a["height"], len(a["detections"])) != (b["width"], b["height"], len(b["detections"])):
        return False
    for x, y in zip(a["detections"], b["detections"], strict=True):
        masks = [decode(one["mask"]["counts"].encode(), a["height"], a["width"]) for one in (x, y)]
        near = abs(x["score"] - y["score"]) < 1e-3
        near &= all(abs(p - q) < 0.1 for p, q in zip(x["box"], y["box"], strict=True))
        if x["label"] != y["label"] or not near or (masks[0] != masks[1]).mean() > 1e-3:
            return False
    return True


@pytest.fixture(scope="module")
def expected(demo_onnx: Path, pictures: list[Path]) -> list[Any]:
    with yolact_deploy.load(f"{demo_onnx}@onnxruntime:threads=1,tail=graph") as model:
        detections = [one.to_json() for one in model(pictures)]
    assert all(len(one["detections"]) >= 2 for one in detections)
    return detections


def test_own_service(demo_onnx: Path, pictures: list[Path], expected: list[Any]) -> None:
    """The real client calls the service of this package."""
    with served(f"demo={demo_onnx}", "--predictors", "1") as running:
        result = child("call", running.address.removeprefix("http://"), "demo", *pictures)
    for way in (result["http"], result["remote"]):
        assert all(map(same, way["detections"], expected))
    assert "image 0" in result["http"]["error"]
    assert same(result["http"]["again"][0], expected[0])
    assert result["remote"]["stages"][:4] == ["decode", "preprocess", "transfer", "network"]
    assert result["remote"]["timings"]["transfer"] > 0
    assert result["remote"]["timings"]["network"] > 0


def test_triton(demo_onnx: Path, pictures: list[Path], expected: list[Any], tmp_path: Path) -> None:
    """A repository in a real Triton over HTTP and gRPC: the step for pictures, and the network as a backend."""
    command = ["triton", str(demo_onnx), "-o", str(tmp_path), "--name", "demo", "--backend", "python"]
    assert main([*command, "--instances", "2", "--steps", "2", "--quiet"]) == 0
    result = child("serve", tmp_path, "demo", *pictures)
    for way in ("http", "grpc", "remote_http", "remote_grpc"):
        assert all(map(same, result[way]["detections"], expected)), way
    for way in ("http", "grpc"):
        assert "image 0" in result[way]["error"]
        assert "Traceback" not in result[way]["error"]
        assert same(result[way]["again"][0], expected[0])
    assert result["remote_grpc"]["stages"][2:4] == ["transfer", "network+nms+assembly"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    list(write_shapes(folder, {"val": 6}, seed=3))
    return folder


def check_commands(result: Any, ways: int) -> None:
    """eval over each address has the figures of the file, and so do bench and compare."""
    assert result["file"]["mask"]["ap"] > 0.1
    assert len(result["eval"]) == ways
    for one in result["eval"]:
        assert (one["box"], one["mask"]) == (result["file"]["box"], result["file"]["mask"])
    (engine,) = result["bench"]["engines"]
    stages = engine["latency"]["stages_mean_ms"]
    assert list(stages)[:3] == ["decode", "preprocess", "transfer"]
    assert stages["transfer"] > 0
    assert engine["accuracy"] is not None
    agreement = result["compare"]["agreement"]
    assert agreement["agreed_share"] == 1, agreement


def test_commands_on_own_service(demo_onnx: Path, dataset: Path) -> None:
    with served(f"demo={demo_onnx}", "--predictors", "1") as running:
        address = running.address.removeprefix("http://")
        check_commands(child("commands", f"{demo_onnx}@onnxruntime:threads=1", dataset, address, "demo"), 1)


def test_commands_on_triton(demo_onnx: Path, dataset: Path, tmp_path: Path) -> None:
    command = ["triton", str(demo_onnx), "-o", str(tmp_path), "--name", "demo", "--backend", "python", "--quiet"]
    assert main([*command, "--instances", "1", "--steps", "1"]) == 0
    check_commands(child("commands", f"{demo_onnx}@onnxruntime:threads=1", dataset, tmp_path, "demo"), 2)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "python"])
def test_configurations_parse(demo_onnx: Path, tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    command = ["triton", str(demo_onnx), "-o", str(tmp_path), "--name", "demo", "--backend", backend]
    assert main([*command, "--instances", "3", "--quiet"]) == 0
    pictures, network = child("parse", *(tmp_path / name / "config.pbtxt" for name in ("demo", "demo_network")))
    assert (pictures["name"], pictures["backend"], network["backend"]) == ("demo", "python", backend)
    assert network["instance_group"] == [{"count": 3, "kind": "KIND_CPU"}]
    assert network["input"] == [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["1", "320", "320", "3"]}]
    assert pictures["parameters"]["yolact_deploy_network"]["string_value"] == "demo_network"
    metadata = json.loads(network["parameters"]["yolact_deploy"]["string_value"])
    assert metadata["config"]["image_size"] == 320
