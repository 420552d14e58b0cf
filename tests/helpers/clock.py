"""A clock for tests that judge times: it stands for the module `time` in the modules that measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Clock:
    """Time passes only where a test says so.

    Args:
        step: milliseconds that each look at the clock takes
    """

    def __init__(self, step: float = 0.0) -> None:
        self.seconds, self.step = 0.0, step

    def perf_counter(self) -> float:
        self.seconds += self.step / 1e3
        return self.seconds

    def takes(self, milliseconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, but it takes so long."""

        def slowed(*args: Any, **options: Any) -> Any:
            self.seconds += milliseconds / 1e3
            return function(*args, **options)

        return slowed
