"""Configurations: the published ones, their geometry, and errors for wrong values."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest

from yolact_deploy.config import (
    COCO_CATEGORY_IDS,
    COCO_NAMES,
    PASCAL_NAMES,
    YolactConfig,
    get_config,
    list_configs,
    read_size,
    size_text,
)
from yolact_deploy.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "backbone", "size", "priors", "square", "plus"),
    [
        ("yolact_base", "resnet101", 550, 19248, True, False),
        ("yolact_resnet50", "resnet50", 550, 19248, True, False),
        ("yolact_im400", "resnet101", 400, 10077, True, False),
        ("yolact_im700", "resnet101", 700, 30963, True, False),
        ("yolact_darknet53", "darknet53", 550, 19248, True, False),
        ("yolact_plus_base", "resnet101", 550, 57744, False, True),
        ("yolact_plus_resnet50", "resnet50", 550, 57744, False, True),
        ("yolact_edge_mobilenetv2", "mobilenet_v2", 550, 19248, True, False),
        ("yolact_resnet50_pascal", "resnet50", 550, 19248, False, False),
    ],
)
def test_named_configurations(name: str, backbone: str, size: int, priors: int, square: bool, plus: bool) -> None:
    config = get_config(name)
    assert (config.name, config.backbone, config.image_size) == (name, backbone, size)
    assert config.num_priors == priors
    assert (config.square_priors, config.is_plus, config.mask_iou) == (square, plus, plus)


def test_list_configs_names_all() -> None:
    assert len(list_configs()) == len(set(list_configs())) == 9
    assert [get_config(name).name for name in list_configs()] == list_configs()


def test_default_is_yolact_base() -> None:
    assert YolactConfig() == get_config("yolact_base")
    assert YolactConfig(num_classes=80) == YolactConfig()
    assert hash(YolactConfig()) == hash(get_config("yolact_base"))


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("yolact_base", (24, 48, 96, 192, 384)),
        ("yolact_im400", (17, 34, 69, 139, 279)),
        ("yolact_im700", (30, 61, 122, 244, 488)),
        ("yolact_resnet50_pascal", (32, 64, 128, 256, 512)),
    ],
)
def test_prior_scales(name: str, scales: tuple[int, ...]) -> None:
    assert get_config(name).prior_scales == tuple((float(s),) for s in scales)


def test_plus_has_three_scales_per_level() -> None:
    for base, level in zip((24, 48, 96, 192, 384), get_config("yolact_plus_base").prior_scales, strict=True):
        assert level == pytest.approx([base, base * 2 ** (1 / 3), base * 2 ** (2 / 3)])


@pytest.mark.parametrize(
    ("size", "levels", "prototypes"),
    [(550, (69, 35, 18, 9, 5), 138), (400, (50, 25, 13, 7, 4), 100), (700, (88, 44, 22, 11, 6), 176)],
)
def test_geometry(size: int, levels: tuple[int, ...], prototypes: int) -> None:
    config = YolactConfig(image_size=size)
    assert config.level_sizes == levels
    assert config.prototype_size == prototypes


def test_classes() -> None:
    base, pascal = get_config("yolact_base"), get_config("yolact_resnet50_pascal")
    assert (base.class_names, base.category_ids) == (COCO_NAMES, COCO_CATEGORY_IDS)
    assert len(COCO_NAMES) == len(COCO_CATEGORY_IDS) == 80
    assert (COCO_CATEGORY_IDS[0], COCO_CATEGORY_IDS[-1]) == (1, 90)
    assert (pascal.class_names, pascal.category_ids) == (PASCAL_NAMES, tuple(range(1, 21)))
    other = YolactConfig(num_classes=3)
    assert other.class_names == ("class 1", "class 2", "class 3")
    assert other.category_ids == (1, 2, 3)


def test_pixel_statistics() -> None:
    assert get_config("yolact_base").pixel_mean == (103.94, 116.78, 123.68)
    assert get_config("yolact_base").pixel_std == (57.38, 57.12, 58.40)
    darknet = get_config("yolact_darknet53")
    assert (darknet.pixel_mean, darknet.pixel_std) == ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


def test_with_size_scales_the_priors() -> None:
    config = get_config("yolact_base").with_size(400)
    assert config.prior_scales == get_config("yolact_im400").prior_scales
    assert get_config("yolact_base").with_size(550) == get_config("yolact_base")
    fractional = get_config("yolact_plus_base").with_size(275)
    assert fractional.prior_scales[0] == pytest.approx([s / 2 for s in get_config("yolact_plus_base").prior_scales[0]])


def test_with_classes() -> None:
    config = get_config("yolact_resnet50").with_classes(("scratch", "dent"))
    assert (config.num_classes, config.class_names, config.category_ids) == (2, ("scratch", "dent"), (1, 2))
    assert get_config("yolact_resnet50").with_classes(5).num_classes == 5
    assert get_config("yolact_resnet50").with_classes(("a", "b"), (7, 9)).category_ids == (7, 9)


def test_other_names_do_not_keep_the_old_ids() -> None:
    coco = get_config("yolact_resnet50")
    one = dataclasses.replace(coco, num_classes=1, class_names=("nucleus",))
    assert one.category_ids == (1,)
    own = coco.with_classes(("a", "b"), (7, 9))
    stored = YolactConfig.from_dict(json.loads(json.dumps(own.to_dict())))
    copied = pickle.loads(pickle.dumps(own))  # noqa: S301
    for config in (own, stored, copied, copy.deepcopy(own)):
        assert dataclasses.replace(config, image_size=320).category_ids == (7, 9)
        assert dataclasses.replace(config, class_names=("c", "d")).category_ids == (1, 2)
        assert dataclasses.replace(config, class_names=("c", "d"), category_ids=(7, 8)).category_ids == (7, 8)
        kept = dataclasses.replace(config, class_names=("c", "d"), category_ids=tuple(config.category_ids))
        assert kept.category_ids == (7, 9)
    assert hash(own) == hash(stored)
    assert own == stored


@pytest.mark.parametrize("name", list_configs())
def test_json_round_trip(name: str) -> None:
    config = get_config(name)
    assert YolactConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "vgg16"),
        ("image_size", 63),
        ("image_size", 4097),
        ("image_size", 550.0),
        ("num_classes", 0),
        ("num_classes", True),
        ("class_names", ("one",)),
        ("category_ids", (1, 2)),
        ("category_ids", (1,) * 80),
        ("prior_scales", ((24.0,),)),
        ("prior_scales", ((24.0,), (48.0,), (96.0,), (192.0,), (384.0, 400.0))),
        ("prior_scales", ((), (), (), (), ())),
        ("prior_scales", ((24.0,), (48.0,), (96.0,), (192.0,), (-1.0,))),
        ("aspect_ratios", ()),
        ("aspect_ratios", (1.0, 0.0)),
        ("num_prototypes", 0),
        ("fpn_channels", 0),
        ("deformable_blocks", (1, 2)),
        ("deformable_blocks", (0, 0, -1, 3)),
        ("deformable_interval", 0),
        ("nms_score_threshold", 1.0),
        ("iou_threshold", 0.0),
        ("top_k", 0),
        ("top_k", 3841),
        ("max_detections", 3841),
        ("num_classes", 10**12),
        ("num_classes", "80"),
        ("image_size", 10**400),
        ("name", ""),
        ("name", "../x"),
        ("name", "a\\b"),
        ("name", "\x1b[31m"),
        ("name", {"a": 1}),
        ("name", "x" * 1_000_000),
        ("class_names", (1,) * 80),
        ("class_names", (["a"],) * 80),
        ("class_names", ("\ud800",) * 80),
        ("class_names", "x" * 80),
        ("category_ids", tuple(range(10**20, 10**20 + 80))),
        ("category_ids", tuple(i + 0.5 for i in range(80))),
        ("category_ids", tuple("abcdefghij" * 8)),
        ("prior_scales", "abcde"),
        ("prior_scales", (1, 2, 3, 4, 5)),
        ("prior_scales", ("abc",) * 5),
        ("prior_scales", ((float("inf"),),) * 5),
        ("prior_scales", ((float("nan"),),) * 5),
        ("prior_scales", ((10**400,),) * 5),
        ("prior_scales", ((1.0,) * 100_000,) * 5),
        ("aspect_ratios", (float("inf"),)),
        ("aspect_ratios", ("a",)),
        ("aspect_ratios", "a"),
        ("aspect_ratios", (True,)),
        ("square_priors", 1),
        ("mask_iou", "yes"),
        ("num_prototypes", 1.5),
        ("fpn_channels", 10**18),
        ("deformable_blocks", "abcd"),
        ("deformable_blocks", (0, 10**9, 0, 0)),
        ("deformable_interval", None),
        ("nms_score_threshold", float("nan")),
        ("nms_score_threshold", "0.1"),
        ("iou_threshold", 10**400),
        ("top_k", float("nan")),
        ("top_k", 1.5),
        ("backbone", ["resnet50"]),
        ("head_layers", -1),
        ("head_layers", ((64, 3), (0, 2))),
        ("head_layers", ((64, -2),)),
        ("head_branches", (1, 2)),
        ("head_branches", (1, 2, -1)),
        ("protonet", (("cat", ()),)),
        ("protonet", (("cat", (((8, 3),), ((0, 2),))),)),
        ("protonet", (("cat", (((8, 3),), (8, 3))),)),
        ("protonet", (("dog", (((8, 3),),)),)),
        ("protonet", ((8, -4, 4),)),
        ("protonet", ((8, -4, 1),)),
        ("protonet", ((8, 3, 1),)),
        ("protonet", (("cat", (((8, 3),) * 20, ((8, 3),) * 20)),)),
        ("protonet", ((256,),)),
        ("protonet", ((256, 4),)),
        ("protonet", ((0, 4), (0, 4))),
        ("protonet", ((256, -1),)),
        ("protonet", ((0, -2),)),
        ("protonet", ((256, -4), (256, -4))),
        ("protonet", "abc"),
        ("extra_levels_from", "c4"),
        ("fit", "crop"),
        ("second_threshold", 1.0),
        ("pyramid_relu", 1),
        ("clip_boxes", "yes"),
    ],
)
def test_wrong_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: expected .*, got ") as caught:
        YolactConfig(**{field: value})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400


def test_lists_become_tuples() -> None:
    config = YolactConfig(num_classes=2, class_names=["a", "b"], prior_scales=[[24]] * 5)  # type: ignore[arg-type]
    assert config == YolactConfig(num_classes=2, class_names=("a", "b"), prior_scales=((24.0,),) * 5)
    assert hash(config)


@pytest.mark.parametrize(
    "field",
    ["image_size", "num_classes", "class_names", "aspect_ratios", "num_prototypes", "score_threshold", "top_k"],
)
@pytest.mark.parametrize("value", ["text", 0.5j, {"a": 1}])
def test_from_dict_with_a_wrong_type(field: str, value: object) -> None:
    with pytest.raises(ConfigError):
        YolactConfig.from_dict({**YolactConfig().to_dict(), field: value})


def test_files_keep_their_key_of_the_nms_threshold() -> None:
    values = YolactConfig(nms_score_threshold=0.2).to_dict()
    assert values["score_threshold"] == 0.2
    assert "nms_score_threshold" not in values
    assert YolactConfig.from_dict(values).nms_score_threshold == 0.2


def test_from_dict_of_a_newer_version() -> None:
    with pytest.raises(ConfigError, match=r"unknown configuration fields \['color'\].*Update yolact-deploy"):
        YolactConfig.from_dict({**YolactConfig().to_dict(), "color": 1})
    with pytest.raises(ConfigError, match="JSON object, got list"):
        YolactConfig.from_dict([])  # type: ignore[arg-type]


def test_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        YolactConfig().image_size = 400  # type: ignore[misc]
    with pytest.raises(TypeError):
        YolactConfig("yolact_base")  # type: ignore[call-arg]


def test_unknown_name_suggests() -> None:
    with pytest.raises(ConfigError, match="did you mean yolact_resnet50"):
        get_config("yolact_resnet")
    with pytest.raises(ConfigError, match="expected one of yolact_base"):
        get_config("zzz")


# -- inputs of any shape ------------------------------------------------------------------------------------------


def test_another_shape() -> None:
    config = get_config("yolact_resnet50").with_size((352, 480))
    assert (config.input_shape, config.prior_shape) == ((352, 480), (550, 550))
    assert config.level_shapes == ((44, 60), (22, 30), (11, 15), (6, 8), (3, 4))
    assert config.prototype_shape == (88, 120)
    assert config.num_priors == 10575
    assert config.with_size(550) == get_config("yolact_resnet50"), "and back"
    assert config == YolactConfig(name="yolact_resnet50", backbone="resnet50", image_size=(352, 480))
    with pytest.raises(ConfigError, match="expected a square, got 352 x 480"):
        _ = config.level_sizes


def test_priors_in_pixels() -> None:
    base = get_config("yolact_base")
    for size in (400, (352, 480)):
        config = base.with_size(size, priors="pixels")
        assert (config.prior_scales, config.prior_size) == (base.prior_scales, None)
    wide = base.with_size((352, 480), priors="pixels").with_size((176, 240))
    assert (wide.prior_shape, wide.prior_scales) == ((352, 480), base.prior_scales)
    with pytest.raises(ConfigError, match="priors: expected an image_size that they are for"):
        base.with_input(priors="pixels")


def test_a_square_is_one_number() -> None:
    assert YolactConfig(image_size=(400, 400)) == YolactConfig(image_size=400)
    assert YolactConfig(image_size=550, prior_size=550).prior_size is None


def test_files_of_squares_do_not_mention_shapes() -> None:
    for name in list_configs():
        assert not {"fit", "prior_size"} & set(get_config(name).to_dict())
    config = get_config("yolact_base").with_input((352, 480), fit="pad")
    values = json.loads(json.dumps(config.to_dict()))
    assert (values["image_size"], values["fit"], values["prior_size"]) == ([352, 480], "pad", 550)
    assert YolactConfig.from_dict(values) == config


@pytest.mark.parametrize("text", ["", "550x", "x550", "550 x 550", "-1", "1e3", "64x64x3"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="size: expected"):
        read_size(text)


@pytest.mark.parametrize(
    ("text", "size"), [("550", 550), ("544x960", (544, 960)), ("960X544", (960, 544)), ("64x64", 64)]
)
def test_sizes(text: str, size: Any) -> None:
    assert read_size(text) == size
    assert read_size(size_text(size)) == size


@pytest.mark.parametrize("value", [(64,), (64, 64, 64), (64, 32), (64, 64.0), "64x64", (True, 64), (64, None), {}])
def test_shapes_that_are_none(value: Any) -> None:
    for field in ("image_size", "prior_size"):
        with pytest.raises(ConfigError, match=field):
            YolactConfig(**{field: value})
    with pytest.raises(ConfigError, match="fit: expected one of stretch, letterbox, pad"):
        YolactConfig(fit=value)
