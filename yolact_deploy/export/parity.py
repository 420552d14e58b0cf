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

from yolact_deploy.artifact import Metadata
from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.agreement import Agreement, AgreementMeter
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

    A file of a range of sizes is compared at the usual size with all pictures, and at the outermost two with the first.

    Args:
        images: pictures to compare on; by default those of the package that suit the model
        traced: heads of each picture from the graph before it was lowered, see :func:`run_heads`
        noise: noise of each activation of an INT8 file
    """
    pictures = [read_image(path) for path in (images or sample_images(model.config.class_names))]
    checks = _Checks.of(model, onnx_path, pictures)
    metadata, expected_heads = checks.metadata, checks.expected_heads
    tail = None if checks.tail is None else checks.tail.result()
    mask_scores = None
    if checks.tail is not None and metadata.config.mask_iou:
        mask_scores = max((d for image in checks.tail.images for d in image.mask_score_differences), default=0.0)
    return ParityReport(
        images=len(pictures),
        tensors=_compare_tensors(expected_heads, checks.heads, RELATIVE_LIMITS[metadata.precision]),
        tail=tail,
        eager=checks.eager.result(),
        mask_scores=mask_scores,
        traced=_compare_tensors(expected_heads[: len(traced)], traced, RELATIVE_LIMITS["fp32"]) if traced else (),
        noise=tuple(noise),
    )


@dataclass
class _Checks:
    """Pictures through a file and the eager model, at each size that is checked.

    Attributes:
        metadata: of the file
        expected_heads: of the eager model, for each picture at the usual size and then for the first at others
        heads: of the file
        tail: functions in the file against the NumPy reference; None for files that end in heads
        eager: the whole file against the eager model
    """

    metadata: Metadata
    expected_heads: list[HeadOutputs]
    heads: list[HeadOutputs]
    tail: AgreementMeter | None
    eager: AgreementMeter

    @classmethod
    def of(cls, model: YolactModel, path: Path, pictures: Sequence[NDArray[np.uint8]]) -> _Checks:
        host = OnnxRuntimeBackend(path, tail="host")
        metadata, sizes = host.metadata, host.metadata.sizes
        whole = OnnxRuntimeBackend(path, tail="graph") if metadata.tail == "functions" else None
        checks = cls(metadata, [], [], AgreementMeter(score_threshold=0.0) if whole else None, AgreementMeter())
        usual = metadata.config.input_shape
        shapes = [usual] if sizes is None else list(dict.fromkeys((usual, sizes.low, sizes.high)))
        for shape in shapes:
            at_size = metadata.at_size(shape, path)
            network = model if sizes is None else model.at_size(at_size.config)
            for backend in filter(None, (host, whole)):
                backend.metadata = at_size
            checks._add(network, host, whole, pictures if shape == usual else pictures[:1])
        for backend in filter(None, (host, whole)):
            backend.close()
        return checks

    def _add(
        self,
        model: YolactModel,
        host: OnnxRuntimeBackend,
        whole: OnnxRuntimeBackend | None,
        pictures: Sequence[NDArray[np.uint8]],
    ) -> None:
        engine = Predictor(host, score_threshold=0.0)
        reference = TorchBackend(model, input_dtype=self.metadata.input_dtype)
        expected_heads, expected = _run(Predictor(reference, score_threshold=0.0, nms=engine.nms), pictures)
        heads, detections = _run(engine, pictures)
        self.expected_heads += expected_heads
        self.heads += heads
        if whole is not None:
            assert self.tail is not None  # made together
            by_graph = [Predictor(whole, score_threshold=0.0)(picture) for picture in pictures]
            _compare(self.tail, detections, by_graph)
            detections = by_graph
        _compare(self.eager, expected, detections)


def run_heads(graph: Any, images: Sequence[Path]) -> list[HeadOutputs]:
    """The raw heads of each picture from an FP32 ``ModelProto`` in ONNX Runtime, with or without a tail behind them."""
    probe = TensorProbe(graph)
    probe.read(*(output.name for output in probe.graph.output))
    return [
        HeadOutputs(*(values[i : i + 1] for values in heads))
        for count, heads in probe.run(images)
        for i in range(count)
    ]


def _compare(meter: AgreementMeter, reference: Sequence[Detections], actual: Sequence[Detections]) -> None:
    for pair in zip(reference, actual, strict=True):
        meter.add(*pair)


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
