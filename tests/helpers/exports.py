"""Fixtures of exported networks: each file is created once per session, on first use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deterministic import deterministic_state, named_config

from yolact_deploy.config import YolactConfig

# Of ExportSpec, so that exports with and without explicit defaults share a file.
DEFAULTS = {"precision": "fp32", "tail": "functions", "batch": (1, 1, 1), "input_dtype": "uint8", "cross_class": False}


#: importing TensorRT while tests are collected would take each worker a second
needs_rtx = pytest.mark.usefixtures("rtx")


@pytest.fixture(scope="session")
def rtx() -> Any:
    """TensorRT for RTX, which builds engines without a GPU."""
    from yolact_deploy.errors import MissingDependencyError
    from yolact_deploy.runtime.tensorrt_api import import_tensorrt

    try:
        return import_tensorrt("rtx")
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """``make_model(name, size)``: a named network or "small" with deterministic weights, for evaluation, cached."""
    torch = pytest.importorskip("torch")
    from yolact_deploy.model import YolactModel

    states: dict[str, Any] = {}
    models: dict[YolactConfig, Any] = {}

    def make(name: str, size: int | None = None) -> Any:
        config = named_config(name, size)
        if config not in models:
            if name not in states:
                states.clear()  # those of one network at a time: ResNet-101 has 200 MB
                states[name] = deterministic_state(name)
            with torch.device("meta"):
                model = YolactModel(config)
            model = model.to_empty(device="cpu")
            model.load_state_dict(states[name])
            model.priors.copy_(torch.from_numpy(_priors(config)))
            models[config] = model.eval()
        return models[config]

    return make


def _priors(config: YolactConfig) -> Any:
    from yolact_deploy.priors import make_priors

    return make_priors(config).copy()


@pytest.fixture(scope="session")
def export(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """``export(name, size, **fields of ExportSpec)``: the ONNX file of ``make_model(name, size)``, cached.

    The files are shared: copy one before changing it. The parser of TensorRT 10.3 accepts the names in each of them.
    """
    pytest.importorskip("onnxscript")
    import old_parser

    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec

    folder = tmp_path_factory.mktemp("exports")
    files: dict[Any, Path] = {}

    def get(name: str, size: int | None = None, **options: Any) -> Path:
        key = (name, size, *sorted({**DEFAULTS, **options}.items()))
        if key not in files:
            path = folder / f"{name}_{len(files)}.onnx"
            export_onnx(make_model(name, size), path, ExportSpec(**options))
            old_parser.check(path)
            files[key] = path
        return files[key]

    yield get
    shutil.rmtree(folder)  # pytest would keep a gigabyte for the next three sessions


@pytest.fixture
def short_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are compared with the model on one picture instead of three."""
    from yolact_deploy.export import pipeline
    from yolact_deploy.export.parity import check_parity

    monkeypatch.setattr(
        pipeline,
        "check_parity",
        lambda model, path, images, traced, noise: check_parity(model, path, images[:1], traced[:1], noise),
    )


@pytest.fixture(scope="session")
def resnet50_fp16(export: Callable[..., Path]) -> Path:
    """yolact_resnet50 at 550, FP16, uint8 input, ending in detections: what a GPU gets."""
    return export("yolact_resnet50", precision="fp16")
