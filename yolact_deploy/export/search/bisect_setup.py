"""The inputs of ``compare --bisect``: the FP32 file, the precision, and how graphs are lowered to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.datasets.calibration_images import calibration_apart
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
class BisectSetup:
    """What to bisect.

    Attributes:
        path: the FP32 file
        precision: of the lowered layers
        change: lowers a graph to this precision
        notes: for the user
    """

    path: Path
    precision: str
    change: Change
    notes: tuple[str, ...] = ()


def set_up_bisect(
    choice: str,
    reference: tuple[str, Predictor],
    engine: tuple[str, Predictor],
    judged: CocoImages,
    *,
    calibration: str | None = None,
    calibration_images: int | None = None,
    calibration_method: str = CALIBRATION_METHODS[0],
    progress: Progress = SILENT,
) -> BisectSetup:
    """Choose the file and precision; INT8 calibrates on pictures that are not judged.

    Args:
        choice: a precision, or "engine" for the engine's
        reference, engine: (specification, predictor) of the two models; one of them must be an FP32 ONNX file
        calibration: folder of pictures or COCO folder for INT8 ranges
        calibration_images: how many of them, spread evenly
        calibration_method: one of :data:`~yolact_deploy.vocabulary.CALIBRATION_METHODS`

    Raises:
        InputError: no FP32 file, a precision that cannot be bisected, or one that does not fit ``calibration``.
    """
    path = _fp32_file(reference, engine)
    backend = engine[1].backend
    precision = backend.precision if choice == "engine" else choice
    if precision not in (*HALF_PRECISIONS, "int8"):
        raise InputError(f"--bisect: the engine computes in {precision}; name the precision, as in --bisect fp16")
    if precision == "int8" and not calibration:
        raise InputError("--bisect in int8 requires pictures for the ranges: add --calibration DIR")
    if precision != "int8" and calibration:
        raise InputError(f"--bisect in {precision} does not use --calibration: leave it out")
    if not calibration:
        return BisectSetup(path, precision, half_precision(precision))
    paths, note = calibration_apart(calibration, calibration_images, judged)
    ranges = calibrate(read_onnx(path), paths, method=calibration_method, progress=progress)
    quantization = backend.metadata.quantization
    change = int8(ranges, quantization["target"] if quantization else "symmetric")
    return BisectSetup(path, precision, change, tuple(filter(None, (note, *ranges.notes))))


def _fp32_file(*models: tuple[str, Predictor]) -> Path:
    for spec, predictor in models:
        path = ModelSpec.parse(spec).path
        if path.suffix.lower() in ONNX_SUFFIXES and predictor.backend.metadata.precision == "fp32":
            return path
    raise InputError(
        "--bisect needs an FP32 ONNX file as --reference or --engine: make it with 'yolact-deploy export --fp32'"
    )
