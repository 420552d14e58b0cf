"""How the library reports the progress of long work: through a :class:`Progress` that the caller passes in.

The library never prints. :data:`SILENT` is the default; the command line passes one that draws on the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

#: level of log records that say what is done with the input, between information and warnings
NOTE = 25

#: reports (phase, steps done, steps in all)
ReportStep = Callable[[str, int, int], None]


def describe_pace(rate: float, unit: str, left_s: float | None) -> str:
    """Speed and, if it is known, the remaining time, which stand first in a line of progress.

    Args:
        rate: units in a second
        unit: what they are, in the plural
        left_s: seconds

    >>> describe_pace(20.04, "images", 90.0)
    '20.0 images/s, 0:01:30 left'
    >>> describe_pace(0.04, "images", None)
    '25 s each'
    """
    pace = f"{rate:.1f} {unit}/s" if rate >= 0.1 or rate <= 0 else f"{1 / rate:.0f} s each"
    return pace if left_s is None else f"{pace}, {timedelta(seconds=round(left_s))} left"


class Progress:
    """Reports nothing. Subclasses show what they are given."""

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, unit: str = "images"
    ) -> Iterator[T]:
        """Yield the items and report how many are done.

        Args:
            total: number of items; by default the length of ``items``, if it has one
            unit: what the items are, in the plural
        """
        return iter(items)

    def steps(self, description: str) -> AbstractContextManager[ReportStep]:
        """A context for work that is not a loop; inside, call the function it gives after each step."""
        return nullcontext(lambda phase, done, total: None)

    def note(self, text: str) -> None:
        """Report one sentence."""


SILENT = Progress()
