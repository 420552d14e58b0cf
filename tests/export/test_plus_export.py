"""YOLACT++ exported: its mask scores in every runtime, with and without the tail in the graph, and engines of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.mask_iou import PARAMETERS
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import DetectionOutputs, HeadOutputs
from yolact_deploy.samples import sample_images

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from exports import needs_rtx

from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.export.onnx import export_onnx
from yolact_deploy.export.parity import check_parity
from yolact_deploy.graph.onnx_graph import load_graph, mask_iou_net
from yolact_deploy.graph.trunk_graph import trunk_nodes
from yolact_deploy.model import YolactModel
from yolact_deploy.runtime.torch.torch_backend import TorchBackend

#: the original's with its deformable convolutions, and a small network with a mask-IoU network
NAME, LITTLE, SMALL = "yolact_plus_resnet50", "small_plus", 138
OUTPUTS = ("num_detections", "boxes", "scores", "labels", "masks", "mask_scores")

Export = Callable[..., Path]


def onnxruntime_backend(path: Path, **options: Any) -> Backend:
    pytest.importorskip("onnxruntime")
    from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, **options)


def openvino_backend(path: Path, **options: Any) -> Backend:
    pytest.importorskip("openvino")
    from yolact_deploy.runtime.openvino import OpenVinoBackend

    return OpenVinoBackend(path, **options)


BACKENDS = {"onnxruntime": onnxruntime_backend, "openvino": openvino_backend}


@pytest.fixture(scope="module")
def picture() -> Any:
    return cv2.imread(str(sample_images()[0]))


@pytest.fixture(scope="module")
def eager(make_model: Callable[..., Any], picture: Any) -> Any:
    """All detections of the eager model."""
    found = Predictor(TorchBackend(make_model(LITTLE, SMALL)), score_threshold=0.0)(picture)
    assert len(found) == 100
    assert found.mask_scores is not None
    assert (found.mask_scores > 0).sum() > 50
    return found


@pytest.mark.parametrize(
    ("backend", "tail"),
    [
        pytest.param(backend, tail, id=f"{name}-{tail}", marks=[] if short else [pytest.mark.slow])
        for name, backend in BACKENDS.items()
        for tail in ("auto", "host", "graph")
        for short in [(name, tail) in (("onnxruntime", "graph"), ("openvino", "auto"))]
    ],
)
def test_mask_scores(export: Export, picture: Any, eager: Any, backend: Callable[..., Backend], tail: str) -> None:
    with Predictor(backend(export(LITTLE, SMALL), tail=tail), score_threshold=0.0) as model:
        outputs = model.backend.run(model.preprocess([picture]))
        assert isinstance(outputs, DetectionOutputs if tail == "graph" else HeadOutputs)
        found = model(picture)
    assert found.mask_scores is not None
    assert found.mask_scores.dtype == np.float32
    assert found.labels.tolist() == eager.labels.tolist()
    np.testing.assert_allclose(found.scores, eager.scores, atol=2e-5)
    np.testing.assert_allclose(found.mask_scores, eager.mask_scores, rtol=1e-2, atol=1e-6)


def test_torch_with_its_tail_on_the_host(make_model: Callable[..., Any], picture: Any, eager: Any) -> None:
    found = Predictor(TorchBackend(make_model(LITTLE, SMALL), tail="host"), score_threshold=0.0)(picture)
    np.testing.assert_allclose(found.mask_scores, eager.mask_scores, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    "backend", [onnxruntime_backend, pytest.param(openvino_backend, marks=pytest.mark.slow)], ids=BACKENDS
)
def test_thresholds_are_of_box_scores(export: Export, picture: Any, eager: Any, backend: Any) -> None:
    threshold = float(np.sort(eager.scores)[50:52].mean())
    for tail in ("host", "graph"):
        with Predictor(backend(export(LITTLE, SMALL), tail=tail), score_threshold=threshold) as model:
            found = model(picture)
        assert len(found) == int((eager.scores > threshold).sum()) == len(found.mask_scores)
        assert (found.mask_scores < threshold).any()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_parity(export: Export, make_model: Callable[..., Any], precision: str) -> None:
    report = check_parity(make_model(NAME, SMALL), export(NAME, SMALL, precision=precision), sample_images()[:1])
    assert report.failures == []
    assert report.mask_scores is not None
    assert report.mask_scores < 1e-6
    assert report.to_json()["mask_scores"] == report.mask_scores


def test_parity_sees_a_damaged_mask_iou_network(export: Export, make_model: Callable[..., Any], tmp_path: Path) -> None:
    """The graph's is damaged behind the back of the host's: only the last layer in the graph is scaled."""
    path = tmp_path / "m.onnx"
    shutil.copy(export(LITTLE, SMALL), path)
    model = onnx.load(str(path))
    last = next(node for node in model.graph.node if f"model.{PARAMETERS[-2]}" in node.input)
    value = last.output[0]
    last.output[0] = "unscaled"
    ten = onnx.numpy_helper.from_array(np.float32(1000), "thousand")
    model.graph.initializer.append(ten)
    place = list(model.graph.node).index(last) + 1
    model.graph.node.insert(place, onnx.helper.make_node("Mul", ["unscaled", "thousand"], [value]))
    onnx.save(model, str(path))
    (failure,) = check_parity(make_model(LITTLE, SMALL), path, sample_images()[:1]).failures
    assert failure.startswith("mask scores differ by ")


@pytest.mark.slow
def test_heads_have_no_mask_scores(export: Export, picture: Any, eager: Any) -> None:
    """A file that ends in heads does not hold the network that tells them."""
    path = export(LITTLE, SMALL, tail="heads")
    assert mask_iou_net(onnx.load(str(path))) is None
    assert not onnx.load(str(path)).functions
    with Predictor(onnxruntime_backend(path), score_threshold=0.0) as model:
        found = model(picture)
    assert found.mask_scores is None
    np.testing.assert_allclose(found.scores, eager.scores, atol=2e-5)


@pytest.mark.slow
def test_weights_that_were_never_trained(picture: Any, tmp_path: Path) -> None:
    """Their biases are zeros, which the exporter leaves out."""
    torch.manual_seed(0)
    config = YolactConfig(
        name="new", backbone="resnet18", image_size=64, num_classes=3, fpn_channels=8, num_prototypes=4,
        mask_iou=True, max_detections=20,
    )  # fmt: skip
    model = YolactModel(config).eval()
    export_onnx(model, tmp_path / "m.onnx")
    whole = onnx.load(str(tmp_path / "m.onnx"))
    assert not {c.name.removeprefix("model.") for c in whole.graph.initializer} & set(PARAMETERS[1::2])
    report = check_parity(model, tmp_path / "m.onnx", sample_images()[:1])
    assert report.failures == []
    assert report.tail is not None
    assert report.tail.reference_detections > 0


@pytest.mark.slow
def test_an_open_batch(export: Export, picture: Any, eager: Any) -> None:
    path = export(LITTLE, SMALL, batch=(1, 2, 4))
    for tail in ("host", "graph"):
        with Predictor(onnxruntime_backend(path, tail=tail), score_threshold=0.0) as model:
            flipped, same = (found.mask_scores for found in model([picture[::-1].copy(), picture]))
        assert flipped is not None
        assert same is not None
        np.testing.assert_allclose(same, eager.mask_scores, rtol=1e-2, atol=1e-6)
        assert not np.allclose(flipped, same)


def test_the_mask_iou_network_stays_in_fp32(export: Export) -> None:
    model = onnx.load(str(export(LITTLE, SMALL)))
    lower_trunk(model)
    kinds = {c.name.removeprefix("model."): c.data_type for c in model.graph.initializer}
    assert {kinds[name] for name in PARAMETERS} == {onnx.TensorProto.FLOAT}


@pytest.mark.slow
def test_layers_of_deformable_convolutions(export: Export) -> None:
    """They are the trunk's, offsets and all; the mask-IoU network is not."""
    layers = {node.layer: node.op_type for node in reversed(trunk_nodes(onnx.load(str(export(NAME, SMALL))).graph))}
    assert layers["backbone.layers.3.2.conv2"] == "DeformConv"
    assert layers["backbone.layers.3.2.conv2.conv_offset_mask"] == "Conv"
    assert not any("maskiou" in layer for layer in layers)


@pytest.mark.slow
def test_layers_that_stay_in_fp32(export: Export, make_model: Callable[..., Any]) -> None:
    kept = ("backbone.layers.3.2.conv2",)
    path = export(NAME, SMALL, precision="fp16", keep_fp32=kept)
    kinds = {c.name: c.data_type for c in onnx.load(str(path)).graph.initializer}
    assert kinds["model.backbone.layers.3.2.conv2.weight"] == onnx.TensorProto.FLOAT
    assert kinds["model.backbone.layers.3.1.conv2.weight"] == onnx.TensorProto.FLOAT16
    assert check_parity(make_model(NAME, SMALL), path).failures == []


@pytest.mark.slow
def test_a_gpu_is_given_the_function(export: Export) -> None:
    """TensorRT has no such operator, and ONNX Runtime's providers on a GPU may not have it either."""
    path = export(NAME, SMALL)
    model = onnx.load_model_from_string(load_graph(path, "graph", gpu=True).data)
    assert not any(node.op_type == "DeformConv" for node in model.graph.node)
    assert any(node.op_type == "GridSample" for node in model.graph.node)


def test_outputs_are_told_by_the_metadata() -> None:
    assert Metadata(config=get_config(NAME)).outputs == OUTPUTS
    assert Metadata(config=get_config("yolact_base")).outputs == OUTPUTS[:-1]
    assert Metadata(config=get_config(NAME), tail="heads").outputs == HeadOutputs._fields


@pytest.mark.parametrize(
    ("tail", "precision"),
    [
        ("functions", "fp32"),
        pytest.param("functions", "fp16", marks=pytest.mark.slow),
        pytest.param("heads", "fp32", marks=pytest.mark.slow),
        pytest.param("heads", "fp16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
@needs_rtx
def test_an_engine(export: Export, tmp_path: Path, precision: str, tail: str) -> None:
    from yolact_deploy.export.engine import BuildOptions, build_engine

    source = export(NAME, SMALL, precision=precision, tail=tail)
    report = build_engine(source, tmp_path / "m.trt", flavour="rtx", options=BuildOptions(cache=False))
    assert 0.9 < report.bytes / source.stat().st_size < 1.3
