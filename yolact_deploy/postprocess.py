"""From the heads' outputs to detections, in NumPy: the reference and the fast CPU path in one.

Legend: P priors, n boxes or detections, C foreground classes, K mask coefficients, h x w the prototypes.
Boxes are xyxy, normalised to 0..1 of the image and neither clipped nor sorted. Scores are probabilities.

Source: YOLACT (arXiv:1904.02689) sections 3.2 and 5, Fast NMS included. The masks' last step, from prototype
resolution to image pixels, is in :mod:`yolact_deploy.paste`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NMS_VARIANTS = ("fast", "cross-class", "traditional")

#: logit given to prototype pixels outside the box; its sigmoid is 0 in float32 arithmetic with any other value
OUTSIDE_LOGIT = np.float32(-80.0)

#: entries examined at a time by fast_nms: a few times max_detections, so that one round is the rule
_NMS_CHUNK = 512


class Detected(NamedTuple):
    """What a detector leaves of one image, best first."""

    boxes: Floats  #: [n, 4] xyxy normalised
    scores: Floats  #: [n]
    labels: Ints  #: [n], 0-based
    coeff: Floats  #: [n, K]

    def select(self, keep: NDArray[Any]) -> Detected:
        return Detected(self.boxes[keep], self.scores[keep], self.labels[keep], self.coeff[keep])


def box_iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union [n, m] of boxes [n, 4] and [m, 4]; NaN where both have no area."""
    with np.errstate(invalid="ignore", over="ignore"):
        width: Floats = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
        height = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
        inter = np.maximum(width, 0, out=width)
        inter *= np.maximum(height, 0, out=height)
        area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
        area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
        union = area_a[:, None] + area_b[None, :]
        union -= inter
        np.divide(inter, union, out=inter)
    return inter


def detect(
    boxes: Floats,
    scores: Floats,
    coeff: Floats,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    max_detections: int = 100,
    nms: str = "fast",
    image_size: int = 550,
) -> Detected:
    """Detections of one image.

    Args:
        boxes: [P, 4]
        scores: [P, C], foreground probabilities
        coeff: [P, K]
        score_threshold: priors whose best score is not above it are left out
        nms: one of :data:`NMS_VARIANTS`
        image_size: only the traditional NMS needs it, for its boxes in pixels
    """
    candidates = np.flatnonzero(scores.max(axis=1, initial=0.0) > score_threshold)
    arrays = boxes[candidates], scores[candidates].T, coeff[candidates]
    if nms == "fast":
        return fast_nms(*arrays, iou_threshold=iou_threshold, top_k=top_k, max_detections=max_detections)
    if nms == "cross-class":
        return cross_class_nms(*arrays, iou_threshold=iou_threshold, top_k=top_k)
    if nms == "traditional":
        return traditional_nms(
            *arrays,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            max_detections=max_detections,
            image_size=image_size,
        )
    raise ValueError(f"nms: expected one of {NMS_VARIANTS}, got {nms!r}")


def fast_nms(
    boxes: Floats,
    scores: Floats,
    coeff: Floats,
    *,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    max_detections: int = 100,
    second_threshold: float | None = None,
) -> Detected:
    """Fast NMS per class over boxes [n, 4], scores [C, n], coeff [n, K].

    Within each class the ``top_k`` best entries take part. An entry is dropped when a better one of its class, itself
    dropped or not, overlaps it by more than ``iou_threshold`` (or by NaN). Entries may score below the score threshold
    in their class, unless ``second_threshold`` is given.

    Entries are examined in falling order of score, over all classes together, and the work ends with the
    ``max_detections``-th survivor: nothing below it can be in the answer.
    """
    kept_class: list[NDArray[np.intp]] = []
    kept_prior: list[NDArray[np.intp]] = []
    count = 0
    for classes, priors in _by_falling_score(scores, top_k, second_threshold, _NMS_CHUNK):
        own = scores[classes]  # [m, n]: the scores of all boxes in each entry's class
        score = scores[classes, priors][:, None]
        better = own > score
        if (ties := own == score).sum() > len(classes):  # equal scores: the lower prior is the better one
            better |= ties & (np.arange(scores.shape[1]) < priors[:, None])
        distinct, where = np.unique(priors, return_inverse=True)
        overlaps = ~(box_iou(boxes[distinct], boxes) <= iou_threshold)  # NaN overlaps
        better &= overlaps[where]
        kept = ~better.any(axis=1)
        kept_class.append(classes[kept])
        kept_prior.append(priors[kept])
        count += int(kept.sum())
        if count >= max_detections:
            break
    labels = np.concatenate([np.empty(0, np.intp), *kept_class])[:max_detections]
    index = np.concatenate([np.empty(0, np.intp), *kept_prior])[:max_detections]
    return Detected(boxes[index], scores[labels, index], labels.astype(np.int64), coeff[index])


def _by_falling_score(
    scores: Floats, top_k: int, threshold: float | None, chunk: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Entries (class, prior) of scores [C, n], best first, in chunks; only the best ``top_k`` of each class."""
    num = scores.shape[1]
    if scores.size == 0:
        return
    eligible = scores if num <= top_k else np.where(_in_top_k(scores, top_k), scores, -np.inf)
    flat = np.ascontiguousarray(eligible).ravel()
    limit = -np.inf if threshold is None else threshold
    done = 0
    if flat.size > chunk:
        # All entries that equal the last of the chunk take part in the sort: which of them come first is by index.
        bar = np.partition(flat, flat.size - chunk)[flat.size - chunk]
        first = np.flatnonzero((flat >= bar) & (flat > limit))
        order = first[np.argsort(-flat[first], kind="stable")][:chunk]
        yield np.divmod(order, num)
        done = len(order)
        if done < chunk:
            return
    order = np.argsort(-flat, kind="stable")
    order = order[flat[order] > limit]
    for start in range(done, len(order), chunk):
        yield np.divmod(order[start : start + chunk], num)


def _in_top_k(scores: Floats, k: int) -> NDArray[np.bool_]:
    """Mask [C, n] of the k best of each row; among equal scores the lower index is the better."""
    num = scores.shape[1]
    bar = np.partition(scores, num - k, axis=1)[:, num - k, None]
    inside = scores >= bar
    for row in np.flatnonzero(inside.sum(axis=1) > k):
        tied = np.flatnonzero(scores[row] == bar[row])
        inside[row, tied[k - int((scores[row] > bar[row]).sum()) :]] = False
    return inside


def cross_class_nms(
    boxes: Floats, scores: Floats, coeff: Floats, *, iou_threshold: float = 0.5, top_k: int = 200
) -> Detected:
    """Fast NMS over all classes together: each prior stands for its best class; at most ``top_k`` survive."""
    if scores.size == 0:
        return _nothing(coeff.shape[-1])
    best = scores.max(axis=0)
    order = np.argsort(-best, kind="stable")[:top_k]
    iou = np.triu(box_iou(boxes[order], boxes[order]), k=1)
    kept = order[(iou <= iou_threshold).all(axis=0)]  # NaN is not <=
    return Detected(boxes[kept], best[kept], scores[:, kept].argmax(axis=0).astype(np.int64), coeff[kept])


def traditional_nms(
    boxes: Floats,
    scores: Floats,
    coeff: Floats,
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    image_size: int = 550,
) -> Detected:
    """Greedy NMS per class on boxes in pixels whose sides count both ends (+1); an overlap of the threshold drops."""
    pixels = boxes * np.float32(image_size)
    labels, index = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for label in range(scores.shape[0]):
        members = np.flatnonzero(scores[label] > score_threshold)
        kept = members[_greedy(pixels[members], scores[label, members], iou_threshold)]
        labels.append(np.full(len(kept), label, np.int64))
        index.append(kept.astype(np.int64))
    classes, priors = np.concatenate(labels), np.concatenate(index)
    best = np.argsort(-scores[classes, priors], kind="stable")[:max_detections]
    classes, priors = classes[best], priors[best]
    return Detected(pixels[priors] / np.float32(image_size), scores[classes, priors], classes, coeff[priors])


def _greedy(pixels: Floats, scores: Floats, iou_threshold: float) -> Ints:
    x1, y1, x2, y2 = pixels.T
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + 1
        height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + 1
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):  # infinite boxes
            order = rest[~(inter / (area[best] + area[rest] - inter) >= iou_threshold)]
    return np.array(kept, dtype=np.int64)


def _nothing(num_coeff: int) -> Detected:
    return Detected(
        np.empty((0, 4), np.float32),
        np.empty(0, np.float32),
        np.empty(0, np.int64),
        np.empty((0, num_coeff), np.float32),
    )


def sanitize_coordinates(first: Any, second: Any, size: int, padding: int = 0) -> tuple[Any, Any]:
    """Sorted pixel coordinates of two normalised ones, padded; the lower held at 0, the upper at ``size``."""
    a, b = np.asarray(first) * np.float32(size), np.asarray(second) * np.float32(size)
    return np.maximum(np.minimum(a, b) - padding, 0), np.minimum(np.maximum(a, b) + padding, size)


def crop_windows(boxes: Floats, height: int, width: int, padding: int = 1) -> Ints:
    """Rows and columns that a crop by the boxes leaves: int [n, 4] as (x_start, y_start, x_stop, y_stop).

    A pixel stays when start <= index < stop in floating point, hence the ceilings. Boxes of NaN leave nothing.
    """
    x1, x2 = sanitize_coordinates(boxes[:, 0], boxes[:, 2], width, padding)
    y1, y2 = sanitize_coordinates(boxes[:, 1], boxes[:, 3], height, padding)
    edges = np.ceil(np.stack([x1, y1, x2, y2], axis=1))
    limits = np.array([width, height, width, height], dtype=np.float32)
    windows: Ints = np.clip(np.nan_to_num(edges, nan=0.0), 0, limits).astype(np.int64)
    windows[np.isnan(boxes).any(axis=1)] = 0
    return windows


def mask_logits(proto: Floats, coeff: Floats, boxes: Floats | None, padding: int = 1) -> Floats:
    """Mask logits [n, h, w] at prototype resolution, cropped by the boxes (not, when they are None).

    Args:
        proto: [h, w, K]
        coeff: [n, K]
        boxes: [n, 4]
    """
    height, width, num = proto.shape
    logits: Floats = (coeff @ proto.reshape(-1, num).T).reshape(len(coeff), height, width)
    if boxes is None:
        return logits
    cropped = np.full_like(logits, OUTSIDE_LOGIT)
    for i, (x1, y1, x2, y2) in enumerate(crop_windows(boxes, height, width, padding)):
        cropped[i, y1:y2, x1:x2] = logits[i, y1:y2, x1:x2]
    return cropped


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow warnings."""
    with np.errstate(over="ignore"):
        result: Floats = np.reciprocal(1 + np.exp(-x))
    return result


def assemble_masks(proto: Floats, coeff: Floats, boxes: Floats | None, padding: int = 1) -> Floats:
    """Mask probabilities [n, h, w] at prototype resolution: sigmoid(proto @ coeff), zero outside the padded boxes."""
    return sigmoid(mask_logits(proto, coeff, boxes, padding))
