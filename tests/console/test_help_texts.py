"""The help of every command: what its lines say, and where they end."""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise

import pytest
from fake_terminal import Terminal
from test_terminal import with_actions

from yolact_deploy.cli import main as cli

PARSERS = [parser for name in cli.COMMANDS for parser in with_actions(cli.command_parser(name))]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
class TestHelp:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")

    def test_everything_is_described(self, parser: argparse.ArgumentParser) -> None:
        assert parser.description
        shown = [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction)]
        assert [action.dest for action in shown if not action.help] == []

    def test_exit_codes_begin_a_paragraph(self, parser: argparse.ArgumentParser) -> None:
        lines = ["", *parser.format_help().splitlines()]
        for before, line in pairwise(lines):
            if "Exit code" in line:
                assert (before, line.find("Exit code")) == ("", 0)

    def test_the_global_options_are_the_last(self, parser: argparse.ArgumentParser) -> None:
        titles = [group.title for group in parser._action_groups]
        assert "common options" not in titles[:-1]


def test_an_option_and_its_values_stay_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    usage = cli.command_parser("compare").format_usage().splitlines()
    assert [line.strip() for line in usage] == [
        "usage: yolact-deploy compare --reference MODEL",
        "--engine SPEC --data DATA [DATA ...]",
        "[options]",
    ]
    assert cli.command_parser("bench").format_usage().split()[-2:] == ["[{diff,table,report}", "...]"]


def test_lists_are_broken_where_the_terminal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (convert,) = (parser for parser in PARSERS if parser.prog.endswith("data convert"))
    text = convert.format_help()
    start = text.index("formats that are read:")
    lines = text[start : text.index("\n\n", start)].splitlines()[1:]
    column = lines[0].index("a dataset file")
    for line, after in pairwise(lines):
        if after.startswith("   "):
            assert len(line) + 1 + len(after.split()[0]) > 78, "the next word did not fit"
            assert after.index(after.split()[0]) == column


def test_a_wrong_argument_is_explained_in_lines_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as caught:
        cli.main(["predict", "m.onnx", "a.jpg", "--format", "overlay,jsn"])
    assert caught.value.code == 2
    lines = terminal.lines()
    assert max(map(len, lines)) <= 60
    text = " ".join(map(str.strip, lines))
    assert text.startswith("usage: yolact-deploy predict [options] [MODEL] [SOURCE ...] yolact-deploy predict: error: ")
    assert text.endswith("crops, cutouts, mot, ytvis, got 'overlay,jsn'")
