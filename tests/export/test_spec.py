"""What an export may be: values, contradictions, and the metadata that follow."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.errors import ExportError
from yolact_deploy.export.search.bisect import Target
from yolact_deploy.export.spec import MAX_BATCH, ExportSpec

PICTURES = (Path("a.jpg"),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "int4"}, r"precision: expected one of fp32, fp16.*, got 'int4'"),
        ({"tail": "nms"}, "tail: expected one of functions, heads, got 'nms'"),
        ({"input_dtype": "float16"}, "input_dtype: expected one of uint8, float32, got 'float16'"),
        ({"batch": (0, 1, 1)}, "batch: expected 1 <= min <= opt <= max <= 1024, got 0:1:1"),
        ({"batch": (2, 1, 4)}, "got 2:1:4"),
        ({"batch": (1, 5, 4)}, "got 1:5:4"),
        ({"batch": (1, 1, MAX_BATCH + 1)}, "got 1:1:1025"),
        ({"keep_fp32": ("proto_net",)}, "--keep-fp32 requires --fp16, --bf16 or --int8: without them all"),
        ({"precision": "int8"}, "--int8 requires pictures to choose ranges on"),
        ({"precision": "bf16", "overflow_check": False}, "--no-overflow-check requires --fp16"),
        ({"precision": "bf16", "calibration": PICTURES}, "--calibration requires --int8, or --fp16 with its overflow"),
        ({"precision": "fp16", "overflow_check": False, "calibration": PICTURES}, "--calibration requires --int8, or"),
        ({"precision": "fp16", "calibration_images": 5}, "--images requires --calibration"),
        ({"calibration_method": "mse"}, "--calibration-method requires --int8"),
        ({"precision": "int8", "calibration": PICTURES, "calibration_method": "max"}, "calibration method: expected"),
        ({"target": "openvino"}, "--target requires --int8"),
        ({"precision": "int8", "calibration": PICTURES, "target": "cpu"}, "target: expected one of auto, tensorrt"),
        ({"precision": "fp16", "limits": Target(max_ap_drop=1)}, "--max-ap-drop and --min-agreement require --int8"),
        (
            {"precision": "int8", "calibration": PICTURES, "limits": Target(max_ap_drop=1)},
            "limits require images to judge by",
        ),
    ],
)
def test_wrong_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ExportSpec(**fields)


def test_a_spec_is_a_value() -> None:
    spec = ExportSpec(precision="int8", calibration=PICTURES, limits=None, keep_fp32=("fpn",))
    assert copy.deepcopy(spec) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301
    assert (spec.method, spec.form) == ("percentile", "symmetric")
    assert ExportSpec(precision="int8", calibration="x", target="onnxruntime").form == "onnxruntime"


def test_metadata() -> None:
    config = get_config("yolact_resnet50")
    spec = ExportSpec(precision="fp16", tail="heads", batch=(1, 2, 4), cross_class=True, keep_fp32=("fpn",))
    metadata = spec.metadata(config, weights_sha256="ab", versions={"torch": "2"})
    assert (metadata.config, metadata.weights_sha256, metadata.versions) == (config, "ab", {"torch": "2"})
    assert (metadata.precision, metadata.tail, metadata.batch) == ("fp16", "heads", (1, 2, 4))
    assert (metadata.cross_class, metadata.input_dtype, metadata.keep_fp32) == (True, "uint8", ("fpn",))
    few = YolactConfig(backbone="mobilenet_v2", image_size=64, num_classes=1, max_detections=300)
    with pytest.raises(ExportError, match="max_detections: 300 slots for 200 entries of NMS; lower it to 200"):
        ExportSpec().metadata(few)
