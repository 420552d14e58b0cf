"""Patterns of layers: the freely chosen parts of a network, protonet and head trunk, as tuples of numbers.

A pattern is a tuple of layers, each followed by a ReLU. They are the layers of the original's ``make_net``:

- ``(channels, kernel)``: a convolution of an odd kernel, padded so that it keeps the size
- ``(0, factor)``: bilinear upsampling
- ``(channels, -kernel)``: a transposed convolution whose stride is its kernel, and ``(channels, -kernel, stride)`` one
  of a smaller stride, padded so that it enlarges by exactly its stride
- ``("cat", (pattern, ...))``: patterns side by side, concatenated along the channels; the empty one passes its input on
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from yolact_deploy.errors import ConfigError
from yolact_deploy.untrusted import shown

Pattern = tuple[Any, ...]

CONCATENATION = "cat"
_MOST_LAYERS, _MOST_CHANNELS, _MOST_KERNEL, _MOST_DEPTH = 32, 4096, 7, 4
_EXPECTED = (
    f"up to {_MOST_LAYERS} layers: (channels, odd kernel up to {_MOST_KERNEL}), (0, factor) for upsampling, (channels, "
    '-kernel) or (channels, -kernel, stride) for a transposed convolution, or ("cat", (pattern, ...))'
)


def tuples(value: Any) -> Any:
    """Lists within lists as tuples."""
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value


def check_pattern(field: str, pattern: object, most_scale: int) -> None:
    """Refuse what is no pattern, or one that enlarges more than allowed.

    Raises:
        ConfigError: the message names the field.
    """
    if not _is_pattern(pattern, 0) or _count(pattern) > _MOST_LAYERS:
        raise ConfigError(f"{field}: expected {_EXPECTED}, got {shown(pattern)}")
    assert isinstance(pattern, tuple)
    if not _agree(pattern):
        raise ConfigError(f"{field}: expected patterns of one scale side by side, got {shown(pattern)}")
    if scale_of(pattern) > most_scale:
        most = f"upsampling by {most_scale} at most" if most_scale > 1 else "layers that keep the size of their input"
        raise ConfigError(f"{field}: expected {most}, got {shown(pattern)}")


def scale_of(pattern: Pattern) -> int:
    """How many times as high and wide as its input a pattern's output is."""
    return math.prod(map(_scale, pattern))


def channels_of(pattern: Pattern, channels: int) -> int:
    """Channels of a pattern's output, for an input of ``channels``."""
    for first, second, *_ in pattern:
        if first == CONCATENATION:
            channels = sum(channels_of(part, channels) for part in second)
        elif first:
            channels = first
    return channels


def convolutions(count: int, channels: int) -> Pattern:
    """So many 3x3 convolutions."""
    return ((channels, 3),) * count


def transposed_padding(kernel: int, stride: int) -> int:
    """Padding with which a transposed convolution enlarges by exactly its stride."""
    return (kernel - stride) // 2


def _scale(layer: tuple[Any, ...]) -> int:
    first, second, *stride = layer
    if first == CONCATENATION:
        return scale_of(second[0])
    if stride:
        return int(stride[0])
    return abs(second) if not first or second < 0 else 1


def _agree(pattern: Pattern) -> bool:
    """Whether patterns side by side have one scale, however deep."""
    for first, second, *_ in pattern:
        if first == CONCATENATION and not (all(map(_agree, second)) and len(set(map(scale_of, second))) == 1):
            return False
    return True


def _count(pattern: Any) -> int:
    return sum(1 + (sum(map(_count, layer[1])) if layer[0] == CONCATENATION else 0) for layer in pattern)


def _is_pattern(value: object, depth: int) -> bool:
    if not isinstance(value, tuple) or len(value) > _MOST_LAYERS or depth > _MOST_DEPTH:
        return False
    return all(_is_layer(layer, depth) for layer in value)


def _is_layer(layer: object, depth: int) -> bool:
    if not isinstance(layer, tuple) or len(layer) not in (2, 3):
        return False
    first, second, *stride = layer
    if first == CONCATENATION:
        many = isinstance(second, tuple) and 0 < len(second) <= _MOST_LAYERS and not stride
        return many and all(_is_pattern(part, depth + 1) for part in second)
    if not _whole((first, second, *stride)):
        return False
    if first == 0:
        return 1 <= second <= _MOST_KERNEL and not stride
    if not 1 <= first <= _MOST_CHANNELS or not -_MOST_KERNEL <= second <= _MOST_KERNEL:
        return False
    if stride:
        return bool(1 <= stride[0] < -second and (-second - stride[0]) % 2 == 0)
    return bool(second <= -2 or (second > 0 and second % 2 == 1))


def _whole(numbers: Iterable[object]) -> bool:
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
