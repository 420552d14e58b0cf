"""What `export_onnx` writes: the contract of inputs, outputs and metadata, and what it refuses."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import YolactConfig, get_config, list_configs
from yolact_deploy.errors import ExportError
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.ops import operator_of
from yolact_deploy.preprocess import read_image
from yolact_deploy.priors import make_priors
from yolact_deploy.samples import DEMO_MODEL, sample_images

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from deterministic import named_config
from traces import TraceCache

from yolact_deploy.export import onnx as exporter
from yolact_deploy.export.onnx import export_onnx
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.model import YolactModel
from yolact_deploy.model.checkpoint import load_model

SUPPORTED = list_configs()
SMALL = 138
# ResNet-50 and MobileNetV2 are exported in both precisions, the others in one.
PRECISIONS = {
    "yolact_base": "fp16",
    "yolact_darknet53": "fp16",
    "yolact_im400": "fp16",
    "yolact_im700": "fp32",
    "yolact_plus_base": "fp16",
    "yolact_plus_resnet50": "fp32",
    "yolact_resnet50_pascal": "fp16",
}
# test_golden_onnx.py exports yolact_resnet50, test_plus_export.py YOLACT++, test_foreign.py one of mmdetection.
DIFFERENT = ("yolact_edge_mobilenetv2",)
CASES = [
    pytest.param(name, precision, marks=[] if name in DIFFERENT else [pytest.mark.slow])
    for name in SUPPORTED
    for precision in ("fp32", "fp16")
    if PRECISIONS.get(name, precision) == precision
]
#: for tests that trace it themselves: a third of the nodes of ResNet-50
SHALLOW = YolactConfig(backbone="resnet18", image_size=64, num_classes=2, fpn_channels=16)
TYPES = {1: "float32", 2: "uint8", 6: "int32", 10: "float16"}

Export = Callable[..., Path]


def session(path: Path) -> Any:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path: Path, images: Any) -> dict[str, Any]:
    opened = session(path)
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {"images": images}), strict=True))


def pictures(count: int, size: int) -> Any:
    """Sample pictures [count, size, size, 3], uint8."""
    paths = (sample_images() * count)[:count]
    return np.stack([cv2.resize(read_image(path), (size, size)) for path in paths])


def signature(values: Any) -> dict[str, tuple[str, list[Any]]]:
    """Name to dtype and shape; a dimension that is not fixed is -1."""
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        found[value.name] = (TYPES[tensor.elem_type], shape)
    return found


def expected_outputs(config: YolactConfig, tail: str, precision: str, batch: int = 1) -> dict[str, Any]:
    side, num, slots = config.prototype_size, config.num_priors, config.max_detections
    if tail == "heads":
        return {
            "boxes": ("float32", [batch, num, 4]),
            "scores": ("float32", [batch, num, config.num_classes]),
            "coeff": ("float32", [batch, num, 32]),
            "proto": ("float32", [batch, side, side, 32]),
        }
    found = {
        "num_detections": ("int32", [batch]),
        "boxes": ("float32", [batch, slots, 4]),
        "scores": ("float32", [batch, slots]),
        "labels": ("int32", [batch, slots]),
        "masks": ("float16" if precision == "fp16" else "float32", [batch, slots, side, side]),
    }
    return found | {"mask_scores": ("float32", [batch, slots])} if config.mask_iou else found


# -- every configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_every_configuration_exports_and_runs(export: Export, name: str, precision: str) -> None:
    path = export(name, SMALL, precision=precision)
    config = get_config(name).with_size(SMALL)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert signature(model.graph.input) == {"images": ("uint8", [1, SMALL, SMALL, 3])}
    wanted = expected_outputs(config, "functions", precision)
    assert signature(model.graph.output) == wanted
    assert list(wanted) == [output.name for output in model.graph.output]

    found = run(path, pictures(1, SMALL))
    assert {key: (str(value.dtype), list(value.shape)) for key, value in found.items()} == wanted
    count = int(found["num_detections"][0])
    assert count > 0
    assert (found["scores"][0, :count] > 0).all()
    assert (found["labels"] >= 0).all()
    assert (found["labels"] < config.num_classes).all()
    for value in found.values():
        assert np.isfinite(value.astype(np.float64)).all()
    assert 0.5 < found["masks"].max() <= 1
    for key in set(found) - {"num_detections"}:
        assert not found[key][0, count:].any()

    half = {value.name for value in model.graph.initializer if value.data_type == onnx.TensorProto.FLOAT16}
    if precision == "fp32":
        assert not half
    else:  # all weights of convolutions, and nothing that is not one
        convolutions = [node for node in model.graph.node if operator_of(node) in ("Conv", "DeformConv")]
        weights = {name for node in convolutions for name in node.input[1:] if name.endswith((".weight", ".bias"))}
        assert {name for name in weights if "maskiou_net" not in name} <= half
        assert not {name for name in weights if "maskiou_net" in name} & half


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_heads(export: Export, precision: str) -> None:
    path = export("small", SMALL, precision=precision, tail="heads")
    config = named_config("small", SMALL)
    model = onnx.load(str(path))
    wanted = expected_outputs(config, "heads", precision)
    assert signature(model.graph.output) == wanted
    assert not model.functions
    assert {entry.domain for entry in model.opset_import if entry.domain == "yolact"} == set()
    found = run(path, pictures(1, SMALL))
    assert {key: (str(value.dtype), list(value.shape)) for key, value in found.items()} == wanted


@pytest.mark.parametrize("tail", ["functions", "heads"])
def test_the_heads_are_those_of_the_eager_model(export: Export, make_model: Callable[..., Any], tail: str) -> None:
    from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
    from yolact_deploy.runtime.torch.torch_backend import TorchBackend

    images = pictures(1, SMALL)
    eager = TorchBackend(make_model("small", SMALL)).run(images)
    found: Any = OnnxRuntimeBackend(export("small", SMALL, tail=tail), tail="host").run(images)
    for ours, theirs, atol in zip(found, eager, (2e-5, 5e-5, 2e-4, 5e-4), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=5e-5)


def test_nodes_are_standard_but_for_our_two(export: Export) -> None:
    model = onnx.load(str(export("small", SMALL)))
    ours = [(node.domain, node.op_type) for node in model.graph.node if node.domain]
    assert ours == [("yolact", "FastNMS"), ("yolact", "MaskAssembly")]
    assert [(function.domain, function.name) for function in model.functions] == ours
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, "yolact": 1}
    nms = next(node for node in model.graph.node if node.op_type == "FastNMS")
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in nms.attribute}
    assert values == {
        "score_threshold": pytest.approx(0.05),
        "iou_threshold": 0.5,
        "top_k": 200,
        "max_detections": 100,
        "cross_class": 0,
        "second_threshold": -1.0,
    }


def test_cross_class(export: Export, make_model: Callable[..., Any]) -> None:
    from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

    path = export("small", SMALL, cross_class=True)
    assert onnx_metadata(read_onnx(path), path).cross_class
    images = pictures(1, SMALL)
    found = run(path, images)
    assert found["boxes"].shape == (1, 200, 4)  # the cross-class variant is limited by top_k only
    backend = OnnxRuntimeBackend(path, tail="host")
    from yolact_deploy.runtime.tails import DetectSettings

    want = backend.tail.detect(backend.run(images), 0, DetectSettings(0.0, "cross-class"))
    count = int(found["num_detections"][0])
    assert count == len(want.scores) > 0
    np.testing.assert_allclose(found["scores"][0, :count], want.scores, atol=1e-6)


# -- metadata -------------------------------------------------------------------------------------------------------


def test_metadata_round_trip(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = make_model("small", SMALL)
    path = tmp_path / "model.onnx"
    spec = ExportSpec(precision="fp16", tail="heads", batch=(1, 2, 4), cross_class=True)
    written = export_onnx(model, path, spec, weights_sha256="ab" * 32)
    assert onnx_metadata(read_onnx(path), path) == written
    assert written.config == model.config
    assert (written.precision, written.tail, written.batch) == ("fp16", "heads", (1, 2, 4))
    assert (written.input_dtype, written.cross_class, written.weights_sha256) == ("uint8", True, "ab" * 32)
    assert written.versions == {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    properties = {METADATA_KEY: written.to_json(), "names": repr(dict(enumerate(model.config.class_names)))}
    assert {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props} == properties
    assert session(path).get_modelmeta().custom_metadata_map == properties
    file = onnx.load(str(path))
    assert signature(file.graph.input) == {"images": ("uint8", [-1, SMALL, SMALL, 3])}
    assert signature(file.graph.output) == expected_outputs(model.config, "heads", "fp16", batch=-1)


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"tail": "heads"}])
def test_nothing_tells_of_the_machine(export: Export, options: dict[str, str]) -> None:
    data = export("small", SMALL, **options).read_bytes()
    root = re.escape(str(Path(__file__).parents[2]).encode())
    paths = rb"/work|/root|/home|/tmp|site-packages|\w{2}\.py\b|torch/nn|" + root
    assert not [data[max(0, hit.start() - 40) : hit.end() + 40] for hit in re.finditer(paths, data)]


@pytest.mark.slow
@pytest.mark.fresh_trace
def test_the_same_model_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its trace is that of a network with other weights, as tests share them."""
    model = YolactModel(SHALLOW).train()
    before = copy.deepcopy(model.state_dict())
    export_onnx(model, tmp_path / "fresh.onnx")
    assert model.training, "the model is left as it is"
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key]), key
    monkeypatch.setattr(exporter, "_trace", TraceCache(exporter._trace, tmp_path / "traces"))
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    export_onnx(other, tmp_path / "other.onnx")
    export_onnx(model, tmp_path / "again.onnx")
    assert len(list((tmp_path / "traces").glob("*.onnx"))) == 1
    assert (tmp_path / "fresh.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert (tmp_path / "fresh.onnx").read_bytes() != (tmp_path / "other.onnx").read_bytes()


# -- shapes ---------------------------------------------------------------------------------------------------------


def test_dynamic_batch(export: Export) -> None:
    path = export("small", SMALL, batch=(1, 2, 4))
    config = named_config("small", SMALL)
    model = onnx.load(str(path))
    assert signature(model.graph.input) == {"images": ("uint8", [-1, SMALL, SMALL, 3])}
    assert signature(model.graph.output) == expected_outputs(config, "functions", "fp32", batch=-1)
    images = pictures(3, SMALL)
    together = run(path, images)
    for number in range(3):
        alone = run(path, images[number : number + 1])
        for key, value in alone.items():
            assert together[key].shape == (3, *value.shape[1:])
            if key in ("num_detections", "labels"):
                np.testing.assert_array_equal(together[key][number], value[0])
            else:
                np.testing.assert_allclose(together[key][number], value[0], atol=2e-4, err_msg=key)
    assert not np.array_equal(together["boxes"][0], together["boxes"][1])


@pytest.mark.slow
def test_fixed_batch(export: Export) -> None:
    path = export("small", SMALL, batch=(2, 2, 2))
    assert signature(onnx.load(str(path)).graph.input) == {"images": ("uint8", [2, SMALL, SMALL, 3])}
    images = pictures(2, SMALL)
    together = run(path, images)
    for number in (0, 1):
        alone = run(export("small", SMALL), images[number : number + 1])
        np.testing.assert_allclose(together["scores"][number], alone["scores"][0], atol=5e-5)
    with pytest.raises(Exception, match="Got: 1 Expected: 2"):
        run(path, images[:1])


@pytest.mark.slow
@pytest.mark.parametrize("size", [97, 200])
def test_other_sizes_have_their_own_priors(tmp_path: Path, size: int) -> None:
    """With a fixed batch, and float32 input, which takes fractions of a gray level; tests/cli exports the same."""
    from yolact_deploy.runtime.torch.torch_backend import TorchBackend

    model, path = load_model(DEMO_MODEL, image_size=size), tmp_path / "m.onnx"
    export_onnx(model, path, ExportSpec(tail="heads", input_dtype="float32", batch=(2, 2, 2)))
    config = model.config
    images = pictures(2, size).astype(np.float32) / 2 + 0.25
    found = run(path, images)
    assert found["boxes"].shape == (2, config.num_priors, 4)
    assert found["proto"].shape == (2, config.prototype_size, config.prototype_size, config.num_prototypes)
    np.testing.assert_array_equal(model.priors.numpy(), make_priors(config))
    eager = TorchBackend(model, input_dtype="float32").run(images)
    np.testing.assert_allclose(found["boxes"], eager.boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.slow  # the functions with few classes are in test_functions.py, a model with few of them is the demo's
@pytest.mark.parametrize(("classes", "cross_class"), [(1, False), (3, True)])
def test_few_classes(tmp_path: Path, classes: int, cross_class: bool) -> None:
    torch.manual_seed(classes)
    config = YolactConfig(
        backbone="resnet18", image_size=64, fpn_channels=16, num_classes=classes, nms_score_threshold=0.0,
        max_detections=20,
    )  # fmt: skip
    model = YolactModel(config).eval()
    path = tmp_path / "m.onnx"
    export_onnx(model, path, ExportSpec(cross_class=cross_class))
    found = run(path, pictures(1, 64))
    count = int(found["num_detections"][0])
    assert count > 0
    assert set(found["labels"][0, :count]) <= set(range(classes))


@pytest.mark.slow  # uint8 in most tests, float32 at other sizes: each agrees with eager
def test_both_input_dtypes_give_the_same_for_the_same_pixels(export: Export) -> None:
    images = pictures(1, SMALL)
    a = run(export("small", SMALL, tail="heads"), images)
    path = export("small", SMALL, tail="heads", input_dtype="float32")
    assert onnx_metadata(read_onnx(path), path).input_dtype == "float32"
    b = run(path, images.astype(np.float32))
    for key, value in a.items():
        np.testing.assert_allclose(b[key], value, atol=1e-5)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_more_slots_than_entries(tmp_path: Path) -> None:
    config = YolactConfig(backbone="mobilenet_v2", image_size=64, num_classes=1, max_detections=300)
    with pytest.raises(ExportError, match="max_detections: 300 slots for 200 entries of NMS; lower it to 200"):
        export_onnx(YolactModel(config), tmp_path / "m.onnx")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_that_are_not_finite(
    make_model: Callable[..., Any], tmp_path: Path, value: float, precision: str
) -> None:
    model = copy.deepcopy(make_model("small", SMALL))
    model.proto_net[0].weight.data[3, 1, 0, 0] = value
    with pytest.raises(
        ExportError, match=r"proto_net\.0\.weight has values that are not finite: the checkpoint is dam"
    ):
        export_onnx(model, tmp_path / "m.onnx", ExportSpec(precision=precision))


def test_weights_too_large_for_fp16(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = copy.deepcopy(make_model("small", SMALL))
    model.prediction_layers[0].bbox_layer.bias.data[0] = 1e5
    name = r"prediction_layers\.0\.bbox_layer\.bias"
    with pytest.raises(ExportError, match=rf"{name} has values that are not finite in fp16: keep its layer in FP32"):
        export_onnx(model, tmp_path / "m.onnx", ExportSpec(precision="fp16"))


def test_shared_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and structure decide; outside the context, and after it, nothing is kept."""
    traced: list[str] = []

    def trace(pipeline: Any, metadata: Metadata) -> Any:
        traced.append(metadata.precision)
        return onnx.helper.make_model(onnx.helper.make_graph([], f"trace {len(traced)}", [], []))

    monkeypatch.setattr(exporter, "append_tail", lambda graph, metadata: None)

    monkeypatch.setattr(exporter, "_trace", trace)
    config = YolactConfig(image_size=64, num_classes=2, backbone="mobilenet_v2", fpn_channels=16)
    model = YolactModel(config).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    whole = Metadata(config=config)
    for _ in range(2):
        with exporter.shared_traces():
            first = exporter.trace(model, replace(whole, precision="fp16"))
            first.graph.name = "changed"
            for same in (
                replace(whole, precision="int8"),
                replace(whole, tail="heads"),
                replace(whole, cross_class=True),
                whole,
            ):
                assert exporter.trace(model, same).graph.name == f"trace {len(traced)}"
            exporter.trace(other, whole)
            exporter.trace(model, replace(whole, batch=(1, 2, 4)))
    exporter.trace(model, whole)
    assert traced == [*["fp16", "fp32", "fp32"] * 2, "fp32"]
