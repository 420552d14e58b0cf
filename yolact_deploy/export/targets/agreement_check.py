"""Holds what a target wrote against the ONNX file that it was made from, on the pictures of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import ExportError
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import HeadOutputs, Outputs, numpy_tail
from yolact_deploy.samples import sample_images

#: smallest share of detections on which both must agree, by what the trunk computes in. Runtimes sum in another order;
#: in 8 bits a value may then fall into the next step.
LIMITS = {"fp32": 0.98, "fp16": 0.95, "bf16": 0.8, "int8": 0.8}
#: for heads, the largest root-mean-square difference relative to the spread of the values
HEAD_LIMITS = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 0.3, "int8": 0.6}

#: from images [N, H, W, 3] of the file's input dtype to the outputs in the order of ``metadata.outputs``
Run = Callable[[NDArray[Any]], tuple[NDArray[Any], ...]]


class _Target(Backend):
    """What a target wrote, as a backend."""

    name = "target"

    def __init__(self, run: Run, metadata: Metadata, *, heads: bool) -> None:
        self._run, self.metadata, self.precision = run, metadata, metadata.precision
        self.tail = numpy_tail(metadata.config, heads=heads)

    def run(self, images: NDArray[Any]) -> Outputs:
        return self.tail.outputs(*self._run(images))

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name}


def check_agreement(
    source: TargetSource, run: Run, *, target: str, heads: bool = False, precision: str | None = None
) -> None:
    """Raise :class:`ExportError` unless a target computes what the ONNX file does in ONNX Runtime.

    Args:
        run: runs the target on images [N, H, W, 3]; returns NumPy arrays
        target: its name, for the error
        heads: the target ends in boxes, scores, coefficients and prototypes, whatever the file ends in
        precision: what the target computes in, if that is less than the file has
    """
    precision = precision or source.metadata.precision
    heads = heads or source.metadata.tail == "heads"
    reference = Predictor(OnnxRuntimeBackend(source.onnx_path, tail="host" if heads else "graph"), score_threshold=0.0)
    written = Predictor(_Target(run, source.metadata, heads=heads), score_threshold=0.0)
    meter = AgreementMeter()
    failures = []
    for path in sample_images(source.metadata.config.class_names):
        picture = read_image(path)
        images = reference.preprocess([picture])
        expected, actual = reference.backend.run(images), written.backend.run(images)
        if isinstance(expected, HeadOutputs):
            failures += _different_heads(expected, actual, HEAD_LIMITS[precision])
        meter.add(*(
            predictor.postprocess(outputs, 0, picture.shape, lazy_masks=False)
            for predictor, outputs in ((reference, expected), (written, actual))
        ))  # fmt: skip
    agreed = meter.result()
    detections = agreed.reference_detections
    if agreed.missed + agreed.extra > max((1 - LIMITS[precision]) * detections, 0 if precision == "fp32" else 1):
        failures.append(f"of {detections} detections it misses {agreed.missed} and returns {agreed.extra} others")
    if failures:
        raise ExportError(
            f"the {target} form disagrees with the ONNX file: {'; '.join(failures[:4])}. It was not kept; the ONNX "
            "file is good"
        )


def _different_heads(expected: HeadOutputs, actual: Any, limit: float) -> list[str]:
    failures = []
    for name, a, b in zip(HeadOutputs._fields, expected, actual, strict=True):
        spread = max(float(a.std()), np.finfo(np.float32).tiny)
        error = float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2))) / spread
        if not error <= limit:
            failures.append(f"{name} differ by {error:.2g} (relative RMS; at most {limit:g})")
    return failures
