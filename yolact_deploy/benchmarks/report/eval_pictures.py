"""Pictures of the report of an evaluation: the objects beside what is detected at the best thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.benchmarks.report.report_html import text
from yolact_deploy.benchmarks.report.report_pictures import PICTURE_BYTES, counted, drawn_figure
from yolact_deploy.datasets.coco_results import Result, score_of
from yolact_deploy.datasets.rle import decode
from yolact_deploy.detections import Detections
from yolact_deploy.draw import DrawStyle, draw_detections
from yolact_deploy.evaluation.coco_rules import outline
from yolact_deploy.evaluation.insight import ImageScore, Insight
from yolact_deploy.mask_forms import MaskCrops
from yolact_deploy.preprocess import read_image

#: objects or detections of a picture that are drawn with names, scores and boxes, and pixels of the picture for each
_MOST_NAMED, _PIXELS_A_NAME = 20, 10_000


def picture_parts(insight: Insight, pictures: Mapping[int, Path], truth: Mapping[str, Any]) -> Iterator[str]:
    """The worst and the best pictures, as long as there is room."""
    room = PICTURE_BYTES
    for title, scores in (("Worst", insight.worst), ("Best", insight.best)):
        parts = []
        for score in scores:
            if score.image_id in pictures:
                part = _pair(score, insight, pictures[score.image_id], truth)
                room -= len(part)
                if room < 0:
                    parts.append('<p class="note">Further pictures were left out to keep this file small.</p>')
                    break
                parts.append(part)
        if parts:
            yield f"<h3>{title}</h3>\n" + "\n".join(parts)


def _pair(score: ImageScore, insight: Insight, path: Path, truth: Mapping[str, Any]) -> str:
    picture = read_image(path)
    height, width = picture.shape[:2]
    record = {"height": height, "width": width}
    objects = [a for a in truth["annotations"] if a["image_id"] == score.image_id and not a["iscrowd"]]
    each = dict(zip(sorted(c["id"] for c in truth["categories"]), insight.thresholds.each(), strict=True))
    kind = "segm" if insight.kind == "mask" else "bbox"
    results = [r for r in insight.shown[score.image_id] if score_of(r, kind) > each[r["category_id"]]]
    of_truth = _detections(objects, insight, truth, record, scored=False)
    found = _detections(results, insight, truth, record, scored=True)
    # Of many objects, or in a small picture, names and boxes would hide the masks.
    crowded = max(len(of_truth), len(found)) > min(_MOST_NAMED, height * width // _PIXELS_A_NAME)
    hidden = {"labels", "scores", *(("boxes",) if insight.kind == "mask" else ())} if crowded else set()
    missed = score.objects - score.right
    caption = f"F1 {100 * score.f1:.0f} %: {score.right} right, {score.wrong} wrong, {missed} missed"
    left = drawn_figure(
        picture, draw_detections(picture, of_truth, style=DrawStyle(hide=frozenset({"scores", *hidden}))), "objects",
        counted(of_truth.names),
        f"{path.name}, with its objects: {counted(of_truth.names)}",
    )  # fmt: skip
    right = drawn_figure(
        picture, draw_detections(picture, found, style=DrawStyle(hide=frozenset(hidden))), "detected", caption,
        f"{path.name}, with what is detected: {counted(found.names)}",
    )  # fmt: skip
    return f'<h4>{text(path.name)}</h4>\n<div class="pictures">\n{left}{right}</div>'


def _detections(
    records: Sequence[Result], insight: Insight, truth: Mapping[str, Any], image: Mapping[str, int], *, scored: bool
) -> Detections:
    """Annotations or results as detections, which can be drawn."""
    place = {number: i for i, number in enumerate(sorted(c["id"] for c in truth["categories"]))}
    height, width = image["height"], image["width"]
    boxes, crops, offsets = [], [], []
    for record in records:
        mask = _mask(record, insight, image)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y, x = (int(rows[0]), int(columns[0])) if rows.size else (0, 0)
        crops.append(mask[y : int(rows[-1]) + 1, x : int(columns[-1]) + 1] if rows.size else mask[:0, :0])
        offsets.append((x, y))
        if "bbox" in record:
            left, top, wide, high = record["bbox"]
            boxes.append((left, top, left + wide, top + high))
        else:
            boxes.append((x, y, x + crops[-1].shape[1], y + crops[-1].shape[0]))
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([record["score"] if scored else 1.0 for record in records], np.float32),
        np.array([place[record["category_id"]] for record in records], np.int64),
        insight.names,
        height,
        width,
        MaskCrops(height, width, np.array(offsets, np.int64).reshape(-1, 2), tuple(crops)),
    )


def _mask(record: Result, insight: Insight, image: Mapping[str, int]) -> Any:
    if insight.kind == "box":
        return np.zeros((image["height"], image["width"]), np.bool_)
    rle = outline(record, "segm", image)
    return decode(rle["counts"], image["height"], image["width"]).astype(np.bool_)
