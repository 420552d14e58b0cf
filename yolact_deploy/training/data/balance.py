"""How often each image is drawn, so that rare classes are seen more often: repeat factors.

Source: LVIS (arXiv:1908.03195), section on repeat factor sampling.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def repeat_factors(labels_of_images: Iterable[NDArray[np.int64]], num_classes: int, threshold: float) -> Floats:
    """The factor of each image: the largest of its classes' ``max(1, sqrt(threshold / share))``, 1 without objects.

    Args:
        labels_of_images: labels of the objects in each image, 0-based, without crowds
        threshold: classes in a smaller share of the images than this, 0..1, are drawn more often
    """
    present = [np.unique(labels) for labels in labels_of_images]
    counts = np.bincount(np.concatenate([*present, np.zeros(0, np.int64)]), minlength=num_classes)
    with np.errstate(divide="ignore"):
        factors = np.sqrt(threshold * len(present) / counts.astype(np.float64))
    factors = np.maximum(1.0, factors)
    return np.array([factors[labels].max(initial=1.0) for labels in present])


def drawn(weights: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """As many indices as there are weights, each about in proportion to its weight, in random order.

    Systematic resampling: index i appears floor or ceil of ``n * weight / sum`` times.
    """
    ends = np.cumsum(weights) / weights.sum() * len(weights)
    index = np.searchsorted(ends, np.arange(len(weights)) + rng.random(), side="right")
    return rng.permutation(np.minimum(index, len(weights) - 1)).astype(np.int64)
