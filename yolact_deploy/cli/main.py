"""Entry point: imports the module of one command, and turns every failure into one line and an exit code.

Exit codes: 0 done, 1 a limit was missed (``--min-fps`` and the like), 2 any other failure. Nothing heavy is imported
here, so that the help appears at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from yolact_deploy.cli.options.parsing import CommandParser
from yolact_deploy.console import console_progress, print_text
from yolact_deploy.errors import YolactDeployError, describe_import_error, system_reason
from yolact_deploy.progress import NOTE
from yolact_deploy.untrusted import safe_output
from yolact_deploy.version import __version__

PROGRAM = "yolact-deploy"

#: name of each command's module in this package, and its line in the overview, which fits 80 columns
COMMANDS = {
    "export": "Export weights to ONNX and build a TensorRT engine",
    "build": "Build a TensorRT engine from an exported ONNX file (no torch needed)",
    "bench": "Measure accuracy and speed of models side by side",
    "loadgen": "Run the MLPerf scenarios with the MLPerf load generator",
    "eval": "Compute COCO box and mask AP of a model",
    "compare": "Compare two models by layer, output and detection",
    "predict": "Detect objects in pictures, folders, videos or a camera stream",
    "serve": "Serve models over HTTP, with a page to try them",
    "triton": "Write a model repository for NVIDIA's Triton Inference Server",
    "merge": "Merge the results of jobs that ran a shard of the pictures each",
    "inspect": "Show what is inside a model file",
    "doctor": "Check what runs on this machine and what to install for the rest",
    "summary": "Show the layers, parameters and multiply-adds of a network",
    "train": "Train a network on a COCO-style dataset",
    "data": "Check a dataset, fit priors to it, or generate one of shapes",
    "demo": "Export, measure and run the model that comes with the package",
    "fetch": "Download the official weights of a configuration",
    "completion": "Print a script that completes commands and options in a shell",
}
_GLOBAL_FLAGS = ("--debug", "--quiet", "--json")
#: exit code that a shell reports for a program ended by SIGPIPE
_BROKEN_PIPE = 141
_LONGEST_MESSAGE = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; raises SystemExit for ``--help``, ``--version`` and wrong arguments."""
    with safe_output():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    # Global flags may also come before the command.
    leading = []
    while arguments and arguments[0] in _GLOBAL_FLAGS:
        leading.append(arguments.pop(0))
    if not arguments or arguments[0].startswith("-"):
        return _overview(arguments)
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        _complain(f"unknown command {name!r}: {hint} ('{PROGRAM} --help' lists all commands)")
        return 2
    return _run(name, leading + arguments[1:])


def _overview(arguments: Sequence[str]) -> int:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items())
    parser = CommandParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="YOLACT instance segmentation: weights in, a measured engine out.",
        epilog=f"commands:\n{lines}\n\n'{PROGRAM} COMMAND --help' shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.parse_args(arguments)
    parser.print_help(sys.stderr)
    _complain("a command is missing")
    return 2


def _run(name: str, arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments  # for failures before parsing
    try:
        with _terminate_as_interrupt():
            module = importlib.import_module(f"yolact_deploy.cli.{name}")
            parser = command_parser(name)
            args = parser.parse_args(arguments)
            debug = args.debug
            args.progress = console_progress(args.quiet)
            with _warnings_on_stderr(args.quiet):
                code: int = module.run(args)
            sys.stdout.flush()  # a closed pipe fails here and not at exit
            return code
    except BrokenPipeError:
        _discard_stdout()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        _show_traceback(debug)
        _complain("interrupted; no partial files were left")
        return 2
    except YolactDeployError as error:
        _show_traceback(debug)
        _complain(_one_line(error))
        return error.exit_code
    except OSError as error:
        _show_traceback(debug)
        _complain(_describe_os_error(error))
        return 2
    except Exception as error:
        _show_traceback(debug)
        if isinstance(error, ImportError) and (cure := describe_import_error(error)):
            _complain(cure)
            return 2
        hint = "please report it" if debug else "run again with --debug and report the traceback"
        _complain(f"internal error: {type(error).__name__}: {_one_line(error)}; {hint}")
        return 2


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one of :data:`COMMANDS`."""
    module = importlib.import_module(f"yolact_deploy.cli.{name}")
    parser = CommandParser(
        prog=f"{PROGRAM} {name}",
        description=module.__doc__,
        # A command may redefine a global flag.
        conflict_handler="resolve",
    )
    common = len(parser._action_groups)
    _add_global_flags(parser)
    module.add_arguments(parser)
    parser._action_groups.append(parser._action_groups.pop(common))  # last in the help
    return parser


def _add_global_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("common options")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group.add_argument("--quiet", action="store_true", help="print errors only")
    group.add_argument("--json", action="store_true", help="print the result as JSON on standard output")


# -- messages -------------------------------------------------------------------------------------------------------


def _complain(message: str) -> None:
    # The reader, or the terminal, may be gone.
    with contextlib.suppress(OSError):
        print_text(f"{PROGRAM}: error: {message}", file=sys.stderr, red=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LONGEST_MESSAGE] or type(error).__name__


def _describe_os_error(error: OSError) -> str:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return f"{where}{system_reason(error)}"


def _show_traceback(debug: bool) -> None:
    if debug:
        print(traceback.format_exc(), end="", file=sys.stderr)


class _StderrHandler(logging.Handler):
    """Writes to the current ``sys.stderr``: a progress bar replaces it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "note" if record.levelno == NOTE else record.levelname.lower()
        print_text(f"{kind}: {record.getMessage()}", file=sys.stderr)


@contextlib.contextmanager
def _warnings_on_stderr(quiet: bool) -> Iterator[None]:
    logger = logging.getLogger("yolact_deploy")
    handler, before = _StderrHandler(logging.ERROR if quiet else NOTE), logger.level
    logger.addHandler(handler)
    if not logger.isEnabledFor(NOTE):
        logger.setLevel(NOTE)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _discard_stdout() -> None:
    """Discard what is still buffered, or Python reports the closed pipe at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind the stack like Ctrl-C, so that temporary files are removed.

    An ignored one stays ignored, as nohup ignores SIGHUP.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = filter(None, (signal.SIGTERM, getattr(signal, "SIGHUP", None)))  # Windows has no SIGHUP
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
