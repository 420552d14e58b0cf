"""Selecting detections by score, class and number, and other settings of NMS: where they apply, and where not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few
from scripted import CONFIG, HeadsBackend, Instance, ScriptedBackend

import yolact_deploy
from yolact_deploy import samples
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import BackendError, ConfigError, InputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.selection import NmsSettings, Selection

NAMES = CONFIG.class_names  # cat, dog, owl
SCORES = np.array([0.9, 0.8, 0.55, 0.5, 0.31, 0.2], np.float32)
LABELS = np.array([0, 1, 0, 2, 1, 2])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"score_threshold": 0.5}, [0, 1, 2, 3, 4, 5]),  # the floor alone is the tail's work
        ({"score_threshold": "0.3,dog=0.4"}, [0, 1, 2, 3]),
        ({"score_threshold": "dog=0.85"}, [0, 2, 3, 5]),
        ({"score_threshold": " cat = 0.6 , 0.1"}, [0, 1, 3, 4, 5]),
        ({"score_threshold": {"*": 0.3, "owl": 0.7}}, [0, 1, 2, 4]),
        ({"classes": ["owl"]}, [3, 5]),
        ({"classes": ["dog", "cat"], "score_threshold": "0.5,cat=0.6"}, [0, 1]),
        ({"max_detections": 2}, [0, 1]),
        ({"classes": ["owl", "dog"], "max_detections": 2}, [1, 3]),
    ],
)
def test_what_is_kept(options: dict[str, Any], kept: list[int]) -> None:
    selection = Selection.of(NAMES, **options)
    assert selection.rows(SCORES, LABELS).tolist() == kept
    assert len(selection.rows(SCORES[:0], LABELS[:0])) == 0


def test_the_floor_is_the_lowest_threshold_of_a_class() -> None:
    assert Selection.of(NAMES, "0.3,dog=0.1").floor == 0.1
    assert Selection.of(NAMES, "0.3,dog=0.1", classes=["cat"]).floor == 0.3
    assert Selection.of(NAMES).floor == 0.15
    assert not Selection.of(NAMES, 0.4).narrows


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"score_threshold": 1}, "score_threshold: expected 0 <= value < 1, got 1"),
        ({"score_threshold": "nan"}, "score_threshold: expected 0 <= value < 1, got nan"),
        ({"score_threshold": -0.1}, "score_threshold: expected 0 <= value < 1"),
        ({"score_threshold": "0.3,dog=2"}, "score_threshold of dog: expected 0 <= value < 1, got 2"),
        ({"score_threshold": "0.3,dgo=0.5"}, "score_threshold: the model has no class 'dgo': did you mean 'dog'?"),
        ({"score_threshold": "0.3;dog=x"}, "score_threshold: expected a number, or CLASS=NUMBER"),
        ({"score_threshold": None}, "score_threshold: expected 0 <= value < 1, got None"),
        ({"score_threshold": True}, "score_threshold: expected 0 <= value < 1, got True"),
        ({"classes": ["cow"]}, "classes: the model has no class 'cow'"),
        ({"classes": "cat"}, "classes: expected a list of names, got the text 'cat'"),
        ({"max_detections": 0}, "max_detections: expected a number of 1 or more, got 0"),
        ({"max_detections": 2.5}, "max_detections: expected a number of 1 or more, got 2.5"),
    ],
)
def test_wrong_values(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match="^" + text.replace("?", r"\?")):
        Selection.of(NAMES, **options)


@pytest.mark.parametrize("lazy_masks", [True, False])
def test_a_predictor_selects(lazy_masks: bool) -> None:
    script = {1: [Instance(int(label), float(s), (10, 10, 40, 40)) for s, label in zip(SCORES, LABELS, strict=True)]}
    image = np.full((60, 80, 3), 10, np.uint8)
    every = Predictor(ScriptedBackend(script), lazy_masks=lazy_masks)(image)
    model = Predictor(ScriptedBackend(script), score_threshold="0.3,cat=0.6", max_detections=3, lazy_masks=lazy_masks)
    assert model(image) == every[[0, 1, 3]]
    assert model.score_threshold == 0.3


def test_settings_of_nms() -> None:
    config = YolactConfig()
    assert NmsSettings().applied(config) is config
    assert NmsSettings(max_detections=5).applied(config) is config, "fewer are picked after NMS"
    changed = NmsSettings(top_k=50, nms_iou=0.7, max_detections=300)
    applied = changed.applied(config)
    assert (applied.top_k, applied.iou_threshold, applied.max_detections) == (50, 0.7, 300)
    assert changed.differences(config) == [
        "top_k=50 instead of 200",
        "nms_iou=0.7 instead of 0.5",
        "max_detections=300 instead of 100",
    ]
    assert changed.differences(applied) == []


OPTIONS: list[dict[str, Any]] = [{"top_k": 5}, {"nms_iou": 0.9}, {"nms_iou": 0.2, "top_k": 20, "max_detections": 7}]


@pytest.mark.parametrize("options", few(OPTIONS, 0))
def test_eager_and_host_agree(options: dict[str, Any]) -> None:
    """The tail in PyTorch and that in NumPy."""
    pytest.importorskip("torch")
    from yolact_deploy.model.checkpoint import load_model

    image = read_image(sorted(samples.sample_images())[0])
    plain = yolact_deploy.load(samples.DEMO_MODEL, score_threshold=0.05)(image)
    eager = yolact_deploy.load(samples.DEMO_MODEL, score_threshold=0.05, **options)
    changed = eager(image)
    assert len(changed) != len(plain)
    assert len(changed) <= options.get("max_detections", 100)
    config = load_model(samples.DEMO_MODEL).config
    assert eager.config == NmsSettings(**options).applied(config)
    on_host = yolact_deploy.load(samples.DEMO_MODEL, tail="host", score_threshold=0.05, **options)(image)
    assert len(on_host) == len(changed)
    assert np.allclose(np.sort(on_host.scores), np.sort(changed.scores), atol=1e-5)


def test_a_graph_has_its_settings(export: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime")
    path = export("small", 138)
    yolact_deploy.load(path, tail="graph", max_detections=10, top_k=200, nms_iou=0.5).close()
    for option, text in (
        ({"top_k": 100}, r"^top_k=100 instead of 200: NMS of .* is in the graph: export it again with --top-k, or "),
        ({"nms_iou": 0.6}, r"^nms_iou=0\.6 instead of 0\.5: NMS of .*--nms-iou"),
        ({"max_detections": 101}, r"^max_detections=101 instead of 100: .*--max-detections"),
    ):
        with pytest.raises(InputError, match=text):
            yolact_deploy.load(path, tail="graph", **option)
        with yolact_deploy.load(path, **option) as model:  # on the host
            assert model.config != yolact_deploy.load(path).config


@pytest.mark.parametrize("options", [{"top_k": 0}, {"nms_iou": 0.0}, {"nms_iou": 1.5}, {"max_detections": 10**9}])
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="expected"):
        yolact_deploy.load(samples.DEMO_MODEL, **options)


def test_top_k_without_effect() -> None:
    with pytest.raises(InputError, match="top_k has no effect with nms='traditional'"):
        yolact_deploy.load(samples.DEMO_MODEL, top_k=3, nms="traditional", tail="host")


@pytest.mark.parametrize("label", [3, 80, -1])
def test_classes_that_the_metadata_does_not_name(label: int) -> None:
    script = {1: [Instance(0, 0.9, (10, 10, 40, 40)), Instance(label, 0.8, (10, 10, 40, 40))]}
    model = Predictor(ScriptedBackend(script))
    with pytest.raises(BackendError, match=r"detects class number .* has 3 classes, from 0: the file was changed"):
        model(np.full((60, 80, 3), 10, np.uint8))


@pytest.mark.parametrize("classes", [2, 4, 80])
def test_heads_of_another_number_of_classes(classes: int) -> None:
    backend = HeadsBackend()
    config = YolactConfig(name="other", image_size=64, num_classes=classes)
    backend.metadata = dataclasses.replace(backend.metadata, config=config)
    with pytest.raises(BackendError, match=f"scores of 3 classes, and the metadata of the file names {classes}"):
        Predictor(backend)(np.full((60, 80, 3), 10, np.uint8))
