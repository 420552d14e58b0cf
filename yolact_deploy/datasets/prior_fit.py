"""Fits the prior scales of a configuration to the boxes of a dataset.

A prior of a given shape overlaps a box best at the nearest cell center, so the best IoU of a box needs one prior per
level and shape, not all of them. The scales are improved one after the other (coordinate ascent) until the mean best
IoU no longer rises.

Legend: T objects, L levels, R aspect ratios. Boxes are xyxy, normalized to 0..1 of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig, check_field, whole
from yolact_deploy.datasets.dataset_file import DatasetSpec
from yolact_deploy.datasets.findings import refuse
from yolact_deploy.datasets.scan import scan_file
from yolact_deploy.errors import DatasetError
from yolact_deploy.priors import Placement, place

#: a prior learns an object from this IoU on
POSITIVE_IOU = 0.5
_MOST_OBJECTS = 20_000
_MOST_SCALES = 8
_ROUNDS = 40
#: factors that are tried in turn, coarse to fine
_STEPS = (1.5, 1.25, 1.1, 1.04)
_LEAST_GAIN = 1e-5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PriorQuality:
    """How well priors fit boxes.

    Attributes:
        recall: best possible recall: the share of objects, 0..1, that a prior overlaps with an IoU of 0.5 or more
        mean_iou: mean over the objects of the best IoU
        per_level: share of the objects, 0..1, whose best prior is on each level P3..P7
    """

    recall: float
    mean_iou: float
    per_level: tuple[float, ...]


@dataclass(frozen=True)
class PriorFit:
    """Prior scales fitted to a dataset: those of ``after`` instead of those of ``before``."""

    before: YolactConfig
    after: YolactConfig
    objects: int  #: of the dataset, without crowds
    used: int  #: objects the scales were fitted to
    quality_before: PriorQuality
    quality_after: PriorQuality

    @property
    def setting(self) -> str:
        """The option of ``train`` that sets the scales."""
        levels = ",".join(f"({','.join(f'{scale:g}' for scale in level)})" for level in self.after.prior_scales)
        return f"--set 'config.prior_scales=({levels})'"

    def to_json(self) -> dict[str, Any]:
        return {
            "image_size": self.after.image_size,
            "objects": self.objects,
            "objects_used": self.used,
            "before": {"prior_scales": self.before.prior_scales, **dataclasses.asdict(self.quality_before)},
            "after": {"prior_scales": self.after.prior_scales, **dataclasses.asdict(self.quality_after)},
            "set": self.setting,
        }


def fit_priors(boxes: Floats, config: YolactConfig, *, scales_per_level: int | None = None) -> PriorFit:
    """Fit the prior scales of a configuration.

    Args:
        boxes: of all objects, normalized to the network's input, [T, 4]
        config: gives the input size, the aspect ratios and the scales to start from
        scales_per_level: by default as many as ``config`` has

    Raises:
        DatasetError: no box has an area.
        ConfigError: a number of scales out of range.
    """
    sound = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes = boxes[sound]
    if not len(boxes):
        raise DatasetError("there is no object with an area to fit priors to: annotate some")
    count = len(config.prior_scales[0]) if scales_per_level is None else scales_per_level
    check_field(whole(count, 1, _MOST_SCALES), "scales per level", f"1 to {_MOST_SCALES}", count)
    sample = boxes
    if len(boxes) > _MOST_OBJECTS:  # evenly spread, so that the result is the same in every run
        sample = boxes[np.linspace(0, len(boxes) - 1, _MOST_OBJECTS).astype(np.int64)]
    scales = _ascend(_Levels(sample, config), _start(config, count))
    after = dataclasses.replace(config, prior_scales=tuple(tuple(level) for level in scales))
    qualities = (prior_quality(boxes, config), prior_quality(boxes, after))
    return PriorFit(config, after, len(boxes), len(sample), *qualities)


def object_boxes(spec: DatasetSpec, config: YolactConfig | None = None, *, split: str = "train") -> Floats:
    """Boxes of all objects of a split without crowds, normalized, float64 [T, 4].

    Args:
        config: normalizes to the input of this network, in which its ``fit`` places the pictures; by default to the
            pictures themselves

    Raises:
        DatasetError: no such split, or records that are not sound.
    """
    files = spec.split(split)
    scan = scan_file(files.annotations, files.images, spec.classes, sizes=False)
    if not spec.lenient:
        refuse(files.annotations, [problem for problem in scan.findings.problems if problem.is_error])
    table = scan.table
    where = [_placed(record.height, record.width, config) for record in scan.images]
    sizes = np.array([(one.canvas_width, one.canvas_height) * 2 for one in where], np.float64).reshape(-1, 4)
    starts = np.array([(one.left, one.top) * 2 for one in where], np.float64).reshape(-1, 4)
    counts = table.counts()
    boxes = table.boxes.astype(np.float64) + np.repeat(starts, counts, axis=0)
    return (boxes / np.repeat(sizes, counts, axis=0))[~table.iscrowd]


def _placed(height: int, width: int, config: YolactConfig | None) -> Placement:
    return Placement.whole(height, width) if config is None else place(height, width, config)


def prior_quality(boxes: Floats, config: YolactConfig) -> PriorQuality:
    """How well the priors of a configuration fit normalized boxes [T, 4]."""
    levels = _Levels(boxes, config)
    best = np.stack(
        [
            np.max([levels.iou(number, scale) for scale in scales], axis=0)
            for number, scales in enumerate(config.prior_scales)
        ]
    )
    overall = best.max(axis=0)
    on_level = np.bincount(best.argmax(axis=0), minlength=len(best)) / len(boxes)
    recall = float((overall >= POSITIVE_IOU).mean())
    return PriorQuality(recall, float(overall.mean()), tuple(float(share) for share in on_level))


class _Levels:
    """Boxes and the nearest cell center of each on every level."""

    def __init__(self, boxes: Floats, config: YolactConfig) -> None:
        self.config = config
        self._size = boxes[:, 2:] - boxes[:, :2]
        center = (boxes[:, 2:] + boxes[:, :2]) / 2
        self._offsets = []
        for height, width in config.level_shapes:
            cells = np.array([width, height])
            cell = np.clip(np.floor(center * cells), 0, cells - 1)
            self._offsets.append(np.abs(center - (cell + 0.5) / cells))

    def iou(self, level: int, scale: float) -> Floats:
        """Best IoU [T] with the priors of one scale on one level."""
        best = np.zeros(len(self._size))
        for ratio in self.config.aspect_ratios:
            full_height, full_width = self.config.prior_shape
            root = ratio**0.5
            height = scale * root if self.config.square_priors else scale / root
            prior = np.array([scale * root / full_width, height / full_height])
            reach = (self._size + prior) / 2 - self._offsets[level]
            sides = np.clip(np.minimum(reach, np.minimum(self._size, prior)), 0, None)
            inter = sides[:, 0] * sides[:, 1]
            best = np.maximum(best, inter / (self._size.prod(axis=1) + prior.prod() - inter))
        return best


def _start(config: YolactConfig, count: int) -> list[list[float]]:
    """The configuration's scales, or as many others around the middle of each level."""
    if count == len(config.prior_scales[0]):
        return [list(level) for level in config.prior_scales]
    middles = [float(np.exp(np.mean(np.log(level)))) for level in config.prior_scales]
    return [[middle * 2 ** ((i + 0.5) / count - 0.5) for i in range(count)] for middle in middles]


def _ascend(levels: _Levels, scales: list[list[float]]) -> list[list[float]]:
    """Improve the scales one after the other; within a level and over the levels they stay in rising order."""
    best = [[levels.iou(number, scale) for scale in level] for number, level in enumerate(scales)]
    places = [(number, i) for number, level in enumerate(scales) for i in range(len(level))]
    for step in _STEPS:
        for _ in range(_ROUNDS):
            gain = 0.0
            for number, i in places:
                others = np.max([best[n][j] for n, j in places if (n, j) != (number, i)], axis=0)
                current = float(np.maximum(others, best[number][i]).mean())
                for candidate in _candidates(scales, number, i, step, max(levels.config.prior_shape)):
                    iou = levels.iou(number, candidate)
                    value = float(np.maximum(others, iou).mean())
                    if value > current:
                        gain += value - current
                        current, scales[number][i], best[number][i] = value, candidate, iou
            if gain < _LEAST_GAIN:
                break
    return [[_rounded(scale) for scale in level] for level in scales]


def _candidates(scales: Sequence[Sequence[float]], level: int, index: int, step: float, size: int) -> list[float]:
    flat = [scale for one in scales for scale in one]
    place = sum(len(one) for one in scales[:level]) + index
    low = flat[place - 1] if place else 1.0
    high = flat[place + 1] if place + 1 < len(flat) else float(size)
    return [value for value in (flat[place] / step, flat[place] * step) if low <= value <= high]


def _rounded(scale: float) -> float:
    return float(f"{scale:.3g}")
