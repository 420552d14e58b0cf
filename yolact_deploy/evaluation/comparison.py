"""`compare_models`: two models on the same pictures, output by output and detection by detection.

Speed does not matter here: each network runs once per picture, and its raw outputs are compared as well. If the models
disagree, the worst pictures are analyzed again to explain why, and can be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes
from yolact_deploy.datasets.image_sets import CocoImages
from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.accuracy import Result
from yolact_deploy.evaluation.agreement import SCORE_THRESHOLD, Agreement, AgreementMeter, ImageAgreement
from yolact_deploy.evaluation.diagnosis import Diagnosis, agreeing, diagnose, is_suspicious
from yolact_deploy.evaluation.engines import check_same_classes
from yolact_deploy.evaluation.mistakes import Explained, alike
from yolact_deploy.evaluation.trunk_comparison import TrunkComparison
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import HeadOutputs, Outputs

#: number of pictures on which known mistakes are tried
_DIAGNOSED = 4
_BAR, _GAP, _INK = 34, 6, (255, 255, 255)
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class TensorDifference:
    """Absolute differences of one head output over all pictures."""

    max: float
    mean: float
    #: largest absolute value of the reference, for scale
    largest: float


@dataclass(frozen=True)
class ComparedImage:
    """One picture and the agreement of its detections."""

    path: Path
    agreement: ImageAgreement

    @property
    def file_name(self) -> str:
        return self.path.name

    def to_json(self) -> dict[str, Any]:
        a = self.agreement
        return {
            "file_name": self.file_name,
            "reference_detections": a.reference,
            "missed": a.missed,
            "extra": a.extra,
            "label_flips": a.label_flips,
            "min_box_iou": min(a.box_ious, default=None),
            "min_mask_iou": min(a.mask_ious, default=None),
            "max_score_difference": max(a.score_differences, default=None),
        }


@dataclass(frozen=True)
class CompareResult:
    """Two models side by side.

    Attributes:
        tensors: None if one of them does not expose its raw heads
        images: the worst first
        diagnosis: what is probably wrong with the engine, if anything
        trunk: layer by layer, if requested
    """

    reference: str
    engine: str
    agreement: Agreement
    tensors: dict[str, TensorDifference] | None
    images: tuple[ComparedImage, ...]
    diagnosis: Diagnosis
    trunk: TrunkComparison | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "engine": self.engine,
            "diagnosis": self.diagnosis.to_json(),
            "agreement": self.agreement.to_json(),
            "trunk": None if self.trunk is None else self.trunk.to_json(),
            "tensors": None if self.tensors is None else {name: asdict(d) for name, d in self.tensors.items()},
            "images": [image.to_json() for image in self.images],
        }


def compare_models(
    reference: tuple[str, Predictor],
    engine: tuple[str, Predictor],
    images: CocoImages,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    trunk: TrunkComparison | None = None,
    progress: Progress = SILENT,
) -> CompareResult:
    """Compare two named predictors, both with score threshold 0.

    Args:
        trunk: result of :func:`~yolact_deploy.evaluation.trunk_comparison.compare_trunks` for the two models

    Raises:
        InputError: the models have different classes, or a picture cannot be read.
    """
    check_same_classes(*reference, *engine)
    meter = AgreementMeter(score_threshold)
    tensors = _TensorMeter()
    results: tuple[list[Result], list[Result]] = ([], [])
    compared, similar = [], []
    for image in progress.track(images.images, "comparing"):
        picture = read_image(image.path)
        (raw_a, a), (raw_b, b) = (_run(predictor, picture) for _, predictor in (reference, engine))
        tensors.add(raw_a, raw_b)
        compared.append(ComparedImage(image.path, meter.add(a, b)))
        similar.append(alike(a, b, score_threshold))
        for of_model, detections in zip(results, (a, b), strict=True):
            of_model += detections.to_coco(image.image_id, reference[1].config.category_ids)
    compared.sort(key=lambda one: -one.agreement.badness)
    agreement = meter.result(*results)
    similarity = Explained(tuple(similar)).similarity
    if not is_suspicious(similarity, trunk):
        diagnosis = agreeing(similarity)
    else:
        worst = [read_image(image.path) for image in compared[:_DIAGNOSED]]
        diagnosis = diagnose(reference[1], engine[1], worst, score_threshold=score_threshold, trunk=trunk)
    return CompareResult(reference[0], engine[0], agreement, tensors.result(), tuple(compared), diagnosis, trunk)


def draw_pair(
    picture: NDArray[np.uint8],
    reference: tuple[str, Predictor],
    engine: tuple[str, Predictor],
    *,
    score_threshold: float = SCORE_THRESHOLD,
) -> NDArray[np.uint8]:
    """Detections of both models in a BGR picture, side by side under their names, the reference on the left."""
    halves = []
    for name, predictor in (reference, engine):
        shown = _run(predictor, picture)[1].above(score_threshold)
        drawn = cv2.copyMakeBorder(shown.draw(picture), _BAR, 0, 0, 0, cv2.BORDER_CONSTANT)
        text = f"{name}: {len(shown)} detections"
        cv2.putText(drawn, text, (_GAP, _BAR - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.6, _INK, 1, cv2.LINE_AA)
        halves.append(drawn)
    gap = np.full((halves[0].shape[0], _GAP, 3), _INK, np.uint8)
    return np.concatenate([halves[0], gap, halves[1]], axis=1)


def write_pairs(
    folder: Path,
    images: Sequence[ComparedImage],
    reference: tuple[str, Predictor],
    engine: tuple[str, Predictor],
    *,
    score_threshold: float = SCORE_THRESHOLD,
) -> list[Path]:
    """Write :func:`draw_pair` of each picture as JPEG, numbered in the order of the list: the worst first.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    paths = []
    for place, image in enumerate(images, 1):
        pair = draw_pair(read_image(image.path), reference, engine, score_threshold=score_threshold)
        paths.append(folder / f"{place:02d}_{image.path.stem}.jpg")
        write_bytes(paths[-1], cv2.imencode(".jpg", pair, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())
    return paths


def _run(predictor: Predictor, picture: NDArray[np.uint8]) -> tuple[Outputs, Detections]:
    outputs = predictor.backend.run(predictor.preprocess([picture]))
    return outputs, predictor.postprocess(outputs, 0, picture.shape, lazy_masks=predictor.lazy_masks)


class _TensorMeter:
    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}  # largest difference, sum, count, largest value
        self._comparable = True

    def add(self, a: Outputs, b: Outputs) -> None:
        if not isinstance(a, HeadOutputs) or not isinstance(b, HeadOutputs):
            self._comparable = False
            return
        self._comparable &= all(x.shape[1:] == y.shape[1:] for x, y in zip(a, b, strict=True))
        if not self._comparable:
            return
        for name, x, y in zip(HeadOutputs._fields, a, b, strict=True):
            difference = np.abs(x[:1].astype(np.float64) - y[:1])  # further slots only fill up a fixed batch
            sums = self._sums.setdefault(name, [0.0, 0.0, 0.0, 0.0])
            sums[0] = max(sums[0], float(difference.max()))
            sums[1] += float(difference.sum())
            sums[2] += difference.size
            sums[3] = max(sums[3], float(np.abs(x[:1]).max()))

    def result(self) -> dict[str, TensorDifference] | None:
        if not self._comparable or not self._sums:
            return None
        return {name: TensorDifference(s[0], s[1] / s[2], s[3]) for name, s in self._sums.items()}
