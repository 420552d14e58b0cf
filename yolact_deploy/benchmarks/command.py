"""Arguments, output and exit codes that the commands `python -m yolact_deploy.benchmarks...` have in common."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import write_json
from yolact_deploy.console import print_json
from yolact_deploy.errors import OutputError, YolactDeployError

Result = dict[str, Any]


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every command.

    Args:
        module: below ``yolact_deploy.benchmarks``
        description: docstring of the module
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m yolact_deploy.benchmarks.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", "-o", metavar="FILE.json", help="write the result as JSON")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    measure: Callable[[argparse.Namespace], Result],
    *,
    show: Callable[[Result], None] = print_json,
    problems: Callable[[Result], Iterable[str]] = lambda result: (),
) -> int:
    """Measure, then write and print the result. Exit code 1 if there are problems, 2 for errors.

    Args:
        measure: gives a JSON-ready result
        show: prints it, unless ``--json`` is given
        problems: sentences about what is wrong with it
    """
    args = parser.parse_args(argv)
    try:
        result = measure(args)
        if args.output:
            write_json(args.output, result)
    except YolactDeployError as error:
        if args.debug:
            raise
        print(f"{parser.prog.rpartition('.')[2]}: error: {error}", file=sys.stderr)
        return error.exit_code
    (print_json if args.json else show)(result)
    wrong = list(problems(result))
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


@contextmanager
def work_folder(folder: str | None) -> Iterator[Path]:
    """The folder of ``--work``, or a temporary one; raises :class:`OutputError` if it cannot be made."""
    with tempfile.TemporaryDirectory(prefix="yolact-benchmark-") as temporary:
        work = Path(folder or temporary)
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {work}: {error.strerror}. Choose another --work") from error
        yield work
