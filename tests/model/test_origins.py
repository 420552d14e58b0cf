"""Checkpoints of other implementations: recognized by names, renamed to the original's, and refused where unclear."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
from deterministic import GOLDEN
from few import few

torch = pytest.importorskip("torch")

from yolact_deploy.config import COCO_NAMES, YolactConfig, get_config
from yolact_deploy.errors import CheckpointError, ConfigError
from yolact_deploy.inspection import inspect_file
from yolact_deploy.model import YolactModel
from yolact_deploy.model.checkpoint import infer_config, load_model, save_checkpoint
from yolact_deploy.model.initialization import initialize
from yolact_deploy.model.origins import find_origin
from yolact_deploy.model.weights_file import read_weights
from yolact_deploy.priors import make_priors

FAMILIES = {"mmdet": "mmdetection", "yolact_edge": "YolactEdge", "yolact_minimal": "Yolact_minimal"}


def meta_state(name: str) -> dict[str, Any]:
    return {key: torch.empty(shape, device="meta") for key, shape, *_ in foreign.keys(name)}


@functools.cache
def small(implementation: str, classes: int = 3) -> tuple[dict[str, Any], YolactConfig]:
    """A checkpoint as an implementation saves it, of our network with random weights, and the configuration it needs.

    The names are the inverse of what the origins do, written here once more.
    """
    torch.manual_seed(0)
    base = YolactConfig(backbone="resnet18", num_classes=classes, image_size=128, fpn_channels=32)
    if implementation == "yolact_minimal":
        config = replace(base, extra_levels_relu=True, prototype_align_corners=True, clip_boxes=True, fit="pad")
    else:
        config = replace(base, pyramid_relu=False, extra_levels_from="c5", clip_boxes=True, second_threshold=0.05)
    ratios = (1.0, 0.5, 2.0) if implementation == "yolact_minimal" else (2.0, 1.0, 0.5)
    size = 544 if implementation == "yolact_minimal" else 550
    scales = ((24.0,), (48.0,), (96.0,), (192.0,), (384.0,))
    config = replace(config, image_size=size, square_priors=False, aspect_ratios=ratios, prior_scales=scales)
    state = YolactModel(config).state_dict()
    names = _minimal_name if implementation == "yolact_minimal" else _mmdet_name
    content = {names(key): value for key, value in state.items()}
    if implementation == "mmdet":
        for suffix in ("weight", "bias"):
            key = f"bbox_head.conv_cls.{suffix}"
            rows = content[key].unflatten(0, (3, classes + 1))
            content[key] = torch.cat([rows[:, 1:], rows[:, :1]], dim=1).flatten(0, 1)
            key = f"segm_head.segm_conv.{suffix}"
            content[key] = torch.cat([content[key][1:], content[key][:1]])
    return content, config


def replace(config: YolactConfig, **values: Any) -> YolactConfig:
    import dataclasses

    return dataclasses.replace(config, **values)


def _mmdet_name(key: str) -> str:
    for ours, own in (
        *((f"backbone.layers.{i}.", f"backbone.layer{i + 1}.") for i in range(4)),
        *((f"fpn.lat_layers.{i}.", f"neck.lateral_convs.{2 - i}.conv.") for i in range(3)),
        *((f"fpn.pred_layers.{i}.", f"neck.fpn_convs.{2 - i}.conv.") for i in range(3)),
        *((f"fpn.downsample_layers.{i}.", f"neck.fpn_convs.{3 + i}.conv.") for i in range(2)),
        ("prediction_layers.0.upfeature.0.", "bbox_head.head_convs.0.conv."),
        ("prediction_layers.0.conf_layer.", "bbox_head.conv_cls."),
        ("prediction_layers.0.bbox_layer.", "bbox_head.conv_reg."),
        ("prediction_layers.0.mask_layer.", "bbox_head.conv_coeff."),
        ("proto_net.", "mask_head.protonet."),
        ("semantic_seg_conv.", "segm_head.segm_conv."),
    ):
        if key.startswith(ours):
            return own + key.removeprefix(ours)
    return key


def _minimal_name(key: str) -> str:
    for ours, own in (
        *((f"fpn.lat_layers.{i}.", f"fpn.lat_layers.{2 - i}.") for i in range(3)),
        *((f"fpn.pred_layers.{i}.", f"fpn.pred_layers.{2 - i}.0.") for i in range(3)),
        *((f"fpn.downsample_layers.{i}.", f"fpn.downsample_layers.{i}.0.") for i in range(2)),
        *((f"proto_net.{i}.", f"proto_net.proto1.{i}.") for i in (0, 2, 4)),
        *((f"proto_net.{i}.", f"proto_net.proto2.{i - 8}.") for i in (8, 10)),
        ("prediction_layers.0.mask_layer.", "prediction_layers.coef_layer.0."),
        ("prediction_layers.0.", "prediction_layers."),
    ):
        if key.startswith(ours):
            return own + key.removeprefix(ours)
    return key


# -- every list of names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", foreign.KEYS)
def test_foreign_names_become_those_of_the_network(name: str) -> None:
    state = meta_state(name)
    origin = find_origin(state)
    assert origin is not None
    assert origin.name == FAMILIES[foreign.family(name)]
    dropped = tuple(start for start, _ in origin.unused)
    kept = {key: value for key, value in state.items() if not key.startswith(dropped)}
    converted = {key: value for key, value in origin.convert(kept).items() if not key.startswith("backbone.layers.8.")}
    config, _ = origin.configure(infer_config(converted), kept, {})
    with torch.device("meta"):
        expected = YolactModel(config).state_dict()
    assert {key: list(value.shape) for key, value in converted.items()} == {
        key: list(value.shape) for key, value in expected.items()
    }
    depth = "resnet101" if "layers.2.22." in " ".join(converted) else config.backbone
    assert config.backbone == depth
    assert config.num_classes in (40, 80)


@pytest.mark.parametrize("name", [name for name in foreign.KEYS if "vid" in name or "vis" in name])
def test_foreign_video_models_have_the_classes_of_youtube_vis(name: str) -> None:
    state = meta_state(name)
    origin = find_origin(state)
    assert origin is not None
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(s for s, _ in origin.unused))}
    config, assumed = origin.configure(infer_config(origin.convert(kept)), kept, {})
    assert config.class_names[0] == "person"
    assert config.class_names[-1] == "tennis_racket"
    assert "YouTube-VIS" in assumed


@pytest.mark.parametrize("implementation", few(["mmdet", "yolact_minimal"], 0))
def test_foreign_pyramid_is_reversed_and_nothing_else_changes(implementation: str, tmp_path: Path) -> None:
    content, config = small(implementation)
    own = YolactModel(config)
    torch.manual_seed(0)
    expected = YolactModel(replace(config, image_size=128, prior_scales=(), aspect_ratios=(1.0, 0.5, 2.0)))
    torch.save(content, tmp_path / "w.pth")
    model = load_model(tmp_path / "w.pth")
    loaded, wanted = model.state_dict(), expected.state_dict()
    assert loaded.keys() == own.state_dict().keys()
    for key, value in wanted.items():
        assert torch.equal(loaded[key], value), key
    assert model.config.to_dict() == {**config.to_dict(), "name": model.config.name}


@pytest.mark.parametrize("implementation", ["mmdet", pytest.param("yolact_minimal", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(
            lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
            id="module", marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda state: {"model": state, "ema": {key: value + 1 for key, value in state.items()}},
            id="model and ema", marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda state: {"net": {f"_orig_mod.{key}": value.half() if value.is_floating_point() else value
                                   for key, value in state.items()}},
            id="half",
        ),
    ],
)  # fmt: skip
def test_foreign_wrappers_and_half_precision(implementation: str, wrap: Any, tmp_path: Path) -> None:
    content, _ = small(implementation)
    torch.save(content, tmp_path / "plain.pth")
    torch.save(wrap(content), tmp_path / "wrapped.pth")
    one, two = (load_model(tmp_path / f"{name}.pth").state_dict() for name in ("plain", "wrapped"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5)
    assert inspect_file(tmp_path / "wrapped.pth")["origin"] == FAMILIES[implementation]


def test_foreign_priors() -> None:
    for name in foreign.KEYS:
        if foreign.family(name) == "yolact_edge":
            continue
        state = meta_state(name)
        origin = find_origin(state)
        assert origin is not None
        config, _ = origin.configure(infer_config(origin.convert(state)), state, {})
        priors = make_priors(config)
        ratios = (1.0, 0.5, 2.0) if foreign.family(name) == "yolact_minimal" else (2.0, 1.0, 0.5)
        size = 544 if foreign.family(name) == "yolact_minimal" else 550
        assert config.image_size == size
        for place, ratio in enumerate(ratios):
            expected = [0.5 / config.level_sizes[0]] * 2 + [24 * math.sqrt(ratio) / size, 24 / math.sqrt(ratio) / size]
            np.testing.assert_allclose(priors[place], expected, rtol=1e-6)


# -- YolactEdge -----------------------------------------------------------------------------------------------------


def test_edge_flow_network_is_dropped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = YolactModel(get_config("yolact_edge_mobilenetv2").with_classes(8)).state_dict()
    flow = {"flow_net.conv1.weight": torch.zeros(4, 4, 3, 3), "spa.refine_convs.0.weight": torch.zeros(4)}
    torch.save({**state, **flow}, tmp_path / "w.pth")
    assert load_model(tmp_path / "w.pth").config.num_classes == 8
    assert "left out 2 tensors of the flow network of a video model" in caplog.text


# -- mmdetection's text ---------------------------------------------------------------------------------------------

TEXT = """
img_size = 550
model = dict(
    type='YOLACT',
    backbone=dict(type='ResNet', depth=18, style='pytorch'),
    neck=dict(type='FPN', add_extra_convs='on_input'),
    bbox_head=dict(
        type='YOLACTHead',
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=3, scales_per_octave=1, base_sizes=[8, 16, 32, 64, 128],
            ratios=[0.5, 1.0, 2.0], strides=[550.0 / 69, 15.714285714285714, 30.555555555555557, 61.111111, 110.0])),
    test_cfg=dict(nms_pre=1000, score_thr=0.1, iou_thr=0.6, top_k=150, max_per_img=80))
test_pipeline = [dict(type='Resize', img_scale=(550, 550), keep_ratio=False)]
"""


def mmdet(tmp_path: Path, meta: dict[str, Any], **changes: Any) -> Path:
    content, _ = small("mmdet")
    torch.save({"meta": meta, "state_dict": {**content, **changes}}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize("key", ["config", pytest.param("cfg", marks=pytest.mark.slow)])
def test_mmdet_meta_gives_names_size_anchors_and_thresholds(key: str, tmp_path: Path) -> None:
    text = TEXT.replace("[550.0 / 69, 15.714285714285714, 30.555555555555557, 61.111111, 110.0]", "None")
    text = text.replace("550", "400").replace("octave_base_scale=3", "octave_base_scale=2")
    names = {"CLASSES": ("a", "b", "c")} if key == "config" else {"dataset_meta": {"classes": ["a", "b", "c"]}}
    config = load_model(mmdet(tmp_path, {key: text, **names})).config
    assert config.class_names == ("a", "b", "c")
    assert config.category_ids == (1, 2, 3)
    assert config.image_size == 400
    assert config.prior_scales == ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,))
    assert (config.second_threshold, config.iou_threshold) == (0.1, 0.6)
    assert (config.top_k, config.max_detections) == (150, 80)
    assert load_model(mmdet(tmp_path, {}), image_size=400).config.image_size == 400


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("style='pytorch'", "style='caffe'", "style 'caffe'"),
        ("(550, 550)", "(800, 600)", "800 x 600, expected a square"),
        ("keep_ratio=False", "keep_ratio=True", "keep_ratio"),
        ("scales_per_octave=1", "scales_per_octave=3", "anchors"),
        ("61.111111, 110.0", "64, 128", "strides"),
        ("img_size = 550", "img_norm_cfg = dict(mean=[0, 0, 0], std=[58.4, 57.12, 57.38])", "mean of its input"),
        ("img_size = 550", "img_size = (", "cannot be parsed"),
    ],
)
def test_mmdet_settings_that_the_network_does_not_have_are_refused(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    assert old in TEXT
    text = TEXT.replace("550.0 / 69", "7.971014492753623").replace(old, new)
    with pytest.raises(CheckpointError, match=words):
        load_model(mmdet(tmp_path, {"config": text}))


def test_mmdet_names_of_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="meta names 2 classes, the tensors have 3"):
        load_model(mmdet(tmp_path, {"CLASSES": ("a", "b")}))


def test_mmdet_extra_levels_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    square = {"neck.fpn_convs.3.conv.weight": torch.zeros(32, 32, 3, 3)}
    with pytest.raises(CheckpointError, match="add_extra_convs='on_input' or 'on_output'"):
        load_model(mmdet(tmp_path, {}, **square))
    text = "neck = dict(type='FPN', add_extra_convs='on_output')"
    assert load_model(mmdet(tmp_path, {"cfg": text}, **square)).config.extra_levels_from == "p5"


def test_mmdet_message_hub_names_the_two_lines(tmp_path: Path) -> None:
    class HistoryBuffer:
        pass

    HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    import sys
    import types

    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    packages = {"mmengine": types.ModuleType("mmengine"), "mmengine.logging": types.ModuleType("mmengine.logging")}
    packages[module.__name__] = module
    sys.modules.update(packages)
    try:
        torch.save({"message_hub": HistoryBuffer(), "state_dict": {}, "meta": {}}, tmp_path / "epoch.pth")
    finally:
        for name in packages:
            del sys.modules[name]
    with pytest.raises(CheckpointError, match=r"two lines of Python") as caught:
        read_weights(tmp_path / "epoch.pth")
    text = str(caught.value)
    assert "weights_only=False" in text
    assert "('meta', 'state_dict')" in text


# -- configurations and training ------------------------------------------------------------------------------------


def test_a_named_configuration_takes_the_switches_of_the_implementation(tmp_path: Path) -> None:
    content, _ = small("mmdet", classes=80)
    torch.save(content, tmp_path / "w.pth")
    own = load_model(tmp_path / "w.pth").config
    assert not own.pyramid_relu
    assert own.class_names == COCO_NAMES
    stated = replace(own, pyramid_relu=True)
    with pytest.raises(CheckpointError, match=r'mmdetection .* add "pyramid_relu": false'):
        load_model(tmp_path / "w.pth", config=stated)
    (tmp_path / "own.json").write_text(json.dumps({"name": "own", **replace(stated, name="own").to_dict()}))
    with pytest.raises(CheckpointError, match='add "pyramid_relu": false'):
        load_model(tmp_path / "w.pth", config=str(tmp_path / "own.json"))


def test_saved_again_it_stays_what_it_was(tmp_path: Path) -> None:
    content, _ = small("yolact_minimal")
    torch.save(content, tmp_path / "w.pth")
    model = load_model(tmp_path / "w.pth")
    save_checkpoint(model, tmp_path / "w.safetensors")
    again = load_model(tmp_path / "w.safetensors")
    assert again.config == model.config
    assert again.config.extra_levels_relu
    plain = replace(again.config, extra_levels_relu=False)
    with pytest.raises(CheckpointError, match='add "extra_levels_relu": true'):
        load_model(tmp_path / "w.safetensors", config=plain)


def test_training_from_it_needs_the_same_network(tmp_path: Path) -> None:
    content, config = small("mmdet")
    torch.save(content, tmp_path / "w.pth")
    plain = replace(config, pyramid_relu=True, extra_levels_from="p5", image_size=128, prior_scales=())
    with pytest.raises(ConfigError, match=r"config\.pyramid_relu=no --set config\.extra_levels_from=c5"):
        initialize(YolactModel(plain), str(tmp_path / "w.pth"))
    model = YolactModel(replace(config, image_size=128, prior_scales=(), class_names=("a", "b", "c")))
    assert "backbone" in str(initialize(model, str(tmp_path / "w.pth"))) or model is not None
    assert torch.equal(model.fpn.pred_layers[0].weight, content["neck.fpn_convs.2.conv.weight"])


def test_golden_folder_has_files_of_each_implementation() -> None:
    assert {foreign.family(name) for name in foreign.KEYS} == set(FAMILIES)
    assert {"mmdet_yolact_r50", "yolact_edge_mobilenetv2"} <= set(foreign.NETS)
    assert (GOLDEN / "foreign").is_dir()
