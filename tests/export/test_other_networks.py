"""Protonets that no published network has, exported like all others."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.config import YolactConfig
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.graph.macs import count_macs
from yolact_deploy.model import YolactModel
from yolact_deploy.model.model_macs import count_model_macs
from yolact_deploy.samples import sample_images

TRANSPOSED = YolactConfig(
    name="transposed", backbone="mobilenet_v2", image_size=96, num_classes=2, fpn_channels=16,
    protonet=((16, 3), (12, -2), (8, 3)),
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> YolactModel:
    torch.manual_seed(0)
    return YolactModel(TRANSPOSED).eval()


@pytest.mark.parametrize("precision", ["fp32", *(pytest.param(p, marks=pytest.mark.slow) for p in ("fp16", "int8"))])
def test_transposed_convolutions(network: YolactModel, precision: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    calibration = sample_images() if precision == "int8" else None
    done = export_model(network, path, ExportSpec(precision=precision, calibration=calibration))
    assert done.parity.failures == []
    counted = [layer for layer in count_macs(path).layers if layer.part != "tail"]
    expected = count_model_macs(TRANSPOSED).layers
    assert {(layer.name, layer.op_type, layer.macs) for layer in counted} == {
        (layer.name, layer.op_type, layer.macs) for layer in expected
    }
