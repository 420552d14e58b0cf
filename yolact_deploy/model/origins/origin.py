"""`Origin`: how to recognize the checkpoints of one implementation, and what differs from the original in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import CheckpointError

StateDict = dict[str, Tensor]

#: a pattern of a whole name or of its beginning, and what replaces it: a template, or a function of the match
Rule = tuple[str, "str | Callable[[re.Match[str]], str]"]


@dataclass(frozen=True)
class Origin:
    """One implementation of YOLACT.

    Attributes:
        name: for messages
        markers: names of tensors that only its networks have, all of them together
        convert: from its tensors to those of the original, by names and values
        configure: from the configuration that the converted tensors suggest, its own tensors and the checkpoint's
            ``meta`` to the configuration of the network; the text says what was assumed, if anything
        unused: beginnings of names that are dropped, and what they belong to
    """

    name: str
    markers: tuple[str, ...]
    convert: Callable[[StateDict], StateDict]
    configure: Callable[[YolactConfig, StateDict, Mapping[str, Any]], tuple[YolactConfig, str]]
    unused: tuple[tuple[str, str], ...] = ()


def renamed(state: StateDict, rules: Sequence[Rule]) -> StateDict:
    """The tensors under other names; a name that no rule matches stays.

    Raises:
        CheckpointError: two tensors would have one name.
    """
    result: StateDict = {}
    for key, value in state.items():
        name = key
        for pattern, new in rules:
            match = re.match(pattern, key)
            if match:
                name = (match.expand(new) if isinstance(new, str) else new(match)) + key[match.end() :]
                break
        if name in result:
            raise CheckpointError(f"two tensors are called {name}, one of them {key}: give the weights of one network")
        result[name] = value
    return result


def reversed_level(prefix: str) -> Callable[[re.Match[str]], str]:
    """For pyramid layers stored C3 first: number n of three becomes 2 - n."""
    return lambda match: f"{prefix}.{2 - int(match[1])}."
