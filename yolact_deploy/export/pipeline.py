"""A model to a checked ONNX file: trace, measure, lower or quantize, write, compare. Needs torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import Metadata, atomic_write, sha256_file
from yolact_deploy.datasets.calibration_images import calibration_apart, calibration_images, usable_images
from yolact_deploy.errors import ExportError
from yolact_deploy.export.calibration import Calibration, calibrate
from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.export.onnx import tool_versions, trace, write_onnx
from yolact_deploy.export.overflow import RangeReport, measure_ranges
from yolact_deploy.export.parity import ParityReport, check_parity, run_heads
from yolact_deploy.export.quantization_noise import TensorNoise, quantization_noise
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.export.search.layer_search import SearchResult, search_int8_layers
from yolact_deploy.export.spec import CALIBRATION_IMAGES, DEFAULT_SPEC, ExportSpec
from yolact_deploy.graph.onnx_graph import copy_model
from yolact_deploy.graph.trunk_graph import layer_names, select_layers, trunk_nodes
from yolact_deploy.model import YolactModel
from yolact_deploy.model.checkpoint import load_model
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.tails import HeadOutputs
from yolact_deploy.samples import sample_images
from yolact_deploy.samples.pretrained import resolve_weights

#: precisions whose rounding alone can be as large as the error of a wrong graph
_COARSE = ("bf16", "int8")

#: phases of an export, as its progress shows them
_PHASES = 4
_CURES = {
    "fp32": "please report it",
    "int8": "calibrate with more pictures like those that the network will see, keep layers in FP32 (--keep-fp32), or "
    "try --fp16",
}


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured on the FP32 graph before it was lowered.

    Attributes:
        heads: raw heads of each picture of the parity check, if the precision could hide an error of the graph
        ranges: largest values of each layer; FP16 only, also as the rest of INT8
        calibration: ranges of the activations; INT8 only
        search: the layers that must stay in FP32 to keep within limits; INT8 only
    """

    heads: Sequence[HeadOutputs] = ()
    ranges: RangeReport | None = None
    calibration: Calibration | None = None
    search: SearchResult | None = None

    @property
    def keep_reasons(self) -> Mapping[str, str]:
        """Layers to keep in FP32, each with the reason."""
        reasons = {} if self.ranges is None else self.ranges.unsafe
        return reasons if self.search is None else {**reasons, **self.search.reasons}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export.

    Attributes:
        metadata: as in the file
        parity: the file against the eager model
        measured: what the FP32 graph showed before it was lowered
    """

    metadata: Metadata
    parity: ParityReport
    measured: Measurements

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the pictures of the calibration, a sentence each."""
        return () if self.measured.calibration is None else self.measured.calibration.notes


def export_model(
    model: YolactModel | str | os.PathLike[str],
    output: str | os.PathLike[str],
    spec: ExportSpec = DEFAULT_SPEC,
    *,
    weights: str | os.PathLike[str] | None = None,
    check_images: Sequence[Path] = (),
    progress: Progress = SILENT,
) -> Exported:
    """Export a model to an ONNX file, and keep the file only if it computes what the model does.

    Args:
        model: a checkpoint, the name of published weights, or a model in memory
        output: the ONNX file
        weights: the checkpoint of a model in memory, for the record
        check_images: pictures for the comparison with the model; by default those of the package that suit it

    Raises:
        ExportError: the file disagrees with the model, or the spec does not fit it; no file is left.
        GateError: no INT8 graph keeps within ``spec.limits``.
        InputError: a file is not a picture.
        OutputError: the file cannot be written.
    """
    model, weights = _loaded(model, weights, spec)
    compared, pictures = check_images or sample_images(model.config.class_names), _calibration_pictures(spec, progress)
    # First the file, so that an unwritable place is known before the work.
    with atomic_write(output) as temporary, progress.steps(f"writing {Path(output).name}") as report:
        report("tracing", 0, _PHASES)
        sha256 = sha256_file(Path(weights)) if weights else ""
        metadata = spec.metadata(model.config, weights_sha256=sha256, versions=tool_versions())
        graph = trace(model, metadata)
        report("measuring", 1, _PHASES)
        measured = _measure(graph, metadata, spec, compared, pictures, progress)
        report("lowering", 2, _PHASES)
        metadata, noise = _lower(graph, metadata, spec, measured, compared)
        write_onnx(graph, metadata, temporary)
        report("comparing with the eager model", 3, _PHASES)
        parity = _compare(model, temporary, spec, compared, measured, noise)
        report("done", _PHASES, _PHASES)
    return Exported(metadata=metadata, parity=parity, measured=measured)


def _loaded(
    model: YolactModel | str | os.PathLike[str], weights: str | os.PathLike[str] | None, spec: ExportSpec
) -> tuple[YolactModel, str | os.PathLike[str] | None]:
    """The model in memory, and the checkpoint that it is from."""
    if isinstance(model, YolactModel):
        return model, weights
    weights = resolve_weights(os.fspath(model))
    return load_model(weights, **spec.of_checkpoint), weights


def _compare(
    model: YolactModel,
    path: Path,
    spec: ExportSpec,
    compared: Sequence[Path],
    measured: Measurements,
    noise: Sequence[TensorNoise] = (),
) -> ParityReport:
    """The comparison with the model; raises :class:`ExportError` if they disagree."""
    parity = check_parity(model, path, compared, measured.heads, noise)
    if parity.failures:
        reasons, cure = "; ".join(parity.failures), _CURES.get(spec.precision, "try --fp32")
        raise ExportError(f"the exported file disagrees with the eager model: {reasons}. Nothing was kept; {cure}")
    return parity


def _calibration_pictures(spec: ExportSpec, progress: Progress) -> list[Path]:
    """The pictures of ``spec.calibration``; those that limits are judged by are left out if enough others are there."""
    source, count = spec.calibration, spec.calibration_images or CALIBRATION_IMAGES
    if source is None:
        return []
    if not isinstance(source, (str, os.PathLike)):
        return list(source)
    if spec.judged is None:
        return calibration_images(source, count)
    pictures, note = calibration_apart(source, count, spec.judged)
    if note:
        progress.note(f"note: {note}")
    return pictures


def _measure(
    graph: Any,
    metadata: Metadata,
    spec: ExportSpec,
    compared: Sequence[Path],
    pictures: Sequence[Path],
    progress: Progress,
) -> Measurements:
    """Measure on the FP32 graph what its lowering depends on.

    Args:
        compared: pictures of the parity check
        pictures: those of the calibration
    """
    heads = run_heads(graph, compared) if spec.precision in _COARSE else ()
    ranges = _measure_ranges(graph, spec, compared, pictures, progress)
    if spec.precision == "int8":
        calibration = calibrate(graph, pictures, method=spec.method, state=spec.calibration_state, progress=progress)
        search = None
        if spec.limits is not None:
            assert spec.judged is not None  # the spec checks it
            metadata = _keep_more(graph, metadata, {} if ranges is None else ranges.unsafe)
            how, judged = {"form": spec.form, "rest": spec.rest}, spec.judged
            search = search_int8_layers(
                graph, metadata, calibration, pictures, judged, spec.limits, **how, progress=progress
            )
        return Measurements(heads=heads, ranges=ranges, calibration=calibration, search=search)
    return Measurements(heads=heads, ranges=ranges)


def _measure_ranges(
    graph: Any, spec: ExportSpec, compared: Sequence[Path], pictures: Sequence[Path], progress: Progress
) -> RangeReport | None:
    """The values of the trunk, if parts of it are to be in FP16."""
    if "fp16" not in (spec.precision, spec.rest) or not spec.overflow_check:
        return None
    if not pictures:
        return measure_ranges(graph, compared)
    every = [*compared, *usable_images(pictures).paths]
    return measure_ranges(graph, progress.track(every, "checking for overflow"))


def _keep_more(graph: Any, metadata: Metadata, reasons: Mapping[str, str]) -> Metadata:
    """The metadata with these layers kept in FP32 beside those that the user named."""
    if not reasons:
        return metadata
    named = select_layers(metadata.keep_fp32, layer_names(trunk_nodes(graph.graph)))
    more = {layer: reason for layer, reason in reasons.items() if layer not in named}
    return replace(metadata, keep_fp32=(*metadata.keep_fp32, *more), keep_reasons=more)


def _lower(
    graph: Any, metadata: Metadata, spec: ExportSpec, measured: Measurements, compared: Sequence[Path]
) -> tuple[Metadata, Sequence[TensorNoise]]:
    """Lower or quantize the graph, in place; returns its metadata and the noise of INT8 activations."""
    metadata = _keep_more(graph, metadata, measured.keep_reasons)
    calibration = measured.calibration
    if calibration is None:
        if spec.precision != "fp32":
            lower_trunk(graph, metadata.keep_fp32, precision=spec.precision)
        return metadata, ()
    exact = copy_model(graph)
    quantize_trunk(graph, calibration, target=spec.form, keep_fp32=metadata.keep_fp32)
    noise = quantization_noise(exact, graph, compared)
    quantization = {
        "target": spec.form,
        "method": calibration.method,
        "images": calibration.images,
        "images_sha256": calibration.images_sha256,
    }
    if spec.rest != "fp32":
        lower_trunk(graph, metadata.keep_fp32, precision=spec.rest)
        quantization["rest"] = spec.rest
    return replace(metadata, quantization=quantization), noise
