"""Files for a range of sizes equal eager at each of them, in both CPU runtimes, and pictures choose theirs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few, few_rows

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.cli.options.size_options import add_size_arguments, size_range_option
from yolact_deploy.config import Size, YolactConfig, get_config
from yolact_deploy.errors import ExportError, InputError
from yolact_deploy.export.free_sizes import _PriorNodes
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.loading import load
from yolact_deploy.model.checkpoint import load_model
from yolact_deploy.preprocess import read_image
from yolact_deploy.priors import make_priors
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import HeadOutputs
from yolact_deploy.runtime.torch.torch_backend import TorchBackend
from yolact_deploy.samples import DEMO_MODEL, sample_images
from yolact_deploy.size_range import SizeRange

RANGE: tuple[Size, ...] = (192, 320, (320, 448))
#: squares, both directions, sides that no stride divides, and the outermost
TRIED = [(320, 320), (192, 192), (320, 448), (288, 224), (251, 397)]
#: of a head's largest difference from eager, in spreads of its values
CLOSE = {"fp32": 2e-3, "fp16": 0.25}


@pytest.fixture(scope="module", params=few(CLOSE, 0))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of batches from 1 to 2 whose comparison with eager at three sizes has passed."""
    path = tmp_path_factory.mktemp("range") / f"{request.param}.onnx"
    spec = ExportSpec(precision=request.param, size_range=RANGE, batch=(1, 1, 2), fit="letterbox")
    done = export_model(DEMO_MODEL, path, spec, check_images=sample_images()[:1])
    assert done.parity.failures == []
    return path


@pytest.mark.parametrize(
    ("size", "backend"),
    few_rows([(size, name) for size in TRIED for name in ("onnxruntime", "openvino")], 4, 9),
    ids=str,
)
def test_heads_equal_eager(exported: Path, backend: str, size: tuple[int, int]) -> None:
    pytest.importorskip(backend)
    eager = TorchBackend(load_model(DEMO_MODEL, image_size=size, fit="letterbox"))
    expected = Predictor(eager)
    images = np.concatenate([expected.preprocess([read_image(path)]) for path in sample_images()[:2]])
    whole = load(exported, backend=backend, tail="host")
    fixed = load(exported, backend=backend, tail="host", image_size=size)
    assert fixed.config == expected.config
    reference = eager.run(images)
    assert isinstance(reference, HeadOutputs)
    for actual in (whole, fixed):
        heads = actual.backend.run(images)
        assert isinstance(heads, HeadOutputs)
        for name, wanted, got in zip(HeadOutputs._fields, reference, heads, strict=True):
            assert got.shape == wanted.shape, name
            assert np.abs(got - wanted).max() <= CLOSE[exported.stem] * wanted.std(), name


@pytest.mark.slow
@pytest.mark.parametrize("size", [(251, 397), (192, 192)], ids=str)
def test_bf16_equals_a_file_of_that_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """Rounding to BF16 moves scores far from eager, so here a file of one size is the measure, bit for bit."""
    shape: dict[str, Any] = {"precision": "bf16", "fit": "letterbox", "tail": "heads"}
    specs = {"range": ExportSpec(size_range=RANGE, **shape), "fixed": ExportSpec(size=size, **shape)}
    for name, spec in specs.items():
        export_model(DEMO_MODEL, tmp_path / f"{name}.onnx", spec, check_images=sample_images()[:1])
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.uint8)
    for backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
        ours = load(tmp_path / "range.onnx", backend=backend, image_size=size).backend.run(images)
        theirs = load(tmp_path / "fixed.onnx", backend=backend).backend.run(images)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("tail", few(["host", "graph"], 1))
def test_pictures_choose_their_input(exported: Path, tail: str) -> None:
    """Each in a list as if it were alone, and as in a file of just this input."""
    tall, wide = sample_images()[0], sample_images()[1]
    pictures = [read_image(tall)[:, :240], read_image(wide)[:200], read_image(tall)[:, :240]]
    model = load(exported, tail=tail)
    sizes = [model.config_for(picture.shape).input_shape for picture in pictures]
    assert sizes[0] != sizes[1]
    assert sizes[0][0] > sizes[0][1]
    together = model(pictures)
    for picture, size, found in zip(pictures, sizes, together, strict=True):
        alone = load(exported, tail=tail, image_size=size)(picture)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.05)
        np.testing.assert_array_equal(found.labels, alone.labels)
        assert found.masks.shape == (len(found), *picture.shape[:2])
        np.testing.assert_array_equal(found.masks, alone.masks)


@pytest.mark.slow
def test_small_priors_that_the_exporter_folds(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    done = export_model(DEMO_MODEL, path, ExportSpec(size_range=(96, 128, (160, 192)), priors="pixels", tail="heads"))
    assert done.parity.failures == []


def test_streams_of_mixed_pictures(exported: Path) -> None:
    picture = read_image(sample_images()[0])
    frames = [picture, picture[:, :200], picture[:, :200], picture]
    model = load(exported)
    found = [detections for _, detections in model.stream(iter(frames), multiframe=2)]
    for frame, detections in zip(frames, found, strict=True):
        np.testing.assert_allclose(detections.boxes, model(frame).boxes, atol=0.05)


def test_metadata(exported: Path) -> None:
    metadata = onnx_metadata(read_onnx(exported), exported)
    assert metadata.sizes is not None
    assert (metadata.sizes.low, metadata.sizes.high) == ((192, 192), (320, 448))
    assert metadata.config == load_model(DEMO_MODEL, fit="letterbox").config
    shapes = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
              for value in read_onnx(exported).graph.input}  # fmt: skip
    assert shapes["images"][1:] == ["height", "width", 3]


@pytest.mark.slow  # test_exported_macs.py counts other exports
def test_multiply_adds_are_those_of_the_usual_size(exported: Path) -> None:
    from yolact_deploy.graph.macs import count_macs
    from yolact_deploy.model.model_macs import count_model_macs

    counted, expected = count_macs(exported), count_model_macs(load_model(DEMO_MODEL))
    assert [layer.macs for layer in counted.layers if layer.part != "tail"] == [layer.macs for layer in expected.layers]


def test_what_a_range_refuses(exported: Path) -> None:
    with pytest.raises(InputError, match=r"takes inputs from 192x192 to 320x448, not 448"):
        load(exported, image_size=448)
    with pytest.raises(InputError, match="works on boxes in pixels of one input"):
        load(exported, nms="traditional", tail="host")
    load(exported, nms="traditional", tail="host", image_size=256).close()
    model = load(exported)
    picture = read_image(sample_images()[0])
    with pytest.raises(InputError, match="different inputs"):
        model.preprocess([picture, picture[:, :200]])


def test_targets_and_plugins_are_for_one_size(exported: Path) -> None:
    from yolact_deploy.export.targets.registry import write_target
    from yolact_deploy.export.targets.target_source import TargetSource
    from yolact_deploy.runtime import plugins

    model = read_onnx(exported)
    source = TargetSource(onnx_path=exported, metadata=onnx_metadata(model, exported))
    with pytest.raises(InputError, match="one --size instead of a range"):
        write_target("web", source)
    with pytest.raises(ExportError, match="plugins are for one input size"):
        plugins.prepare(model, None, "tensorrt", "on")
    choice = plugins.prepare(model, None, "tensorrt", "auto")
    assert (choice.kind, choice.model) == ("none", model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "int8", "calibration": "x"}, "--int8 is for one --size"),
        ({"size": 320}, "size_range replaces size"),
        ({"size_range": (320, 192)}, "sizes that rise"),
        ({"size_range": (320, 320)}, "sizes that rise"),
        ({"size_range": (192, (448, 200), (320, 448))}, "sizes that rise"),
        ({"size_range": (192,)}, "expected MIN:MAX"),
    ],
)
def test_specs_that_contradict(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ExportSpec(**{"size_range": (192, 320), **given})


def test_the_option() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_size_arguments(parser, ranges=True)
    given = {text: size_range_option(parser.parse_args(["--size", text])) for text in ("320", "320:640x960", "8:9:10")}
    assert given["320"] == {"size": 320, "size_range": None}
    assert given["320:640x960"] == {"size": None, "size_range": (320, (640, 960))}
    assert given["8:9:10"] == {"size": None, "size_range": (8, 9, 10)}
    for wrong in ("320:", "1:2:3:4", "320:x"):
        with pytest.raises(argparse.ArgumentError, match="--size"):
            parser.parse_args(["--size", wrong])


def test_mask_scores_are_for_one_size() -> None:
    with pytest.raises(ExportError, match="--tail heads"):
        ExportSpec(size_range=(192, 320)).metadata(get_config("yolact_plus_resnet50"))


def test_the_smallest_size_must_have_priors_for_nms() -> None:
    with pytest.raises(ExportError, match="lower --top-k"):
        ExportSpec(size_range=(64, 320)).metadata(YolactConfig(top_k=3000, max_detections=100))


@pytest.mark.parametrize(
    ("size_range", "usual"),
    [((192, 640), 550), ((192, (320, 544)), (256, 352)), ((192, 224, 320), 224), ((550, 560), 550), ((600, 610), 600)],
)
def test_the_usual_size(size_range: tuple[Size, ...], usual: Size) -> None:
    assert ExportSpec(size_range=size_range).metadata(YolactConfig()).config.image_size == usual


@pytest.mark.parametrize("priors", ["original", "pixels"])
@pytest.mark.parametrize("name", few(["yolact_base", "yolact_resnet50_pascal", "yolact_plus_resnet50", "oblong"], 2, 3))
def test_priors_in_the_graph(name: str, priors: str) -> None:
    """Of squares, where whole scales are truncated, and of all other inputs; rounded at most in the last bit."""
    config = YolactConfig(image_size=(384, 640)) if name == "oblong" else get_config(name)
    sizes = SizeRange.of(config, 128, (700, 900), priors=priors)
    run = _computed(config, sizes)
    for shape in [(128, 128), (400, 400), (550, 550), (700, 700), (333, 512), (700, 900), (128, 700)]:
        expected = make_priors(config.with_size(shape, priors=priors))
        np.testing.assert_allclose(run(shape), expected, rtol=2e-7, atol=0)


def _computed(config: YolactConfig, sizes: SizeRange) -> Callable[[tuple[int, int]], Any]:
    """The priors that the nodes compute for an input, in ONNX Runtime."""
    import onnxruntime
    from onnx import TensorProto, helper

    builder = _PriorNodes()
    builder.build(config, sizes, "priors")
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])
    output = helper.make_tensor_value_info("priors", TensorProto.FLOAT, ["priors", 4])
    graph = helper.make_graph(builder.nodes, "priors", [images], [output], builder.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda shape: session.run(None, {"images": np.zeros((1, *shape, 3), np.uint8)})[0]


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((480, 640), (288, 384)),  # about the usual area
        ((1080, 1920), (224, 416)),
        ((320, 320), (320, 320)),
        ((2000, 100), (320, 192)),  # as long as the range allows
        ((100, 2000), (192, 448)),
        ((1, 1), (320, 320)),
    ],
)
def test_the_input_of_a_picture(picture: tuple[int, int], expected: tuple[int, int]) -> None:
    sizes = SizeRange.of(YolactConfig(), 192, (320, 448))
    assert sizes.shape_for(*picture, (320, 320)) == expected
