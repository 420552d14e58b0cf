"""Files of COCO results: writes, reads and checks them, since pycocotools does not.

Results are a list of ``{"image_id", "category_id", "bbox" [x, y, w, h], "score", "segmentation" RLE}``. Those of a
YOLACT++ also have ``"mask_score"``, which ranks the masks, while ``"score"`` ranks the boxes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from yolact_deploy.artifact import atomic_write
from yolact_deploy.datasets.annotations import PictureIds, is_id
from yolact_deploy.datasets.mask_check import is_box, is_number
from yolact_deploy.datasets.rle import image_runs, without_empty_runs
from yolact_deploy.errors import DatasetError
from yolact_deploy.mask_forms import compress_counts
from yolact_deploy.untrusted import read_json, shown

Result = dict[str, Any]

_CURE = "write the file again as COCO results"


def read_results(path: str | os.PathLike[str], content: Mapping[str, Any]) -> list[Result]:
    """Read and check a results file for the annotations ``content``; raises :class:`DatasetError`.

    Results with a ``file_name``, as `predict` writes them where it makes up the ids, take the id of that image.
    """
    results: list[Result] = read_json(path, "results file", DatasetError)
    _take_ids_of_names(results, content, str(path))
    check_results(results, content, str(path))
    return results


@contextlib.contextmanager
def results_file(path: str | os.PathLike[str]) -> Iterator[Callable[[Iterable[Result]], None]]:
    """Yield a function that appends results to a file, which only comes into being if there is no error.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        before = "["

        def append(results: Iterable[Result]) -> None:
            nonlocal before
            for result in results:
                file.write(f"{before}\n{json.dumps(result)}")
                before = ","

        yield append
        file.write("[]\n" if before == "[" else "\n]\n")


def score_of(result: Mapping[str, Any], kind: str) -> float:
    """The score that ranks a result among the boxes ("bbox") or masks ("segm")."""
    score: float = result.get("mask_score", result["score"]) if kind == "segm" else result["score"]
    return score


def check_results(results: Any, content: Mapping[str, Any], source: str) -> None:
    """Raise :class:`DatasetError` unless ``results`` are COCO results for the images of ``content``."""
    if not isinstance(results, list):
        raise DatasetError(f"{source}: expected a list of results, got a {type(results).__name__}: {_CURE}")
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    kinds = {tuple(k in r for k in ("bbox", "segmentation")) for r in results if isinstance(r, dict)}
    if (False, False) in kinds or len(kinds) > 1:
        raise DatasetError(
            f"{source}: every result needs bbox, segmentation or both, and all results the same: {_CURE}"
        )
    for index, result in enumerate(results):
        problem = _problem(result, sizes, categories)
        if problem:
            raise DatasetError(f"{source}: result number {index} {problem}")


def _take_ids_of_names(results: Any, content: Mapping[str, Any], source: str) -> None:
    """Replace the image ids of results that name their picture."""
    named = [r for r in results if isinstance(r, dict) and isinstance(r.get("file_name"), str)] if results else []
    if not named:
        return
    ids = PictureIds(content["images"]).of(result["file_name"] for result in named)
    for result in named:
        number = ids.get(result["file_name"])
        if number is None:
            raise DatasetError(
                f"{source} has results of the picture {shown(result['file_name'])}, which the annotations do not list: "
                "give the annotations of the same pictures"
            )
        result["image_id"] = number


def _problem(result: Any, sizes: Mapping[int, list[int]], categories: set[int]) -> str | None:
    if not isinstance(result, dict):
        return f"is a {type(result).__name__}, expected an object: {_CURE}"
    missing = [key for key in ("image_id", "category_id", "score") if key not in result]
    if missing:
        return f"has no {', '.join(missing)}: {_CURE}"
    image, category, score = result["image_id"], result["category_id"], result["score"]
    if not is_id(image) or image not in sizes:
        return f"belongs to image {shown(image)}, which the annotations do not list: give those of the same images"
    if not is_id(category) or category not in categories:
        return f"has category id {shown(category)}, which the annotations do not have: use the dataset's category ids"
    for name, value in (("score", score), ("mask_score", result.get("mask_score", score))):
        if not is_number(value):
            return f"has the {name} {shown(value)}, expected a number: {_CURE}"
    if "bbox" in result and not is_box(result["bbox"]):
        return f"has the bbox {shown(result['bbox'])}, expected [x, y, width, height]: {_CURE}"
    if "segmentation" in result:
        return _rle_problem(result["segmentation"], sizes[image])
    return None


def _rle_problem(rle: Any, size: list[int]) -> str | None:
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str) or "size" not in rle:
        return "has a segmentation that is not a compressed RLE {size, counts}: encode it with pycocotools.mask.encode"
    if rle["size"] != size or not all(map(is_id, rle["size"])):
        text = f"has a mask of size {shown(rle['size'])}, the image is {shown(size)} (height, width)"
        return f"{text}: paste masks at the image's size"
    # pycocotools reads past the end of a broken text, so the runs are checked here.
    runs = image_runs(rle["counts"], *size)
    if runs is None:
        return "has a damaged RLE (its runs do not fill the image): encode it with pycocotools.mask.encode"
    plain = without_empty_runs(runs)
    if plain is not runs:
        rle["counts"] = compress_counts(plain)
    return None
