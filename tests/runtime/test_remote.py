"""Addresses of models on servers, and the backend on a stand-in for tritonclient; the real one: test_triton_server."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import yolact_deploy
from yolact_deploy.artifact import Metadata
from yolact_deploy.cli.at_hand import config_of
from yolact_deploy.config import get_config
from yolact_deploy.errors import ArtifactError, BackendError, InputError, MissingDependencyError
from yolact_deploy.loading import ModelSpec
from yolact_deploy.runtime.remote_names import network_metadata, remote_url

CONFIG = get_config("yolact_resnet50").with_size(96)
METADATA = Metadata(config=CONFIG)


@pytest.mark.parametrize("text", ["http://h:8000/m", "https://h/m", "grpc://1.2.3.4:8001/a.b-c_d", "grpcs://[::1]:1/m"])
def test_addresses(text: str) -> None:
    spec = ModelSpec.parse(text)
    assert spec.url == text
    assert spec.chosen_backend == "remote"
    assert spec.spelling() == text
    assert ModelSpec.parse(spec.spelling()) == spec
    spec.check_file()
    assert str(spec) == text.rpartition("/")[2]


@pytest.mark.parametrize("text", ["http://h:8000/", "http://h", "ftp://h/m", "http:m.onnx", "a/http://h/m", "m.onnx"])
def test_what_is_no_address(text: str) -> None:
    assert remote_url(text) is None
    assert ModelSpec.parse(text).url is None


def test_a_server_chooses_by_itself() -> None:
    for options in (
        {"threads": 2},
        {"tail": "host"},
        {"precision": "fp32"},
        {"backend": "openvino"},
        {"device": "cpu"},
    ):
        with pytest.raises(InputError, match="chosen by the server"):
            ModelSpec.parse("http://h/m").updated(**options)
    with pytest.raises(InputError, match="backend: expected one of"):
        ModelSpec.parse("m.onnx").updated(backend="remote")


def test_metadata_of_a_network_whose_tail_is_cut() -> None:
    assert network_metadata(METADATA, "host").tail == "heads"
    assert network_metadata(METADATA, "graph") == METADATA


class _Client:
    """Answers as a server does; ``config`` and ``fail`` are those of the test."""

    def __init__(self, host: str, **options: Any) -> None:
        self.count = 0

    def get_model_config(self, model: str) -> Any:
        if model not in STATE.configs:
            raise ConnectionError("[404] Request for unknown model: 'x' is not found")
        return {"parameters": STATE.configs[model]}

    def infer(self, model: str, inputs: list[Any]) -> Any:
        if STATE.fail:
            raise TimeoutError("timed out")
        self.count += 1
        count, side, size = len(inputs[0].array), CONFIG.prototype_size, CONFIG.max_detections
        values: dict[str, Any] = {
            "num_detections": np.zeros(count, np.int32),
            "boxes": np.zeros((count, size, 4), np.float32),
            "scores": np.zeros((count, size), np.float32),
            "labels": np.zeros((count, size), np.int32),
            "masks": np.zeros((count, size, side, side), np.float32),
        }
        return SimpleNamespace(as_numpy=values.get, get_response=lambda: STATE.response)

    def get_inference_statistics(self, model: str) -> Any:
        parts = {key: {"ns": 250_000 * self.count} for key in ("queue", "compute_input", "compute_infer")}
        stats = {**parts, "compute_output": {}, "success": {"count": self.count}}
        return {"model_stats": [{"inference_stats": stats}]}

    def close(self) -> None:
        pass


class _Input:
    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        assert (name, datatype) == ("images", "UINT8")

    def set_data_from_numpy(self, array: Any) -> None:
        self.array = array


STATE = SimpleNamespace(configs={}, fail=False, response={})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("tritonclient.http")
    module.InferenceServerClient, module.InferInput = _Client, _Input
    monkeypatch.setitem(sys.modules, "tritonclient", ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.http", module)
    STATE.configs = {
        "m": {"yolact_deploy_network": {"string_value": "m_network"}},
        "m_network": {"yolact_deploy": {"string_value": METADATA.to_json()}},
        "other": {},
    }
    STATE.fail, STATE.response = False, {"parameters": {"compute_ms": 0.001}}
    return STATE


def test_stages(server: Any) -> None:
    image = np.zeros((50, 60, 3), np.uint8)
    with yolact_deploy.load("http://h:8000/m") as model:
        assert model.config == CONFIG
        assert model.backend.describe()["model"] == "m_network"
        assert len(model(image)) == 0
        assert model.timings["network+nms+assembly"] == 0.001
        assert model.timings["transfer"] > 0
        assert list(model.timings) == list(model.stages)
        server.response = {}  # Triton says in its statistics how long it takes
        model(image)
        total = model.timings["transfer"] + model.timings["network+nms+assembly"]
        assert model.timings["network+nms+assembly"] == min(0.75, total)


def test_configuration_for_pictures_at_hand(server: Any) -> None:
    assert config_of(Path("http://h:8000/m")) == CONFIG


def test_failures(server: Any) -> None:
    with pytest.raises(BackendError, match=r"http://h/x: .*is not found: check that the server runs"):
        yolact_deploy.load("http://h/x")
    with pytest.raises(ArtifactError, match="is no model of yolact-deploy"):
        yolact_deploy.load("http://h/other")
    with pytest.raises(InputError, match="config applies to checkpoints only"):
        yolact_deploy.load("http://h/m", config="yolact_base")
    model = yolact_deploy.load("http://h/m")
    server.fail = True
    with pytest.raises(BackendError, match="timed out"):
        model(np.zeros((50, 60, 3), np.uint8))


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    with pytest.raises(MissingDependencyError, match=r"yolact-deploy\[triton\]"):
        yolact_deploy.load("grpc://h:8001/m")
