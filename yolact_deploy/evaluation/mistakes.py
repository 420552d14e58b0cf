"""Mistakes that engines make, tried on a model that is correct.

Each mistake changes the reference's input or output: it shifts labels, mirrors masks, or reorders the input channels.
If the changed reference detects what the engine detects, the engine makes that mistake.

Legend: N images, P priors, K coefficients, h x w prototypes, n detections.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.agreement import ImageAgreement, compare_detections
from yolact_deploy.mask_forms import MaskCrops
from yolact_deploy.postprocess import box_iou
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import HeadOutputs, Outputs

#: IoU from which two boxes or masks count as the same
SAME_PLACE = 0.5
#: smallest share of detections with another class, so that a few flips do not count as a mistake
_RELABELED = 0.25

Image = NDArray[np.uint8]
#: order in which the engine seems to read the channels of BGR
_CHANNELS = {
    (2, 1, 0): "input channels are swapped: the engine reads BGR as RGB, or the other way round",
    (1, 0, 2): "input channels are swapped: the engine takes blue for green and green for blue",
    (0, 2, 1): "input channels are swapped: the engine takes green for red and red for green",
    (1, 2, 0): "input channels are rotated: the engine takes green for blue, red for green and blue for red",
    (2, 0, 1): "input channels are rotated: the engine takes red for blue, blue for green and green for red",
}
_MIRRORED = {"left to right": 1, "upside down": 0}


@dataclass(frozen=True)
class Explained:
    """How well the engine agrees with the reference, usually one that makes a mistake."""

    images: tuple[ImageAgreement, ...]

    @property
    def similarity(self) -> float:
        """Twice the summed mask IoU of matched detections, divided by the detections of both, 0..1; 1 without any.

        Wrong classes, boxes, masks and counts all lower it.
        """
        overlap = sum(sum(image.mask_ious) for image in self.images)
        detections = sum(image.reference + len(image.mask_ious) + image.extra for image in self.images)
        return 2 * overlap / detections if detections else 1.0

    def __str__(self) -> str:
        """The number of the reference's detections that have a partner with the same mask."""
        same = sum(iou >= SAME_PLACE for image in self.images for iou in image.mask_ious)
        return f"{same} of {sum(image.reference for image in self.images)} detections"


def alike(expected: Detections, detections: Detections, score_threshold: float) -> ImageAgreement:
    """Like :func:`compare_detections`, but a partner must reach half the threshold.

    Among all detections that score above 0 there is a box of any class in nearly every place, so a detection whose
    class changed would always get a partner.
    """
    half = score_threshold / 2
    return compare_detections(expected.above(half), detections.above(half), score_threshold=score_threshold)


class Case:
    """One picture with the outputs and detections of both models."""

    def __init__(self, reference: Predictor, engine: Predictor, picture: Image) -> None:
        self.reference, self.picture = reference, picture
        self.outputs = run(reference, picture)
        self.expected = reference.postprocess(self.outputs, 0, picture.shape)
        self.engine_outputs = run(engine, picture)
        self.detections = engine.postprocess(self.engine_outputs, 0, picture.shape)

    def with_outputs(self, change: Callable[[HeadOutputs], HeadOutputs]) -> Detections | None:
        """The reference's detections from changed raw heads; None if it does not expose them."""
        if not isinstance(self.outputs, HeadOutputs):
            return None
        return self.reference.postprocess(change(self.outputs), 0, self.picture.shape)

    def with_picture(self, picture: Image) -> Detections:
        """The reference's detections in another picture of the same size."""
        return self.reference.postprocess(run(self.reference, picture), 0, picture.shape)


#: a mistake: its kind, its description given how well it explains the engine, and the reference's detections with it
Mistake = tuple[str, Callable[[Explained], str], Callable[[Case], Detections | None]]


def run(predictor: Predictor, picture: Image) -> Outputs:
    """Raw outputs for one picture."""
    return predictor.backend.run(predictor.preprocess([picture]))


def mistakes(cases: Sequence[Case], score_threshold: float) -> Iterator[Mistake]:
    """Possible mistakes, the cheapest to try first."""
    yield from _relabeled(cases, score_threshold)
    for way, axis in _MIRRORED.items():
        where: dict[str, Callable[[Case], Detections | None]] = {
            "as a whole": partial(_mirrored_proto, axis=axis),
            "after they were cropped": partial(_mirrored_crops, place=_in_image, axis=axis),
            "inside their boxes": partial(_mirrored_crops, place=_in_box, axis=axis),
        }
        for part, change in where.items():
            yield "masks", _saying(f"masks are mirrored {way}, {part}; boxes and classes are right"), change
    yield "masks", _saying("masks have x and y exchanged; boxes and classes are right"), _transposed_proto
    yield "boxes", _saying("boxes have x and y exchanged (y first?)"), _yx_boxes
    yield "boxes", _saying("boxes are center and size instead of corners"), _center_boxes
    for order, text in _CHANNELS.items():
        yield "channels", _saying(text), partial(_with_channels, order=order)
    yield "channels", _saying(f"{_CHANNELS[2, 1, 0]}, after normalization"), _with_channels_after_normalization
    for way, axis in _MIRRORED.items():
        text = f"the whole picture is mirrored {way} before it enters the engine"
        yield "picture", _saying(text), partial(_with_mirrored_picture, axis=axis)


def _saying(text: str) -> Callable[[Explained], str]:
    return lambda explained: f"{text}: that explains {explained}"


def _relabeled(cases: Sequence[Case], score_threshold: float) -> Iterator[Mistake]:
    """All labels shifted by the same amount, or each class replaced by the one the engine mostly reports instead."""
    seen: Counter[tuple[int, int]] = Counter()
    for case in cases:
        mine, theirs = (side.above(score_threshold) for side in (case.expected, case.detections))
        if len(mine) and len(theirs):
            iou = np.nan_to_num(box_iou(mine.boxes, theirs.boxes))
            partner = iou.argmax(axis=1)
            same_place = iou.max(axis=1) >= SAME_PLACE
            seen.update(zip(mine.labels[same_place].tolist(), theirs.labels[partner[same_place]].tolist(), strict=True))
    mapping: dict[int, int] = {}
    for (label, other), _ in seen.most_common():
        mapping.setdefault(label, other)
    moved = sum(count for (label, _), count in seen.items() if mapping[label] != label)
    if not moved or moved < _RELABELED * seen.total():
        return
    names = cases[0].expected.class_names
    shifts: Counter[int] = Counter()
    for (label, other), count in seen.items():
        shifts[(other - label) % len(names)] += count
    shift = shifts.most_common(1)[0][0]
    if shift:
        labels = np.arange(len(names))
        yield (
            "labels",
            partial(_say_shifted, shift, len(names)),
            partial(_with_labels, table=(labels + shift) % len(names)),
        )
    examples = ", ".join(f"{names[a]} becomes {names[b]}" for a, b in sorted(mapping.items())[:4] if a != b)
    table = np.array([mapping.get(label, label) for label in range(len(names))])
    yield "labels", partial(_say_mixed, examples), partial(_with_labels, table=table)


def _say_shifted(shift: int, classes: int, explained: Explained) -> str:
    shift = shift if shift <= classes // 2 else shift - classes
    amount = "one" if abs(shift) == 1 else str(abs(shift))
    return (
        f"labels are shifted by {amount}: {explained} have the same box and mask but class k{shift:+d} (background "
        "counted as a class?)"
    )


def _say_mixed(examples: str, explained: Explained) -> str:
    return f"labels are mixed up: {explained} have the same box and mask but another class ({examples})"


# -- changes --------------------------------------------------------------------------------------------------------


def _with_labels(case: Case, table: NDArray[np.int64]) -> Detections:
    return dataclasses.replace(case.expected, labels=table[case.expected.labels])


def _mirrored_proto(case: Case, axis: int) -> Detections | None:
    """Axis 0 is the rows, here and below."""
    return case.with_outputs(lambda heads: heads._replace(proto=np.ascontiguousarray(np.flip(heads.proto, axis + 1))))


def _transposed_proto(case: Case) -> Detections | None:
    return case.with_outputs(lambda heads: heads._replace(proto=np.ascontiguousarray(heads.proto.swapaxes(1, 2))))


def _yx_boxes(case: Case) -> Detections | None:
    return case.with_outputs(lambda heads: heads._replace(boxes=heads.boxes[..., [1, 0, 3, 2]]))


def _center_boxes(case: Case) -> Detections | None:
    def change(heads: HeadOutputs) -> HeadOutputs:
        low, high = heads.boxes[..., :2], heads.boxes[..., 2:]
        return heads._replace(boxes=np.concatenate([(low + high) / 2, high - low], axis=-1))

    return case.with_outputs(change)


def _with_channels(case: Case, order: tuple[int, ...]) -> Detections:
    return case.with_picture(np.ascontiguousarray(case.picture[..., list(order)]))


def _with_channels_after_normalization(case: Case) -> Detections:
    """Swap blue and red between normalization and the first layer, as closely as 8-bit gray levels can express it."""
    mean, std = (np.array(values) for values in (case.reference.config.pixel_mean, case.reference.config.pixel_std))
    levels = ((case.picture - mean) / std)[..., ::-1] * std + mean
    return case.with_picture(levels.round().clip(0, 255).astype(np.uint8))


def _with_mirrored_picture(case: Case, axis: int) -> Detections:
    return case.with_picture(np.ascontiguousarray(np.flip(case.picture, axis)))


Whole = NDArray[np.int64]
#: start [n] of mirrored crops, given their start [n], size [n], bounds of their boxes [n, 2] and the image's length
_Place = Callable[[Whole, Whole, NDArray[np.float32], int], Whole]


def _in_image(start: Whole, size: Whole, bounds: NDArray[np.float32], length: int) -> Whole:
    return length - start - size


def _in_box(start: Whole, size: Whole, bounds: NDArray[np.float32], length: int) -> Whole:
    mirrored: Whole = bounds.sum(axis=1).round().astype(np.int64) - start - size
    return mirrored.clip(0, np.maximum(0, length - size))


def _mirrored_crops(case: Case, place: _Place, axis: int) -> Detections:
    """The detections with each mask mirrored along an axis and moved to where ``place`` says."""
    detections = case.expected
    old = detections.crops
    column = 1 - axis  # offsets and boxes are x first
    sizes = np.array([crop.shape[axis] for crop in old.crops], dtype=np.int64)
    offsets = old.offsets.copy()
    bounds = detections.boxes[:, [column, column + 2]]
    offsets[:, column] = place(offsets[:, column], sizes, bounds, (old.height, old.width)[axis])
    crops = MaskCrops(old.height, old.width, offsets, tuple(np.flip(crop, axis) for crop in old.crops))
    return dataclasses.replace(detections, mask_data=crops)
