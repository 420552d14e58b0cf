"""From the names and shapes of tensors to the pattern of layers that they belong to.

Tensors show convolutions, transposed convolutions and concatenations. They do not show the factor of an upsampling, nor
the stride of a transposed convolution; what is assumed there comes back in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from yolact_deploy.config.layer_patterns import CONCATENATION, Pattern, channels_of, scale_of
from yolact_deploy.errors import CheckpointError

_FACTOR = 2
_MOST_PLACES = 64


class PatternReader:
    """Reads the patterns in a state dict.

    Attributes:
        assumed: what the tensors do not show, one phrase per layer
    """

    def __init__(self, state: Mapping[str, Tensor], *, keeps_size: bool = False) -> None:
        """
        Args:
            keeps_size: no layer enlarges its input, as in the head
        """
        self.assumed: list[str] = []
        self._state, self._keeps_size = state, keeps_size

    def read(self, prefix: str, channels: int, places: int | None = None, out_channels: int | None = None) -> Pattern:
        """The layers below a name.

        Args:
            prefix: such as ``proto_net``
            channels: of their input
            places: modules in the sequence; by default those up to the last one with tensors
            out_channels: of what follows, if known, for parts of a concatenation that have no tensors

        Raises:
            CheckpointError: tensors that are no such layers.
        """
        last = max(self._places(prefix), default=-2)
        count = last + 2 if places is None else places
        if count % 2 or count > _MOST_PLACES:
            raise CheckpointError(f"{prefix} has a layer at position {last}: expected one at every second position")
        layers: list[tuple[object, ...]] = []
        for place in range(0, count, 2):
            name = f"{prefix}.{place}"
            after = next(filter(None, (self._reads(f"{prefix}.{p}") for p in range(place + 2, count, 2))), out_channels)
            layer = self._layer(name, channels, after)
            channels = channels_of((layer,), channels)
            layers.append(layer)
        return tuple(layers)

    def _places(self, prefix: str) -> list[int]:
        """Numbers that follow a name."""
        numbers = (re.match(rf"{re.escape(prefix)}\.(\d{{1,4}})\.", key) for key in self._state)
        return sorted({int(match[1]) for match in numbers if match})

    def _reads(self, name: str) -> int | None:
        """Input channels of a layer; None if it has no tensors, or those of a concatenation."""
        weight = self._state.get(f"{name}.weight")
        if weight is None or weight.ndim != 4:
            return None
        return int(weight.shape[1 if weight.shape[-1] % 2 else 0])

    def _layer(self, name: str, channels: int, after: int | None) -> tuple[object, ...]:
        if self._places(f"{name}.nets"):
            return CONCATENATION, self._parts(f"{name}.nets", channels, after)
        weight = self._state.get(f"{name}.weight")
        if weight is None:
            if self._keeps_size:
                raise CheckpointError(f"{name}.weight is missing: the layers of the head cannot enlarge its input")
            self.assumed.append(f"upsampling by {_FACTOR} at {name}")
            return 0, _FACTOR
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
            raise CheckpointError(f"{name}.weight has the shape {list(weight.shape)}, expected a square kernel")
        kernel = weight.shape[2]
        if kernel % 2 and weight.shape[1] == channels:
            return weight.shape[0], kernel
        if weight.shape[0] != channels:
            raise CheckpointError(f"{name}.weight has the shape {list(weight.shape)}, its input {channels} channels")
        return self._transposed(name, weight.shape[1], kernel)

    def _transposed(self, name: str, width: int, kernel: int) -> tuple[object, ...]:
        if kernel % 2 or self._keeps_size:
            self.assumed.append(f"a stride of 1 at {name}")
            return width, -kernel, 1
        if kernel == _FACTOR:
            return width, -kernel
        self.assumed.append(f"a stride of {_FACTOR} at {name}")
        return width, -kernel, _FACTOR

    def _parts(self, prefix: str, channels: int, after: int | None) -> Pattern:
        """Patterns side by side; one without tensors passes its input on, and a smaller one is enlarged at its end."""
        known = self._places(prefix)
        if known[-1] >= _MOST_PLACES:
            raise CheckpointError(f"{prefix} has {known[-1] + 1} parts, expected up to {_MOST_PLACES}")
        parts = [self.read(f"{prefix}.{number}", channels) for number in range(known[-1] + 1)]
        left = 0 if after is None else after - sum(channels_of(part, channels) for part in parts)
        for _ in range(left // channels if left > 0 and left % channels == 0 else 0):
            self.assumed.append(f"a part that passes its input on at {prefix}.{len(parts)}")
            parts.append(())
        scale = math.lcm(*map(scale_of, parts))
        return tuple((*part, *self._enlarged(f"{prefix}.{number}", part, scale)) for number, part in enumerate(parts))

    def _enlarged(self, name: str, part: Pattern, scale: int) -> Sequence[tuple[int, int]]:
        missing = scale // scale_of(part)
        if missing == 1:
            return ()
        self.assumed.append(f"upsampling by {missing} at the end of {name}")
        return ((0, missing),)
