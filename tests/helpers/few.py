"""Some cases of a kind by default, all of them with ``-m slow``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], *kept: int) -> list[Any]:
    """Values of one parameter: those at the indices ``kept`` run by default, the others are slow."""
    return [
        value if index in kept else pytest.param(value, marks=pytest.mark.slow) for index, value in enumerate(values)
    ]


def few_rows(rows: Iterable[tuple[Any, ...]], *kept: int) -> list[Any]:
    """The same for values of several parameters."""
    return [row if index in kept else pytest.param(*row, marks=pytest.mark.slow) for index, row in enumerate(rows)]
