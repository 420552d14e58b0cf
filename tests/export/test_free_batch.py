"""A trace of a fixed number of images that is made to take any number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

from yolact_deploy.export.free_batch import TRACED_BATCH, free_batch

#: what the networks do with their images: convolve them (here to as many channels as images), reshape them, enlarge
#: them to a size, and put masks into one dimension
NETWORK = """
<ir_version: 10, opset_import: ["" : 20]>
network (float[13, 4, 2, 2] images) => (float[13, 8, 2] boxes, float[65, 1, 4, 4] masks)
<int64[3] shape = {13, 8, 2}, int64[4] sizes = {13, 4, 4, 4}, int64[4] pairs = {65, 1, 4, 4},
 int64[4] wide = {13, 1, 4, 4}, int64[1] axis = {1}, float[1, 1, 1, 1] extra = {0.5},
 float[13, 4, 1, 1] weight = {%s}, float[4, 13, 1, 1] weight_back = {%s},
 float[13, 13, 2, 2] seen, float[13, 4, 2, 2] back, float[13, 4, 2, 2] x, float[13, 4, 4, 4] large,
 float[13, 1, 4, 4] one, float[13, 5, 4, 4] five>
{
  seen = Conv (images, weight)
  back = Conv (seen, weight_back)
  boxes = Reshape <allowzero = 1> (back, shape)
  x = Mul (images, extra)
  large = Resize <mode = "nearest"> (x, , , sizes)
  one = ReduceMean <keepdims = 1> (large, axis)
  five = Concat <axis = 1> (large, one)
  masks = Reshape (five, pairs)
}
""" % ((", ".join(["0.25"] * 52),) * 2)


def outputs(model: Any, images: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": images}))


def test_every_batch_gives_the_rows_of_the_trace() -> None:
    model = onnx.parser.parse_model(NETWORK)
    onnx.checker.check_model(model)
    images = np.random.default_rng(0).random((TRACED_BATCH, 4, 2, 2), np.float32)
    boxes, masks = outputs(model, images)
    assert free_batch(model)
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 2, TRACED_BATCH):
        freed = outputs(model, images[:batch])
        np.testing.assert_array_equal(freed[0], boxes[:batch])
        np.testing.assert_array_equal(freed[1], masks[: 5 * batch])
    first = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    }
    assert first == {
        **dict.fromkeys(("images", "boxes", "seen", "back", "x", "large", "one", "five"), "batch"),
        "masks": "5*batch",
    }
    assert {"shape", "sizes", "pairs"}.isdisjoint(tensor.name for tensor in model.graph.initializer)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("int64[3] shape = {13, 8, 2}", "int64[3] shape = {-1, 8, 2}"),
        ("int64[3] shape = {13, 8, 2}", "int64[3] shape = {13, -1, 2}"),
        ("one = ReduceMean <keepdims = 1> (large, axis)", "one = Expand (images, wide)"),
        ("float[1, 1, 1, 1] extra = {0.5}", "float[13, 1, 1, 1] extra = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}"),
        ("int64[4] sizes = {13, 4, 4, 4}", "int64[4] sizes = {12, 4, 4, 4}"),
        ("float[13, 4, 2, 2] x,", "float[25, 2, 2, 2] x,"),
    ],
)
def test_what_is_unknown_is_left_as_it_was(part: str, other: str) -> None:
    """The exporter traces such a network with symbols."""
    assert part in NETWORK
    model = onnx.parser.parse_model(NETWORK.replace(part, other))
    before = model.SerializeToString()
    assert not free_batch(model)
    assert model.SerializeToString() == before
