"""`eval --report`: collects the results of an evaluation and writes them as an HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolact_deploy.datasets.image_sets import CocoImages
    from yolact_deploy.evaluation.accuracy import Accuracy
    from yolact_deploy.evaluation.insight import InsightMeter
    from yolact_deploy.evaluation.matches import Matches

#: detections of an image that a report judges
MOST_REPORTED = 1000


def check_report(args: argparse.Namespace) -> None:
    """Refuse what a report cannot be made of, before a model runs.

    Raises:
        InputError: --report does not go with the other options.
    """
    from yolact_deploy.errors import InputError

    if args.report is None:
        return
    if args.ray is not None or args.shards is not None:
        raise InputError("--report needs the results of all images in one run: leave out --ray and --shards")
    if args.evaluator != "pycocotools":
        raise InputError(f"--report does not work with --evaluator {args.evaluator}: leave --evaluator out")


class ReportJob:
    """Takes results image by image, and writes the page.

    Args:
        images: with their annotations
        kinds: "bbox", "segm" or both, as the results have them
        max_detections: those of an image that count
    """

    def __init__(self, path: str, images: CocoImages, kinds: Sequence[str], max_detections: int) -> None:
        from yolact_deploy.evaluation.insight import InsightMeter

        images.require_objects()
        self._path, self._images = path, images
        self._kind = "segm" if "segm" in kinds else "bbox"
        assert images.content is not None  # require_objects
        self._meter: InsightMeter = InsightMeter(images.content, images.image_ids, self._kind, max_detections)

    def add(self, results: Sequence[dict[str, Any]]) -> None:
        """All results of one image."""
        self._meter.add(results)

    def write(self, name: str, accuracy: Accuracy, matches: dict[str, Matches], pictures: CocoImages | None) -> None:
        """Write the page.

        Args:
            pictures: images with files; without, the page has no pictures
        """
        from yolact_deploy.benchmarks.report.eval_page import write_eval_report

        insight = self._meter.result(accuracy, matches["mask" if self._kind == "segm" else "box"])
        files: dict[int, Path] = {image.image_id: image.path for image in pictures.images} if pictures else {}
        write_eval_report(self._path, name, self._images.describe(), insight, files, self._images.content)


def pictures_of_results(args: argparse.Namespace) -> CocoImages | None:
    """The pictures of the annotations, if they are there; --results alone needs none."""
    from yolact_deploy.datasets.image_sets import open_images
    from yolact_deploy.errors import DatasetError

    try:
        return open_images(coco=args.coco, annotations=args.annotations, images_dir=args.images_dir, lenient=True)
    except DatasetError as error:
        if args.images_dir is not None:
            raise
        args.progress.note(f"note: the report has no pictures: {error}")
        return None
