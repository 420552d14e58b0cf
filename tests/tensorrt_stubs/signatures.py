"""The signature in a pybind11 docstring: names, types and defaults of the parameters, and the result.

    build(self: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig = None) -> trt.IHostMemory

Overloaded functions have one numbered line per overload.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_PAIRS = {"(": ")", "[": "]", "<": ">", "{": "}"}


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    optional: bool = False

    @property
    def positional_only(self) -> bool:
        """pybind11's name for an unnamed parameter."""
        return re.fullmatch(r"arg\d+", self.name) is not None


@dataclass(frozen=True)
class Signature:
    parameters: tuple[Parameter, ...]  #: without self
    returns: str

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Values by parameter; TypeError if they do not fit."""
        if len(args) > len(self.parameters):
            raise TypeError(f"takes {len(self.parameters)} arguments, got {len(args)}")
        bound = dict(zip((p.name for p in self.parameters), args, strict=False))
        for name, value in kwargs.items():
            named = [p for p in self.parameters if p.name == name and not p.positional_only]
            if not named or name in bound:
                raise TypeError(f"has no parameter {name!r} left")
            bound[name] = value
        missing = [p.name for p in self.parameters if p.name not in bound and not p.optional]
        if missing:
            raise TypeError(f"lacks {', '.join(missing)}")
        return bound

    def __str__(self) -> str:
        parameters = ", ".join(f"{p.name}: {p.type}{' = ...' if p.optional else ''}" for p in self.parameters)
        return f"({parameters}) -> {self.returns}"


def parse(doc: str | None, name: str, *, drop_self: bool) -> list[Signature]:
    """The overloads in the docstring of a function; empty if it has none.

    Args:
        name: of the function; empty for the getters and setters of properties
        drop_self: leave the first parameter out
    """
    signatures = []
    for line in (doc or "").splitlines():
        match = re.match(rf"\s*(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)$", line)
        if match and match[1] != "*args, **kwargs":
            parts = split(match[1])
            signatures.append(Signature(tuple(map(_parameter, parts[1:] if drop_self else parts)), plain(match[2])))
    return signatures


def split(text: str) -> list[str]:
    """The parts between commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        if letter in _PAIRS:
            depth += 1
        elif letter in _PAIRS.values() and text[index - 1] != "-":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()] if text.strip() else []


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(":")
    kind, equals, _ = rest.partition(" = ")
    return Parameter(name.strip(), plain(kind), bool(equals))


def plain(text: str) -> str:
    """A type without the name of the module, as the newest pybind11 spells it."""
    text = re.sub(r"\btensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.", "", text.strip())
    return re.sub(r"\b(typing|typing_extensions|collections\.abc)\.", "", text)


# -- does a value fit a type ----------------------------------------------------------------------------------------

_ANY = {"object", "handle", "capsule", "CapsuleType", "Any", "Callable", "Iterable", "function"}


def accepts(kind: str, value: Any, find: Callable[[str], type | None], is_a: Callable[[Any, type], bool]) -> bool:
    """Whether pybind11 would accept ``value`` as ``kind`` without loss.

    Args:
        find: the class of a name, or None
        is_a: ``isinstance`` that also knows doubles
    """
    kind = plain(kind)
    outer, _, inner = kind.partition("[")
    if outer in ("list", "List", "Sequence"):
        items = split(inner[:-1])
        return isinstance(value, (list, tuple)) and all(accepts(items[0], item, find, is_a) for item in value)
    if outer in ("tuple", "Tuple", "dict", "Dict"):
        return isinstance(value, (tuple, list) if outer.lower() == "tuple" else dict)
    if kind in ("int", "SupportsInt", "SupportsIndex"):
        return _is_index(value)
    simple: dict[str, Any] = {
        "float": (float, int), "SupportsFloat": (float, int), "bool": bool, "str": str, "FallbackString": str,
        "bytes": bytes, "None": type(None),
    }  # fmt: skip
    if kind in simple:
        return isinstance(value, simple[kind])
    if kind in ("buffer", "Buffer"):
        return _is_buffer(value)
    if kind in _ANY:
        return True
    cls = find(kind)
    if cls is None:  # a C++ name that the module does not expose
        return True
    if cls.__name__ == "Dims" and isinstance(value, (tuple, list)):  # converted implicitly
        return all(_is_index(item) for item in value)
    return is_a(value, cls)


def _is_index(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True
