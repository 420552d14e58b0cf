"""A checkpoint to a checked ONNX file, and on to an engine: what ``yolact-deploy export`` does; needs torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.artifact import Metadata, atomic_write, sha256_file
from yolact_deploy.errors import ExportError
from yolact_deploy.export.onnx import export_onnx
from yolact_deploy.export.parity import ParityReport, check_parity
from yolact_deploy.training.model import YolactModel


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the file should be; see :func:`yolact_deploy.export.onnx.export_onnx`."""

    precision: str = "fp32"
    tail: str = "functions"
    batch: tuple[int, int, int] = (1, 1, 1)
    input_dtype: str = "uint8"
    cross_class: bool = False
    keep_fp32: tuple[str, ...] = ()


def export_checkpoint(
    model: YolactModel,
    weights: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str],
    options: ExportOptions,
    check_images: Sequence[Path] = (),
) -> tuple[Metadata, ParityReport]:
    """Write ``onnx_path`` from a model and the checkpoint it was read from, if the file computes what the model does.

    Args:
        check_images: pictures for the comparison; the package's samples by default

    Raises:
        ExportError: the file disagrees with the eager model, or the options do not fit; no file is left.
        OutputError: the file cannot be written.
    """
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
        )
        report = check_parity(model, temporary, check_images)
        if report.failures:
            cure = "try --fp32" if options.precision != "fp32" else "please report it"
            reasons = "; ".join(report.failures)
            raise ExportError(f"the exported file disagrees with the eager model: {reasons}. Nothing was kept; {cure}")
    return metadata, report
