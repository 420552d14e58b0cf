"""The client in examples/clients/javascript: its detections are Python's, and it is short."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from few import few_rows

from yolact_deploy import load
from yolact_deploy.cache import cache_folder
from yolact_deploy.datasets.shapes import render

CLIENT = Path(__file__).resolve().parents[1] / "examples" / "clients" / "javascript" / "detect.mjs"
PACKAGES = ("onnxruntime-node@1.30.0", "sharp@0.35")
_DUMP = """
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";
import sharp from "sharp";
import { detect, metadata } from "./detect.mjs";
const [model, picture] = process.argv.slice(2), side = metadata(readFileSync(model)).config.image_size;
const { data, info } = await sharp(picture).removeAlpha().raw().toBuffer({ resolveWithObject: true });
const found = await detect(await ort.InferenceSession.create(model), { data, ...info }, [side, side]);
console.log(JSON.stringify(found.map(one => ({ ...one, box: [...one.box], mask: one.mask.join("") }))));
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    """A folder with the client and the packages that it needs; npm installs them once."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("no npm and node here: apt-get install npm")
    place = cache_folder("web") / "javascript-client"
    place.mkdir(exist_ok=True)
    (place / "package.json").write_text("{}")
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--no-save"]
    done = subprocess.run([*command, *PACKAGES], cwd=place, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {' and '.join(PACKAGES)}: {done.stderr.strip().splitlines()[-1:]}")
    shutil.copy(CLIENT, place)
    (place / "dump.mjs").write_text(_DUMP)
    return place


def test_it_is_short() -> None:
    assert len(CLIENT.read_text("utf-8").splitlines()) <= 60


@pytest.mark.parametrize(("index", "size"), few_rows([(3, (240, 320)), (4, (411, 250))], 1))
def test_same_as_python(folder: Path, demo_onnx: Path, tmp_path: Path, index: int, size: tuple[int, int]) -> None:
    image = cv2.resize(render(index).image, size[::-1])
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), image)
    with load(demo_onnx, tail="graph") as model:
        expected = model(image)
    assert len(expected) > 0
    command = ["node", "dump.mjs", str(demo_onnx), str(picture)]
    found = json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=120).stdout)
    assert [one["label"] for one in found] == expected.labels.tolist()
    np.testing.assert_allclose([one["score"] for one in found], expected.scores, atol=1e-3)
    np.testing.assert_allclose([one["box"] for one in found], expected.boxes, atol=0.2)
    for one, mask in zip(found, expected.masks, strict=True):
        own = (np.frombuffer(one["mask"].encode(), np.uint8) == ord("1")).reshape(mask.shape)
        assert (own & mask).sum() >= 0.99 * (own | mask).sum()


def test_what_it_prints(folder: Path, demo_onnx: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), render(3).image)
    command = ["node", "detect.mjs", str(demo_onnx), str(picture)]
    lines = subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True, timeout=120).stdout
    with load(demo_onnx, tail="graph") as model:
        detections = model(picture)
    assert [line.split()[:2] for line in lines.splitlines()] == [
        [name, f"{score:.2f}"] for name, score in zip(detections.names, detections.scores, strict=True)
    ]
