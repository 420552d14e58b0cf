"""From the heads' outputs to masks in PyTorch, as in the original: the eager path and baseline.

Functions have the same names as in `yolact_deploy.postprocess`, and work on one image per call, on any device.

Legend: P priors, n boxes or detections, C foreground classes, K mask coefficients, h x w the prototypes, H x W the
image. Boxes are xyxy, normalized to 0..1 of the image, neither clipped nor sorted. Scores are probabilities.

Source: YOLACT (arXiv:1904.02689), sections 3.2 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from yolact_deploy.config import Size, both_sides
from yolact_deploy.priors import VARIANCES, Placement
from yolact_deploy.vocabulary import NMS_VARIANTS


class TorchDetected(NamedTuple):
    """The detections of one image, best first."""

    boxes: Tensor  #: float [n, 4] xyxy normalized
    scores: Tensor  #: float [n]
    labels: Tensor  #: int64 [n], 0-based
    coeff: Tensor  #: float [n, K]


# -- boxes ----------------------------------------------------------------------------------------------------------


def decode_boxes(loc: Tensor, priors: Tensor, *, clip: bool = False) -> Tensor:
    """Boxes [..., P, 4] from regression [..., P, 4] and priors [P, 4] as (cx, cy, w, h) (SSD, arXiv:1512.02325).

    Args:
        clip: limit the corners to 0..1
    """
    center = priors[:, :2] + loc[..., :2] * VARIANCES[0] * priors[:, 2:]
    size = priors[:, 2:] * torch.exp(loc[..., 2:] * VARIANCES[1])
    top_left = center - size / 2
    boxes = torch.cat([top_left, top_left + size], dim=-1)
    return boxes.clamp(0, 1) if clip else boxes


def box_iou(a: Tensor, b: Tensor, *, crowd: bool = False) -> Tensor:
    """Intersection over union [..., n, m] of boxes [..., n, 4] and [..., m, 4]; NaN if both have no area.

    Args:
        crowd: ``b`` are crowds: divide by the area of ``a`` instead of the union.
    """
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    inter = (high - low).clamp(min=0).prod(dim=-1)
    area_a = (a[..., 2:] - a[..., :2]).prod(dim=-1)[..., :, None]
    area_b = (b[..., 2:] - b[..., :2]).prod(dim=-1)[..., None, :]
    return inter / (area_a if crowd else area_a + area_b - inter)


def sanitize_coordinates(
    first: Tensor, second: Tensor, size: int, padding: int = 0, *, cast: bool = False
) -> tuple[Tensor, Tensor]:
    """Sorted pixel coordinates of two normalized ones, padded, and clamped to 0 and ``size``.

    Args:
        cast: first truncate to whole pixels (int64).
    """
    a, b = first * size, second * size
    if cast:
        a, b = a.long(), b.long()
    return (torch.minimum(a, b) - padding).clamp(min=0), (torch.maximum(a, b) + padding).clamp(max=size)


def pixel_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes [n, 4] as whole pixels of the image, sorted and clamped, int64 [n, 4]."""
    x1, x2 = sanitize_coordinates(boxes[:, 0], boxes[:, 2], width, cast=True)
    y1, y2 = sanitize_coordinates(boxes[:, 1], boxes[:, 3], height, cast=True)
    return torch.stack([x1, y1, x2, y2], dim=1)


# -- detections -----------------------------------------------------------------------------------------------------


def detect(
    boxes: Tensor,
    scores: Tensor,
    coeff: Tensor,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    max_detections: int = 100,
    nms: str = "fast",
    image_size: Size = 550,
    second_threshold: float | None = None,
) -> TorchDetected:
    """Detections of one image.

    Args:
        boxes: [P, 4]
        scores: [P, C], foreground probabilities
        coeff: [P, K]
        score_threshold: drops priors whose best score is not above it
        nms: one of `yolact_deploy.vocabulary.NMS_VARIANTS`
        image_size: of the network's input; used by the traditional NMS alone, which works on boxes in pixels
        second_threshold: drops detections that do not score above it in their own class

    Raises:
        ValueError: an unknown ``nms``.
    """
    candidates = scores.amax(dim=1) > score_threshold
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
        return TorchDetected(*(values[kept.scores > second] for values in kept))
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
    boxes: Tensor,
    scores: Tensor,
    coeff: Tensor,
    *,
    iou_threshold: float = 0.5,
    top_k: int = 200,
    max_detections: int = 100,
    second_threshold: float | None = None,
) -> TorchDetected:
    """Fast NMS per class over boxes [n, 4], scores [C, n], coeff [n, K] (section 5).

    Uses the ``top_k`` best entries of each class. An entry is dropped if a better one of its class, dropped or not,
    overlaps it by more than ``iou_threshold`` (or by NaN). Entries may score below the score threshold in their class
    unless ``second_threshold`` is given.
    """
    if scores.numel() == 0:
        return _nothing(boxes, coeff)
    class_scores, class_index = _best_first(scores, top_k)
    keep = ~_overlapped(boxes[class_index], iou_threshold)
    if second_threshold is not None:
        keep &= class_scores > second_threshold
    labels, rank = keep.nonzero(as_tuple=True)
    kept, order = _best_first(class_scores[labels, rank], max_detections)
    labels, rank = labels[order], rank[order]
    index = class_index[labels, rank]
    return TorchDetected(boxes[index], kept, labels, coeff[index])


def cross_class_nms(
    boxes: Tensor, scores: Tensor, coeff: Tensor, *, iou_threshold: float = 0.5, top_k: int = 200
) -> TorchDetected:
    """Fast NMS over all classes together: each prior keeps its best class; at most ``top_k`` survive."""
    if scores.numel() == 0:
        return _nothing(boxes, coeff)
    best, labels = scores.max(dim=0)
    best, index = _best_first(best, top_k)
    keep = ~_overlapped(boxes[index], iou_threshold)
    index = index[keep]
    return TorchDetected(boxes[index], best[keep], labels[index], coeff[index])


def traditional_nms(
    boxes: Tensor,
    scores: Tensor,
    coeff: Tensor,
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    image_size: Size = 550,
) -> TorchDetected:
    """Greedy NMS per class on boxes in pixels whose sides include both ends (+1); drops overlaps >= the threshold."""
    scale = boxes.new_tensor(both_sides(image_size)[::-1] * 2)
    pixels = boxes * scale
    labels, index = [], []
    for label, class_scores in enumerate(scores):
        members = (class_scores > score_threshold).nonzero()[:, 0]
        members = members[class_scores[members].argsort(descending=True, stable=True)]
        kept = members[_greedy(pixels[members], iou_threshold)]
        labels.append(torch.full_like(kept, label))
        index.append(kept)
    if not index:
        return _nothing(boxes, coeff)
    label_n, index_n = torch.cat(labels), torch.cat(index)
    kept, order = _best_first(scores[label_n, index_n], max_detections)
    label_n, index_n = label_n[order], index_n[order]
    return TorchDetected(pixels[index_n] / scale, kept, label_n, coeff[index_n])


def _best_first(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The ``most`` largest values of the last axis, descending, and their indices; ties by the lower index."""
    values, index = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :most], index[..., :most]


def _overlapped(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Whether each box [..., k, 4] overlaps an earlier one too much, bool [..., k]; NaN counts as too much."""
    worst = box_iou(boxes, boxes).triu(diagonal=1).amax(dim=-2)
    return ~(worst <= iou_threshold)


def _greedy(pixels: Tensor, iou_threshold: float) -> Tensor:
    """Which of the boxes in pixels [n, 4], best first, greedy suppression keeps: bool [n]."""
    x1, y1, x2, y2 = pixels.unbind(dim=1)
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    keep = torch.ones_like(area, dtype=torch.bool)
    for i in range(len(pixels)):
        if keep[i]:
            width = torch.minimum(x2[i], x2[i + 1 :]) - torch.maximum(x1[i], x1[i + 1 :]) + 1
            height = torch.minimum(y2[i], y2[i + 1 :]) - torch.maximum(y1[i], y1[i + 1 :]) + 1
            inter = width.clamp(min=0) * height.clamp(min=0)
            keep[i + 1 :] &= ~(inter / (area[i] + area[i + 1 :] - inter) >= iou_threshold)
    return keep


def _nothing(boxes: Tensor, coeff: Tensor) -> TorchDetected:
    return TorchDetected(boxes[:0], boxes.new_empty(0), boxes.new_empty(0, dtype=torch.int64), coeff[:0])


# -- masks ----------------------------------------------------------------------------------------------------------


def crop_masks(masks: Tensor, boxes: Tensor, padding: int = 1) -> Tensor:
    """Masks [n, h, w] set to zero outside their boxes [n, 4], padded by ``padding`` pixels; edges are not rounded."""
    height, width = masks.shape[-2:]
    x1, x2 = sanitize_coordinates(boxes[:, 0], boxes[:, 2], width, padding)
    y1, y2 = sanitize_coordinates(boxes[:, 1], boxes[:, 3], height, padding)
    column = torch.arange(width, device=masks.device)
    row = torch.arange(height, device=masks.device)
    across = (column >= x1[:, None]) & (column < x2[:, None])
    down = (row >= y1[:, None]) & (row < y2[:, None])
    return masks * (down[:, :, None] & across[:, None, :])


def assemble_masks(proto: Tensor, coeff: Tensor, boxes: Tensor | None, padding: int = 1) -> Tensor:
    """Mask probabilities [n, h, w] at prototype resolution: sigmoid(proto @ coeff), zero outside the padded boxes.

    Args:
        proto: [h, w, K]
        coeff: [n, K]
        boxes: [n, 4], or None for no cropping
    """
    height, width, num = proto.shape
    masks = torch.sigmoid(coeff @ proto.reshape(-1, num).T).reshape(-1, height, width)
    return masks if boxes is None else crop_masks(masks, boxes, padding)


def rescore_masks(network: Callable[[Tensor], Tensor], masks: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Mask scores float [n]: scores [n] times the IoU that ``network`` predicts for each mask and its class.

    Args:
        network: from masks [n, 1, h, w] to IoUs [n, C]
        masks: probabilities, cropped, [n, h, w]
        labels: int64 [n]

    Source: YOLACT++ (arXiv:1912.06218), section 3.4.
    """
    if len(masks) == 0:
        return torch.zeros_like(scores)
    return scores * network(masks[:, None]).gather(1, labels[:, None])[:, 0]


def paste_masks_full(masks: Tensor, height: int, width: int, placement: Placement | None = None) -> Tensor:
    """Binary masks [n, H, W] from probabilities [n, h, w]: resize each mask bilinearly, then threshold at 0.5.

    This is the original's method and the slow baseline of the benchmarks; `yolact_deploy.paste` is the fast one.

    Args:
        placement: where the image lies on the canvas that the masks cover; by default it fills it
    """
    if len(masks) == 0:
        return masks.new_zeros((0, height, width), dtype=torch.bool)
    where = placement or Placement.whole(height, width)
    canvas = where.canvas_height, where.canvas_width
    full = interpolate(masks[None], canvas, mode="bilinear", align_corners=False)[0] > 0.5
    return full[:, where.top : where.top + height, where.left : where.left + width].contiguous()
