"""The loss of YOLACT in plain loops, one image and one prior at a time: slow, but simple enough to be trusted.

Written from the description of the loss, independently of the code under test. Boxes are xyxy, normalized; priors (cx,
cy, w, h). Matching uses float32 scalars, because thresholds and ties depend on rounding; the losses use float64 and
autograd.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

F = np.float32


def intersection(a: Any, b: Any) -> Any:
    width = max(F(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(F(0), min(a[3], b[3]) - max(a[1], b[1]))
    return width * height


def area(a: Any) -> Any:
    return (a[2] - a[0]) * (a[3] - a[1])


def prior_corners(prior: Any) -> list[Any]:
    cx, cy, w, h = (F(v) for v in prior)
    return [cx - w / F(2), cy - h / F(2), cx + w / F(2), cy + h / F(2)]


def plain_match(
    boxes: Any,
    labels: Any,
    crowd: Any,
    priors: Any,
    positive: float = 0.5,
    negative: float = 0.4,
    crowd_iou: float = 0.7,
) -> tuple[list[int], list[int]]:
    """For one image the label of each prior (class + 1, 0, -1) and the index of its object (-1 without objects)."""
    boxes = np.asarray(boxes, np.float32)
    corners = [prior_corners(prior) for prior in np.asarray(priors, np.float32)]
    objects = [i for i in range(len(boxes)) if not crowd[i]]
    iou = {}
    for i in objects:
        for p, corner in enumerate(corners):
            inter = intersection(boxes[i], corner)
            iou[i, p] = inter / (area(boxes[i]) + area(corner) - inter)
    best = [max((iou[i, p] for i in objects), default=F(-1)) for p in range(len(corners))]
    index = [next((i for i in objects if iou[i, p] == best[p]), -1) for p in range(len(corners))]

    # Pairs in the order of their IoU; Python's sort keeps the order of objects, then priors, among equals.
    taken_objects: set[int] = set()
    taken_priors: set[int] = set()
    for i, p in sorted(iou, key=lambda pair: -iou[pair]):
        if i not in taken_objects and p not in taken_priors:
            taken_objects.add(i)
            taken_priors.add(p)
            best[p], index[p] = F(2), i
    if len(objects) > len(corners):
        index[0] = objects[0]

    found = []
    for p, corner in enumerate(corners):
        label = int(labels[index[p]]) + 1 if index[p] >= 0 else 0
        if best[p] < F(positive):
            label = -1
        if best[p] < F(negative):
            label = 0
        for i in range(len(boxes)):
            if crowd[i] and label <= 0 and intersection(boxes[i], corner) / area(corner) > F(crowd_iou):
                label = -1
        found.append(label)
    return found, index


def plain_losses(
    outputs: dict[str, Any],
    images: list[dict[str, Any]],
    drawn: list[list[int]] | None = None,
    *,
    max_masks: int = 100,
    mask_iou_net: Any = None,
) -> dict[str, Any]:
    """The terms in float64 from outputs (float64 tensors) and images (boxes normalized, labels, crowd, masks).

    Args:
        drawn: the positives of each image for the mask loss, where the limit leaves a choice
    """
    terms = {key: torch.zeros((), dtype=torch.float64) for key in ("box", "class", "mask", "semantic", "mask_iou")}
    positives = 0
    for n, image in enumerate(images):
        labels, index = plain_match(image["boxes"], image["labels"], image["crowd"], outputs["prior_boxes"].numpy())
        chosen = [p for p, label in enumerate(labels) if label > 0]
        positives += len(chosen)
        for p in chosen:
            terms["box"] += 1.5 * box_term(outputs["boxes"][n, p], image["boxes"][index[p]], outputs["prior_boxes"][p])
        terms["class"] += class_term(outputs["scores"][n], labels)
        masked = chosen if drawn is None or len(chosen) <= max_masks else drawn[n]
        mask, iou = mask_term(outputs, n, image, masked, index, mask_iou_net)
        terms["mask"] += 6.125 * mask * (len(chosen) / len(masked) if masked else 1)
        terms["mask_iou"] += 25 * iou
        terms["semantic"] += semantic_term(outputs["semantic_masks"][n], image)
    for key in terms:
        terms[key] = terms[key] / (len(images) if key == "semantic" else max(positives, 1))
    if mask_iou_net is None:
        del terms["mask_iou"]
    return terms


def box_term(loc: Any, box: Any, prior: Any) -> Any:
    x1, y1, x2, y2 = (float(v) for v in box)
    cx, cy, w, h = (float(v) for v in prior)
    wanted = [
        ((x1 + x2) / 2 - cx) / (0.1 * w), ((y1 + y2) / 2 - cy) / (0.1 * h),
        math.log((x2 - x1) / w) / 0.2, math.log((y2 - y1) / h) / 0.2,
    ]  # fmt: skip
    return sum(smooth_l1(value - want) for value, want in zip(loc, wanted, strict=True))


def smooth_l1(difference: Any) -> Any:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def class_term(logits: Any, labels: list[int]) -> Any:
    entropy = [row.logsumexp(0) - row[max(label, 0)] for row, label in zip(logits, labels, strict=True)]
    found = [entropy[p] for p, label in enumerate(labels) if label > 0]
    hard = sorted((entropy[p] for p, label in enumerate(labels) if label == 0), key=lambda e: -float(e.detach()))
    return sum(found + hard[: min(3 * len(found), len(labels) - 1)], torch.zeros((), dtype=torch.float64))


def small_masks(masks: Any, height: int, width: int) -> Any:
    if len(masks) == 0:
        return torch.zeros((0, height, width), dtype=torch.float64)
    small = interpolate(masks[None].float(), (height, width), mode="bilinear", align_corners=False)[0]
    return (small > 0.5).double()


def mask_term(
    outputs: dict[str, Any], n: int, image: dict[str, Any], chosen: list[int], index: list[int], network: Any
) -> tuple[Any, Any]:
    proto = outputs["proto_masks"][n]
    height, width, _ = proto.shape
    masks = small_masks(image["masks"], height, width)
    total = total_iou = torch.zeros((), dtype=torch.float64)
    for p in chosen:
        inside = padded_box(image["boxes"][index[p]], height, width)
        probability = (proto @ outputs["masks"][n, p]).sigmoid()
        wanted = masks[index[p]]
        entropy = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log())
        total = total + (entropy * inside).sum() / float(area(image["boxes"][index[p]])) / (height * width)
        if network is not None and wanted.sum() > 25:
            cropped = probability * inside
            told = network(cropped[None, None])[0, int(image["labels"][index[p]])]
            binary = (cropped > 0.5).double()
            overlap = (binary * wanted).sum()
            total_iou = total_iou + smooth_l1(told - overlap / (binary.sum() + wanted.sum() - overlap))
    return total, total_iou


def padded_box(box: Any, height: int, width: int) -> Any:
    x1, y1, x2, y2 = (F(v) for v in box)  # float32: edges on the border of a pixel depend on rounding
    columns = [max(x1 * F(width) - 1, 0) <= column < min(x2 * F(width) + 1, width) for column in range(width)]
    rows = [max(y1 * F(height) - 1, 0) <= row < min(y2 * F(height) + 1, height) for row in range(height)]
    return torch.tensor([[float(row and column) for column in columns] for row in rows], dtype=torch.float64)


def semantic_term(logits: Any, image: dict[str, Any]) -> Any:
    classes, height, width = logits.shape
    wanted = torch.zeros((classes, height, width), dtype=torch.float64)
    for mask, label, crowd in zip(
        small_masks(image["masks"], height, width), image["labels"], image["crowd"], strict=True
    ):
        if not crowd:
            wanted[int(label)] = torch.maximum(wanted[int(label)], mask)
    probability = logits.sigmoid()
    return -(wanted * probability.log() + (1 - wanted) * (1 - probability).log()).mean(dim=(1, 2)).sum()
