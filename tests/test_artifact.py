"""Metadata and atomic writes."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from yolact_deploy import artifact
from yolact_deploy.artifact import (
    Metadata,
    atomic_write,
    sha256_file,
    write_bytes,
    write_json,
)
from yolact_deploy.config import get_config
from yolact_deploy.errors import ArtifactError, DatasetError, OutputError
from yolact_deploy.untrusted import read_json

METADATA = Metadata(
    config=get_config("yolact_plus_resnet50"),
    precision="fp16",
    tail="heads",
    cross_class=True,
    input_dtype="float32",
    batch=(1, 8, 16),
    weights_sha256="ab" * 32,
    versions={"torch": "2.15.0"},
)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "model.onnx"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"model")
        assert not target.exists()
    assert target.read_bytes() == b"model"
    assert left_over(target.parent) == ["model.onnx"]


def test_atomic_write_suffix(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "report", suffix=".html") as temporary:
        assert temporary.suffix == ".html"
    assert left_over(tmp_path) == ["report"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == b"old"
    assert left_over(tmp_path) == ["model.onnx"]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    abandoned = [".model.writing-abcd1234.onnx", ".other.writing-a_b_c_d_", ".run.x.writing-00000000.tar.gz"]
    kept = [".model.onnx", ".model-abcd1234.onnx", "model.writing-abcd1234.onnx", ".model.writing-abc.onnx", "a.json"]
    for name in (*abandoned, *kept):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(".model.onnx")
    (tmp_path / ".link.writing-abcd1234.onnx").symlink_to("a.json")
    write_bytes(tmp_path / "model.onnx", b"")
    assert left_over(tmp_path) == sorted([*kept, "link", ".link.writing-abcd1234.onnx", "model.onnx"])


def test_what_is_being_written_is_kept(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as first:
        first.write_bytes(b"1")
        artifact._remove_abandoned.cache_clear()
        with atomic_write(tmp_path / "b") as second, atomic_write(tmp_path / "a") as third:
            artifact._remove_abandoned.cache_clear()
            write_bytes(tmp_path / "c", b"3")
            assert left_over(tmp_path) == sorted([first.name, second.name, third.name, "c"])
    assert left_over(tmp_path) == ["a", "b", "c"]
    assert (tmp_path / "a").read_bytes() == b"1"


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"No space left on device\. Free some space"):
        write_bytes(tmp_path / "model.onnx", b"model")
    assert left_over(tmp_path) == []


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*Choose another place with -o"):
        write_bytes(tmp_path / "file" / "model.onnx", b"")


def test_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(tmp_path / "folder", b"")
    assert left_over(tmp_path) == ["folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_bytes(tmp_path / "model.onnx", b"")


def test_unwritable_folder_as_seen_by_anyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: object) -> tuple[int, str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", denied)
    with pytest.raises(OutputError, match=r"Permission denied\. Choose another place"):
        write_bytes(tmp_path / "model.onnx", b"")


def test_metadata_round_trip() -> None:
    assert Metadata.from_json(METADATA.to_json(), "file") == METADATA
    json.loads(METADATA.to_json())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"schema": 1}',
        '{"schema": 1, "config": []}',
        '{"schema": 1, "config": {}}',
        '{"schema": 1, "config": {"image_size": "big"}, "batch": [1, 1, 1]}',
        '{"schema": 1, "config": {}, "batch": 1}',
        '{"schema": 1, "config": {}, "batch": [1, 1, 1], "color": 1}',
        '{"schema": 1, "config": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"schema": 1, "config": {"image_size": ' + "9" * 10_000 + "}}",
    ],
    ids=lambda text: text[:60],
)
def test_metadata_that_is_not_ours(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"model\.onnx has unreadable .*export it again"):
        Metadata.from_json(text, "model.onnx")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", "abc"),
        ("batch", [1, 1]),
        ("batch", [0, 0, 0]),
        ("batch", [4, 2, 1]),
        ("batch", [1, 10**9, 10**9]),
        ("batch", [1.0, 1.0, 1.0]),
        ("precision", 5),
        ("precision", "fp7"),
        ("precision", ["fp16"]),
        ("tail", "x"),
        ("input_dtype", "object"),
        ("cross_class", "no"),
        ("weights_sha256", 5),
        ("versions", [1]),
        ("versions", {"torch": 2}),
        ("keep_fp32", 3),
        ("keep_fp32", "abc"),
        ("keep_fp32", [[1]]),
        ("keep_reasons", 3),
        ("keep_reasons", {"a": None}),
        ("quantization", "x"),
        ("quantization", {}),
        ("quantization", {"target": ["symmetric"]}),
        ("quantization", {"target": "symmetric", "images": [[[]]]}),
    ],
)
def test_metadata_of_wrong_types_or_out_of_range_names_the_field(field: str, value: object) -> None:
    values = {**json.loads(METADATA.to_json()), field: value}
    with pytest.raises(
        ArtifactError, match=rf"model\.onnx has unreadable .*\({field}\b.*: expected .*, got "
    ) as caught:
        Metadata.from_json(json.dumps(values), "model.onnx")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("schema", [[1], "1", None, 10**400, {"a": ["x"] * 10_000}])
def test_metadata_of_no_schema(schema: object) -> None:
    values = {**json.loads(METADATA.to_json()), "schema": schema}
    with pytest.raises(ArtifactError, match="this version reads 1"):
        Metadata.from_json(json.dumps(values), "model.onnx")


def test_metadata_of_another_schema() -> None:
    values = {**json.loads(METADATA.to_json()), "schema": 99}
    with pytest.raises(ArtifactError, match="schema 99, this version reads 1"):
        Metadata.from_json(json.dumps(values), "model.onnx")


def test_metadata_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        METADATA.tail = "functions"  # type: ignore[misc]


def test_sha256_reads_in_chunks(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # more than two chunks
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"ap": 29.8})
    assert path.read_text().endswith("}\n")
    assert read_json(path, "result", DatasetError) == {"ap": 29.8}


def test_json_files_are_short_where_lists_are_plain(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    value = {
        "samples": [1.5, 2, None, True],
        "words": ["a, b", 'c"\n d', "["],
        "nested": [[1, 2], [], [{"a": [3, 4]}, {}]],
        "none": [],
    }
    write_json(path, value)
    text = path.read_text()
    assert ' "samples": [1.5, 2, null, true],\n' in text
    assert "  [1, 2],\n" in text
    assert '"a": [3, 4]\n' in text
    assert read_json(path, "result", DatasetError) == value


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a device"])
def test_devices_and_pipes_are_not_replaced(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    if kind == "pipe":
        os.mkfifo(target)
    else:
        os.mkfifo(tmp_path / "pipe")
        target.symlink_to(tmp_path / "pipe" if kind == "link to a pipe" else "/dev/null")
    before = target.lstat()
    with pytest.raises(OutputError, match=r"out\.json: it is a device or pipe, which a file would replace"):
        write_json(target, {})
    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)
