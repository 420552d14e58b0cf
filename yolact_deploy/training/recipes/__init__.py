"""The recipes that come with the package, one file each, which defines ``RECIPE``; and recipes in files of users."""

from __future__ import annotations

import difflib
import importlib
import runpy
import traceback
from pathlib import Path

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
    "nuclei",
    "sixteen_images",
)


def get_recipe(name: str) -> Recipe:
    """The recipe with this name, or that of a Python file (``my_recipe.py``), which is executed.

    Raises:
        ConfigError: there is none (the message suggests the nearest one), or the file has an error.
    """
    if name.endswith(".py"):
        return _of_file(Path(name))
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"no recipe named {name!r}: {hint}known are {', '.join(RECIPES)}, or a file such as my_recipe.py"
        )
    recipe: Recipe = importlib.import_module(f"{__name__}.{name}").RECIPE
    return recipe


def _of_file(path: Path) -> Recipe:
    """Execute a user's file, as its name on the command line asks for, and take its ``RECIPE``."""
    if not path.is_file():
        raise ConfigError(f"no such recipe file: {path}. Check the path")
    try:
        values = runpy.run_path(str(path), run_name=f"recipe_{path.stem}")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # the code of users raises what it likes
        raise ConfigError(f"{path}{_line(error, path)}: {type(error).__name__}: {error}. Correct the file") from error
    recipe = values.get("RECIPE")
    if not isinstance(recipe, Recipe):
        what = "has no RECIPE" if "RECIPE" not in values else f"has a RECIPE of type {type(recipe).__name__}"
        raise ConfigError(f"{path} {what}: define RECIPE = Recipe(...), see yolact_deploy.training.recipe")
    return recipe


def _line(error: BaseException, path: Path) -> str:
    """Where in the file the error arose."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
