"""Random annotations, and results that hit some of them, with crowds, empty images, equal scores and all sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from yolact_deploy.evaluation.bootstrap import SAMPLES, Interval, PairedBootstrap
from yolact_deploy.evaluation.matches import Matcher

HEIGHT, WIDTH = 240, 320
CATEGORIES = (3, 7, 8, 21)


def make_content(images: int, seed: int = 0) -> dict[str, Any]:
    """COCO content of images 10, 11, ...; category 21 has no object, and some images have none."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for image_id in range(10, 10 + images):
        for _ in range(int(rng.integers(0, 6))):
            x, y, w, h = _box(rng)
            crowd = bool(rng.random() < 0.1)
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            rle = rle_tools.frPyObjects(polygon, HEIGHT, WIDTH)[0]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": int(rng.choice(CATEGORIES[:3])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(crowd),
                    "segmentation": {**rle, "counts": rle["counts"].decode()} if crowd else polygon,
                }
            )
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(10, 10 + images)
        ],
        "categories": [{"id": i, "name": f"kind {i}"} for i in CATEGORIES],
        "annotations": annotations,
    }


def make_results(content: dict[str, Any], seed: int = 0, *, decimals: int = 1, noise: float = 4.0) -> list[Any]:
    """COCO results with boxes and masks: objects detected more or less exactly, some twice, and false positives.

    Args:
        decimals: of the scores; fewer give more equal scores
        noise: of the boxes, in pixels
    """
    rng = np.random.default_rng(seed)
    found = []
    for annotation in content["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            box = np.add(annotation["bbox"], rng.normal(0, noise, 4))
            category = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(CATEGORIES))
            found.append((annotation["image_id"], category, box))
    for image in content["images"]:
        count = int(rng.integers(0, 4))
        found += [(image["id"], int(rng.choice(CATEGORIES)), np.array(_box(rng))) for _ in range(count)]
    return [_result(image, category, box, round(float(rng.random()), decimals)) for image, category, box in found]


def _result(image_id: int, category_id: int, box: Any, score: float) -> dict[str, Any]:
    x, y = np.clip(box[:2], 0, (WIDTH - 4, HEIGHT - 4)).round(1).tolist()
    w, h = np.clip(box[2:], 3, (WIDTH - x, HEIGHT - y)).round(1).tolist()
    rle = rle_tools.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], HEIGHT, WIDTH)[0]
    segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    return {"image_id": image_id, "category_id": category_id, "bbox": [x, y, w, h], "score": score} | {
        "segmentation": segmentation
    }


def _box(rng: np.random.Generator) -> list[float]:
    width, height = np.exp(rng.uniform(np.log(6), np.log(200), 2)).round(1).tolist()
    x, y = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
    return [round(x, 1), round(max(y, 0.0), 1), width, height]


def ap_difference(
    content: dict[str, Any],
    reference: Sequence[Any],
    results: Sequence[Any],
    image_ids: Iterable[int],
    kind: str,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """COCO AP of ``results`` minus that of the reference's, matched without the meters of the package."""
    ids = list(image_ids)
    sides = []
    for side in (reference, results):
        matcher = Matcher(content, ids, kind)
        matcher.add({image_id: [r for r in side if r["image_id"] == image_id] for image_id in ids})
        sides.append(matcher.matches())
    return PairedBootstrap(sides[0], samples=samples, seed=seed).difference(sides[1])
