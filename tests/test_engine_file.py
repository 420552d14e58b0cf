"""Engines without a GPU: header, version, and our metadata in their bytes."""

from __future__ import annotations

import dataclasses
import json
import mmap
import random
import struct
from pathlib import Path

import pytest

from yolact_deploy import engine_file
from yolact_deploy.artifact import Metadata
from yolact_deploy.config import get_config
from yolact_deploy.engine_file import (
    network_name,
    plugin_kind,
    read_engine_header,
    read_engine_metadata,
    sidecar_path,
)
from yolact_deploy.errors import ArtifactError

METADATA = Metadata(config=get_config("yolact_im400"), precision="fp16", versions={"torch": "2.15", "é": "ü"})


def engine(body: bytes, magic: bytes = b"vtrt") -> bytes:
    """The header of an engine."""
    size = 32 + len(body)
    return magic + struct.pack("<IQQ4B", 0, 2, size, 1, 7, 1, 116) + bytes(4) + body


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("magic", "kind", "flavour"), [(b"vtrt", "TensorRT for RTX", "rtx"), (b"ftrt", "TensorRT", "tensorrt")]
)
def test_header(tmp_path: Path, magic: bytes, kind: str, flavour: str) -> None:
    header = read_engine_header(write(tmp_path / "a.trt", engine(b"", magic)))
    assert (header.kind, header.flavour, header.version, header.size) == (kind, flavour, "1.7.1.116", 32)


def test_plugins() -> None:
    assert plugin_kind(METADATA) == "none"
    assert plugin_kind(dataclasses.replace(METADATA, versions={"plugins": "v3"})) == "v3"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (bytes(range(256)) * 50, b"\xff" * 1000),
        (b'{"schema":1,', b"}}}"),  # an unterminated object
        (b'{"schema":1,"config":"other"}', b'{"schema":1}'),  # of another program
        (b'{"' * 500, b'"}'),
    ],
)
def test_metadata_among_other_bytes(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = write(tmp_path / "a.trt", engine(before + METADATA.to_json().encode() + after))
    assert read_engine_metadata(path) == METADATA


def test_metadata_of_many_classes(tmp_path: Path) -> None:
    config = get_config("yolact_base").with_classes(10_000)
    metadata = Metadata(config=config)
    assert read_engine_metadata(write(tmp_path / "a.trt", engine(metadata.to_json().encode()))) == metadata


# -- more than a name holds -------------------------------------------------------------------------------------------


def words(count: int) -> tuple[str, ...]:
    """Class names like those of a dataset: a few syllables each, all different."""
    rng = random.Random(0)
    syllables = [
        "ba",
        "con",
        "der",
        "el",
        "fin",
        "go",
        "hat",
        "im",
        "ju",
        "kle",
        "lo",
        "min",
        "pen",
        "qui",
        "ro",
        "sta",
    ]
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(syllables, k=rng.randint(1, 4)))] = None
    return tuple(names)


def make_long(classes: int, kept: int = 0) -> Metadata:
    """Metadata of many classes, and of layers that stay in FP32, with reasons."""
    layers = tuple(f"backbone.layers.{i // 6}.{i % 6}.conv{i % 3}" for i in range(kept))
    config = get_config("yolact_base").with_classes(words(classes))
    return Metadata(config=config, keep_fp32=layers, keep_reasons=dict.fromkeys(layers, "costs 0.12 AP points"))


def build(path: Path, metadata: Metadata) -> Path:
    """An engine as TensorRT writes it, which drops a name that is too long, and its sidecar file."""
    name, sidecar = network_name(metadata)
    given = name.encode() if len(name.encode()) <= 4095 else b"Unnamed Network 0"
    write(path, engine(b"\0weights" + given + b"more weights"))
    if sidecar is not None:
        sidecar_path(path).write_bytes(sidecar)
    return path


@pytest.mark.parametrize(
    ("classes", "kept", "beside"),
    [(2, 0, False), (80, 0, False), (170, 0, False), (80, 60, False), (365, 0, False), (1203, 0, True)],
)
def test_metadata_of_any_length(tmp_path: Path, classes: int, kept: int, beside: bool) -> None:
    metadata = make_long(classes, kept)
    path = build(tmp_path / "a.trt", metadata)
    assert sidecar_path(path).exists() == beside
    assert read_engine_metadata(path) == metadata
    assert (len(metadata.to_json()) > 4095) == (classes > 200 or kept > 0)
    assert (metadata.to_json().encode() in path.read_bytes()) == (len(metadata.to_json()) <= 4095)


def test_a_sidecar_that_is_not_there(tmp_path: Path) -> None:
    path = build(tmp_path / "a.trt", make_long(1203))
    beside = sidecar_path(path)
    assert beside.name == "a.trt.json"
    other = build(tmp_path / "b.trt", make_long(1202))
    beside.write_bytes(sidecar_path(other).read_bytes())
    with pytest.raises(ArtifactError, match=r"a\.trt\.json belongs to another engine than a\.trt: copy both"):
        read_engine_metadata(path)
    beside.unlink()
    with pytest.raises(ArtifactError, match=r"no such file with the metadata of a\.trt: .*a\.trt\.json\. Copy both"):
        read_engine_metadata(path)


@pytest.mark.parametrize(
    "noise", [b"yolact-deploy;zlib;" + b"A" * 40 + b";", b"yolact-deploy;zlib;" + b"=" * 30 + b";"]
)
def test_bytes_that_look_like_a_name(tmp_path: Path, noise: bytes) -> None:
    name, _ = network_name(make_long(170))
    assert read_engine_metadata(write(tmp_path / "a.trt", engine(noise + name.encode()))) == make_long(170)
    assert read_engine_metadata(write(tmp_path / "b.trt", engine(noise + METADATA.to_json().encode()))) == METADATA


# -- other files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"vtrt", "is truncated"),
        (engine(b"x" * 100)[:-1], "is truncated: it has 131 of 132 bytes"),
        (b"hello, this is text", "is not a TensorRT engine"),
        (engine(b"no metadata here"), "was built by another program"),
        (engine(b'{"schema":1,"config":{'), "was built by another program"),
        (engine(METADATA.to_json().replace('"schema":1', '"schema":2').encode()), "update yolact-deploy"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_engine_metadata(write(tmp_path / "a.trt", data))


@pytest.mark.parametrize(
    "body",
    [
        b'{"schema":1,' * 200_000,
        (b'{"' * 50 + b'"schema":1') * 20_000,
        b'{"a":' * 300_000 + b'"schema":1',
        b'{"' * 1_000_000 + b'"schema":1',
    ],
    ids=["schemas", "braces before each", "nested", "braces before one"],
)
def test_the_search_in_an_engine_of_another_program_is_bounded(
    tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, decode = list[int](), engine_file._object_at

    def noted(data: mmap.mmap, start: int) -> str | None:
        tried.append(start)
        return decode(data, start)

    monkeypatch.setattr(engine_file, "_object_at", noted)
    with pytest.raises(ArtifactError, match="was built by another program"):
        read_engine_metadata(write(tmp_path / "a.trt", engine(body)))
    assert len(tried) <= 200


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such engine"):
        read_engine_metadata(tmp_path / "a.trt")
    with pytest.raises(ArtifactError, match="is a folder"):
        read_engine_metadata(tmp_path)


def test_real_engine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX is not installed", exc_type=ImportError)
    trt = pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)
    from yolact_deploy.runtime.probes import TINY_ONNX

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(TINY_ONNX)
    network.name = METADATA.to_json()
    plan = bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    path = write(tmp_path / "a.trt", plan)
    header = read_engine_header(path)
    assert (header.kind, header.version) == ("TensorRT for RTX", trt.__version__)
    assert read_engine_metadata(path) == METADATA
    with pytest.raises(ArtifactError, match="truncated"):
        read_engine_metadata(write(tmp_path / "b.trt", plan[:-100]))
    assert json.loads(METADATA.to_json())["schema"] == 1
