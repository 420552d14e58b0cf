"""Good files with a few changed bytes, many times: each is read or refused with one error, and nothing else happens.

The changes follow from a seed, so a failure names the one that repeats it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolact_deploy.artifact import METADATA_KEY, Metadata, read_config
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.inspection import inspect_file
from yolact_deploy.preprocess import read_image

ROOT = Path(__file__).parents[1]
MUTATIONS = 60
CONFIG = YolactConfig(image_size=96, num_classes=2, class_names=("a", "b"), top_k=4, max_detections=3)
METADATA = Metadata(config=CONFIG, precision="int8", batch=(1, 2, 4), quantization={"target": "symmetric"})
_BYTES = (b"\xff" * 8, bytes(8), b"\x7f\xff\xff\xff", b"\x80", b"\x1b[31m")
#: for text: numbers, words and brackets in place of others
_WORDS = ("-1", "1e999", "NaN", "null", "true", '"x"', "[]", "{}", "9" * 400, "9" * 5000, "[" * 2000, "\\ud800", "1.5")


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bits, bytes or the end of a file changed; most changes are near its beginning."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = int(len(out) * rng.random() ** rng.choice((1, 4)))
        change = rng.randrange(5)
        if change == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif change == 1:
            del out[at : at + rng.choice((1, 4, 100))]
        elif change == 2:
            out[at : at + rng.choice((0, 4, 8))] = rng.choice(_BYTES)
        elif change == 3:
            out[at:at] = out[at // 2 : at // 2 + rng.choice((8, 200))]
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def changed_words(data: bytes, rng: random.Random) -> bytes:
    """A number, word or bracket of a text in place of another, or :func:`changed_bytes`."""
    if rng.random() < 0.3:
        return changed_bytes(data, rng)
    words = list(re.finditer(rb'"[^"]*"|-?[0-9.]+|[\[\]{}]|\w+', data))
    word = rng.choice(words)
    return data[: word.start()] + rng.choice(_WORDS).encode() + data[word.end() :]


def onnx_file(folder: Path) -> bytes:
    pytest.importorskip("onnx")
    from tiny_onnx import write_model

    return write_model(folder / "good.onnx").read_bytes()


def engine(folder: Path) -> bytes:
    text = METADATA.to_json().encode()
    return b"vtrt" + struct.pack("<IQQ4B", 0, 2, 60 + len(text), 1, 7, 1, 116) + bytes(4) + text + bytes(28)


def safetensors(folder: Path) -> bytes:
    entries = {f"layer{i}": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * i, 16 * i + 16]} for i in range(3)}
    text = json.dumps({"__metadata__": {METADATA_KEY: METADATA.to_json()}, **entries}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(48)


def picture(suffix: str) -> Callable[[Path], bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    return lambda folder: cv2.imencode(suffix, pixels)[1].tobytes()


def coco(folder: Path) -> bytes:
    rings = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0]]
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    runs = {"size": [24, 32], "counts": [0, 8, 760]}
    annotations = [
        {"id": 1, **common, "bbox": [2, 2, 10, 10], "area": 50.0, "segmentation": rings},
        {"id": 2, **common, "bbox": [0, 0, 1, 8], "area": 8, "segmentation": runs},
    ]
    images = [{"id": 1, "file_name": "a.png", "height": 24, "width": 32}]
    return json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}).encode()


def read_onnx(path: Path) -> None:
    from yolact_deploy.graph.onnx_graph import load_graph

    load_graph(path, "auto")


def read_coco(path: Path) -> None:
    pytest.importorskip("pycocotools")
    from yolact_deploy.datasets.annotations import read_annotations

    read_annotations(path)


def read_yaml(path: Path) -> None:
    pytest.importorskip("yaml")
    from yolact_deploy.datasets.dataset_file import open_dataset

    open_dataset(path)


YAML = b"names: [a]\ntrain: {annotations: good.json, images: images}\nval: {annotations: good.json, images: images}\n"

#: what makes the good file, how it is changed, its name, and what reads it
KINDS: dict[
    str, tuple[Callable[[Path], bytes], Callable[[bytes, random.Random], bytes], str, Callable[[Path], Any]]
] = {
    "ONNX": (onnx_file, changed_bytes, "x.onnx", read_onnx),
    "ONNX inspect": (onnx_file, changed_bytes, "x.onnx", lambda path: inspect_file(path, layers=True)),
    "engine": (engine, changed_bytes, "x.trt", inspect_file),
    "safetensors": (safetensors, changed_bytes, "x.safetensors", lambda path: inspect_file(path, layers=True)),
    "metadata": (
        lambda folder: METADATA.to_json().encode(),
        changed_words,
        "x",
        lambda path: Metadata.from_json(path.read_text("utf-8", "replace"), "x"),
    ),
    "configuration": (
        lambda folder: json.dumps(CONFIG.to_dict()).encode(),
        changed_words,
        "x.json",
        lambda path: read_config(str(path)),
    ),
    "COCO": (coco, changed_words, "x.json", read_coco),
    "YAML": (lambda folder: YAML, changed_words, "x.yaml", read_yaml),
    **{f"{suffix} picture": (picture(suffix), changed_bytes, f"x{suffix}", read_image) for suffix in (".png", ".jpg")},
    "TIFF picture": (picture(".tif"), changed_bytes, "x.tif", read_image),
}


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    make, change, name, read = KINDS[kind]
    data = make(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "good.json").write_bytes(coco(tmp_path))
    path = tmp_path / name
    path.write_bytes(data)
    read(path)  # the good file
    refused = 0
    for number in range(MUTATIONS):
        rng = random.Random(f"{kind} {number}")
        path.write_bytes(change(data, rng))
        try:
            read(path)
        except YolactDeployError as error:
            refused += 1
            if len(str(error)) > 6000:  # a path may have 5000
                pytest.fail(f"{kind}, number {number}: a message of {len(str(error))} characters")
        except Exception as error:
            pytest.fail(f"{kind}, number {number}: {type(error).__name__}: {error}")
    assert refused > MUTATIONS // 10, "the changes change something"


KILLED = """
import hashlib, sys
from yolact_deploy.artifact import write_bytes
for number in range(int(sys.argv[2])):
    data = bytes([number % 256]) * 300_000
    write_bytes(f"{sys.argv[1]}/model.onnx", hashlib.sha256(data).digest() + data)
    print(number, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_writers_leave_whole_files_and_the_next_run_removes_the_rest(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(6):
        command = [sys.executable, "-c", KILLED, str(tmp_path), "1000000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randrange(1, 30)):
                assert writer.stdout.readline()
            writer.kill()
        digest, data = (whole := (tmp_path / "model.onnx").read_bytes())[:32], whole[32:]
        assert hashlib.sha256(data).digest() == digest
    for name in (".other.writing-abcd1234.trt", ".model.writing-_0000000.onnx"):  # as those of a kill in between
        (tmp_path / name).touch()
    subprocess.run([*command[:-1], "1"], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
