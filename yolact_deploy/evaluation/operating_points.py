"""Precision, recall and F1 over the score threshold, and the best threshold of each class.

A detection counts if its score is above the threshold. It is right if it hits an object of its class with an IoU of 0.5
that no better one has taken. Detections on crowds of their class do not count. Thresholds are multiples of 0.01, so
that the one reported is exactly the one that ``--score-threshold`` takes.

Legend: T thresholds, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.evaluation.error_kinds import JudgedImage

THRESHOLDS = np.arange(100) / 100
#: with fewer objects, a class takes the threshold of all: its own would be chance
LEAST_OBJECTS = 10

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counts:
    """Right and wrong detections at each threshold, int64 [T, C], and the objects to detect, int64 [C]."""

    right: Integers
    wrong: Integers
    objects: Integers

    @classmethod
    def of(cls, images: Sequence[JudgedImage], classes: int) -> Counts:
        right, wrong = (np.zeros((len(THRESHOLDS), classes), np.int64) for _ in range(2))
        objects = np.zeros(classes, np.int64)
        for image in images:
            objects += np.bincount(image.truth_labels, minlength=classes)
            # As float32, which is what a predictor compares.
            above = image.scores.astype(np.float32)[None, :] > THRESHOLDS.astype(np.float32)[:, None]
            hit = image.partner >= 0
            for counts, chosen in ((right, hit), (wrong, ~hit & ~image.ignored)):
                for label in np.unique(image.labels[chosen]).tolist():
                    counts[:, label] += above[:, chosen & (image.labels == label)].sum(axis=1)
        return cls(right, wrong, objects)

    def pooled(self) -> Counts:
        """All classes as one, [T, 1]."""
        return Counts(*(a.sum(axis=-1, keepdims=True) for a in (self.right, self.wrong, self.objects)))

    @property
    def precision(self) -> Floats:
        """[T, C], NaN without detections."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.right / (self.right + self.wrong))

    @property
    def recall(self) -> Floats:
        """[T, C], NaN without objects."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.right / self.objects)

    @property
    def f1(self) -> Floats:
        """[T, C]: 2 right / (right + wrong + objects), NaN without detections and objects."""
        with np.errstate(invalid="ignore"):
            return np.asarray(2 * self.right / (self.right + self.wrong + self.objects))


@dataclass(frozen=True)
class BestThresholds:
    """The score thresholds with the largest F1.

    Attributes:
        overall: of all classes together
        of_class: of each class; None for those with fewer than :data:`LEAST_OBJECTS` objects, which take ``overall``
    """

    overall: float
    of_class: tuple[float | None, ...]

    @classmethod
    def of(cls, counts: Counts) -> BestThresholds:
        overall = _best(counts.pooled().f1[:, 0])
        own = [
            _best(counts.f1[:, label]) if objects >= LEAST_OBJECTS else None
            for label, objects in enumerate(counts.objects.tolist())
        ]
        return cls(overall, tuple(own))

    def each(self) -> Floats:
        """Threshold of every class [C]."""
        return np.array([self.overall if value is None else value for value in self.of_class])

    def option(self, names: Sequence[str]) -> str:
        """The value of ``--score-threshold``; classes with the overall threshold are not named.

        A name with a comma or a quote cannot be written there and takes the overall threshold.
        """
        own = [
            f"{name}={value:g}"
            for name, value in zip(names, self.of_class, strict=True)
            if value is not None and value != self.overall and not set(name) & set(",'\"")
        ]
        return ",".join((f"{self.overall:g}", *own))


def _best(f1: Floats) -> float:
    """The threshold with the largest F1; the middle of the first plateau of equal ones."""
    values = np.nan_to_num(f1, nan=-1.0)
    first = int(values.argmax())
    last = first
    while last + 1 < len(values) and values[last + 1] == values[first]:
        last += 1
    return float(THRESHOLDS[(first + last) // 2])
