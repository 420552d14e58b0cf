"""Exports at other shapes than a square agree with eager, for each fit, in FP32 and INT8, in each CPU runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from exports import needs_rtx
from few import few_rows

from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.loading import load
from yolact_deploy.model.checkpoint import load_model
from yolact_deploy.preprocess import read_image
from yolact_deploy.samples import DEMO_MODEL

#: size and fit; all but the first take long for what they add: the fit changes pictures, not the graph
INPUTS = [((224, 352), "letterbox")]
MORE = [
    ((352, 224), "stretch"),
    ((224, 352), "stretch"),
    ((352, 224), "letterbox"),
    ((224, 352), "pad"),
    (320, "letterbox"),
]
#: the least share of eager's detections that are matched; INT8 at 320 x 320 matches 0.93 of them
LEAST = {"fp32": 0.999, "int8": 0.88}


@pytest.fixture(
    scope="module", params=[*INPUTS, *(pytest.param(more, marks=pytest.mark.slow) for more in MORE)], ids=str
)
def network(request: pytest.FixtureRequest) -> Any:
    size, fit = request.param
    return load_model(DEMO_MODEL, image_size=size, fit=fit)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of what the network was trained for; the last eight are not for calibration."""
    from yolact_deploy.datasets.shapes import write_shapes

    folder = tmp_path_factory.mktemp("pictures")
    for _ in write_shapes(folder, {"val": 24}):
        pass
    return sorted(folder.glob("images/*.png"))


@pytest.fixture(scope="module")
def expected(network: Any, pictures: list[Path]) -> list[Any]:
    from yolact_deploy.runtime.predictor import Predictor
    from yolact_deploy.runtime.torch.torch_backend import TorchBackend

    eager = Predictor(TorchBackend(network))
    return [eager(read_image(path)) for path in pictures[16:]]


# A shape changes nothing of the quantization.
@pytest.fixture(scope="module", params=["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def exported(
    request: pytest.FixtureRequest, network: Any, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A file that passed the comparison of every export, before and after quantization."""
    path = tmp_path_factory.mktemp("shapes") / f"{request.param}.onnx"
    calibration = pictures[:16] if request.param == "int8" else None
    spec = ExportSpec(precision=request.param, calibration=calibration)
    done = export_model(network, path, spec, check_images=pictures[16:17])
    assert done.parity.failures == []
    yield path
    path.unlink()


def test_metadata(network: Any, exported: Path) -> None:
    model = read_onnx(exported)
    assert onnx_metadata(model, exported).config == network.config
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, *network.config.input_shape, 3]


@pytest.mark.parametrize(
    ("backend", "tail"),
    few_rows([(name, tail) for name in ("onnxruntime", "openvino") for tail in ("host", "graph")], 0, 3),
)
def test_agreement_with_eager(
    exported: Path, expected: list[Any], pictures: list[Path], backend: str, tail: str
) -> None:
    pytest.importorskip(backend)
    meter = AgreementMeter()
    with load(exported, backend=backend, tail=tail) as model:
        for path, detections in zip(pictures[16:], expected, strict=True):
            meter.add(detections, model(read_image(path)))
    result = meter.result()
    assert sum(map(len, expected)) > 40, "the weights detect something at this shape"
    assert result.matched_share is not None
    assert result.matched_share >= LEAST[exported.stem]


@pytest.mark.slow
@needs_rtx
def test_engine(network: Any, exported: Path, tmp_path: Path) -> None:
    """An engine of TensorRT for RTX, built without a GPU, with the same input."""
    from yolact_deploy.engine_file import read_engine_metadata
    from yolact_deploy.export.engine import BuildOptions, build_engine

    build_engine(exported, tmp_path / "m.trt", flavour="rtx", options=BuildOptions(cache=False))
    assert read_engine_metadata(tmp_path / "m.trt").config == network.config
