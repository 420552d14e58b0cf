"""How well an engine's detections agree with a reference model's: matched one to one, and as an average precision.

Both sides should have all their detections (score threshold 0). Those above ``score_threshold`` are judged; the rest
only serve as partners, so that a score that drops just below the threshold does not count as a miss.

Legend: n reference detections, m of the engine. Boxes are xyxy in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.accuracy import IMAGES_AT_ONCE, Result, average_precision, by_image
from yolact_deploy.evaluation.coco_rules import COCO_LIMIT
from yolact_deploy.evaluation.matches import Matcher
from yolact_deploy.mask_forms import MaskCrops, compress_counts
from yolact_deploy.postprocess import box_iou

SCORE_THRESHOLD = 0.15
IOU_THRESHOLD = 0.5
_TIGHT_IOU = 0.9
_SAME_PIXEL = 1.0


@dataclass(frozen=True)
class ImageAgreement:
    """One image. Each list has one entry per matched reference detection above the score threshold."""

    reference: int  #: reference detections above the score threshold
    missed: int  #: of those, the ones without a partner of their class
    extra: int  #: engine detections above the score threshold without a partner
    label_flips: int  #: missed detections where the engine detects another class
    box_ious: list[float]
    mask_ious: list[float]
    score_differences: list[float]  #: absolute
    mask_score_differences: list[float] = field(default_factory=list)  #: if both sides have such scores

    @property
    def badness(self) -> float:
        """Sort key from the best image (0) to the worst: a wrong detection counts 1, lost overlap a fraction."""
        return self.missed + self.extra + max((1 - iou for iou in self.box_ious + self.mask_ious), default=0.0)


@dataclass(frozen=True)
class Agreement:
    """All images together. Shares and IoUs are 0..1, or None without matches or detections.

    Attributes:
        matched_share: reference detections (above the score threshold) with a partner of the same class and a box IoU
            of at least ``iou_threshold``; ``matched_share_90``: of at least 0.9
        agreed_share: detections on which both agree (same class, box and mask IoU of at least 0.9) among all that
            either has above the score threshold; missed and extra detections lower it, and so do misplaced masks
        label_flips: missed detections where the engine detects another class (also counted as missed and extra)
        box_ap: COCO AP of the engine's detections with the reference's (above the score threshold) as ground truth
        mask_ap: the same for masks
    """

    score_threshold: float
    iou_threshold: float
    images: int
    reference_detections: int
    matched_share: float | None
    matched_share_90: float | None
    missed: int
    extra: int
    label_flips: int
    mean_box_iou: float | None
    min_box_iou: float | None
    mean_mask_iou: float | None
    min_mask_iou: float | None
    mean_score_difference: float | None
    max_score_difference: float | None
    box_ap: float | None = None
    mask_ap: float | None = None
    agreed_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_detections(
    reference: Detections,
    detections: Detections,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
) -> ImageAgreement:
    """Match one image: the reference's detections, best first, each take the nearest free one of their class."""
    iou = _overlap(reference.boxes, detections.boxes)
    same = reference.labels[:, None] == detections.labels[None, :]
    partner = _match(np.where(same, iou, 0.0), reference.scores, iou_threshold)
    free = np.ones(len(detections), dtype=np.bool_)
    free[partner[partner >= 0]] = False
    judged = reference.scores > score_threshold
    extra = free & (detections.scores > score_threshold)

    left = np.flatnonzero(judged & (partner < 0))
    flips = _match(iou[left][:, extra], reference.scores[left], iou_threshold)
    pairs = [(int(i), int(partner[i])) for i in np.flatnonzero(judged & (partner >= 0))]
    return ImageAgreement(
        reference=int(judged.sum()),
        missed=len(left),
        extra=int(extra.sum()),
        label_flips=int((flips >= 0).sum()),
        box_ious=[float(iou[i, j]) for i, j in pairs],
        mask_ious=[mask_iou(reference.crops, i, detections.crops, j) for i, j in pairs],
        score_differences=_differences(reference.scores, detections.scores, pairs),
        mask_score_differences=_differences(reference.mask_scores, detections.mask_scores, pairs),
    )


def _differences(
    a: NDArray[np.float32] | None, b: NDArray[np.float32] | None, pairs: Sequence[tuple[int, int]]
) -> list[float]:
    return [] if a is None or b is None else [abs(float(a[i]) - float(b[j])) for i, j in pairs]


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Box IoU [n, m]; boxes without area (they lie outside the image) overlap fully if they are equal."""
    iou = np.nan_to_num(box_iou(a, b), nan=0.0)
    flat_a, flat_b = (np.any(boxes[:, 2:] <= boxes[:, :2], axis=1) for boxes in (a, b))
    both = np.logical_and.outer(flat_a, flat_b)
    if both.any():
        equal = np.abs(a[:, None] - b).max(axis=2) <= _SAME_PIXEL
        iou = np.where(both, equal, iou).astype(np.float32)
    return iou


def _match(iou: NDArray[Any], scores: NDArray[np.float32], threshold: float) -> NDArray[np.intp]:
    """Partner of each row of iou [n, m], -1 for none; rows choose in descending order of score [n]."""
    partner = np.full(len(iou), -1, dtype=np.intp)
    if iou.size:
        open_iou = iou.copy()
        for i in np.argsort(-scores, kind="stable"):
            j = open_iou[i].argmax()
            if open_iou[i, j] >= threshold:
                partner[i] = j
                open_iou[:, j] = -1
    return partner


def mask_iou(a: MaskCrops, i: int, b: MaskCrops, j: int) -> float:
    """IoU of mask ``i`` of ``a`` and mask ``j`` of ``b``; two empty masks agree (1)."""
    (ax, ay), (bx, by) = a.offsets[i].tolist(), b.offsets[j].tolist()
    crop_a, crop_b = a.crops[i], b.crops[j]
    x1, y1 = max(ax, bx), max(ay, by)
    x2 = min(ax + crop_a.shape[1], bx + crop_b.shape[1])
    y2 = min(ay + crop_a.shape[0], by + crop_b.shape[0])
    inter = 0
    if x2 > x1 and y2 > y1:
        part_a = crop_a[y1 - ay : y2 - ay, x1 - ax : x2 - ax]
        inter = int(np.count_nonzero(part_a & crop_b[y1 - by : y2 - by, x1 - bx : x2 - bx]))
    union = int(np.count_nonzero(crop_a)) + int(np.count_nonzero(crop_b)) - inter
    return inter / union if union else 1.0


@dataclass
class AgreementMeter:
    """Accumulates images, so that detections need not be kept (except as RLE, for the average precision)."""

    score_threshold: float = SCORE_THRESHOLD
    iou_threshold: float = IOU_THRESHOLD
    images: list[ImageAgreement] = field(default_factory=list)

    def add(self, reference: Detections, detections: Detections) -> ImageAgreement:
        """Compare one more image."""
        image = compare_detections(
            reference, detections, score_threshold=self.score_threshold, iou_threshold=self.iou_threshold
        )
        self.images.append(image)
        return image

    def result(self, reference: Sequence[Result] = (), results: Sequence[Result] = ()) -> Agreement:
        """The totals, with average precisions if the COCO results of both sides are given."""
        box_ious, mask_ious, differences = (
            [value for image in self.images for value in getattr(image, name)]
            for name in ("box_ious", "mask_ious", "score_differences")
        )
        total = sum(image.reference for image in self.images)
        extra = sum(image.extra for image in self.images)
        agreed = sum(min(ious) >= _TIGHT_IOU for ious in zip(box_ious, mask_ious, strict=True))
        return Agreement(
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            images=len(self.images),
            reference_detections=total,
            matched_share=len(box_ious) / total if total else None,
            matched_share_90=sum(iou >= _TIGHT_IOU for iou in box_ious) / total if total else None,
            missed=sum(image.missed for image in self.images),
            extra=extra,
            label_flips=sum(image.label_flips for image in self.images),
            mean_box_iou=_mean(box_ious),
            min_box_iou=min(box_ious, default=None),
            mean_mask_iou=_mean(mask_ious),
            min_mask_iou=min(mask_ious, default=None),
            mean_score_difference=_mean(differences),
            max_score_difference=max(differences, default=None),
            box_ap=agreement_ap(reference, results, self.score_threshold, "bbox"),
            mask_ap=agreement_ap(reference, results, self.score_threshold, "segm"),
            agreed_share=agreed / (total + extra) if total + extra else None,
        )


def agreement_ap(
    reference: Sequence[Result], results: Sequence[Result], score_threshold: float, kind: str
) -> float | None:
    """COCO AP of ``results`` with the reference's above the threshold as ground truth; None without any.

    Empty boxes and masks are left out on both sides: COCO's IoU of two empty ones is 0, not 1. Masks are ranked by box
    scores as well, because these choose the ground truth: identical results give 1.
    """
    truth = [
        {"bbox": r["bbox"], "segmentation": r["segmentation"], "image_id": r["image_id"]}
        | {"category_id": r["category_id"], "id": i, "iscrowd": 0, "area": 1.0}
        for i, r in enumerate(reference, 1)
        if r["score"] > score_threshold and not _is_empty(r, kind)
    ]
    if not truth:
        return None
    images = {r["image_id"]: {"id": r["image_id"]} for r in (*reference, *results)}
    for r in (*reference, *results):  # COCO wants the sizes of masks in the image records
        images[r["image_id"]].update(height=r["segmentation"]["size"][0], width=r["segmentation"]["size"][1])
    categories = [{"id": c} for c in sorted({r["category_id"] for r in (*reference, *results)})]
    content = {"images": list(images.values()), "categories": categories, "annotations": truth}
    ranked = [{k: v for k, v in r.items() if k != "mask_score"} for r in results if not _is_empty(r, kind)]
    of_image = list(by_image(ranked).items())
    most = max((len(found) for _, found in of_image), default=0)
    matcher = Matcher(content, images, kind, areas=1, max_detections=max(COCO_LIMIT, most))
    for first in range(0, len(of_image), IMAGES_AT_ONCE):
        matcher.add(dict(of_image[first : first + IMAGES_AT_ONCE]))
    return average_precision(matcher.precision()).ap


def _is_empty(result: Result, kind: str) -> bool:
    if kind == "bbox":
        return bool(result["bbox"][2] <= 0 or result["bbox"][3] <= 0)
    height, width = result["segmentation"]["size"]
    return bool(result["segmentation"]["counts"] == _one_run(height * width))


@cache
def _one_run(pixels: int) -> str:
    """The encoding of a mask without pixels: one run of zeros."""
    return compress_counts(np.array([pixels]))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
