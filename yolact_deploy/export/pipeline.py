"""A checkpoint to a checked ONNX file: what ``yolact-deploy export`` does; needs torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import Metadata, atomic_write, sha256_file
from yolact_deploy.errors import ExportError
from yolact_deploy.export.calibration import Calibration, calibrate
from yolact_deploy.export.onnx import export_onnx
from yolact_deploy.export.overflow import RangeReport, measure_ranges
from yolact_deploy.export.parity import ParityReport, check_parity, run_heads
from yolact_deploy.export.quantization_noise import TensorNoise, quantization_noise
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.graph.onnx_graph import copy_model
from yolact_deploy.model import YolactModel
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.tails import HeadOutputs
from yolact_deploy.samples import sample_images
from yolact_deploy.vocabulary import CALIBRATION_METHODS

#: precisions whose rounding alone can be as large as the error of a wrong graph
_COARSE = ("bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How to quantise; see :func:`yolact_deploy.export.calibration.calibrate` and :func:`quantize_trunk`.

    Attributes:
        images: pictures to calibrate on
        state: folder in which an interrupted calibration is kept
        progress: of the calibration
        find_layers: told the graph in FP32, its metadata and the ranges, names layers to keep in FP32 with the reasons
    """

    images: Sequence[Path]
    method: str = CALIBRATION_METHODS[0]
    target: str = "symmetric"
    state: Path | None = None
    progress: Progress = SILENT
    find_layers: Callable[[Any, Metadata, Calibration], Mapping[str, str]] | None = None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the file should be; see :func:`yolact_deploy.export.onnx.export_onnx`.

    Attributes:
        find_overflow: in FP16, keep the layers in FP32 whose values FP16 cannot hold
        int8: needed where the precision is "int8"
    """

    precision: str = "fp32"
    tail: str = "functions"
    batch: tuple[int, int, int] = (1, 1, 1)
    input_dtype: str = "uint8"
    cross_class: bool = False
    keep_fp32: tuple[str, ...] = ()
    find_overflow: bool = True
    int8: Int8Options | None = None


@dataclass(frozen=True)
class Exported:
    """What was written, and what was found out about it.

    Attributes:
        ranges: how large values become, where that was looked at
        calibration: that an INT8 file was made from
    """

    metadata: Metadata
    parity: ParityReport
    ranges: RangeReport | None
    calibration: Calibration | None = None


def export_checkpoint(
    model: YolactModel,
    weights: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str],
    options: ExportOptions,
    check_images: Sequence[Path] = (),
    range_images: Iterable[Path] | None = None,
) -> Exported:
    """Write ``onnx_path`` from a model and the checkpoint it was read from, if the file computes what the model does.

    Args:
        check_images: pictures for the comparison; the package's samples by default
        range_images: pictures on which FP16 must not overflow; by default those of the comparison

    Raises:
        ExportError: the file disagrees with the eager model, or the options do not fit; no file is left.
        InputError: a file that is not a picture.
        OutputError: the file cannot be written.
    """
    compared = check_images or sample_images()
    tracing = _Tracing(options, compared, compared if range_images is None else range_images)
    with atomic_write(onnx_path) as temporary:  # first, so that an unwritable place is known before the work
        metadata = export_onnx(
            model,
            temporary,
            precision=options.precision,
            tail=options.tail,
            batch=options.batch,
            input_dtype=options.input_dtype,
            cross_class=options.cross_class,
            weights_sha256=sha256_file(Path(weights)),
            keep_fp32=options.keep_fp32,
            on_traced=tracing.look,
            quantize=tracing.quantize if options.int8 else None,
        )
        report = check_parity(model, temporary, compared, tracing.heads, tracing.noise)
        if report.failures:
            cure = _CURES.get(options.precision, "try --fp32")
            reasons = "; ".join(report.failures)
            raise ExportError(f"the exported file disagrees with the eager model: {reasons}. Nothing was kept; {cure}")
    return Exported(metadata, report, tracing.ranges, tracing.calibration)


_CURES = {
    "fp32": "please report it",
    "int8": "calibrate with more pictures like those that the network will see, keep layers in FP32 (--keep-fp32), or "
    "try --fp16",
}


class _Tracing:
    """Looks at the graph between tracing, in FP32, and lowering.

    Attributes:
        ranges: what FP16 must hold
        heads: of each picture of the comparison, where the precision hides what is wrong with the graph
        calibration: of an INT8 file
        noise: that each of its activations gets
    """

    def __init__(self, options: ExportOptions, compared: Sequence[Path], range_images: Iterable[Path]) -> None:
        self._options, self._compared, self._range_images = options, compared, range_images
        self.ranges: RangeReport | None = None
        self.heads: Sequence[HeadOutputs] = ()
        self.calibration: Calibration | None = None
        self.noise: Sequence[TensorNoise] = ()

    def look(self, graph: Any, metadata: Metadata) -> Mapping[str, str]:
        """Layers to keep in FP32, with the reasons."""
        if self._options.precision in _COARSE:
            self.heads = run_heads(graph, self._compared)
        if self._options.precision != "fp16" or not self._options.find_overflow:
            return {}
        self.ranges = measure_ranges(graph, self._range_images)
        return self.ranges.unsafe

    def quantize(self, graph: Any, metadata: Metadata) -> Metadata:
        """Turn the graph to INT8 in place; gives the metadata that says so."""
        options = self._options.int8
        assert options is not None  # export_onnx asks only then
        found = calibrate(graph, options.images, method=options.method, state=options.state, progress=options.progress)
        if options.find_layers is not None:
            more = options.find_layers(graph, metadata, found)
            reasons = {**metadata.keep_reasons, **more}
            metadata = replace(metadata, keep_fp32=(*metadata.keep_fp32, *more), keep_reasons=reasons)
        exact = copy_model(graph)
        quantize_trunk(graph, found, target=options.target, keep_fp32=metadata.keep_fp32)
        self.calibration = found
        self.noise = quantization_noise(exact, graph, self._compared)
        how = {"target": options.target, "method": found.method}
        which = {"images": found.images, "images_sha256": found.images_sha256}
        return replace(metadata, quantization={**how, **which})
