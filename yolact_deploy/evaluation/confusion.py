"""Which classes a model takes for which: a matrix of true against detected classes, with background.

Legend: C classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.coco_results import Result
from yolact_deploy.evaluation.error_kinds import RIGHT_IOU, JudgedImage, KindMeter

BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of objects.

    Attributes:
        names: of the classes
        counts: int64 [C + 1, C + 1], see :func:`count_confusions`
        score: detections that do not exceed it do not count
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    score: float

    @classmethod
    def of(
        cls,
        content: Mapping[str, Any],
        results: Sequence[Result],
        image_ids: Collection[int],
        *,
        max_detections: int,
        score: float = 0.3,
    ) -> Confusion:
        """Count by masks.

        Args:
            content: of a checked COCO file
            results: COCO results with masks
            image_ids: of the images that were evaluated
            max_detections: the best so many of each image count
        """
        categories = sorted(content["categories"], key=lambda record: record["id"])
        meter = KindMeter(content, image_ids, "segm", max_detections)
        of_image: dict[int, list[Result]] = defaultdict(list)
        for result in results:
            of_image[result["image_id"]].append(result)
        for image_id in image_ids:
            meter.add(image_id, of_image[image_id])
        counts = count_confusions(meter.images(), np.full(len(categories), score))
        return cls(tuple(record["name"] for record in categories), counts, score)


def count_confusions(images: Sequence[JudgedImage], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """What objects are detected as, int64 [C + 1, C + 1]: rows are true classes, columns are reported ones.

    The last row has detections that hit no object, the last column objects that are not detected. Right detections are
    counted first; then those that are left take the free object of another class with the largest IoU of at least 0.5.

    Args:
        thresholds: score that a detection of each class must exceed [C]
    """
    classes = len(thresholds)
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for image in images:
        shown = image.scores.astype(np.float32) > thresholds.astype(np.float32)[image.labels]
        free = np.ones(len(image.truth_labels), np.bool_)
        right = shown & (image.partner >= 0)
        free[image.partner[right]] = False
        np.add.at(matrix, (image.labels[right], image.labels[right]), 1)
        for row in np.flatnonzero(shown & ~right & ~image.ignored).tolist():
            other = image.iou[row] * (free & (image.truth_labels != image.labels[row]))
            truth = classes
            if other.size and other.max() >= RIGHT_IOU:
                taken = int(other.argmax())
                free[taken], truth = False, int(image.truth_labels[taken])
            matrix[truth, image.labels[row]] += 1
        np.add.at(matrix, (image.truth_labels[free], np.full(int(free.sum()), classes)), 1)
    return matrix
