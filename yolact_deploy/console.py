"""What commands print: progress and notes on stderr, tables and JSON on stdout.

Only commands import this module; the library reports through :mod:`yolact_deploy.progress` and :mod:`logging`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from yolact_deploy.progress import SILENT, Progress, ReportStep
from yolact_deploy.untrusted import printable, protect_output, styled

T = TypeVar("T")

#: shows (done, total, state)
_Update = Callable[[int, int | None, str], None]

_SECONDS_BETWEEN_LINES = 5.0
_PLAIN_WIDTH = 120


def console_progress(quiet: bool = False) -> Progress:
    """Progress on stderr, or none with ``quiet``."""
    return SILENT if quiet else ConsoleProgress()


class ConsoleProgress(Progress):
    """Progress on stderr: bars on a terminal, elsewhere a line every few seconds.

    Work inside other work, such as an evaluation during training, gets a bar below the first one.
    """

    def __init__(self) -> None:
        self._bars: Any = None  # rich's display, while a task runs

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, unit: str = "images"
    ) -> Iterator[T]:
        if total is None and isinstance(items, Sized):
            total = len(items)
        start, done = time.perf_counter(), 0
        with self._task(description, total) as update:
            for item in items:
                yield item
                done += 1
                rate = done / (time.perf_counter() - start)
                left = f" {timedelta(seconds=round(max(total - done, 0) / rate))} left" if total is not None else ""
                update(done, total, f"{unit} ({rate:.1f} {unit}/s){left}")
            if not done:
                update(done, total, unit)

    @contextmanager
    def steps(self, description: str) -> Iterator[ReportStep]:
        if not self._draws_bars():
            self.note(f"{description} ...")
        with self._task(description, None) as update:
            yield lambda phase, done, total: update(done, total, phase)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _draws_bars(self) -> bool:
        return self._bars is not None or sys.stderr.isatty()

    def _task(self, description: str, total: int | None) -> AbstractContextManager[_Update]:
        return self._bar(description, total) if self._draws_bars() else _lines(description)

    @contextmanager
    def _bar(self, description: str, total: int | None) -> Iterator[_Update]:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        outermost = self._bars is None
        if outermost:
            # One text, numbers first: where it is too long, its end is cut and not a column in the middle.
            line = TextColumn(
                "{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            self._bars = Bars(BarColumn(10), line, console=Console(file=styled(sys.stderr)))
            self._bars.start()
            protect_output()  # while bars are drawn, rich puts streams of its own in place
        bars = self._bars
        task = bars.add_task("", total=total, line=printable(description))

        def update(done: int, total: int | None, state: str) -> None:
            bars.update(task, completed=done, total=total, line=printable(_line(description, done, total, state)))

        try:
            yield update
        finally:
            if outermost:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(task)


def _line(description: str, done: int, total: int | None, state: str) -> str:
    """The counter before all else that may be long."""
    return f"{description} {done}{'' if total is None else f'/{total}'} {state}"


@contextmanager
def _lines(description: str) -> Iterator[_Update]:
    """Print the state every few seconds and at the end."""
    shown, shown_at, latest = "", time.perf_counter(), ""

    def show() -> None:
        nonlocal shown, shown_at
        shown, shown_at = latest, time.perf_counter()
        print(latest, file=sys.stderr, flush=True)

    def update(done: int, total: int | None, state: str) -> None:
        nonlocal latest
        latest = _line(f"{description}:", done, total, state)
        if time.perf_counter() - shown_at > _SECONDS_BETWEEN_LINES:
            show()

    yield update
    if latest != shown:
        show()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on stdout; a column that holds numbers only is aligned to the right."""
    cells = [["" if value is None else printable(str(value)) for value in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title)) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name, is_right in zip(columns, right, strict=True):
        table.add_column(Text(printable(name)), justify="right" if is_right else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    # Without a terminal rich would fold at 80 columns.
    width = None if sys.stdout.isatty() else shutil.get_terminal_size((_PLAIN_WIDTH, 24)).columns
    _stdout_console(width).print(table)


def _stdout_console(width: int | None) -> Any:
    """A console whose reader may leave: rich would end the process with exit code 1."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole(width=width, file=styled(sys.stdout))


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()


def print_json(value: object) -> None:
    """Print JSON on stdout, indented."""
    print(json.dumps(value, indent=1))
