"""The exponential moving average of a model's weights, which often scores better than the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's weights and of its batch normalization statistics, in FP32.

    It starts from the current weights. The decay grows to ``decay`` as min(decay, (1 + t) / (10 + t)), so that the
    initial random weights soon lose their influence.

    Args:
        model: the model to follow; its tensors must stay the same objects
        decay: 0 <= decay < 1
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        state = model.state_dict(keep_vars=True)
        self._names = [name for name, value in state.items() if value.is_floating_point()]
        self._followed = [state[name].detach() for name in self._names]
        self._copied = {name: value for name, value in state.items() if name not in set(self._names)}
        self._average = [value.clone() for value in self._followed]

    @torch.no_grad()
    def update(self, used: Tensor) -> None:
        """Add the current weights to the average.

        Args:
            used: scalar on the device, 1 for a step that was made and 0 for one that was skipped; the host does not
                need to know which
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        change = torch._foreach_sub(self._followed, self._average)
        torch._foreach_mul_(change, used.to(torch.float32) * (1 - decay))
        torch._foreach_add_(self._average, change)

    def model_state(self) -> dict[str, Tensor]:
        """A state dict of the model that holds the average."""
        return {**dict(zip(self._names, self._average, strict=True)), **self._copied}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": dict(zip(self._names, self._average, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        for name, value in zip(self._names, self._average, strict=True):
            value.copy_(state["average"][name])
