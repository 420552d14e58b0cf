"""Synthetic network outputs for one image, to measure post-processing without a trained network.

Object sizes follow COCO's annotations (coco_mini: median 1.0 %, mean 5.9 % of the image, quartiles 0.24 % and 4.2 %).
The priors that overlap an object respond to it, as in a trained network; everywhere else there is background.
Prototypes are smooth; masks are irregular ellipses inside their boxes. Seeded.

Legend: P priors, C classes, K coefficients, h x w prototypes. Boxes are xyxy, normalized.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.postprocess import box_iou
from yolact_deploy.priors import make_priors

Floats = NDArray[np.float32]

_MEDIAN_AREA = 0.0103
_SPREAD = 1.9  # standard deviation of the logarithm of the area
_LARGEST_AREA = 0.5
_BACKGROUND_LOGIT = 9.0
#: a prior with at least this IoU with an object responds
_ANSWERING_IOU = 0.4


class Scene(NamedTuple):
    """Decoded outputs of a network's heads for one image."""

    boxes: Floats  #: [P, 4]
    scores: Floats  #: [P, C] foreground probabilities
    coeff: Floats  #: [P, K]
    proto: Floats  #: [h, w, K]


def make_scene(config: YolactConfig, *, objects: int = 30, seed: int = 0) -> Scene:
    """A scene with a number of objects of varied classes and sizes."""
    rng = np.random.default_rng(seed)
    truth = _object_boxes(objects, rng)
    cx, cy, w, h = make_priors(config).T
    priors = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
    overlap = box_iou(priors, truth)
    owner, answer = overlap.argmax(axis=1), overlap.max(axis=1)
    # The best prior of an object responds, however small the object is.
    owner[overlap.argmax(axis=0)], answer[overlap.argmax(axis=0)] = np.arange(objects), 0.9
    of_object = np.flatnonzero(answer > _ANSWERING_IOU)

    boxes = priors.astype(np.float32)
    sides = (truth[:, 2:] - truth[:, :2])[owner[of_object]]
    jitter = rng.normal(0, 0.05, (len(of_object), 4)) * np.tile(sides, 2)
    boxes[of_object] = truth[owner[of_object]] + jitter
    scores = _scores(config, owner, answer, of_object, rng)
    proto = _prototypes(config, rng)
    coeff = rng.normal(0, 0.3, (len(priors), config.num_prototypes)).astype(np.float32)
    coeff[of_object] = _ellipse_coeff(boxes[of_object], config, rng)
    return Scene(boxes, scores, coeff, proto)


def _object_boxes(count: int, rng: np.random.Generator) -> Floats:
    normal = NormalDist(np.log(_MEDIAN_AREA), _SPREAD)
    area = np.exp([normal.inv_cdf((i + 0.5) / count) for i in range(count)]).clip(max=_LARGEST_AREA)
    ratio = np.exp(rng.normal(0, 0.4, count))
    side = np.minimum(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=1), 0.98)
    corner = rng.random((count, 2)) * (1 - side)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def _scores(
    config: YolactConfig,
    owner: NDArray[np.intp],
    answer: NDArray[np.floating],
    of_object: NDArray[np.intp],
    rng: np.random.Generator,
) -> Floats:
    """Softmax over background and classes: an object's class and, weaker, two that resemble it."""
    logits = rng.normal(0, 1, (len(owner), config.num_classes + 1)).astype(np.float32)
    logits[:, 0] += _BACKGROUND_LOGIT
    classes = 1 + rng.integers(0, config.num_classes, (int(owner.max()) + 1, 3))
    strength = (6 + 25 * (answer[of_object] - _ANSWERING_IOU)).clip(max=12)
    for column, share in enumerate((1.0, 0.7, 0.6)):
        logits[of_object, classes[owner[of_object], column]] += share * strength
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(logits[:, 1:])


def _prototypes(config: YolactConfig, rng: np.random.Generator) -> Floats:
    """Ramps and parabolas, which combine into ellipses, and smooth blobs; none negative, as after a ReLU."""
    height, width = shape = config.prototype_shape
    down = (np.arange(height, dtype=np.float32) + 0.5) / height
    across = (np.arange(width, dtype=np.float32) + 0.5) / width
    x, y = np.broadcast_to(across, shape), np.broadcast_to(down[:, None], shape)
    proto = np.empty((*shape, config.num_prototypes), dtype=np.float32)
    proto[..., :5] = np.stack([np.ones_like(x), x, x * x, y, y * y], axis=-1)
    for k in range(5, config.num_prototypes):
        coarse = rng.normal(0, 1, (9, 9)).astype(np.float32)
        proto[..., k] = np.maximum(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0)
    return proto


def _ellipse_coeff(boxes: Floats, config: YolactConfig, rng: np.random.Generator) -> Floats:
    """Coefficients [n, K] of an ellipse that nearly fills each box, with an edge about a prototype pixel wide."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    radius = np.maximum(0.46 * (boxes[:, 2:] - boxes[:, :2]), 1e-3)
    sharpness = np.maximum(1.5 * min(config.prototype_shape) * radius.min(axis=1), 2.0)
    a, b = (sharpness[:, None] / radius**2).T
    coeff = rng.normal(0, 0.05, (len(boxes), config.num_prototypes)) * sharpness[:, None]
    coeff[:, 0] = sharpness - a * center[:, 0] ** 2 - b * center[:, 1] ** 2
    coeff[:, 1:5] = np.stack([2 * a * center[:, 0], -a, 2 * b * center[:, 1], -b], axis=1)
    return np.asarray(coeff, dtype=np.float32)
