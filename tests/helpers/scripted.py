"""Models with scripted detections, and matching pictures and annotations."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("msgspec")

from yolact_deploy.artifact import Metadata
from yolact_deploy.benchmarks.measure import BenchRun, run_bench
from yolact_deploy.benchmarks.record import Record
from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.image_sets import open_images
from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import DetectionOutputs, HeadOutputs, Outputs

CONFIG = YolactConfig(
    name="scripted", image_size=64, num_classes=3, class_names=("cat", "dog", "owl"), category_ids=(5, 7, 9)
)
HEIGHT, WIDTH = 60, 80
_SLOTS = 8
SHA = "a" * 64
_GREY_STEP = 10


@dataclass(frozen=True)
class Instance:
    """One detection: class index, score, box xyxy in pixels of an image of WIDTH x HEIGHT."""

    label: int
    score: float
    box: tuple[float, float, float, float]


Script = Mapping[int, Sequence[Instance]]

SCRIPT: Script = {
    1: (Instance(0, 0.9, (10, 15, 40, 45)), Instance(1, 0.6, (50, 15, 75, 45)), Instance(2, 0.05, (0, 0, 10, 10))),
    2: (Instance(2, 0.8, (20, 10, 60, 50)),),
    3: (),
}


def arrays(instances: Sequence[Instance]) -> tuple[Any, Any, Any, Any]:
    """Normalized boxes [n, 4], scores [n], labels [n] and masks [n, h, w] that fill the boxes."""
    side = CONFIG.prototype_size
    boxes = np.array([t.box for t in instances], np.float32).reshape(-1, 4) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    masks = np.zeros((len(instances), side, side), np.float32)
    for mask, (x1, y1, x2, y2) in zip(masks, np.round(boxes * side).astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    scores = np.array([t.score for t in instances], np.float32)
    return boxes.astype(np.float32), scores, np.array([t.label for t in instances], np.int32), masks


def detections(instances: Sequence[Instance]) -> Detections:
    return Detections.from_normalized(*arrays(instances), class_names=CONFIG.class_names, height=HEIGHT, width=WIDTH)


class ScriptedBackend(Backend):
    """Reads the image's number from its gray level and returns the script's instances."""

    precision = "fp32"

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        delay: float = 0.0,
        config: YolactConfig = CONFIG,
        sha: str = "",
    ) -> None:
        self.name, self.script, self.delay = name, script, delay
        self.metadata = Metadata(config=config, weights_sha256=sha)
        self.seen: list[int] = []
        self.closed = False

    def run(self, images: Any) -> Outputs:
        time.sleep(self.delay)
        number = round(int(images[0, 0, 0, 0]) / _GREY_STEP)
        self.seen.append(number)
        boxes, scores, labels, masks = (_filled(a) for a in arrays(self.script.get(number, ())))
        return DetectionOutputs(np.array([len(self.script.get(number, ()))], np.int32), boxes, scores, labels, masks)

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "version": "1"}

    def close(self) -> None:
        self.closed = True


class HeadsBackend(ScriptedBackend):
    """The same with raw heads; ``shift`` is added to the scores of one class."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__({})
        self.metadata = dataclasses.replace(self.metadata, tail="heads")
        self.shift = shift

    def run(self, images: Any) -> Outputs:
        side, k = CONFIG.prototype_size, CONFIG.num_prototypes
        scores = np.zeros((1, 4, 3), np.float32)
        scores[0, 0, 1] = 0.5 + self.shift
        boxes = np.tile(np.array([0.2, 0.2, 0.6, 0.6], np.float32), (1, 4, 1))
        return HeadOutputs(boxes, scores, np.ones((1, 4, k), np.float32), np.ones((1, side, side, k), np.float32))


def _filled(array: Any) -> Any:
    out = np.zeros((1, _SLOTS, *array.shape[1:]), array.dtype)
    out[0, : len(array)] = array
    return out


def predictor(backend: Backend) -> Predictor:
    return Predictor(backend, score_threshold=0.0, lazy_masks=False)


def source(name: str, backend: ScriptedBackend, sha: str = "") -> EngineSource:
    return EngineSource(name, lambda: predictor(backend), 1 << 20, sha)


def write_pictures(folder: Path, numbers: Sequence[int] = (1, 2, 3)) -> list[Path]:
    """Gray pictures 000001.png, ... whose gray level is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.png" for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), number * _GREY_STEP, np.uint8))
    return paths


def coco_content(script: Script = SCRIPT, numbers: Sequence[int] = (1, 2, 3)) -> dict[str, Any]:
    """COCO content whose objects are the script's instances above a score of 0.15."""
    annotations: list[dict[str, Any]] = []
    for number in numbers:
        for thing in script.get(number, ()):
            if thing.score > 0.15:
                x1, y1, x2, y2 = thing.box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": CONFIG.category_ids[thing.label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    }
                )
    return {
        "images": [{"id": n, "file_name": f"{n:06d}.png", "height": HEIGHT, "width": WIDTH} for n in numbers],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name} for i, name in zip(CONFIG.category_ids, CONFIG.class_names, strict=True)
        ],
    }


def write_coco(folder: Path, content: object | None = None, name: str = "annotations/instances_val2017.json") -> Path:
    """A COCO folder with pictures in ``images``; returns the path of the annotations."""
    write_pictures(folder / "images")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco_content() if content is None else content))
    return path


_measured: list[Record] = []
WORSE = {**SCRIPT, 1: (Instance(0, 0.85, (10, 15, 35, 45)),)}


def bench(tmp_path: Path, **options: object) -> Record:
    """The record of eager and fast, where fast loses a detection of the first image and moves the other.

    Without options it is measured once: `bench_run` measures anew.
    """
    if options:
        return bench_run(tmp_path, **options).record
    write_coco(tmp_path)
    if not _measured:
        _measured.append(bench_run(tmp_path).record)
    return _measured[0]


def bench_run(tmp_path: Path, **options: object) -> BenchRun:
    write_coco(tmp_path)
    eager = ScriptedBackend(SCRIPT, name="torch", delay=0.02)
    sources = [source("eager", eager, SHA), source("fast", ScriptedBackend(WORSE, sha=SHA))]
    return run_bench(sources, open_images(coco=tmp_path), **options)  # type: ignore[arg-type]
