"""What commands print: a progress bar on stderr, tables and JSON on stdout.

Uses ``rich`` where it is installed, plain text where it is not.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 5.0
_PLAIN_WIDTH = 120


def _rich() -> ModuleType | None:
    try:
        import rich
    except ImportError:
        return None
    return rich


def progress(
    iterable: Iterable[T], description: str, total: int | None = None, quiet: bool = False, unit: str = "images"
) -> Iterator[T]:
    """Pass the items on and show how many are done and how fast, on stderr.

    A bar on a terminal; elsewhere a line every few seconds and one at the end.

    Args:
        total: number of items; by default the iterable's length where it has one
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if quiet:
        return iter(iterable)
    if sys.stderr.isatty() and _rich():
        return _bar(iterable, description, total, unit)
    return _lines(iterable, description, total, unit)


def _bar(iterable: Iterable[T], description: str, total: int | None, unit: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start, done = time.perf_counter(), 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, rate="")
        for item in iterable:
            yield item
            done += 1
            bar.update(task, completed=done, rate=f"{done / (time.perf_counter() - start):.1f} {unit}/s")


def _lines(iterable: Iterable[T], description: str, total: int | None, unit: str) -> Iterator[T]:
    start = told = time.perf_counter()
    done = shown = 0
    of_total = f"/{total}" if total is not None else ""

    def tell() -> None:
        nonlocal shown, told
        shown, told = done, time.perf_counter()
        rate = done / max(time.perf_counter() - start, 1e-9)
        print(f"{description}: {done}{of_total} {unit} ({rate:.1f} {unit}/s)", file=sys.stderr)

    for item in iterable:
        yield item
        done += 1
        if time.perf_counter() - told > _SECONDS_BETWEEN_LINES:
            tell()
    if shown != done or not done:
        tell()


@contextmanager
def step_progress(description: str, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function (phase, steps done, steps in all) that shows the phases of a long piece of work on stderr.

    A bar on a terminal; elsewhere one line when the work begins.
    """
    if quiet or not sys.stderr.isatty() or not _rich():
        if not quiet:
            print(f"{description} ...", file=sys.stderr)
        yield lambda phase, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None, phase="")
        yield lambda phase, done, total: bar.update(task, completed=done, total=total, phase=phase)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on stdout; a column that holds numbers only is aligned to the right."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
    if _rich() is None:
        _print_plain_table(columns, cells, right, title)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_right in zip(columns, right, strict=True):
        table.add_column(name, justify="right" if is_right else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    # Without a terminal rich would fold at 80 columns.
    width = None if sys.stdout.isatty() else shutil.get_terminal_size((_PLAIN_WIDTH, 24)).columns
    Console(width=width, file=sys.stdout).print(table)


def _print_plain_table(
    columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], title: str
) -> None:
    if title:
        print(title)
    widths = [max(len(row[i]) for row in (columns, *cells)) for i in range(len(columns))]
    for row in (columns, *cells):
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        print("  ".join(aligned).rstrip())


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()


def print_json(value: object) -> None:
    """Print JSON on stdout, indented."""
    print(json.dumps(value, indent=1))
