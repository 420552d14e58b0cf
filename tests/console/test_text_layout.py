"""Tables and lines for narrow terminals: nothing is wider, no number is split, nothing is left out."""

from __future__ import annotations

import random
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rich")

from yolact_deploy.console.text_layout import command_lines, example_lines, is_number, table_lines, width_of, wrap

RESULTS = Path(__file__).parents[2] / "yolact_deploy/benchmarks/results"
WIDTHS = (40, 60, 80, 120)

Sheet = tuple[list[str], list[list[str]], str]

DOCTOR: Sheet = (
    ["", "works", "version", "", "what to do"],
    [
        ["onnxruntime CPU", "yes", "1.23.0", "providers of this package: CPUExecutionProvider", ""],
        ["tensorrt", "no", "", "tensorrt is not installed", "python -m pip install 'yolact-deploy[tensorrt]'"],
    ],
    "Runtimes",
)
OVERVIEW: Sheet = (
    ["", "/srv/models/yolact_resnet50_54_800000_int8_inlined.onnx"],
    [
        ["weights SHA-256", "0123456789abcdef" * 4],
        ["made with", "torch 2.14.0+cpu, onnx 1.20.0, onnxscript 0.6.1, numpy 2.4.1, python 3.11.2"],
        ["size", "30,659,974 bytes"],
    ],
    "",
)
LAYERS: Sheet = (
    ["name", "type", "inputs", "outputs"],
    [
        ["/backbone/layers.0/conv1/Conv", "Conv", "images, backbone.layers.0.weight", "/backbone/layers.0/output_0"],
        ["Relu_1", "Relu", "x", "y"],
    ],
    "Layers",
)


def words(text: str) -> Sheet:
    return [text], [[text]], text


RANDOM = random.Random(0)
CELLS = ["12.5", "1,234,567", "a_long_name/of.parts", "some words of text", ""]
ODD = [
    words(""),
    words("猫" * 100),
    words("x" * 500),
    (["a", "b"], [], "no rows"),
    (["", ""], [["1", "2"]], ""),
    (["name", *"abcdefgh"], [["n" * 90, *map(str, range(8))]], "a name as wide as the terminal"),
    (["name", *(f"column {n}" for n in range(30))], [["a", *(f"{n}.125" for n in range(30))]] * 3, "many numbers"),
    *(
        (
            [RANDOM.choice(["name", "p50 ms", "", "what to do about it"]) for _ in range(columns)],
            [[RANDOM.choice(CELLS) for _ in range(columns)] for _ in range(5)],
            "random",
        )
        for columns in range(1, 20)
    ),
]


def stored_tables() -> Iterator[Sheet]:
    """The tables that ``bench`` prints of the results in the package."""
    pytest.importorskip("msgspec")
    from yolact_deploy.benchmarks.record import read_record
    from yolact_deploy.benchmarks.record_tables import bench_tables, runs_table

    names = ("cpu_epyc2_resnet50_speed.json", "cpu_epyc2_demo.json", "cpu_epyc2_base_fp16_agreement.json")
    records = [read_record(RESULTS / name) for name in names]
    for table in [*(table for record in records for table in bench_tables(record)), runs_table(records)]:
        yield list(table.columns), [list(row) for row in table.rows], table.title


def check(sheet: Sheet, width: int) -> list[str]:
    """The lines of the table, after every check that holds for all tables."""
    columns, rows, title = sheet
    lines = [line.text for line in table_lines(columns, rows, title, width)]
    assert not [line for line in lines if width_of(line) > width]
    shown = Counter(word for line in lines for word in line.split())
    numbers = Counter(word for row in rows for cell in row for word in cell.split() if is_number(word.rstrip(",")))
    assert not numbers - shown, "a number was split or left out"
    letters = Counter("".join([title, *map("".join, rows)])) - Counter("".join(lines))
    assert not set(letters) - {" "}
    return lines


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("sheet", [DOCTOR, OVERVIEW, LAYERS, *ODD])
def test_tables_fit(sheet: Sheet, width: int) -> None:
    check(sheet, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_stored_results_fit(width: int) -> None:
    for sheet in stored_tables():
        check(sheet, width)


def test_a_table_that_fits_is_one_table() -> None:
    lines = check((["engine", "p50 ms"], [["a.onnx", "12.5"], ["b", "3.25"]], "Speed"), 80)
    assert lines == ["Speed", "engine  p50 ms", "──────────────", "a.onnx    12.5", "b         3.25", ""]


def test_numbers_that_do_not_fit_become_tables_of_the_same_rows() -> None:
    columns = ["", "all", *(f".{n}" for n in range(50, 100, 5)), "AR"]
    lines = check((columns, [[kind, *["12.34"] * 12] for kind in ("box", "mask")], "AP"), 60)
    assert [line.split()[0] for line in lines if line.startswith(("box", "mask"))] == ["box", "mask"] * 2


def test_text_that_does_not_fit_becomes_a_block_a_row() -> None:
    lines = check(DOCTOR, 60)
    assert "  what to do  python -m pip install" in "\n".join(lines)
    assert lines.index("tensorrt") > lines.index("onnxruntime CPU")


def test_names_wrap_between_their_parts() -> None:
    assert wrap("shapes_demo-fp16.onnx@openvino-bf16", 24) == ["shapes_demo-fp16.onnx@", "openvino-bf16"]
    assert wrap("/backbone/layers.0/conv1/Conv_output_0", 20) == ["/backbone/layers.0/", "conv1/Conv_output_0"]


@pytest.mark.parametrize("number", ["1,234,567", "-0.125", "1.2e-05", "2026-11-30", "640x480", "0.50:0.95", "12/34"])
def test_numbers_stay_whole(number: str) -> None:
    for width in range(len(number), 30):
        text = f"a_name/of.parts {number} and {number}, more"
        assert Counter(re.findall(re.escape(number), "\n".join(wrap(text, width))))[number] == 2


def test_commands_continue_as_a_shell_reads_them() -> None:
    command = "yolact-deploy bench --weights yolact_base_54_800000.pth --engine 'my model.onnx' --limit 100 --json"
    for width in (40, 60, 80):
        lines = command_lines(command, width)
        assert max(map(len, lines)) <= width
        joined = "\n".join(lines)
        assert shlex.split(joined.replace("\\\n", "")) == shlex.split(command)
        assert not re.search(r"--(weights|limit) \\$", joined, re.MULTILINE), "an option stays with its value"


def test_long_examples_keep_their_remarks() -> None:
    lines = ["examples:", "  yolact-deploy export --weights yolact_base_54_800000.pth --fp16 \\",
             "      --output somewhere/else          the whole network in half precision",
             "  yolact-deploy doctor"]  # fmt: skip
    shown = list(example_lines(lines, 60))
    assert max(map(len, shown)) <= 60
    assert shown[-2:] == [" " * 8 + "the whole network in half precision", "  yolact-deploy doctor"]
    assert list(example_lines(lines, 120)) == lines
