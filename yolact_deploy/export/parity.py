"""Does an exported file compute what the eager model computes? Run after every export; needs torch.

Two questions, kept apart. The trunk: how far are boxes, scores, coefficients and prototypes from the eager model in
FP32? The tail: do the functions in the file find the same detections as the NumPy reference from the same heads? Both
must hold. How the two together change the detections is reported, but near-ties may swap, so that is no gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.agreement import SCORE_THRESHOLD, Agreement, AgreementMeter
from yolact_deploy.detections import Detections
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.backend import HeadOutputs
from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.torch.backend import TorchBackend
from yolact_deploy.samples import sample_images
from yolact_deploy.training.model import YolactModel

#: largest root-mean-square error of a head, relative to the spread of its values. Rounding alone gives about 4e-6 in
#: FP32; in FP16 3e-3 with random weights, and 2.3e-2 with the demo's trained MobileNetV2, on pictures unlike those it
#: learnt from, where scores are undecided. A wrong graph gives 0.1 and more.
RELATIVE_LIMITS = {"fp32": 1e-4, "fp16": 5e-2}

#: least share of the reference's detections that the functions in the file must find; exact ties may differ
TAIL_LIMIT = 0.98


@dataclass(frozen=True)
class TensorParity:
    """One output of the heads against the eager model."""

    name: str
    max_error: float  #: largest absolute difference
    relative_rms: float  #: root-mean-square difference over the standard deviation of the eager values
    limit: float  #: for relative_rms

    @property
    def ok(self) -> bool:
        return self.relative_rms <= self.limit  # NaN is not


@dataclass(frozen=True)
class ParityReport:
    """An exported file against the eager model."""

    images: int
    tensors: tuple[TensorParity, ...]
    #: functions in the file against the NumPy reference; None for files that end in heads
    tail: Agreement | None
    #: the whole file against the eager model
    eager: Agreement

    @property
    def failures(self) -> list[str]:
        """What is wrong, in words; empty when the export is good."""
        wrong = [
            f"{tensor.name} differ by {tensor.relative_rms:.2g} (relative RMS; at most {tensor.limit:g})"
            for tensor in self.tensors
            if not tensor.ok
        ]
        tail = self.tail
        if tail is not None and tail.missed + tail.extra > (1 - TAIL_LIMIT) * tail.reference_detections:
            wrong.append(
                f"of the reference's {tail.reference_detections} detections from the same heads the functions in the "
                f"file miss {tail.missed}, and find {tail.extra} others"
            )
        return wrong

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "tensors": [{**asdict(t), "ok": t.ok} for t in self.tensors],
            "tail": None if self.tail is None else self.tail.to_json(),
            "eager": self.eager.to_json(),
        }


def check_parity(model: YolactModel, onnx_path: Path, images: Sequence[Path] = ()) -> ParityReport:
    """Compare an ONNX file in ONNX Runtime with the model it was made from.

    Args:
        images: pictures to compare on; the package's samples by default
    """
    pictures = [read_image(path) for path in (images or sample_images())]
    host = OnnxRuntimeBackend(onnx_path, tail="host")
    metadata = host.metadata
    engine = Predictor(host, score_threshold=0.0)
    eager = Predictor(TorchBackend(model, input_dtype=metadata.input_dtype), score_threshold=0.0, nms=engine.nms)

    expected = [_run(eager, picture) for picture in pictures]
    found = [_run(engine, picture) for picture in pictures]
    limit = RELATIVE_LIMITS[metadata.precision]
    tensors = _compare_tensors([heads for heads, _ in expected], [heads for heads, _ in found], limit)
    by_eager = [detections for _, detections in expected]
    by_engine = [detections for _, detections in found]
    tail = None
    if metadata.tail == "functions":
        with Predictor(OnnxRuntimeBackend(onnx_path, tail="graph"), score_threshold=0.0) as whole:
            by_graph = [whole(picture) for picture in pictures]
        tail, by_engine = _agreement(by_engine, by_graph, 0.0), by_graph
    return ParityReport(len(pictures), tensors, tail, _agreement(by_eager, by_engine, SCORE_THRESHOLD))


def _agreement(reference: Sequence[Detections], found: Sequence[Detections], score_threshold: float) -> Agreement:
    meter = AgreementMeter(score_threshold=score_threshold)
    for pair in zip(reference, found, strict=True):
        meter.add(*pair)
    return meter.result()


def _run(predictor: Predictor, picture: NDArray[np.uint8]) -> tuple[HeadOutputs, Detections]:
    outputs = predictor.backend.run(predictor.preprocess([picture]))
    assert isinstance(outputs, HeadOutputs)  # both backends were opened so
    return outputs, predictor.postprocess(outputs, 0, picture.shape)


def _compare_tensors(
    expected: Sequence[HeadOutputs], found: Sequence[HeadOutputs], limit: float
) -> tuple[TensorParity, ...]:
    rows = []
    for field, name in enumerate(HeadOutputs._fields):
        reference = np.concatenate([heads[field][:1].ravel() for heads in expected]).astype(np.float64)
        error = np.concatenate([heads[field][:1].ravel() for heads in found]) - reference
        spread = max(float(reference.std()), np.finfo(np.float32).tiny)
        relative = float(np.sqrt(np.mean(error**2))) / spread
        rows.append(TensorParity(name, float(np.abs(error).max()), relative, limit))
    return tuple(rows)
