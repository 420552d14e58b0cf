"""Checks that an exported file computes what the eager model computes. Runs after every export; needs torch.

Trunk and tail are checked separately, and both must pass. Trunk: how far are boxes, scores, coefficients and prototypes
from those of the eager model in FP32? Tail: do the functions in the file return the same detections as the NumPy
reference, given the same heads? The effect of both together on the detections is reported but is no gate, since
near-ties may swap.

If a precision rounds so much that it could hide an error of the graph, the graph before lowering is compared as well,
as closely as an FP32 file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.agreement import SCORE_THRESHOLD, Agreement, AgreementMeter
from yolact_deploy.export.quantization_noise import LIMIT_DB, TensorNoise
from yolact_deploy.graph.tensor_probe import TensorProbe
from yolact_deploy.model import YolactModel
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import HeadOutputs
from yolact_deploy.runtime.torch.torch_backend import TorchBackend
from yolact_deploy.samples import sample_images

#: largest root-mean-square error of a head, relative to the spread of its values. Rounding alone gives about 4e-6 in
#: FP32; in FP16 3e-3 with random weights, and 2.3e-2 with the trained model of the demo on pictures unlike its training
#: data, where scores are undecided; in BF16, with three bits less, 5e-2 and 0.13. A wrong graph gives 0.1 or more.
RELATIVE_LIMITS = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 0.3, "int8": 0.6}

#: largest difference between file and NumPy in the mask score of a detection; both compute in FP32
MASK_SCORE_LIMIT = 1e-3

#: minimum share of the reference's detections that the functions in the file must return; exact ties may differ
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
    #: largest difference of mask scores in ``tail``; None if the network has no mask scores
    mask_scores: float | None = None
    #: the graph before it was lowered, if that was compared
    traced: tuple[TensorParity, ...] = ()
    #: noise of each quantized activation of an INT8 file, the worst first
    noise: tuple[TensorNoise, ...] = ()

    @property
    def failures(self) -> list[str]:
        """What is wrong, in words; empty if the export is good."""
        wrong = [
            f"{tensor.name} {where}differ by {tensor.relative_rms:.2g} (relative RMS; at most {tensor.limit:g})"
            for where, tensors in (("of the graph in FP32 ", self.traced), ("", self.tensors))
            for tensor in tensors
            if not tensor.ok
        ]
        noisy = [tensor for tensor in self.noise if not tensor.ok]
        if noisy:
            wrong.append(
                f"the calibration does not fit {len(noisy)} of {len(self.noise)} activations (signal to noise of the "
                f"worst, {noisy[0].name}: {noisy[0].sqnr_db:.1f} dB; at least {LIMIT_DB:g})"
            )
        tail = self.tail
        if tail is not None and tail.missed + tail.extra > (1 - TAIL_LIMIT) * tail.reference_detections:
            wrong.append(
                f"of {tail.reference_detections} detections of the reference from the same heads, the functions in the "
                f"file miss {tail.missed} and return {tail.extra} others"
            )
        if self.mask_scores is not None and not self.mask_scores <= MASK_SCORE_LIMIT:
            wrong.append(
                f"mask scores differ by {self.mask_scores:.2g} between file and NumPy (at most {MASK_SCORE_LIMIT:g})"
            )
        return wrong

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "tensors": [{**asdict(t), "ok": t.ok} for t in self.tensors],
            "traced": [{**asdict(t), "ok": t.ok} for t in self.traced],
            "noise": [{"name": t.name, "sqnr_db": round(t.sqnr_db, 2), "ok": t.ok} for t in self.noise],
            "tail": None if self.tail is None else self.tail.to_json(),
            "eager": self.eager.to_json(),
            **({} if self.mask_scores is None else {"mask_scores": self.mask_scores}),
        }


def check_parity(
    model: YolactModel,
    onnx_path: Path,
    images: Sequence[Path] = (),
    traced: Sequence[HeadOutputs] = (),
    noise: Sequence[TensorNoise] = (),
) -> ParityReport:
    """Compare an ONNX file in ONNX Runtime with the model it was made from.

    Args:
        images: pictures to compare on; by default those of the package that suit the model
        traced: heads of each picture from the graph before it was lowered, see :func:`run_heads`
        noise: noise of each activation of an INT8 file
    """
    pictures = [read_image(path) for path in (images or sample_images(model.config.class_names))]
    host = OnnxRuntimeBackend(onnx_path, tail="host")
    metadata = host.metadata
    engine = Predictor(host, score_threshold=0.0)
    eager = Predictor(TorchBackend(model, input_dtype=metadata.input_dtype), score_threshold=0.0, nms=engine.nms)
    expected_heads, expected = _run(eager, pictures)
    heads, detections = _run(engine, pictures)
    tail = mask_scores = None
    if metadata.tail == "functions":
        with Predictor(OnnxRuntimeBackend(onnx_path, tail="graph"), score_threshold=0.0) as whole:
            by_graph = [whole(picture) for picture in pictures]
        meter = _compare(detections, by_graph, 0.0)
        tail, detections = meter.result(), by_graph
        if metadata.config.mask_iou:
            mask_scores = max((d for image in meter.images for d in image.mask_score_differences), default=0.0)
    return ParityReport(
        images=len(pictures),
        tensors=_compare_tensors(expected_heads, heads, RELATIVE_LIMITS[metadata.precision]),
        tail=tail,
        eager=_compare(expected, detections, SCORE_THRESHOLD).result(),
        mask_scores=mask_scores,
        traced=_compare_tensors(expected_heads, traced, RELATIVE_LIMITS["fp32"]) if traced else (),
        noise=tuple(noise),
    )


def run_heads(graph: Any, images: Sequence[Path]) -> list[HeadOutputs]:
    """The raw heads of each picture from an FP32 ``ModelProto`` in ONNX Runtime, with or without a tail behind them."""
    probe = TensorProbe(graph)
    probe.read(*(output.name for output in probe.graph.output))
    return [
        HeadOutputs(*(values[i : i + 1] for values in heads))
        for count, heads in probe.run(images)
        for i in range(count)
    ]


def _compare(reference: Sequence[Detections], actual: Sequence[Detections], score_threshold: float) -> AgreementMeter:
    meter = AgreementMeter(score_threshold=score_threshold)
    for pair in zip(reference, actual, strict=True):
        meter.add(*pair)
    return meter


def _run(predictor: Predictor, pictures: Sequence[NDArray[np.uint8]]) -> tuple[list[HeadOutputs], list[Detections]]:
    """Raw heads and detections of each picture."""
    heads, detections = [], []
    for picture in pictures:
        outputs = predictor.backend.run(predictor.preprocess([picture]))
        assert isinstance(outputs, HeadOutputs)  # the backends were opened that way
        heads.append(outputs)
        detections.append(predictor.postprocess(outputs, 0, picture.shape, lazy_masks=False))
    return heads, detections


def _compare_tensors(
    expected: Sequence[HeadOutputs], actual: Sequence[HeadOutputs], limit: float
) -> tuple[TensorParity, ...]:
    rows = []
    for field, name in enumerate(HeadOutputs._fields):
        reference = np.concatenate([heads[field][:1].ravel() for heads in expected]).astype(np.float64)
        error = np.concatenate([heads[field][:1].ravel() for heads in actual]) - reference
        spread = max(float(reference.std()), np.finfo(np.float32).tiny)
        relative = float(np.sqrt(np.mean(error**2))) / spread
        rows.append(TensorParity(name, float(np.abs(error).max()), relative, limit))
    return tuple(rows)
