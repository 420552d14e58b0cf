"""The recipes that come with the package, one file each, which defines ``RECIPE``."""

from __future__ import annotations

import difflib
import importlib

from yolact_deploy.errors import ConfigError
from yolact_deploy.training.recipe import Recipe

RECIPES = (
    "yolact_base",
    "yolact_resnet50",
    "yolact_im400",
    "yolact_im700",
    "yolact_darknet53",
    "yolact_plus_base",
    "yolact_plus_resnet50",
    "yolact_edge_mobilenetv2",
    "yolact_resnet50_pascal",
    "shapes_demo",
    "sixteen_images",
)


def get_recipe(name: str) -> Recipe:
    """The recipe with this name.

    Raises:
        ConfigError: there is none; the message suggests the nearest one.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no recipe named {name!r}: {hint}known are {', '.join(RECIPES)}")
    recipe: Recipe = importlib.import_module(f"{__name__}.{name}").RECIPE
    return recipe
