"""Changes single values of a recipe by name, for ``--set lr=5e-4``.

Names are the fields of `Recipe`; ``augmentation.mirror`` and ``config.fpn_channels`` are fields of its parts.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from yolact_deploy.config import Size, YolactConfig, read_size
from yolact_deploy.config.layer_patterns import CONCATENATION, Pattern, tuples
from yolact_deploy.errors import ConfigError
from yolact_deploy.training.data.augment import Augmentation
from yolact_deploy.training.recipe import Recipe

# Not settable: the data sets the classes, config.image_size the sizes, and the rest documents the recipe.
_FIXED = frozenset((
    "name", "config", "augmentation", "paper", "expected", "duration", "command", "augmentation.size",
    "augmentation.fit", "config.num_classes", "config.class_names", "config.category_ids",
))  # fmt: skip
_MOST_TEXT = 10_000
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with ``KEY=VALUE`` settings applied.

    ``batch`` also changes the learning rate and the iterations, and ``iterations`` the milestones and the warm-up,
    unless these are set themselves. ``config.image_size`` scales the priors.

    Raises:
        ConfigError: an unknown key (the message suggests the nearest one), or a value of another type.
    """
    values = parse(settings)
    if "batch" in values:
        recipe = recipe.for_batch(values.pop("batch"))
    if "iterations" in values:
        recipe = recipe.for_iterations(values.pop("iterations"))
    config = recipe.config
    if "config.image_size" in values:
        config = config.with_size(values.pop("config.image_size"))  # its prior_size, too, unless that is set
    own = {key: value for key, value in values.items() if "." not in key}
    return dataclasses.replace(
        recipe,
        **own,
        config=dataclasses.replace(config, **_of_part(values, "config")),
        augmentation=dataclasses.replace(recipe.augmentation, **_of_part(values, "augmentation")),
    )


def parse(settings: Iterable[str]) -> dict[str, Any]:
    """Values by key of ``KEY=VALUE`` texts; the last one of each key counts."""
    values: dict[str, Any] = {}
    known = keys()
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, such as lr=5e-4")
        if key not in known:
            raise ConfigError(f"--set {setting}: {_unknown(key, known)}")
        values[key] = _value(key, text.strip(), known[key])
    return values


def keys() -> dict[str, Any]:
    """The settable keys and their types."""
    parts: dict[str, type[Any]] = {"": Recipe, "augmentation.": Augmentation, "config.": YolactConfig}
    fields = {
        prefix + name: kind
        for prefix, owner in parts.items()
        for name, kind in typing.get_type_hints(owner).items()
        if name in {f.name for f in dataclasses.fields(owner)}
    }
    return {key: kind for key, kind in fields.items() if key not in _FIXED}


def _of_part(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key.removeprefix(f"{part}."): v for key, v in values.items() if key.startswith(f"{part}.")}


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    if key in _FIXED:
        return f"{key} cannot be set: the data gives the classes, config.image_size the size"
    by_last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1) or [
        by_last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.4)
    ]
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {key!r}: {hint}'--set help' lists all"


# -- values ---------------------------------------------------------------------------------------------------------


def _value(key: str, text: str, kind: Any) -> Any:
    try:
        return _converted(text, kind)
    except ValueError as error:
        raise ConfigError(f"--set {key}={text}: expected {_name(kind)}, got {text!r}") from error


def _converted(text: str, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return _one_of(text, typing.get_args(kind))
    if origin is types.UnionType:
        return _one_kind(text, typing.get_args(kind))
    if origin is tuple:
        return _many(text, typing.get_args(kind))
    if kind is bool:
        return _one_of(text.lower(), (*_TRUE, *_FALSE)) in _TRUE
    if kind is int:
        return _whole(text)
    if kind is float:
        return _finite(text)
    return text


def _one_of(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ValueError
    return text


def _one_kind(text: str, kinds: tuple[Any, ...]) -> Any:
    """A value that may be of several kinds: a pattern of layers, or a number or size that may be none."""
    if Pattern in kinds:
        return None if type(None) in kinds and text.lower() == "original" else _layers(text)
    if type(None) in kinds and text.lower() == "none":
        return None
    return _finite(text) if float in kinds else _size(text)


def _layers(text: str) -> int | Pattern:
    """A pattern of layers as Python writes it, or a number of layers."""
    if re.fullmatch(r"[0-9]{1,4}", text):
        return int(text)
    try:
        value = ast.literal_eval(text if len(text) <= _MOST_TEXT else "")
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError from error
    if not isinstance(value, (tuple, list)):
        raise ValueError
    return _as_pattern(tuples(value))


def _as_pattern(value: Any) -> Pattern:
    """A pattern of one layer is also written as that layer: ``(256,3)``, which is what ``((256,3))`` means."""
    layers = (value,) if value and not isinstance(value[0], tuple) else value
    return tuple(
        (layer[0], tuple(map(_as_pattern, layer[1])))
        if isinstance(layer, tuple) and len(layer) == 2 and layer[0] == CONCATENATION and isinstance(layer[1], tuple)
        else layer
        for layer in layers
    )


def _many(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = _parts(text.strip("()[]"))
    if typing.get_origin(kinds[0]) is tuple:
        levels, kind = _levels(text), typing.get_args(kinds[0])[0]
        return tuple(tuple(_converted(repr(value), kind) for value in level) for level in levels)
    if kinds[-1] is Ellipsis:
        return tuple(_converted(part, kinds[0]) for part in parts)
    if len(parts) != len(kinds):
        raise ValueError
    return tuple(_converted(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _levels(text: str) -> tuple[tuple[float, ...], ...]:
    """Scales of each level: ``((8,12),(16,24),...)``, or ``8,16,...`` with one scale per level."""
    inner = text.strip()
    if re.fullmatch(r"[(\[]\s*[(\[].*[)\]]\s*,?\s*[)\]]", inner):
        inner = inner[1:-1]
    if not re.search(r"[()\[\]]", inner.strip("()[]")):
        return tuple((_finite(part),) for part in _parts(inner.strip("()[]")))
    level = r"[(\[]([^()\[\]]*)[)\]]"
    if not re.fullmatch(rf"\s*{level}(?:\s*,\s*{level})*\s*,?\s*", inner):
        raise ValueError
    return tuple(tuple(map(_finite, _parts(scales))) for scales in re.findall(level, inner))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _size(text: str) -> Size:
    try:
        return read_size(text)
    except ConfigError as error:
        raise ValueError from error


def _whole(text: str) -> int:
    number = _finite(text)  # 1e5 is an integer as well
    if number != int(number):
        raise ValueError
    return int(number)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(arguments)}"
    if origin is types.UnionType and Pattern in arguments:
        other = "a number of 3x3 convolutions" if int in arguments else "original"
        return f"layers such as ((256,3),(256,1)), () for none, or {other}"
    if origin is types.UnionType and float not in arguments:
        words = "a side such as 550, or height x width such as 544x960"
        return f"{words}, or none" if type(None) in arguments else words
    if origin is types.UnionType:
        return "a number or none"
    if origin is tuple and isinstance(arguments[0], types.GenericAlias):
        return "scales of five levels, such as ((8,12),(16,24),(32,48),(64,96),(128,192)) or 8,16,32,64,128"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"{_name(arguments[0])} or several, separated by commas"
    if origin is tuple:
        return f"{len(arguments)} numbers, separated by commas"
    return {bool: "yes or no", int: "a whole number", float: "a number"}.get(kind, "text")
