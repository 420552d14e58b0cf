"""Recipes: the original's numbers, what another batch changes, and values set by name."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from yolact_deploy.config import YolactConfig, get_config, list_configs
from yolact_deploy.errors import ConfigError
from yolact_deploy.model import YolactModel
from yolact_deploy.training.data.augment import Augmentation
from yolact_deploy.training.overrides import keys, override
from yolact_deploy.training.recipe import Recipe
from yolact_deploy.training.recipes import RECIPES, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_states_its_source(name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.name == recipe.config.name == name
    text = Path(importlib.import_module(f"yolact_deploy.training.recipes.{name}").__file__ or "").read_text()
    for part in (recipe.paper, recipe.expected, recipe.command, f"train --recipe {name}"):
        assert part
        assert part in text
    assert recipe.augmentation.size == recipe.config.image_size
    json.dumps(recipe.to_json())


def test_there_is_one_for_each_configuration_that_can_be_built() -> None:
    assert set(list_configs()) <= set(RECIPES)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("yolact")])
def test_the_originals_numbers(name: str) -> None:
    recipe = get_recipe(name)
    pascal = name == "yolact_resnet50_pascal"
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == ("sgd", 1e-3, 0.9, 5e-4)
    assert (recipe.batch, recipe.iterations) == (8, 120_000 if pascal else 800_000)
    assert recipe.milestones == ((60_000, 100_000) if pascal else (280_000, 600_000, 700_000, 750_000))
    assert (recipe.gamma, recipe.warmup_iterations, recipe.warmup_lr) == (0.1, 500, 1e-4)
    assert (recipe.clip, recipe.ema_decay, recipe.freeze_batch_norm, recipe.freeze_stages) == (0, 0, "auto", 0)
    assert (recipe.amp, recipe.channels_last, recipe.compile, recipe.keep_empty) == ("fp32", False, False, False)
    assert recipe.weights == ("darknet53.pth" if name == "yolact_darknet53" else "imagenet")
    assert recipe.augmentation == Augmentation(size=recipe.config.image_size)
    assert (recipe.eval_interval, recipe.save_interval, recipe.seed) == (20_000, 2_000, 0)
    assert recipe.config == get_config(name)


@pytest.mark.parametrize(
    ("name", "digest"),
    [("shapes_demo", "2ac13186eb5b0b6d"), ("sixteen_images", "db325119e6b459d2")],
)
def test_recipes_whose_scores_were_measured_stay_as_they_were(name: str, digest: str) -> None:
    text = json.dumps(get_recipe(name).identity(), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest, text


def test_the_demo_fits_into_the_repository() -> None:
    state = YolactModel(get_recipe("shapes_demo").config).state_dict()
    assert sum(value.numel() * value.element_size() for value in state.values()) < 10.5e6


def test_another_batch() -> None:
    recipe = get_recipe("yolact_base").for_batch(32)
    assert recipe.lr == pytest.approx(4e-3)
    assert recipe.iterations == 200_000
    assert recipe.milestones == (70_000, 150_000, 175_000, 187_500)
    assert recipe.warmup_iterations == 500
    assert get_recipe("yolact_base").for_batch(4).iterations == 1_600_000


def test_fewer_iterations() -> None:
    recipe = get_recipe("yolact_base").for_iterations(1000)
    assert recipe.milestones == (350, 750, 875, 937)
    assert recipe.warmup_iterations == 100
    assert get_recipe("yolact_base").for_iterations(3).milestones == (1, 2)


def test_values_by_name() -> None:
    recipe = override(
        get_recipe("yolact_resnet50"),
        [
            "batch=16", "lr=5e-4", "milestones=10,20", "compile=yes", "amp=bf16", "augmentation.mirror=no",
            "augmentation.contrast=0.8,1.2", "config.image_size=275", "config.fpn_channels=1e2", "weights=",
        ],
    )  # fmt: skip
    assert (recipe.batch, recipe.iterations) == (16, 400_000)
    assert (recipe.lr, recipe.milestones, recipe.compile, recipe.amp) == (5e-4, (10, 20), True, "bf16")
    assert (recipe.augmentation.mirror, recipe.augmentation.contrast, recipe.augmentation.size) == (
        False,
        (0.8, 1.2),
        275,
    )
    assert recipe.config.prior_scales[0] == (12.0,)
    assert recipe.config.fpn_channels == 100
    assert recipe.weights == ""


def test_the_order_of_settings_does_not_matter() -> None:
    recipe = get_recipe("yolact_base")
    assert override(recipe, ["lr=1e-2", "iterations=100", "batch=16"]) == override(
        recipe, ["batch=16", "lr=1e-2", "iterations=100"]
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lr", ["KEY=VALUE", "lr=5e-4"]),
        ("learn_rate=1", ["learn_rate", "did you mean"]),
        ("zzz=1", ["'--set help' lists all"]),
        ("momentun=1", ["did you mean momentum?"]),
        ("image_size=400", ["did you mean config.image_size?"]),
        ("mirror=no", ["did you mean augmentation.mirror?"]),
        ("lr=fast", ["a number", "'fast'"]),
        ("lr=nan", ["a number"]),
        ("batch=2.5", ["a whole number"]),
        ("compile=maybe", ["yes or no"]),
        ("amp=int8", ["one of fp32, bf16, fp16"]),
        ("milestones=1,x", ["a whole number or several"]),
        ("augmentation.contrast=1", ["2 numbers"]),
        ("augmentation.size=300", ["config.image_size"]),
        ("config.num_classes=3", ["the data gives the classes"]),
        ("config.prior_scales=((8,12),(16", ["scales of five levels"]),
        ("config.prior_scales=((8,x),(16,2),(3,4),(5,6),(7,8))", ["scales of five levels"]),
        ("config.prior_scales=((8,12),(16,24))", ["prior_scales: expected five levels"]),
        ("config.prior_scales=(((8)),(1),(2),(3),(4))", ["scales of five levels"]),
        ("config.protonet=none", ["() for none, or original"]),
        ("config.head_layers=(0,2", ["layers such as", "a number of 3x3 convolutions"]),
        ("config.head_layers=((256,3),(0,2))", ["head_layers: expected layers that keep the size"]),
        ("config.second_threshold=x", ["a number or none"]),
        ("config.max_detections=9999", ["max_detections", "1 to 3840"]),
        ("lr=-1", ["lr", "above 0"]),
        ("batch=0", ["batch", "1 or more"]),
        ("batch=9e18000", ["batch"]),
        ("seed=1e30", ["seed", "at most 9223372036854775807"]),
        ("batch=9e18", ["batch", "at most 65536"]),
        ("iterations=9e18", ["iterations", "at most 2147483647"]),
        ("milestones=(9000000000,)", ["milestones", "at most 2147483647"]),
        ("iterations=1e300", ["iterations", "at most"]),
        ("milestones=5,3", ["rising"]),
        ("ema_decay=1", ["ema_decay"]),
    ],
)
def test_wrong_settings(setting: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        override(get_recipe("yolact_base"), [setting])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["((8,12),(16,24),(32,48),(64,96),(128,192))", "[[8, 12], [16, 24], [32, 48], [64, 96], [128, 192]]",
     "(8,12),(16,24),(32,48),(64,96),(128,192)", "((8, 12,), (16, 24), (32, 48), (64, 96), (128, 192),)"],
)  # fmt: skip
def test_several_scales_per_level(text: str) -> None:
    recipe = override(get_recipe("yolact_base"), [f"config.prior_scales={text}"])
    assert recipe.config.prior_scales == ((8.0, 12.0), (16.0, 24.0), (32.0, 48.0), (64.0, 96.0), (128.0, 192.0))


def test_one_scale_per_level() -> None:
    for text in ("8,16,32,64,128", "((8,),(16,),(32,),(64,),(128,))", "(8,16,32,64,128)", "((8),(16),(32),(64),(128))"):
        recipe = override(get_recipe("yolact_base"), [f"config.prior_scales={text}"])
        assert recipe.config.prior_scales == ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)), text


def test_every_value_of_the_network_that_the_data_does_not_give_can_be_set() -> None:
    fields = {f"config.{field.name}" for field in dataclasses.fields(YolactConfig)}
    assert fields - set(keys()) == {"config.num_classes", "config.class_names", "config.category_ids"}
    for key in fields & set(keys()) - {"config.image_size"}:
        value = getattr(get_config("yolact_base"), key.removeprefix("config."))
        text = str(value).replace("True", "yes").replace("False", "no")
        text = "original" if key == "config.protonet" else text
        assert override(get_recipe("yolact_base"), [f"{key}={text}"]).config == get_config("yolact_base"), key


def test_a_recipe_in_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "my_recipe.py"
    file.write_text(
        "import dataclasses\n"
        "from yolact_deploy.training.recipes import get_recipe\n"
        "from yolact_deploy.training.recipe import Recipe\n"
        "base = get_recipe('yolact_edge_mobilenetv2')\n"
        "config = dataclasses.replace(base.config.with_size(320), name='cells', top_k=500, max_detections=500)\n"
        "RECIPE = dataclasses.replace(base, name='cells', config=config, lr=2e-3)\n"
    )
    recipe = get_recipe(str(file))
    assert (recipe.name, recipe.lr, recipe.config.max_detections) == ("cells", 2e-3, 500)
    assert recipe.augmentation.size == 320


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RECIPE = 3\n", ["has a RECIPE of type int", "RECIPE = Recipe(...)"]),
        ("x = 1\n", ["has no RECIPE"]),
        ("x = 1\ny = 1 / 0\n", ["line 2", "ZeroDivisionError"]),
        ("x = (\n", ["line 1", "SyntaxError"]),
        ("raise SystemExit(3)\n", ["line 1", "SystemExit"]),
        ("from yolact_deploy.config import YolactConfig\nYolactConfig(top_k=0)\n", ["top_k: expected"]),
    ],
)
def test_a_file_that_is_no_recipe(text: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "my_recipe.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        get_recipe(str(file))
    assert all(word in str(caught.value) for word in [str(file), *words]), str(caught.value)
    with pytest.raises(ConfigError, match=r"no such recipe file: .*absent\.py"):
        get_recipe(str(tmp_path / "absent.py"))


def test_every_simple_field_can_be_set() -> None:
    simple = {f.name for f in dataclasses.fields(Recipe)} - {"name", "config", "augmentation"}
    assert simple - {"paper", "expected", "duration", "command"} <= set(keys())


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match="did you mean yolact_resnet50"):
        get_recipe("yolact_resnet5")


def test_identity_leaves_out_what_decides_about_no_weight() -> None:
    recipe = get_recipe("yolact_base")
    assert recipe.identity() == dataclasses.replace(recipe, log_interval=1, keep=9).identity()
    assert recipe.identity() != dataclasses.replace(recipe, lr=1.0).identity()
