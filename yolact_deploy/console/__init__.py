"""What commands print: progress and notes on stderr, tables and JSON on stdout.

Only commands import this module; the library reports through :mod:`yolact_deploy.progress` and :mod:`logging`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

from yolact_deploy.console.text_layout import command_lines, shortened, table_lines, width_of, wrap
from yolact_deploy.progress import SILENT, Progress, ReportStep, describe_pace
from yolact_deploy.untrusted import printable, protect_output, styled

T = TypeVar("T")

#: shows (done, total, state); without numbers, the work is done
_Update = Callable[[int | None, int | None, str], None]

_SECONDS_BETWEEN_LINES = 5.0
_PLAIN_WIDTH, _TERMINAL_WIDTH = 120, 80
_BAR_WIDTH = 10
#: a description is not shortened further for the numbers behind it
_LEAST_DESCRIPTION = 12
_STYLES = {"title": "italic", "head": "bold", "rule": "", "text": ""}


#: whether the next command is printed
_proposes = ContextVar("proposes", default=True)


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
                rate = done / _since(start)
                update(done, total, describe_pace(rate, unit, None if total is None else max(total - done, 0) / rate))
            pace = describe_pace(done / _since(start), unit, None)
            update(done, total, f"{pace}, {_took(start)}" if done else "")

    @contextmanager
    def steps(self, description: str) -> Iterator[ReportStep]:
        if not self._draws_bars():
            self.note(f"{description} ...")
        start, counted = time.perf_counter(), False

        def report(phase: str, done: int, total: int) -> None:
            nonlocal counted
            counted = True
            update(done, total, phase)

        with self._task(description, None) as update:
            yield report
            if not counted and self._draws_bars():
                update(None, None, _took(start))

    def note(self, text: str) -> None:
        print_text(text, file=sys.stderr)

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
            self._bars = Bars(BarColumn(_BAR_WIDTH), line, console=Console(file=styled(sys.stderr)))
            self._bars.start()
            protect_output()  # while bars are drawn, rich puts streams of its own in place
        bars = self._bars

        def line_of(done: int | None, total: int | None, state: str) -> str:
            return _line(printable(description), done, total, printable(state), bars.console.width - _BAR_WIDTH - 1)

        task = bars.add_task("", total=total, line=line_of(None if total is None else 0, total, ""))

        def update(done: int | None, total: int | None, state: str) -> None:
            line = line_of(done, total, state)
            bars.update(task, completed=1 if done is None else done, total=1 if done is None else total, line=line)

        try:
            yield update
        finally:
            if outermost:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(task)


def _since(start: float) -> float:
    """Seconds, above zero."""
    return max(time.perf_counter() - start, 1e-9)


def _took(start: float) -> str:
    return f"took {timedelta(seconds=round(_since(start)))}"


def _line(description: str, done: int | None, total: int | None, state: str, room: int | None = None) -> str:
    """The counter before all else that may be long; for it and the state, the description is shortened."""
    counter = "" if done is None else f" {done}{'' if total is None else f'/{total}'}"
    rest = counter + (f", {state}" if state else "")
    if room is not None:
        description = shortened(description, max(room - width_of(rest), _LEAST_DESCRIPTION))
    return f"{description}{rest}"


@contextmanager
def _lines(description: str) -> Iterator[_Update]:
    """Print the state every few seconds and at the end."""
    shown, shown_at, latest = "", time.perf_counter(), ""

    def show() -> None:
        nonlocal shown, shown_at
        shown, shown_at = latest, time.perf_counter()
        print(latest, file=sys.stderr, flush=True)

    def update(done: int | None, total: int | None, state: str) -> None:
        nonlocal latest
        latest = _line(f"{description}:", done, total, state)
        if time.perf_counter() - shown_at > _SECONDS_BETWEEN_LINES:
            show()

    yield update
    if latest != shown:
        show()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on stdout, laid out for the terminal, by :func:`~yolact_deploy.console.text_layout.table_lines`."""
    from rich.text import Text

    cells = [["" if value is None else printable(str(value)) for value in row] for row in rows]
    width = _columns(sys.stdout) or shutil.get_terminal_size((_PLAIN_WIDTH, 24)).columns
    console = _stdout_console()
    for line in table_lines([printable(name) for name in columns], cells, printable(title), width):
        console.print(Text(line.text), style=_STYLES[line.kind], soft_wrap=True)


def _stdout_console() -> Any:
    """A console whose reader may leave: rich would end the process with exit code 1."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole(file=styled(sys.stdout))


def print_text(text: str, *, indent: str = "", file: Any = None, red: bool = False) -> None:
    """Print a sentence, by default on stdout; a terminal gets it in lines that end between words.

    Args:
        indent: before each line but the first
        red: on a terminal with colors
    """
    stream = file or sys.stdout
    width = _columns(stream)
    shown = printable(text)
    if width:
        shown = "\n".join(wrap(shown, width, names=False, indent=indent))
    if red and width and "NO_COLOR" not in os.environ:
        shown = f"\x1b[31m{shown}\x1b[0m"
    print(shown, file=styled(stream), flush=True)


def print_next(words: Sequence[str]) -> None:
    """Print the command that a user is likely to run next, on stderr: stdout is for results."""
    if _proposes.get():
        print_command(f"next: {shlex.join(words)}", file=sys.stderr)


@contextmanager
def without_next() -> Iterator[None]:
    """Propose no commands: another one follows anyway."""
    token = _proposes.set(False)
    try:
        yield
    finally:
        _proposes.reset(token)


def print_command(text: str, *, file: Any = None) -> None:
    """Print a command to copy, by default on stdout; lines that a terminal cuts continue as a shell wants it."""
    stream = file or sys.stdout
    width = _columns(stream)
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    print("\n".join(command_lines(text, width, indent)) if width else text, file=stream, flush=True)


def _columns(stream: Any) -> int | None:
    """Columns of a terminal; None for anything else."""
    if not stream.isatty():
        return None
    return shutil.get_terminal_size((_TERMINAL_WIDTH, 24)).columns


def print_json(value: object) -> None:
    """Print JSON on stdout, indented."""
    print(json.dumps(value, indent=1))
