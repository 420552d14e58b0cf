"""From the outputs of heads to detections in NumPy: the reference and the fast CPU path in one.

Legend: P priors, n boxes or detections, C foreground classes, K mask coefficients, h x w the prototypes.
Boxes are xyxy, normalized to 0..1 of the image and neither clipped nor sorted. Scores are probabilities.

Source: YOLACT (arXiv:1904.02689) sections 3.2 and 5, including Fast NMS. :mod:`yolact_deploy.paste` takes masks from
prototype resolution to image pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.array_types import Bool, Bools, Float32, Floats, Int64, Ints
from yolact_deploy.config import Size, both_sides
from yolact_deploy.mask_forms import MaskWindows, sigmoid
from yolact_deploy.vocabulary import NMS_VARIANTS

#: entries that fast_nms examines at a time: a few times max_detections, so that one round usually suffices
_NMS_CHUNK = 512

#: up to this share of prototype pixels inside boxes, masks are assembled box by box
_SPARSE_SHARE = 0.13


class Detected(NamedTuple):
    """What NMS keeps of one image, best first."""

    boxes: Floats  #: [n, 4] xyxy normalized
    scores: Floats  #: [n]
    labels: Ints  #: [n], 0-based
    coeff: Floats  #: [n, K]

    def select(self, keep: NDArray[Any] | slice) -> Detected:
        return Detected(self.boxes[keep], self.scores[keep], self.labels[keep], self.coeff[keep])


def box_iou(a: Float32[Floats, "n 4"], b: Float32[Floats, "m 4"]) -> Float32[Floats, "n m"]:
    """Intersection over union of boxes; NaN if both have no area."""
    ax1, ay1, ax2, ay2 = np.ascontiguousarray(a.T)[:, :, None]
    bx1, by1, bx2, by2 = np.ascontiguousarray(b.T)  # contiguous, for the inner loops
    with np.errstate(invalid="ignore", over="ignore"):
        inter: Floats = np.minimum(ax2, bx2)
        inter -= np.maximum(ax1, bx1)
        np.maximum(inter, 0, out=inter)
        height = np.minimum(ay2, by2)
        height -= np.maximum(ay1, by1)
        inter *= np.maximum(height, 0, out=height)
        union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
        union -= inter
        np.divide(inter, union, out=inter)
    return inter


def detect(
    boxes: Float32[Floats, "P 4"],
    scores: Float32[Floats, "P C"],
    coeff: Float32[Floats, "P K"],
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    max_detections: int = 100,
    nms: str = "fast",
    image_size: Size = 550,
    second_threshold: float | None = None,
) -> Detected:
    """Detections of one image.

    Args:
        boxes: [P, 4]
        scores: [P, C], foreground probabilities
        coeff: [P, K]
        score_threshold: priors take part if their best score is above it
        nms: one of :data:`~yolact_deploy.vocabulary.NMS_VARIANTS`
        image_size: of the network's input; used by the traditional NMS only, which works on boxes in pixels
        second_threshold: detections must score above it in their own class
    """
    above = np.flatnonzero(scores > score_threshold) // scores.shape[1]  # few, so faster than a maximum of each row
    candidates = above[np.r_[True, above[1:] != above[:-1]]] if above.size else above
    arrays = boxes[candidates], scores[candidates].T, coeff[candidates]
    if nms == "fast":
        return fast_nms(
            *arrays,
            iou_threshold=iou_threshold,
            top_k=top_k,
            max_detections=max_detections,
            second_threshold=second_threshold,
        )
    second = -1.0 if second_threshold is None else second_threshold
    if nms == "cross-class":
        kept = cross_class_nms(*arrays, iou_threshold=iou_threshold, top_k=top_k)
        return kept.select(kept.scores > second)
    if nms == "traditional":
        return traditional_nms(
            *arrays,
            iou_threshold=iou_threshold,
            score_threshold=max(score_threshold, second),
            max_detections=max_detections,
            image_size=image_size,
        )
    raise ValueError(f"nms: expected one of {NMS_VARIANTS}, got {nms!r}")


def fast_nms(
    boxes: Float32[Floats, "n 4"],
    scores: Float32[Floats, "C n"],
    coeff: Float32[Floats, "n K"],
    *,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    max_detections: int = 100,
    second_threshold: float | None = None,
) -> Detected:
    """Fast NMS per class over boxes [n, 4], scores [C, n], coeff [n, K].

    Within each class the ``top_k`` best entries take part. An entry is dropped if a better one of its class, itself
    dropped or not, overlaps it by more than ``iou_threshold`` (or by NaN). Entries may score below the score threshold
    in their class, unless ``second_threshold`` is given.

    Entries of all classes are examined together in falling order of score until ``max_detections`` survive: no later
    entry can be among the results.
    """
    if (missing := np.isnan(scores)).any():  # from a broken network; they must not win
        scores = np.where(missing, -np.inf, scores)
    kept = [np.empty((2, 0), np.intp)]
    for classes, priors in _by_falling_score(scores, top_k, second_threshold, _NMS_CHUNK):
        survive = ~_overlapped(boxes, scores, classes, priors, iou_threshold)
        kept.append(np.stack([classes[survive], priors[survive]]))
        if sum(entries.shape[1] for entries in kept) >= max_detections:
            break
    labels, index = np.concatenate(kept, axis=1)[:, :max_detections]
    return Detected(boxes[index], scores[labels, index], labels.astype(np.int64), coeff[index])


def _overlapped(
    boxes: Floats, scores: Floats, classes: NDArray[np.intp], priors: NDArray[np.intp], iou_threshold: float
) -> NDArray[np.bool_]:
    """Whether a better entry of its class overlaps each entry (class, prior) too much: bool [m]; NaN is too much."""
    own = scores[classes]  # [m, n]: scores of all boxes in each entry's class
    score = scores[classes, priors][:, None]
    better = own > score
    if (ties := own == score).sum() > len(classes):  # equal scores: the lower prior is better
        better |= ties & (np.arange(scores.shape[1]) < priors[:, None])
    distinct, where = np.unique(priors, return_inverse=True)
    overlaps = ~(box_iou(boxes[distinct], boxes) <= iou_threshold)
    better &= overlaps[where]
    return np.asarray(better.any(axis=1), dtype=np.bool_)


def _by_falling_score(
    scores: Floats, top_k: int, threshold: float | None, chunk: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Entries (class, prior) of scores [C, n], best first, in chunks; only the best ``top_k`` of each class."""
    num = scores.shape[1]
    if scores.size == 0:
        return
    left = (scores if num <= top_k else np.where(_in_top_k(scores, top_k), scores, -np.inf)).flatten()
    limit = -np.inf if threshold is None else threshold
    # Sort only the best; sort more if the caller continues. Usually the first round is enough.
    count = chunk
    while True:
        bar = np.partition(left, left.size - count)[left.size - count] if count < left.size else -np.inf
        picked = np.flatnonzero((left >= bar) & (left > limit))  # includes all that equal the bar: ties go by index
        if not picked.size:
            return
        order = picked[np.argsort(-left[picked], kind="stable")]
        for start in range(0, len(order), chunk):
            yield np.divmod(order[start : start + chunk], num)
        left[picked] = -np.inf
        count *= 4


def _in_top_k(scores: Float32[Floats, "C n"], k: int) -> Bool[Bools, "C n"]:
    """Mask [C, n] of the k best of each row; among equal scores the lower index is better."""
    num = scores.shape[1]
    bar = np.partition(scores, num - k, axis=1)[:, num - k, None]
    inside = scores >= bar
    for row in np.flatnonzero(inside.sum(axis=1) > k):
        tied = np.flatnonzero(scores[row] == bar[row])
        inside[row, tied[k - int((scores[row] > bar[row]).sum()) :]] = False
    return inside


def cross_class_nms(
    boxes: Float32[Floats, "n 4"],
    scores: Float32[Floats, "C n"],
    coeff: Float32[Floats, "n K"],
    *,
    iou_threshold: float = 0.5,
    top_k: int = 200,
) -> Detected:
    """Fast NMS over all classes together: each prior takes part with its best class; at most ``top_k`` survive."""
    if scores.size == 0:
        return _nothing(coeff.shape[-1])
    best = scores.max(axis=0)
    order = np.argsort(-best, kind="stable")[:top_k]
    iou = np.triu(box_iou(boxes[order], boxes[order]), k=1)
    kept = order[(iou <= iou_threshold).all(axis=0)]  # NaN is not <=
    return Detected(boxes[kept], best[kept], scores[:, kept].argmax(axis=0).astype(np.int64), coeff[kept])


def traditional_nms(
    boxes: Float32[Floats, "n 4"],
    scores: Float32[Floats, "C n"],
    coeff: Float32[Floats, "n K"],
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    image_size: Size = 550,
) -> Detected:
    """Greedy NMS per class on boxes in pixels whose sides include both ends (+1); IoU at the threshold drops a box."""
    scale = np.array(both_sides(image_size)[::-1] * 2, np.float32)
    pixels = boxes * scale
    labels, index = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for label in range(scores.shape[0]):
        members = np.flatnonzero(scores[label] > score_threshold)
        kept = members[_greedy(pixels[members], scores[label, members], iou_threshold)]
        labels.append(np.full(len(kept), label, np.int64))
        index.append(kept.astype(np.int64))
    classes, priors = np.concatenate(labels), np.concatenate(index)
    best = np.argsort(-scores[classes, priors], kind="stable")[:max_detections]
    classes, priors = classes[best], priors[best]
    return Detected(pixels[priors] / scale, scores[classes, priors], classes, coeff[priors])


def _greedy(pixels: Float32[Floats, "n 4"], scores: Float32[Floats, " n"], iou_threshold: float) -> Int64[Ints, " k"]:
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
    """Two normalized coordinates in pixels: sorted, padded, and clamped to 0 below and ``size`` above."""
    a, b = np.asarray(first) * np.float32(size), np.asarray(second) * np.float32(size)
    return np.maximum(np.minimum(a, b) - padding, 0), np.minimum(np.maximum(a, b) + padding, size)


def crop_windows(boxes: Float32[Floats, "n 4"], height: int, width: int, padding: int = 1) -> Int64[Ints, "n 4"]:
    """Rows and columns inside the padded boxes: int [n, 4] as (x_start, y_start, x_stop, y_stop).

    A pixel is inside if start <= index < stop in floating point, hence the ceilings. Boxes of NaN are empty.
    """
    x1, x2 = sanitize_coordinates(boxes[:, 0], boxes[:, 2], width, padding)
    y1, y2 = sanitize_coordinates(boxes[:, 1], boxes[:, 3], height, padding)
    edges = np.ceil(np.stack([x1, y1, x2, y2], axis=1))
    limits = np.array([width, height, width, height], dtype=np.float32)
    windows: Ints = np.clip(np.nan_to_num(edges, nan=0.0), 0, limits).astype(np.int64)
    windows[np.isnan(boxes).any(axis=1)] = 0
    return windows


def mask_windows(
    proto: Float32[Floats, "h w K"],
    coeff: Float32[Floats, "n K"],
    boxes: Float32[Floats, "n 4"] | None,
    padding: int = 1,
) -> MaskWindows:
    """Mask logits inside the padded boxes, or everywhere if they are None.

    Args:
        proto: [h, w, K]
        coeff: [n, K]
        boxes: [n, 4]
    """
    height, width, num = proto.shape
    if boxes is None:
        bounds = np.tile(np.array([0, 0, width, height], dtype=np.int64), (len(coeff), 1))
    else:
        bounds = crop_windows(boxes, height, width, padding)
    x1, y1, x2, y2 = bounds.T
    covered = (np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)).sum()
    if covered > _SPARSE_SHARE * len(coeff) * height * width:  # one matrix product for all is faster
        planes = (coeff @ proto.reshape(-1, num).T).reshape(-1, height, width)
        windows = tuple(plane[b:d, a:c] for plane, (a, b, c, d) in zip(planes, bounds.tolist(), strict=True))
    else:
        windows = tuple(proto[b:d, a:c] @ k for k, (a, b, c, d) in zip(coeff, bounds.tolist(), strict=True))
    return MaskWindows(height, width, True, bounds[:, :2], windows)


def mask_logits(
    proto: Float32[Floats, "h w K"],
    coeff: Float32[Floats, "n K"],
    boxes: Float32[Floats, "n 4"] | None,
    padding: int = 1,
) -> Float32[Floats, "n h w"]:
    """Mask logits [n, h, w] at prototype resolution, cropped by the padded boxes; see :func:`mask_windows`."""
    return mask_windows(proto, coeff, boxes, padding).dense()


def assemble_masks(
    proto: Float32[Floats, "h w K"],
    coeff: Float32[Floats, "n K"],
    boxes: Float32[Floats, "n 4"] | None,
    padding: int = 1,
) -> Float32[Floats, "n h w"]:
    """Mask probabilities [n, h, w] at prototype resolution: sigmoid(proto @ coeff), zero outside the padded boxes."""
    return sigmoid(mask_logits(proto, coeff, boxes, padding))
