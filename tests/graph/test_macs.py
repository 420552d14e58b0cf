"""Multiply-accumulates: of small graphs that can be counted by hand, and of every configuration."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
from deterministic import GOLDEN
from few import few_rows

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # once it is known to be there

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.errors import ArtifactError, InputError
from yolact_deploy.export import functions
from yolact_deploy.graph.macs import PARTS, LayerMacs, Macs, count_macs
from yolact_deploy.model.model_macs import count_model_macs


def write(
    path: Path,
    nodes: list[Any],
    shape: tuple[Any, ...],
    weights: dict[str, tuple[int, ...]],
    precision: str = "fp32",
    bodies: tuple[Any, ...] = (),
) -> Path:
    """A file with an input ``x`` of this shape, weights of these shapes, and the last node's first output as output."""
    kind = {"fp32": np.float32, "fp16": np.float16}[precision]
    onnx_kind = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx_kind, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], onnx_kind, None)],
        initializer=[numpy_helper.from_array(np.zeros(dims, kind), name) for name, dims in weights.items()],
    )
    opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid("yolact", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
    metadata = Metadata(config=YolactConfig(image_size=64, num_classes=2), precision=precision)
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, str(path))
    return path


def only(macs: Macs) -> LayerMacs:
    (layer,) = macs.layers
    return layer


@pytest.mark.parametrize(
    ("node", "shape", "weights", "macs", "outputs"),
    [
        # 6 x 6 results of 8 channels, each of 3 x 3 x 4 inputs
        (("Conv", {"pads": [1, 1, 1, 1]}), (1, 4, 6, 6), (8, 4, 3, 3), 36 * 8 * 9 * 4, 36 * 8),
        (("Conv", {"strides": [2, 2]}), (1, 4, 7, 7), (8, 4, 3, 3), 9 * 8 * 9 * 4, 9 * 8),
        (("Conv", {"group": 4}), (1, 4, 6, 6), (4, 1, 3, 3), 16 * 4 * 9, 16 * 4),  # depthwise
        (("ConvTranspose", {"strides": [2, 2]}), (1, 4, 5, 5), (4, 8, 2, 2), 25 * 4 * 8 * 4, 100 * 8),
        (("Gemm", {"transB": 1}), (5, 7), (3, 7), 5 * 7 * 3, 15),
        (("Gemm", {"transA": 1}), (7, 5), (7, 3), 5 * 7 * 3, 15),
        (("MatMul", {}), (2, 5, 7), (7, 3), 2 * 5 * 7 * 3, 30),
        (("Einsum", {"equation": "nij, jk -> nik"}), (2, 5, 7), (7, 3), 2 * 5 * 7 * 3, 30),
        (("Einsum", {"equation": "...ij,jk->...ik"}), (2, 4, 5, 7), (7, 3), 8 * 5 * 7 * 3, 120),
    ],
)  # fmt: skip
def test_products_are_counted(
    node: tuple[str, dict[str, Any]],
    shape: tuple[int, ...],
    weights: tuple[int, ...],
    macs: int,
    outputs: int,
    tmp_path: Path,
) -> None:
    op, attributes = node
    path = write(tmp_path / "m.onnx", [helper.make_node(op, ["x", "w"], ["y"], **attributes)], shape, {"w": weights})
    layer = only(count_macs(path))
    assert (layer.op_type, layer.macs) == (op, macs)
    assert (layer.inputs, layer.weights, layer.outputs) == (np.prod(shape), np.prod(weights), outputs)


def test_deformable_convolutions_move_their_offsets(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "backbone.offset.weight"], ["offset"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "DeformConv", ["x", "backbone.conv.weight", "offset", "b"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
        ),
    ]
    shapes = {"backbone.offset.weight": (18, 4, 3, 3), "backbone.conv.weight": (8, 4, 3, 3), "b": (8,)}
    offset, deformed = count_macs(write(tmp_path / "m.onnx", nodes, (1, 4, 6, 6), shapes)).layers
    assert (offset.part, deformed.part) == ("backbone", "backbone")
    assert deformed.macs == 36 * 8 * 36
    assert (deformed.inputs, deformed.weights, deformed.outputs) == (36 * (4 + 18), 8 * 36 + 8, 36 * 8)


def chain(tmp_path: Path, shape: tuple[Any, ...] = (1, 4, 6, 6), precision: str = "fp32") -> Path:
    """A layer of each part; the head's weights are used twice."""
    names = ["backbone.conv1", "fpn.lat_layers.0", "proto_net.0", "prediction_layers.0.bbox_layer", "strange"]
    nodes, tensor = [], "x"
    for number, name in enumerate([*names, names[3]]):
        nodes += [
            helper.make_node("Conv", [tensor, f"{name}.weight"], [f"c{number}"]),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"]),
        ]
        tensor = f"r{number}"
    return write(tmp_path / "m.onnx", nodes, shape, {f"{n}.weight": (4, 4, 1, 1) for n in names}, precision)


def test_layers_have_names_and_parts(tmp_path: Path) -> None:
    macs = count_macs(chain(tmp_path))
    assert [(layer.name, layer.part) for layer in macs.layers] == [
        ("backbone.conv1", "backbone"),
        ("fpn.lat_layers.0", "fpn"),
        ("proto_net.0", "protonet"),
        ("prediction_layers.0.bbox_layer", "heads"),
        ("strange", "other"),
        ("prediction_layers.0.bbox_layer#2", "heads"),
    ]
    one = 36 * 4 * 4 / 1e9
    assert macs.part_gmac() == pytest.approx(
        {"backbone": one, "fpn": one, "protonet": one, "heads": 2 * one, "other": one}
    )
    assert macs.gmac == pytest.approx(6 * one)


def test_bytes_are_those_of_the_precision(tmp_path: Path) -> None:
    elements = 6 * (2 * 36 * 4 + 16)
    single, half = count_macs(chain(tmp_path)), count_macs(chain(tmp_path, precision="fp16"))
    assert (single.precision, half.precision) == ("fp32", "fp16")
    assert (single.moved_bytes(), half.moved_bytes()) == (4 * elements, 2 * elements)
    assert single.moved_bytes("bf16") == half.moved_bytes()
    assert single.moved_bytes("int8") == elements
    assert sum(single.part_bytes("int8").values()) == elements
    with pytest.raises(InputError, match="unknown precision 'fp8': expected one of fp32"):
        single.moved_bytes("fp8")


def test_the_number_of_images_counts(tmp_path: Path) -> None:
    one = count_macs(chain(tmp_path))
    two = count_macs(chain(tmp_path, shape=(2, 4, 6, 6)))
    open_one = count_macs(chain(tmp_path, shape=("batch", 4, 6, 6)))
    open_two = count_macs(chain(tmp_path, shape=("batch", 4, 6, 6)), batch=2)
    assert open_one == one
    assert open_two == two
    assert (one.images, two.images) == (1, 2)
    assert two.gmac == pytest.approx(2 * one.gmac)
    assert two.moved_bytes() < 2 * one.moved_bytes()  # the weights are read once


def test_the_body_of_a_function_is_the_tail(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "proto_net.0.weight"], ["features"]),
        helper.make_node("Transpose", ["features"], ["proto"], perm=[0, 2, 3, 1]),
        helper.make_node("MaskAssembly", ["proto", "coeff", "boxes"], ["masks"], domain="yolact", padding=1.0),
    ]
    weights = {"proto_net.0.weight": (5, 4, 1, 1), "coeff": (1, 3, 5), "boxes": (1, 3, 4)}
    path = write(tmp_path / "m.onnx", nodes, (1, 4, 6, 8), weights, bodies=(functions.mask_assembly_function(),))
    macs = count_macs(path)
    assert macs.part_gmac() == pytest.approx({"protonet": 48 * 5 * 4 / 1e9, "tail": 3 * 5 * 48 / 1e9})
    assert macs.gmac == macs.part_gmac()["protonet"]
    assert macs.moved_bytes() == macs.part_bytes()["protonet"]
    assert macs.layers[1].op_type == "MatMul"


def test_a_product_of_unknown_shape_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], (1, 4, "h", "w"), {"w": (8, 4, 3, 3)}
    )
    with pytest.raises(ArtifactError, match="Conv cannot be counted, the shape of 'y' is unknown: export the file"):
        count_macs(path)


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), str(path))
    with pytest.raises(ArtifactError, match="not exported by yolact-deploy"):
        count_macs(path)
    with pytest.raises(ArtifactError, match="no such ONNX file"):
        count_macs(tmp_path / "nowhere.onnx")


def test_the_json_is_complete(tmp_path: Path) -> None:
    macs = count_macs(chain(tmp_path))
    told = json.loads(json.dumps(macs.to_json()))
    assert told["gmac"] == macs.gmac
    assert told["bytes"] == macs.moved_bytes()
    assert set(told["part_gmac"]) == set(told["part_bytes"]) <= set(PARTS)
    assert [LayerMacs(**layer) for layer in told["layers"]] == list(macs.layers)


@pytest.mark.parametrize(("name", "gmac"), few_rows(published.GMAC.items(), 1, 5, 7))
def test_models_have_the_published_gmac(name: str, gmac: float) -> None:
    pytest.importorskip("torch")
    assert count_model_macs(get_config(name)).gmac == pytest.approx(gmac, rel=0.005)


@pytest.mark.golden
def test_parts_are_those_of_the_original() -> None:
    pytest.importorskip("torch")
    golden = json.loads((GOLDEN / "macs_params.json").read_text())["yolact_resnet50"]
    macs = count_model_macs(get_config("yolact_resnet50"))
    assert macs.gmac == pytest.approx(golden["GMACs"], rel=1e-9)
    parts = golden["parts_GMACs"]
    assert macs.part_gmac() == pytest.approx(
        {
            "backbone": parts["backbone"],
            "fpn": parts["fpn"],
            "protonet": parts["proto_net"],
            "heads": sum(size for name, size in parts.items() if name.startswith("heads.")),
        },
        abs=0.002,
    )


def test_models_are_counted_as_in_the_layer_table() -> None:
    pytest.importorskip("torch")
    from yolact_deploy.model.layer_table import summary_dict
    from yolact_deploy.training import YolactModel

    config = YolactConfig(backbone="mobilenet_v2", image_size=96, num_classes=2, fpn_channels=8)
    macs = count_model_macs(YolactModel(config), batch=2)
    assert (macs.images, macs.precision) == (2, "fp32")
    assert macs.gmac == pytest.approx(2 * summary_dict(config)["gmac"], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "macs"), few_rows([("yolact_plus_base", 93_665_742_272), ("yolact_plus_resnet50", 70_688_744_128)], 1)
)
def test_the_offsets_of_deformable_convolutions_count_and_the_mask_iou_network_does_not(name: str, macs: int) -> None:
    pytest.importorskip("torch")
    counted = count_model_macs(get_config(name))
    assert round(counted.gmac * 1e9) == macs
    deformable = [layer for layer in counted.layers if layer.op_type == "DeformConv"]
    offsets = {layer.name: layer for layer in counted.layers if layer.name.endswith("conv_offset_mask")}
    assert len(deformable) == len(offsets) == (11 if name == "yolact_plus_base" else 13)
    for layer in deformable:
        told = offsets[f"{layer.name}.conv_offset_mask"]
        assert layer.inputs == told.inputs + told.outputs
    assert not any("maskiou" in layer.name for layer in counted.layers)
