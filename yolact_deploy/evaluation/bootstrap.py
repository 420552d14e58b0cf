"""How sure is a difference in AP? A paired bootstrap over the images.

Images are drawn with replacement, as many as there are, and both models are scored on the same draw; the 2.5 % and the
97.5 % quantile of the difference are the limits of the interval (the percentile bootstrap of Efron, 1979). Pairing
takes out what is easy or hard about the images, so that small differences can be told.

The interval speaks of the images only, not of how a training's outcome varies. With few images it is too narrow: COCO
AP needs objects of every class, and no draw has more of them than the set.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yolact_deploy.datasets.coco_results import Result, read_results
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.evaluation.accuracy import AccuracyMeter, by_image, result_kinds
from yolact_deploy.evaluation.detection_cache import is_detection_cache, read_detections
from yolact_deploy.evaluation.matches import Matcher, Matches

SAMPLES = 1000
_LIMITS = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """AP of one model minus that of a reference, 0..1.

    Attributes:
        difference: on the images as they are
        mean: over the draws
        low, high: limits of the 95 % interval
        images: how many there are
        samples: draws
        seed: of the draws
    """

    difference: float
    mean: float
    low: float
    high: float
    images: int
    samples: int
    seed: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval says that the two differ at all."""
        return not self.low <= 0 <= self.high

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "excludes_zero": self.excludes_zero}


def ap_difference(
    content: Mapping[str, Any],
    a: Sequence[Result],
    b: Sequence[Result],
    image_ids: Iterable[int],
    kind: str,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """COCO AP of the results ``b`` minus that of the reference's results ``a``, with its interval.

    Args:
        content: a COCO instances file's checked content; it is not changed
        a, b: checked COCO results; of other images they are left out
        image_ids: the images to draw from
        kind: "bbox" or "segm"
        samples: draws

    Raises:
        DatasetError: the images have no object, or a segmentation cannot be read.
        InputError: too few samples.
    """
    ids = set(image_ids)
    matched = []
    for results in (a, b):
        matcher = Matcher(content, ids, kind)
        matcher.add({image_id: found for image_id, found in by_image(results).items() if image_id in ids})
        matched.append(matcher.matches())
    reference, found = matched
    return PairedBootstrap(reference, samples=samples, seed=seed).difference(found)


class PairedBootstrap:
    """Draws of images, scored for the reference once, however many models are compared with it.

    Args:
        reference: what hit what, of the model with which others are compared
        samples: draws

    Raises:
        DatasetError: the images have no object.
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

    def difference(self, found: Matches) -> Interval:
        """AP of a model, matched with the same annotations on the same images, minus the reference's.

        Raises:
            InputError: it was matched on other images or categories.
        """
        a, b = self._reference, found
        if (a.image_ids, a.category_ids) != (b.image_ids, b.category_ids):
            raise InputError("AP can be compared on the same images and categories only")
        observed, drawn = (
            b.average_precision(weights) - before for weights, before in zip(self._weights, self._before, strict=True)
        )
        drawn = drawn[~np.isnan(drawn)]  # of few images, a draw may have no object at all
        low, high = np.percentile(drawn, _LIMITS)
        images = len(a.image_ids)
        return Interval(
            float(observed[0]), float(drawn.mean()), float(low), float(high), images, self._samples, self._seed
        )


def read_matches(
    path: str | os.PathLike[str], content: Mapping[str, Any], image_ids: Sequence[int]
) -> dict[str, Matches]:
    """What hit what, of "box" and "mask", of a file of detections (``eval --cache``) or of COCO results.

    Args:
        content: a COCO instances file's checked content
        image_ids: the images that are scored

    Raises:
        DatasetError: the file is malformed, does not fit the annotations, or lacks images.
    """
    if not is_detection_cache(path):
        results = read_results(path, content)
        meter, found = AccuracyMeter(content, image_ids, kinds=result_kinds(results)), by_image(results)
        for image_id in image_ids:
            meter.add(image_id, found.get(image_id, []))
        return meter.matches()
    meter, left = AccuracyMeter(content, image_ids), set(image_ids)
    for stored in read_detections(path):
        if stored.image_id in left:
            meter.add(stored.image_id, stored.results)
            left.remove(stored.image_id)
    if left:
        raise DatasetError(f"{path} lacks {len(left)} of the {len(image_ids)} images: finish it with --resume")
    return meter.matches()
