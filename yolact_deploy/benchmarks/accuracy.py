"""COCO average precision of boxes and masks, by pycocotools.

Results are in COCO's form: a list of ``{"image_id", "category_id", "bbox" [x, y, w, h], "score", "segmentation" RLE}``.
Average precisions are 0..1, averaged over IoU 0.50:0.95 unless their name says otherwise.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from yolact_deploy.artifact import read_json
from yolact_deploy.benchmarks.coco import is_box, is_whole, read_annotations
from yolact_deploy.errors import DatasetError, import_optional

Result = dict[str, Any]

_CURE = "write it again as COCO results"


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures, 0..1; None where there is no ground truth (of that size)."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None


@dataclass(frozen=True)
class Accuracy:
    """Average precisions over ``images`` images; None for a kind that the results do not have."""

    box: AveragePrecision | None
    mask: AveragePrecision | None
    images: int
    detections: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def coco_ap(
    content: Mapping[str, Any], results: Sequence[Result], image_ids: Iterable[int], kind: str
) -> AveragePrecision:
    """COCO AP of checked results against checked annotations.

    Args:
        content: a COCO instances file's content; it is not changed
        results: may be empty (AP 0) or speak of other images (left out)
        kind: "bbox" or "segm"

    Raises:
        DatasetError: a segmentation of the annotations that cannot be read.
    """
    tools = _tools("pycocotools.cocoeval")
    chosen = sorted(set(image_ids))
    inside = set(chosen)
    # pycocotools takes annotation id 0 for "not matched", so ids are given anew.
    truth = [a for a in content["annotations"] if a["image_id"] in inside]
    truth = [{**a, "id": i} for i, a in enumerate(truth, 1)]
    found = [_detection(result, i, kind) for i, result in enumerate(results, 1) if result["image_id"] in inside]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = tools.COCOeval(_coco(content, truth), _coco(content, found), kind)
            evaluation.params.imgIds = chosen
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    except Exception as error:  # what pycocotools raises at a segmentation it cannot read has no common base
        raise DatasetError(f"pycocotools cannot score these annotations: a malformed segmentation ({error})") from error
    return AveragePrecision(*(None if value < 0 else float(value) for value in evaluation.stats[:6]))


def accuracy(content: Mapping[str, Any], results: Sequence[Result], image_ids: Sequence[int]) -> Accuracy:
    """Box and mask AP of results that have both (as ``Detections.to_coco`` gives them) or are empty."""
    box = mask = None
    if all("bbox" in result for result in results):
        box = coco_ap(content, results, image_ids, "bbox")
    if all("segmentation" in result for result in results):
        mask = coco_ap(content, results, image_ids, "segm")
    inside = set(image_ids)
    return Accuracy(box, mask, len(inside), sum(result["image_id"] in inside for result in results))


def score_results(
    annotations: str | os.PathLike[str], results: str | os.PathLike[str], image_ids: Sequence[int] | None = None
) -> Accuracy:
    """Score a COCO results file.

    Args:
        image_ids: images to score; by default all of the annotations, also those without results

    Raises:
        DatasetError: either file is malformed, or they do not fit each other.
    """
    content = read_annotations(annotations)
    known = [image["id"] for image in content["images"]]
    if image_ids is not None and (strange := sorted(set(image_ids) - set(known))):
        raise DatasetError(f"{annotations} has no image {strange[0]}: score images of that file only")
    loaded = read_json(results, "results file", DatasetError)
    check_results(loaded, content, str(results))
    return accuracy(content, loaded, known if image_ids is None else image_ids)


def check_results(results: Any, content: Mapping[str, Any], source: str) -> None:
    """Raises :class:`DatasetError` unless ``results`` are COCO results for the images of ``content``."""
    if not isinstance(results, list):
        raise DatasetError(f"{source}: expected a list of results, got a {type(results).__name__}: {_CURE}")
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    kinds = {tuple(k in r for k in ("bbox", "segmentation")) for r in results if isinstance(r, dict)}
    if (False, False) in kinds or len(kinds) > 1:
        raise DatasetError(f"{source}: every result needs bbox, segmentation or both, and all the same: {_CURE}")
    for index, result in enumerate(results):
        problem = _problem(result, sizes, categories)
        if problem:
            raise DatasetError(f"{source}: result number {index} {problem}")


def _problem(result: Any, sizes: Mapping[int, list[int]], categories: set[int]) -> str | None:
    if not isinstance(result, dict):
        return f"is a {type(result).__name__}, expected an object: {_CURE}"
    missing = [key for key in ("image_id", "category_id", "score") if key not in result]
    if missing:
        return f"has no {', '.join(missing)}: {_CURE}"
    image, category, score = result["image_id"], result["category_id"], result["score"]
    if not is_whole(image) or image not in sizes:
        return f"is of image {image!r}, which the annotations do not list: give the annotations of the same images"
    if not is_whole(category) or category not in categories:
        return f"has category id {category!r}, which the annotations do not have: use the dataset's category ids"
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        return f"has the score {score!r}, expected a number: {_CURE}"
    if "bbox" in result and not is_box(result["bbox"]):
        return f"has the bbox {result['bbox']!r}, expected [x, y, width, height]: {_CURE}"
    if "segmentation" in result:
        return _rle_problem(result["segmentation"], sizes[image])
    return None


def _rle_problem(rle: Any, size: list[int]) -> str | None:
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str) or "size" not in rle:
        return "has a segmentation that is no compressed RLE {size, counts}: encode it with pycocotools.mask.encode"
    if rle["size"] != size:
        return f"has a mask of size {rle['size']}, the image is {size} (height, width): paste masks to the image's size"
    # pycocotools reads past the end of a broken text, so the runs are added up here.
    if decompressed_length(rle["counts"]) != size[0] * size[1]:
        return "has a damaged RLE (its runs do not fill the image): encode it with pycocotools.mask.encode"
    return None


def decompressed_length(counts: str) -> int:
    """Sum of the run lengths in COCO's compressed text; -1 where the text is not such."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return -1
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return -1
        value = shift = 0
    return sum(runs) if shift == 0 else -1


def _detection(result: Result, number: int, kind: str) -> Result:
    """A result as pycocotools keeps it; sizes are told by what is scored, so for masks by their pixels."""
    common = {key: result[key] for key in ("image_id", "category_id", "score")} | {"id": number, "iscrowd": 0}
    if kind == "bbox":
        box = result["bbox"]
        return {**common, "bbox": box, "area": box[2] * box[3]}
    rle = result["segmentation"]
    return {**common, "segmentation": rle, "area": float(_tools("pycocotools.mask").area(rle))}


def _coco(content: Mapping[str, Any], annotations: list[Result]) -> Any:
    coco = _tools("pycocotools.coco").COCO()
    coco.dataset = {"images": content["images"], "categories": content["categories"], "annotations": annotations}
    coco.createIndex()
    return coco


def _tools(module: str) -> ModuleType:
    return import_optional(module, "bench", "COCO average precision")
