"""The commands in a terminal of 80 columns: no line is longer, and no number is split."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pseudo_terminal import shown_lines

for module in ("rich", "onnxruntime", "onnx", "pycocotools", "msgspec", "torch", "torchinfo", "yaml"):
    pytest.importorskip(module)

from yolact_deploy import samples
from yolact_deploy.cli import main as cli
from yolact_deploy.console.text_layout import width_of

RESULTS = Path(cli.__file__).parents[1] / "benchmarks/results"
#: runs several commands in one process, in a terminal of each width; the checks of two runtimes are enough
SCRIPT = """
import fcntl, functools, json, struct, sys, termios
from yolact_deploy.cli.main import main
from yolact_deploy.runtime import checks
checks.examine = functools.partial(checks.examine, ["onnx", "tensorrt", "NVIDIA driver"])
for columns in json.loads(sys.argv[2]):
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    print("COLUMNS", flush=True)
    for words, expected in json.loads(sys.argv[1]):
        assert main(words) in expected, words
        sys.stdout.flush()
"""
SPEEDS = ("cpu_epyc2_resnet50_speed.json", "cpu_epyc2_demo.json")


def with_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from with_actions(child)


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("columns", [60, 80])
def test_help_fits(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for parser in with_actions(cli.command_parser(name)):
        lines = parser.format_help().splitlines()
        # Choices and addresses are one word.
        assert [line for line in lines if width_of(line) > columns and len(line.split()) > 2] == []
        if columns == 80:
            assert max(map(width_of, lines)) <= columns


def numbers(lines: list[str]) -> set[str]:
    """Those of the results; bars of progress differ from run to run."""
    return set(re.findall(r"\d[\d,.]*\d|\d", " ".join(line for line in lines if "━" not in line)))


def run(folder: Path, commands: list[tuple[list[str], list[int]]], *columns: int) -> list[list[str]]:
    """The lines at each width."""
    lines = shown_lines([sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(columns)], columns[0], folder)
    starts = [i for i, line in enumerate(lines) if line == "COLUMNS"]
    return [lines[start + 1 : end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


#: what needs PyTorch
NETWORKS: list[tuple[list[str], list[int]]] = [
    (["inspect", "--layers", str(samples.DEMO_MODEL)], [0]),
    (["summary", "--config", "yolact_base"], [0]),
]


@pytest.mark.slow  # of these tables, test_layer_table.py checks rows and notes
def test_networks(tmp_path: Path) -> None:
    check(tmp_path, NETWORKS)


def test_what_does_not_change_from_run_to_run(demo_onnx: Path, tmp_path: Path) -> None:
    results = [
        {"image_id": 196393, "category_id": 1, "bbox": [10.0, 10.0, 50.0, 60.0], "score": 0.9},
        {"image_id": 196393, "category_id": 1, "bbox": [12.0, 10.0, 50.0, 60.0], "score": 0.3},
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "demo.onnx").symlink_to(demo_onnx)
    speeds = [str(RESULTS / name) for name in SPEEDS]
    annotated = ["--annotations", str(samples.ANNOTATIONS)]
    commands: list[tuple[list[str], list[int]]] = [
        (["inspect", "demo.onnx"], [0]),
        (["eval", "--results", "results.json", *annotated, "--per-class"], [0]),
        (["data", "check", str(samples.NUCLEI.annotations)], [0, 2]),
        (["bench", "table", *speeds], [0]),
        (["bench", "diff", *speeds], [0, 2]),
        (["doctor"], [0, 2]),
        (["inspect", "no_such_file_" * 8 + ".onnx"], [2]),
    ]
    check(tmp_path, commands)


def check(folder: Path, commands: list[tuple[list[str], list[int]]]) -> None:
    """In a narrow terminal no line is too long, and each number of a wide one is there."""
    wide, narrow = run(folder, commands, 500, 80)
    long = [line for line in narrow if width_of(line) > 80]
    assert [line for line in long if len(line.split()) > 1] == [], "only a path is longer"
    assert numbers(wide) - numbers(narrow) == set(), "a number was split or left out"


@pytest.mark.slow  # of the same tables, test_text_layout.py lays out those of stored results
def test_what_is_measured(demo_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "demo.onnx").symlink_to(demo_onnx)
    pictures = [str(path) for path in samples.sample_images()[:2]]
    commands: list[tuple[list[str], list[int]]] = [
        (["predict", "demo.onnx", *pictures, "-o", "out"], [0]),
        (["bench", "--engine", "demo.onnx", "--engine", "demo.onnx@onnxruntime:tail=graph", "--limit", "2",
          "--warmup", "1", "--images-dir", str(samples.IMAGES)], [0]),
        (["data", "shapes", "-o", "shapes", "--train", "4", "--val", "2", "--size", "96"], [0]),
        (["data", "priors", "shapes/shapes.yaml", "--recipe", "shapes_demo"], [0]),
        (["data", "split", "shapes/shapes.yaml", "-o", "parts"], [0]),
    ]  # fmt: skip
    (lines,) = run(tmp_path, commands, 80)
    long = [line for line in lines if width_of(line) > 80]
    assert [line for line in long if len(line.split()) > 1] == []
