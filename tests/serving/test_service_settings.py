"""Names and limits of a service."""

from __future__ import annotations

from typing import Any

import pytest

from yolact_deploy.errors import InputError
from yolact_deploy.serving.service_settings import SETTINGS_VARIABLE, ServiceSettings, named_models


def test_names_of_models() -> None:
    models = named_models(["a/yolact.onnx@openvino", "night=b.trt", "my model.pth"])
    assert models == {"yolact": "a/yolact.onnx@openvino", "night": "b.trt", "my_model": "my model.pth"}
    with pytest.raises(InputError, match=r"two models are called 'm', a/m.onnx and b/m.trt"):
        named_models(["a/m.onnx", "b/m.trt"])
    with pytest.raises(InputError, match="expected one of"):
        named_models(["m.onnx@nothing"])


def test_a_file_with_an_equals_sign(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.onnx").touch()
    assert named_models(["a=b.onnx"]) == {"a_b": "a=b.onnx"}


@pytest.mark.parametrize(
    "change",
    [
        {"models": {}}, {"models": {"a/b": "m.onnx"}}, {"models": {"": "m.onnx"}}, {"score_threshold": 1},
        {"predictors": -1}, {"queue": 0}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"max_pixels": 0},
        {"workers": 0}, {"max_batch": 10**6}, {"max_body_bytes": 1},
    ],
)  # fmt: skip
def test_wrong_values(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServiceSettings(**{"models": {"m": "m.onnx"}, **change})


def test_worker_processes_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServiceSettings(models={"m": "m.onnx@openvino"}, queue=7, allow_urls=True)
    monkeypatch.setenv(SETTINGS_VARIABLE, settings.to_json())
    assert ServiceSettings.from_environment() == settings
    monkeypatch.setenv(SETTINGS_VARIABLE, '{"models": {}, "other": 1}')
    with pytest.raises(InputError, match="expected an object with"):
        ServiceSettings.from_environment()
