"""Protonets, heads and backbones that no published network has, exported like all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from few import few_rows

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.config import YolactConfig
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.graph.macs import count_macs
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.model import YolactModel
from yolact_deploy.model.model_macs import count_model_macs
from yolact_deploy.samples import sample_images

_PLAIN: dict[str, Any] = {"backbone": "mobilenet_v2", "num_classes": 2, "fpn_channels": 16}
TRANSPOSED = YolactConfig(name="transposed", image_size=96, protonet=((16, 3), (12, -2), (8, 3)), **_PLAIN)
SIDE_BY_SIDE = YolactConfig(
    name="side_by_side", image_size=138, num_prototypes=7,
    protonet=((16, 3), ("cat", (((8, 3), (0, 2)), ((8, -4, 2),), ((0, 2),))), (12, 1)),
    head_layers=((24, 3), ("cat", (((8, 3),), ((8, 1),), ()))), head_branches=(1, 0, 2), **_PLAIN,
)  # fmt: skip
NOTHING = YolactConfig(name="nothing", image_size=138, protonet=(), head_layers=0, **_PLAIN)
#: squeeze layers (means, hard-sigmoid, products) and hard-swish
SQUEEZE = YolactConfig(name="squeeze", image_size=138, **{**_PLAIN, "backbone": "mobilenet_v3_large"})

NETWORKS = {config.name: config for config in (TRANSPOSED, SIDE_BY_SIDE, NOTHING, SQUEEZE)}
CASES = [(name, precision) for name in ("side_by_side", "squeeze", "transposed", "nothing")
         for precision in ("fp32", "fp16", "bf16", "int8")]  # fmt: skip


@pytest.mark.parametrize(("name", "precision"), few_rows(CASES, 3))
def test_export(name: str, precision: str, tmp_path: Path) -> None:
    config, path = NETWORKS[name], tmp_path / "model.onnx"
    torch.manual_seed(0)
    one = sample_images()[:1]
    spec = ExportSpec(precision=precision, calibration=one if precision == "int8" else None)
    done = export_model(YolactModel(config).eval(), path, spec, check_images=one)
    assert done.parity.failures == []
    assert onnx_metadata(read_onnx(path), path).config == config
    counted = [layer for layer in count_macs(path).layers if layer.part != "tail"]
    expected = count_model_macs(config).layers
    assert {(layer.name, layer.op_type, layer.macs) for layer in counted} == {
        (layer.name, layer.op_type, layer.macs) for layer in expected
    }
