"""Other people's JSON is read, quoted and printed within limits."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.errors import ConfigError, DatasetError
from yolact_deploy.untrusted import parse_json, printable, read_bytes, read_json, shown


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{\n oops", r"x\.json is not valid JSON \(line 2"),
        (b"", "is not valid JSON"),
        (bytes(100), "is not valid JSON"),
        (b"\xff\xfe\x00", "cannot read annotation file .*not text in UTF-8"),
        (b'{"a": "\xff"}', "not text in UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"images":' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"-" + b"1" * 1_000_000, "thousands of digits"),
    ],
    ids=["cut", "empty", "nulls", "UTF-16 cut", "Latin-1", "deep lists", "deep objects", "digits", "more digits"],
)
def test_bad_json_is_one_error_that_names_the_file(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DatasetError, match=problem) as caught:
        read_json(tmp_path / "x.json", "annotation file", DatasetError)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_any_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.json").write_bytes(json.dumps({"name": "Zürich 猫"}, ensure_ascii=False).encode(encoding))
    assert read_json(tmp_path / "x.json", "file", DatasetError) == {"name": "Zürich 猫"}


@pytest.mark.parametrize("name", ["none.json", ".", "a\0b.json", "x" * 5000, "none/x.json"])
def test_paths_that_are_no_files_are_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"(no such|cannot read) annotation file"):
        read_json(tmp_path / name, "annotation file", DatasetError)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no device files")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_are_not_read_to_their_end(device: str) -> None:
    with pytest.raises(DatasetError, match="is a device"):
        read_bytes(device, "annotation file", DatasetError)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_pipes_are_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"[1]")
    os.close(writing)
    try:
        assert read_json(f"/dev/fd/{reading}", "results file", DatasetError) == [1]
    finally:
        os.close(reading)


def test_parsed_text_names_its_source() -> None:
    assert parse_json('{"a": [1.5]}', "header of x", ConfigError) == {"a": [1.5]}
    with pytest.raises(ConfigError, match="header of x is not valid JSON"):
        parse_json("x", "header of x", ConfigError)


def _nested(levels: int) -> list[Any]:
    """A list whose text has 9 ** levels items."""
    value: list[Any] = ["x"] * 9
    for _ in range(levels):
        value = [value] * 9
    return value


def _itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        _nested(12),
        {"a": _nested(12)},
        _itself(),
        "x" * 1_000_000,
        10**10_000,
        -(10**400),
        [10**10_000] * 100,
        {str(i): i for i in range(100_000)},
        {1: "a", "b": 2, None: 3},
        ((("a",) * 50,) * 50,) * 50,
    ],
    ids=["aliases", "in a key", "itself", "text", "digits", "negative", "list", "keys", "mixed keys", "tuples"],
)
def test_quotes_are_short_whatever_the_value(value: object) -> None:
    assert 0 < len(shown(value)) <= 200


@pytest.mark.parametrize("value", [None, True, 7, -1.5, float("nan"), "a'b", [1, "x"], {"a": [1]}, ()])
def test_small_values_are_quoted_as_they_are(value: object) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb", r"a\rb"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
        (os.fsdecode(b"\xff.png") if sys.platform != "win32" else "\udcff.png", r"\udcff.png"),
        ("Zürich\t猫 🐈\n", "Zürich\t猫 🐈\n"),
    ],
    ids=ascii,
)
def test_what_steers_a_terminal_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(text).encode()
