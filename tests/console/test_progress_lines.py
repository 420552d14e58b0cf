"""Lines of progress on terminals: the numbers come first and are never cut; and the command proposed at the end."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest
from fake_terminal import Terminal

pytest.importorskip("rich")

from yolact_deploy.console import console_progress, print_next, without_next
from yolact_deploy.console.text_layout import shortened, width_of
from yolact_deploy.progress import Progress, describe_pace
from yolact_deploy.untrusted import safe_output


def as_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of stderr from now on; in a fixture, pytest would put its own back."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    return terminal


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("description", ["predict", "building yolact_resnet50_54_800000_int8.trt", "猫" * 40])
def test_counter_speed_and_time_are_never_cut(columns: int, description: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(columns, monkeypatch)
    state = describe_pace(1234.5, "images", 36090)
    with safe_output(), console_progress().steps(description) as report:
        report(state, 79999, 80000)
    (line,) = {line for line in terminal.lines() if "79999" in line}
    assert line.endswith(" 79999/80000, 1234.5 images/s, 10:01:30 left")
    assert width_of(line) <= columns
    assert (description in line) == (columns == 200 or description == "predict")


def test_the_last_line_is_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(80, monkeypatch)
    with safe_output():
        assert list(console_progress().track([1, 2], "predict")) == [1, 2]
    assert re.fullmatch(r"━* predict 2/2, [\d.]+ images/s, took 0:00:00", terminal.lines()[-1])


def test_elsewhere_a_line_ends_with_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    progress: Progress = console_progress()

    def items() -> Iterator[int]:
        yield from (1, 2, 3)

    assert list(progress.track(items(), "predict", unit="frames")) == [1, 2, 3]
    assert list(progress.track([], "reading", unit="files")) == []
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"predict: 3, [\d.]+ frames/s, took 0:00:00", lines[0])
    assert lines[1:] == ["reading: 0/0"]


@pytest.mark.parametrize("text", ["short", "a_long_name_of_a_file.onnx", "猫" * 12])
def test_shortened(text: str) -> None:
    for width in range(12, 30):
        short = shortened(text, width)
        assert width_of(short) <= width
        assert (short == text) == (width_of(text) <= width)
        if short != text:
            first, last = short.split("…")
            assert text.startswith(first)
            assert text.endswith(last)


def test_a_command_that_follows_anyway_is_not_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    with without_next():
        print_next(["yolact-deploy", "bench"])
    print_next(["yolact-deploy", "bench", "--engine", "my model.onnx"])
    assert capsys.readouterr().err == "next: yolact-deploy bench --engine 'my model.onnx'\n"
