"""The public names, in one place."""

from __future__ import annotations

import importlib
import inspect

import pytest

import yolact_deploy

PUBLIC = [
    "Detections",
    "Predictor",
    "YolactConfig",
    "YolactDeployError",
    "__version__",
    "get_config",
    "list_configs",
    "load",
]


def test_all_is_pinned() -> None:
    assert yolact_deploy.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_resolves(name: str) -> None:
    assert getattr(yolact_deploy, name) is not None


def test_dir_lists_all() -> None:
    """Including the two names that are resolved on first use."""
    assert set(PUBLIC) <= set(dir(yolact_deploy))


def test_star_import_gives_all() -> None:
    names: dict[str, object] = {}
    exec("from yolact_deploy import *", names)
    assert set(PUBLIC) <= set(names)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = yolact_deploy.lod


def test_signature_of_load() -> None:
    parameters = inspect.signature(yolact_deploy.load).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == {
        "model": inspect.Parameter.empty,
        "backend": None,
        "precision": None,
        "threads": None,
        "tail": None,
        "device": None,
        "provider": None,
        "compile": None,
        "frames": None,
        "decode": None,
        "config": None,
        "image_size": None,
        "fit": None,
        "priors": None,
        "score_threshold": 0.15,
        "nms": None,
        "lazy_masks": True,
        "classes": None,
        "max_detections": None,
        "top_k": None,
        "nms_iou": None,
        "slicing": None,
    }
    kinds = {parameter.kind for name, parameter in parameters.items() if name != "model"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_signature_of_predictor() -> None:
    assert list(inspect.signature(yolact_deploy.Predictor).parameters) == [
        "backend",
        "score_threshold",
        "nms",
        "lazy_masks",
        "classes",
        "max_detections",
    ]
    for name in ("stream", "warm_up", "close", "preprocess", "postprocess", "__enter__", "__exit__"):
        assert callable(getattr(yolact_deploy.Predictor, name))


def test_version_is_pep_440() -> None:
    assert all(part.isdigit() for part in yolact_deploy.__version__.split(".")[:2])


def test_training_names() -> None:
    pytest.importorskip("torch")
    training = importlib.import_module("yolact_deploy.training")
    for name in ("CocoDataset", "YolactConfig", "YolactLoss", "YolactModel"):
        assert name in training.__all__
        assert getattr(training, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = training.no_such_name
