"""What ``export`` prints: ranges, calibration, search and parity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolact_deploy.console import print_table, print_text

if TYPE_CHECKING:
    from yolact_deploy.export.overflow import RangeReport
    from yolact_deploy.export.parity import ParityReport
    from yolact_deploy.export.pipeline import Exported
    from yolact_deploy.export.search.layer_search import SearchResult

_MOST_LISTED = 8


def print_export(exported: Exported) -> None:
    """Print all that was measured and compared."""
    measured, metadata = exported.measured, exported.metadata
    if measured.ranges is not None:
        _print_ranges(measured.ranges)
    if measured.calibration is not None:
        print_text(f"calibrated on {measured.calibration.images} images ({measured.calibration.method})")
    if measured.search is not None:
        _print_search(measured.search)
    _print_parity(exported.parity)
    if metadata.precision == "int8" and not metadata.has_zero_points:
        print_text(
            "this INT8 form suits TensorRT, OpenVINO and this package. In programs that use ONNX Runtime directly, "
            "most of it computes in FP32 and is slower than an FP32 file: export with --target onnxruntime for those"
        )
    if metadata.config.mask_iou and metadata.tail == "heads":
        print_text("a file that ends in heads has no mask scores: masks are ranked by the scores of their boxes")


def _print_ranges(ranges: RangeReport) -> None:
    from yolact_deploy.export.overflow import LARGEST, SAFE_SHARE

    limit = f"FP16 ends at {LARGEST:g}"
    if ranges.unsafe:
        print_table(
            ("layer", "kept in FP32 because of"),
            ranges.unsafe.items(),
            title=f"{len(ranges.unsafe)} of {len(ranges.layers)} layers exceed FP16 in {ranges.images} images "
            f"({limit}; layers above {LARGEST * SAFE_SHARE:g} stay in FP32)",
        )
    else:
        widest = ranges.widest
        reach = f"values up to {widest.largest:.3g}, in {widest.layer}"
        print_text(f"no layer overflows in {ranges.images} images: {reach}; {limit}")
    for layer in ranges.near:
        print_text(f"{layer.layer} comes near the end of FP16 with values up to {layer.largest:.3g}, but stays in FP16")


def _print_search(result: SearchResult) -> None:
    """Tables of what blocks and layers cost, and what the result does to accuracy."""
    from yolact_deploy.benchmarks.cost_tables import cost_tables, search_notes, search_table

    for table in (
        *cost_tables(result.precision, result.ranking_images, result.blocks, result.costs, _MOST_LISTED),
        search_table(result),
    ):
        print_table(table.columns, table.rows, title=table.title)
    if result.keep_fp32:
        kept = f"{len(result.keep_fp32)} of {result.layers} layers stay in FP32: {', '.join(result.keep_fp32)}"
    else:
        kept = f"no layer has to stay in FP32: {result.target}"
    for text in (kept, *(f"note: {note}" for note in search_notes(result))):
        print_text(text)


def _print_parity(parity: ParityReport) -> None:
    print_table(
        ("output", "max error", "relative RMS", "limit", ""),
        [
            (t.name + where, f"{t.max_error:.2g}", f"{t.relative_rms:.2g}", f"{t.limit:g}", "ok" if t.ok else "FAILED")
            for where, tensors in ((" before rounding", parity.traced), ("", parity.tensors))
            for t in tensors
        ],
        title=f"ONNX Runtime against eager FP32, {parity.images} images",
    )
    if parity.mask_scores is not None:
        print_text(f"mask scores: those of the file differ from NumPy by {parity.mask_scores:.2g} at most")
    if parity.noise:
        worst, middle = parity.noise[0], parity.noise[len(parity.noise) // 2]
        print_text(
            f"signal to noise of {len(parity.noise)} quantized activations: minimum {worst.sqnr_db:.1f} dB, in "
            f"{worst.name}; median {middle.sqnr_db:.1f} dB"
        )
    rows = [("eager model", parity.eager)]
    if parity.tail is not None:
        rows.append(("NumPy tail, from the same heads", parity.tail))
    print_table(
        ("file against", "score above", "detections", "matched", "extra", "box IoU", "mask IoU", "score drift"),
        [
            (
                name,
                a.score_threshold,
                a.reference_detections,
                a.reference_detections - a.missed,
                a.extra,
                _figure(a.mean_box_iou, ".4f"),
                _figure(a.mean_mask_iou, ".4f"),
                _figure(a.max_score_difference, ".1e"),
            )
            for name, a in rows
        ],
    )


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
