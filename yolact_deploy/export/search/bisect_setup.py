"""The inputs of ``compare --bisect``: the FP32 file, the precision, and how graphs are lowered to it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.datasets.held_out import calibration_apart
from yolact_deploy.datasets.image_sets import CocoImages
from yolact_deploy.errors import InputError
from yolact_deploy.export.calibration import calibrate
from yolact_deploy.export.search.changes import half_precision, int8
from yolact_deploy.export.search.trials import Change
from yolact_deploy.graph.onnx_graph import read_onnx
from yolact_deploy.loading import ModelSpec
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.vocabulary import CALIBRATION_METHODS, HALF_PRECISIONS, ONNX_SUFFIXES


@dataclass(frozen=True)
class CalibrationChoice:
    """Pictures for INT8 ranges, and how ranges are chosen.

    Attributes:
        source: folder of pictures or COCO folder
        images: how many of them, spread evenly
        method: by default that of the export
    """

    source: str | os.PathLike[str]
    images: int
    method: str | None = None


def fp32_file(*models: tuple[str, Predictor]) -> Path:
    """The file of the first model that is an FP32 ONNX file; models are (spec, predictor).

    Raises:
        InputError: none of them is.
    """
    for spec, predictor in models:
        path = ModelSpec.parse(spec).path
        if path.suffix.lower() in ONNX_SUFFIXES and predictor.backend.metadata.precision == "fp32":
            return path
    raise InputError(
        "--bisect needs an FP32 ONNX file as --reference or --engine: make it with 'yolact-deploy export --fp32'"
    )


def bisect_precision_of(choice: str, engine: Predictor, *, calibrated: bool) -> str:
    """The precision to bisect: ``choice``, or the engine's where that is "engine".

    Args:
        calibrated: whether there are pictures for INT8 ranges

    Raises:
        InputError: a precision that cannot be bisected, or that does not fit ``calibrated``.
    """
    precision = engine.backend.precision if choice == "engine" else choice
    if precision not in (*HALF_PRECISIONS, "int8"):
        raise InputError(f"--bisect: the engine computes in {precision}; name the precision, as in --bisect fp16")
    if precision == "int8" and not calibrated:
        raise InputError("--bisect in int8 requires pictures for the ranges: add --calibration DIR")
    if precision != "int8" and calibrated:
        raise InputError(f"--bisect in {precision} does not use --calibration: leave it out")
    return precision


def bisect_change(
    path: Path,
    precision: str,
    engine: Predictor,
    judged: CocoImages,
    calibration: CalibrationChoice | None,
    *,
    progress: Progress = SILENT,
) -> tuple[Change, list[str]]:
    """How graphs are lowered to ``precision``, and notes for the user. INT8 calibrates on unjudged pictures."""
    if calibration is None:
        return half_precision(precision), []
    paths, note = calibration_apart(calibration.source, calibration.images, judged)
    ranges = calibrate(read_onnx(path), paths, method=calibration.method or CALIBRATION_METHODS[0], progress=progress)
    quantization = engine.backend.metadata.quantization
    change = int8(ranges, quantization["target"] if quantization else "symmetric")
    return change, [text for text in (note, *ranges.notes) if text]
