"""The frame around the commands: help, exit codes, messages, interrupts."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_terminal import Terminal

from yolact_deploy.cli import main as cli
from yolact_deploy.console import console_progress
from yolact_deploy.errors import GateError, InputError
from yolact_deploy.untrusted import safe_output

ROOT = Path(__file__).parents[2]
Install = Callable[[Callable[[argparse.Namespace], int]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a function in the place of the command ``doctor``."""

    def replace(run: Callable[[argparse.Namespace], int]) -> None:
        module = types.ModuleType("yolact_deploy.cli.doctor", "A command of the tests.")
        module.add_arguments = lambda parser: None  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "yolact_deploy.cli.doctor", module)

    return replace


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_help_imports_nothing_heavy() -> None:
    code = """
        import sys
        from yolact_deploy.cli.main import main
        try:
            main(["--help"])
        except SystemExit as error:
            assert error.code == 0
        heavy = {"torch", "onnx", "onnxruntime", "openvino", "cv2", "rich", "tensorrt_rtx_libs"}
        sys.exit(f"imported {heavy & set(sys.modules)}" if heavy & set(sys.modules) else 0)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert "predict" in child.stdout
    assert max(map(len, child.stdout.splitlines())) < 80


@pytest.mark.parametrize("name", ["predict", "inspect", "doctor", "summary", "fetch"])
def test_help_of_a_command_imports_nothing_heavy(name: str) -> None:
    code = f"""
        import sys
        from yolact_deploy.cli.main import main
        try:
            main([{name!r}, "--help"])
        except SystemExit as error:
            assert error.code == 0
        heavy = {{"torch", "onnx", "onnxruntime", "openvino", "cv2", "rich"}} & set(sys.modules)
        sys.exit(f"imported {{heavy}}" if heavy else 0)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    for flag in ("--debug", "--quiet", "--json"):
        assert flag in child.stdout


@pytest.mark.parametrize("start", [["cli.py"], ["-m", "yolact_deploy"]])
def test_both_ways_to_start(start: list[str]) -> None:
    child = subprocess.run([sys.executable, *start, "--version"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("yolact-deploy ")


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predit"]) == 2
    assert "did you mean 'predict'?" in capsys.readouterr().err


def test_missing_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "a command is missing" in capsys.readouterr().err


def test_wrong_argument_of_a_command_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["inspect", "file.onnx", "--no-such-option"])
    assert caught.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--engine", "m.onnx", "--conf", "0.5"],
        ["bench", "--engine", "m.onnx", "--rep", "3"],
        ["bench", "diff", "a.json", "b.json", "--marg", "0.1"],
        ["data", "shapes", "-o", "x", "--tra", "3"],
        ["export", "--weights", "w.pth", "--calib", "x"],
        ["predict", "m.onnx", "a.jpg", "--score-thresh", "0.5"],
    ],
)
def test_options_are_taken_in_full(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.command_parser(words[0]).parse_args(words[1:])
    assert caught.value.code == 2
    assert f"unrecognized arguments: {words[-2]}" in capsys.readouterr().err


def test_an_abbreviation_is_answered_by_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    for typed, meant in (("--calib", "--calibration"), ("--fp61", "--fp16"), ("--keep_fp", "--keep-fp32")):
        with pytest.raises(SystemExit):
            cli.command_parser("export").parse_args(["--weights", "w.pth", typed])
        assert f"(did you mean {meant}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["predict", "m.onnx", "a.jpg", "--conf", "0.5"], "score_threshold", "0.5"),
        (["predict", "m.onnx", "a.jpg", "--score_threshold=0.5"], "score_threshold", "0.5"),
        (["compare", "--reference", "a", "--engine", "b", "--images", "c", "--conf=0.3"], "score", 0.3),
        (["compare", "--reference", "a", "--engine", "b", "--images", "c", "--score", "0.3"], "score", 0.3),
        (["export", "--weights", "w.pth", "--imgsz", "320"], "size", 320),
        (["export", "--trained_model", "w.pth"], "weights", "w.pth"),
        (["bench", "--weights", "w.pth", "--imgsz=320"], "size", 320),
        (["bench", "--weights", "w.pth", "--images_dir", "a"], "images_dir", "a"),
        (["data", "shapes", "-o", "a", "--imgsz", "96x64"], "size", "96x64"),
        (["loadgen", "m.onnx", "--images", "a", "--logs", "b", "--max_images", "3"], "limit", 3),
        (["predict", "m.onnx", "--", "--conf"], "sources", ["--conf"]),
        (["predict", "m.onnx", "-o", "out", "a.jpg", "--conf", "0.5", "b.jpg"], "sources", ["a.jpg", "b.jpg"]),
        (["predict", "--recursive", "m.onnx", "a"], "model", "m.onnx"),
        (["inspect", "--layers", "m.onnx"], "file", "m.onnx"),
    ],
)
def test_options_as_other_tools_spell_them(words: list[str], name: str, value: object) -> None:
    assert getattr(cli.command_parser(words[0]).parse_args(words[1:]), name) == value


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("no such\nimage: a.jpg"), 2, "error: no such image: a.jpg"),
        (GateError("30 FPS, 60 wanted"), 1, "error: 30 FPS, 60 wanted"),
        (KeyboardInterrupt(), 2, "error: interrupted; no partial files were left"),
        (OSError(errno.ENOSPC, "No space left on device", "a.onnx"), 2, "a.onnx: No space left on device: free some"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "a: Permission denied: check the permissions"),
        (OSError("odd"), 2, "error: odd"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "pip install 'yolact-deploy[export]'"),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml.nodes"), 2, "pip install 'yolact-deploy[train]'"),
        (ModuleNotFoundError("No module named 'cv2'", name="cv2"), 2, "package 'cv2' (No module named 'cv2'). Install"),
        (ImportError("libGL.so.1: cannot open"), 2, "cannot be imported (libGL.so.1: cannot open): 'yolact-deploy doc"),
        (ImportError("no name x", name="yolact_deploy.x"), 2, "internal error: ImportError: no name x; run again"),
        (InputError("x" * 1_000_000), 2, "x" * 1000),
        (ZeroDivisionError("division by zero"), 2, "internal error: ZeroDivisionError: division by zero; run again"),
    ],
)
def test_errors_are_one_line_and_a_code(
    install: Install, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    install(raising(error))
    assert cli.main(["doctor"]) == code
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.startswith("yolact-deploy: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("argv", [["doctor", "--debug"], ["--debug", "doctor"]])
def test_debug_shows_the_traceback(install: Install, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    install(raising(InputError("broken")))
    assert cli.main(argv) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_command_may_redefine_json(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args.json)
        return 0

    install(run)
    module = sys.modules["yolact_deploy.cli.doctor"]
    monkeypatch.setattr(module, "add_arguments", lambda parser: parser.add_argument("--json", metavar="FILE"))
    assert cli.main(["doctor", "--json", "out.json"]) == 0
    assert seen == ["out.json"]


@pytest.mark.parametrize(("flags", "expected"), [([], "warning: careful\nerror: bad\n"), (["--quiet"], "error: bad\n")])
def test_warnings_go_to_stderr(
    install: Install, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    def run(args: argparse.Namespace) -> int:
        log = logging.getLogger("yolact_deploy.somewhere")
        log.info("chatter")
        log.warning("careful")
        log.error("bad")
        return 0

    install(run)
    assert cli.main(["doctor", *flags]) == 0
    assert capsys.readouterr().err == expected
    assert logging.getLogger("yolact_deploy").handlers == []


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "a\rb", "\x9b31m", "\udcff.png", "\u202egnp.exe"], ids=ascii)
def test_control_characters_of_names_never_reach_the_terminal(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # pytest's own record of the log has the name as it is, which pytest-xdist cannot send if it is half a character.
    monkeypatch.setattr(logging.getLogger("yolact_deploy"), "propagate", False)

    def run(args: argparse.Namespace) -> int:
        from yolact_deploy.console import print_json, print_table

        assert cli.main(["no-" + name]) == 2  # as `demo` runs other commands
        print(name)
        print(name, file=sys.stderr)
        sys.stdout.writelines([name, "\n"])
        print_table(["", name], [(name, 1)], title=name)
        print_json({name: [name]})
        args.progress.note(name)
        assert list(args.progress.track([1], name)) == [1]
        logging.getLogger("yolact_deploy").warning(name)
        raise InputError(f"cannot read {name}")

    streams = sys.stdout, sys.stderr
    install(run)
    assert cli.main(["doctor"]) == 2
    assert (sys.stdout, sys.stderr) == streams
    captured = capsys.readouterr()
    escaped = name.encode("unicode_escape").decode()
    for text, least in ((captured.out, 5), (captured.err, 5)):
        assert not any(character in text for character in "\x1b\x07\r\x9b\udcff\u202e")
        assert text.count(escaped) >= least


def test_bars_and_colors_on_a_terminal_pass_and_names_in_them_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with safe_output():
        progress = console_progress()
        for _ in progress.track([1, 2], "\x1b]0;evil\x07 [red]pictures"):
            print("\x1b]0;evil\x07 inside", file=sys.stderr)
        cli._complain("\x1b]0;evil\x07")
    text = terminal.getvalue()
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert text.count(r"\x1b]0;evil\x07") >= 4
    assert "[red]pictures" in text
    assert "\x1b[31myolact-deploy: error:" in text


def test_the_numbers_of_a_training_are_not_cut_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    numbers = "1234.5 images/s, 1 day, 10:01:30 left"
    with safe_output(), console_progress().steps("training") as report:
        report(f"{numbers} loss 12.345 (box 1.234 class 2.345 mask 3.456 semantic 4.567) lr 0.001", 79999, 800000)
    (line,) = {line for line in terminal.lines() if "79999" in line}
    assert f"training 79999/800000, {numbers}" in line
    assert len(line) <= 80
    assert line.endswith("…")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_output_in_any_encoding(install: Install, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    def run(args: argparse.Namespace) -> int:
        from yolact_deploy.console import print_table

        print("猫 → é")
        print_table(["猫"], [["é"]])
        raise InputError("no 猫")

    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    install(run)
    assert cli.main(["doctor"]) == 2
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    cat = "猫" if encoding == "utf-8" else "\\u732b"
    assert out.count(cat) == 2
    assert f"error: no {cat}" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_cleans_up_like_an_interrupt(
    number: int, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from yolact_deploy.artifact import atomic_write

    def run(args: argparse.Namespace) -> int:
        with atomic_write(tmp_path / "engine.trt") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 1)  # the handler runs here at the latest
        return 0

    before = signal.getsignal(number)
    install(run)
    assert cli.main(["doctor"]) == 2
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before


def test_ignored_signals_stay_ignored(install: Install) -> None:
    def run(args: argparse.Namespace) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    install(run)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert cli.main(["doctor"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("writes", ["print('x' * 1_000_000)", "print_table(['a'], [('x' * 1_000_000,)])"])
def test_a_closed_pipe_is_silent(writes: str) -> None:
    code = f"""
        import sys, types
        from yolact_deploy.console import print_table
        module = types.ModuleType("doctor", "doc")
        module.add_arguments = lambda parser: None
        module.run = lambda args: {writes} or 0
        sys.modules["yolact_deploy.cli.doctor"] = module
        from yolact_deploy.cli.main import main
        sys.exit(main(["doctor"]))
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    with child.stderr:
        assert child.stderr.read() == b""
    assert child.wait() == 141


def test_every_command_is_listed_with_its_own_help() -> None:
    folder = ROOT / "yolact_deploy" / "cli"
    for name in cli.COMMANDS:
        path = folder / f"{name}.py"
        if path.exists():
            text = path.read_text(encoding="utf-8")
            assert "def add_arguments(" in text, path
            assert "def run(" in text, path
