"""Engines with our plugins in Python, built by the real TensorRT for RTX, which needs no GPU for it."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from few import few

onnx = pytest.importorskip("onnx")

from tail_model import HEIGHT, SLOTS, WIDTH, tail_model

HERE = Path(__file__).parent
TESTS = HERE.parents[1]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed"
)


def build(model: Any, folder: Path, mode: str = "v3", *more: str) -> tuple[dict[str, Any], bytes]:
    """The report of the child process, and the plan."""
    source, target = folder / "model.onnx", folder / "model.plan"
    onnx.save(model, str(source))
    done = subprocess.run(
        [sys.executable, str(HERE / "rtx_child.py"), str(source), mode, str(target), *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    return {**report, "stderr": done.stderr}, target.read_bytes() if target.exists() else b""


def field(plan: bytes, name: str, layout: str) -> list[Any]:
    """The values within 100 bytes after a field's name in the plan."""
    start = plan.index(name.encode()) + len(name)
    size = struct.calcsize(layout)
    return [struct.unpack_from(layout, plan, at)[0] for at in range(start, start + 100 - size)]


@pytest.mark.parametrize("half", few([False, True], 1))
@pytest.mark.parametrize("batch", few([(1, 1, 1), (3, 3, 3), (1, 2, 4)], 0, 2))
def test_engines_hold_the_plugins(tmp_path: Path, batch: tuple[int, int, int], half: bool) -> None:
    model = tail_model(batch=batch, half=half, top_k=37, score_threshold=0.15625, iou_threshold=0.40625)
    report, plan = build(model, tmp_path)
    assert report["parsed"]
    assert report["built"], report["errors"]
    assert report["kind"] == "v3"
    assert report["names"] == ["yolact::FastNMS", "yolact::MaskAssembly"]
    count = batch[0] if batch[0] == batch[2] else -1
    assert report["outputs"] == {
        "num_detections": ["INT32", [count]],
        "boxes": ["FLOAT", [count, SLOTS, 4]],
        "scores": ["FLOAT", [count, SLOTS]],
        "labels": ["INT32", [count, SLOTS]],
        "masks": ["HALF" if half else "FLOAT", [count, SLOTS, HEIGHT, WIDTH]],
    }
    for name in (b"FastNMS", b"MaskAssembly", b"yolact"):
        assert name in plan
    assert 0.15625 in field(plan, "score_threshold", "<f")
    assert 0.40625 in field(plan, "iou_threshold", "<f")
    assert 37 in field(plan, "top_k", "<i")
    assert SLOTS in field(plan, "max_detections", "<i")
    assert (10 if half else 1) in field(plan, "mask_dtype", "<i")


def test_cross_class(tmp_path: Path) -> None:
    report, plan = build(tail_model(cross_class=True), tmp_path, "on")
    assert report["built"], report["errors"]
    assert 1 in field(plan, "cross_class", "<i")


@pytest.mark.slow  # tests/export/test_tensorrt_build.py builds without them
def test_without_plugins(tmp_path: Path) -> None:
    for mode in ("off", "auto"):
        report, plan = build(tail_model(), tmp_path, mode)
        assert report["kind"] == "none"
        assert report["built"], report["errors"]
        assert b"score_threshold" not in plan
    assert report["reason"].startswith("TensorRT for RTX 1.")


def test_a_plugin_that_fails_ends_the_build_and_not_the_process(tmp_path: Path) -> None:
    report, plan = build(tail_model(), tmp_path, "v3", "broken")
    assert not report["parsed"]
    assert not plan
    assert "broken on purpose" in report["stderr"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"precision": "fp16", "batch": (1, 2, 4)}, {"cross_class": True}], ids=str)
def test_exported_networks(tmp_path: Path, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from yolact_deploy.config import get_config
    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.model import YolactModel

    torch.manual_seed(0)
    config = get_config("yolact_edge_mobilenetv2").with_size(138)
    export_onnx(YolactModel(config).eval(), tmp_path / "whole.onnx", ExportSpec(**options))
    report, plan = build(onnx.load(str(tmp_path / "whole.onnx")), tmp_path)
    assert report["built"], report["errors"]
    assert report["outputs"]["masks"][0] == ("HALF" if options.get("precision") == "fp16" else "FLOAT")
    assert b"FastNMS" in plan
    assert b"MaskAssembly" in plan
