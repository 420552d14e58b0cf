"""How certain is a difference in AP? A paired bootstrap over the images.

As many images as there are get drawn with replacement, and both models are scored on the same draw. The 2.5 % and
97.5 % quantiles of the difference are the limits of the interval (the percentile bootstrap of Efron, 1979). Pairing
cancels out how easy or hard the images are, so that small differences become visible.

The interval covers the choice of images only, not how training runs vary. With few images it is too narrow: COCO AP
needs objects of every class, and no draw has more of them than the set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from yolact_deploy.datasets.coco_results import read_results
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.evaluation.accuracy import AccuracyMeter, by_image, result_kinds
from yolact_deploy.evaluation.coco_rules import COCO_LIMIT
from yolact_deploy.evaluation.detection_cache import is_detection_cache, read_detections
from yolact_deploy.evaluation.matches import Matches

SAMPLES = 1000
_LIMITS = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """AP of one model minus that of a reference, 0..1.

    Attributes:
        difference: on all images, each once
        mean: over the draws
        low, high: limits of the 95 % interval
        images: number of images
        samples: number of draws
        seed: of the draws
        excludes_zero: whether the two models differ significantly
    """

    difference: float
    mean: float
    low: float
    high: float
    images: int
    samples: int
    seed: int
    excludes_zero: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "excludes_zero", not self.low <= 0 <= self.high)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class PairedBootstrap:
    """Draws of images. The reference is scored on them once, however many models are compared with it.

    Args:
        reference: matches of the model with which others are compared
        samples: number of draws

    Raises:
        DatasetError: the images have no objects.
        InputError: too few samples.
    """

    def __init__(self, reference: Matches, *, samples: int = SAMPLES, seed: int = 0) -> None:
        if samples < 2:
            raise InputError(f"samples: expected at least 2 draws for an interval, got {samples}")
        count = len(reference.image_ids)
        if not reference.objects[:, 0].any():
            raise DatasetError(f"none of the {count} images has an object: there is no AP to compare")
        self._reference, self._samples, self._seed = reference, samples, seed
        once = np.ones((1, count), np.int32)
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
        self._weights = once, draws.astype(np.int32)
        self._before = [reference.average_precision(weights) for weights in self._weights]

    def difference(self, matches: Matches) -> Interval:
        """AP of a model, matched with the same annotations on the same images, minus the reference's.

        Raises:
            InputError: it was matched on other images or categories.
        """
        a, b = self._reference, matches
        if (a.image_ids, a.category_ids) != (b.image_ids, b.category_ids):
            raise InputError("AP can only be compared on the same images and categories")
        observed, drawn = (
            b.average_precision(weights) - before for weights, before in zip(self._weights, self._before, strict=True)
        )
        drawn = drawn[~np.isnan(drawn)]  # with few images, a draw may have no object at all
        low, high = np.percentile(drawn, _LIMITS)
        images = len(a.image_ids)
        return Interval(
            float(observed[0]), float(drawn.mean()), float(low), float(high), images, self._samples, self._seed
        )


def read_matches(
    path: str | os.PathLike[str],
    content: Mapping[str, Any],
    image_ids: Sequence[int],
    max_detections: int = COCO_LIMIT,
) -> dict[str, Matches]:
    """Matches of "box" and "mask" from a file of detections (``eval --cache``) or COCO results.

    Args:
        content: checked content of a COCO instances file
        image_ids: the images to score
        max_detections: detections per image and class that count

    Raises:
        DatasetError: the file is malformed, does not match the annotations, or lacks images.
    """
    if not is_detection_cache(path):
        results = read_results(path, content)
        kinds, of_image = result_kinds(results), by_image(results)
        meter = AccuracyMeter(content, image_ids, kinds=kinds, max_detections=max_detections)
        for image_id in image_ids:
            meter.add(image_id, of_image.get(image_id, []))
        return meter.matches()
    meter, left = AccuracyMeter(content, image_ids, max_detections=max_detections), set(image_ids)
    for stored in read_detections(path):
        if stored.image_id in left:
            meter.add(stored.image_id, stored.results)
            left.remove(stored.image_id)
    if left:
        raise DatasetError(f"{path} lacks {len(left)} of the {len(image_ids)} images: finish it with --resume")
    return meter.matches()


def differences(
    reference: str | os.PathLike[str],
    matches: Mapping[str, Matches],
    content: Mapping[str, Any],
    image_ids: Sequence[int],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    max_detections: int = COCO_LIMIT,
) -> dict[str, Interval]:
    """AP of ``matches`` minus that of a file of detections or results, for each of "box" and "mask" that both have.

    Raises:
        DatasetError: see :func:`read_matches`.
        InputError: they have no kind in common, or too few samples.
    """
    of_reference = read_matches(reference, content, image_ids, max_detections)
    shared = [kind for kind in matches if kind in of_reference]
    if not shared:
        raise InputError(f"{reference} has neither boxes nor masks in common with the scored results")
    return {
        kind: PairedBootstrap(of_reference[kind], samples=samples, seed=seed).difference(matches[kind])
        for kind in shared
    }
