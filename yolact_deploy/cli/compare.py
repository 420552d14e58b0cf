"""Compare two models on the same pictures: layer by layer, output by output and detection by detection.

Says in a sentence what is probably wrong with the engine where the two disagree: labels shifted, masks mirrored, input
channels swapped, a layer that is off. Layers can be compared of ONNX files in ONNX Runtime and OpenVINO on the CPU, and
of checkpoints; with --bisect those are found that must stay in FP32.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from yolact_deploy.datasets.image_sets import CocoImages
    from yolact_deploy.evaluation.comparison import CompareResult
    from yolact_deploy.evaluation.trunk_comparison import TrunkComparison
    from yolact_deploy.export.search.bisect import BisectResult, Target
    from yolact_deploy.export.search.trials import Change, Measured
    from yolact_deploy.runtime.predictor import Predictor

HELP = "compare two models, layer by layer, output by output and detection by detection"

_EPILOG = """\
examples:
  yolact-deploy compare --reference yolact_base_54_800000.pth --engine yolact_base.onnx --images pictures/
  yolact-deploy compare --reference m.onnx --engine m.onnx@openvino-bf16 --images a.jpg b.jpg --json
  yolact-deploy compare --reference w.pth --engine m.trt --images pictures/ --pictures worst/ --min-agreement 0.98
  yolact-deploy compare --reference fp32.onnx --engine fp16.onnx --images pictures/ --bisect --target-sqnr 60 \\
      --keep-list keep.json            then: yolact-deploy export --weights w.pth --fp16 --keep-fp32 keep.json
  yolact-deploy compare --reference m.onnx --engine m.onnx --images val2017/ --annotations instances_val2017.json \\
      --bisect int8 --calibration train2017/ --limit 200 --target-ap-drop 0.5 --keep-list keep.json

Exit code 1: --min-agreement was missed."""

_MOST_LISTED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--reference", required=True, metavar="MODEL", help="the model that is right")
    parser.add_argument("--engine", required=True, metavar="SPEC", help="the model to compare with it")
    parser.add_argument(
        "--images", required=True, nargs="+", metavar="DIR_OR_FILE", help="pictures, or folders of pictures"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--score", type=float, default=0.15, help="detections above this are judged (default 0.15)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="images to list and draw (default 5)")
    parser.add_argument("--pictures", metavar="DIR", help="write the worst images as pairs, the reference on the left")
    parser.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="share of the detections on which both must agree: class, and box and mask to an IoU of 0.9 (0..1)",
    )
    layers = parser.add_argument_group("layers")
    layers.add_argument(
        "--layer-images", type=int, default=2, metavar="N", help="pictures for layers and --bisect; 0: none (default 2)"
    )
    layers.add_argument(
        "--layer-threshold", type=float, default=0.02, metavar="RMS", help="relative RMS error to allow (default 0.02)"
    )
    layers.add_argument(
        "--layer-memory", type=int, default=256, metavar="MIB", help="memory for their tensors (default 256)"
    )
    bisect = parser.add_argument_group("mixed precision")
    bisect.add_argument(
        "--bisect",
        nargs="?",
        const="engine",
        choices=("engine", "fp16", "bf16", "int8"),
        help="measure what each block and layer costs in the engine's precision, or in the one named; int8 needs "
        "--calibration",
    )
    target = bisect.add_mutually_exclusive_group()
    target.add_argument(
        "--target-agreement", type=float, metavar="SHARE", help="find the layers to keep for this share of detections"
    )
    target.add_argument(
        "--target-sqnr", type=float, metavar="DB", help="find the layers to keep for this signal to noise ratio"
    )
    target.add_argument(
        "--target-ap-drop",
        type=float,
        metavar="POINTS",
        help="find the layers to keep so that at most so many points of AP (of 100) are lost, on all --images",
    )
    bisect.add_argument(
        "--annotations", metavar="FILE", help="COCO instances of the pictures in the folder --images, for AP"
    )
    bisect.add_argument(
        "--calibration",
        metavar="DIR_OR_COCO",
        help="of --bisect int8: pictures for the ranges, other ones than --images",
    )
    bisect.add_argument(
        "--calibration-images", type=int, default=500, metavar="N", help="how many of them, spread evenly (default 500)"
    )
    bisect.add_argument(
        "--calibration-method",
        choices=("minmax", "percentile", "entropy", "mse"),  # calibration.METHODS, not imported for the help
        help="how ranges are chosen (default: that of export)",
    )
    bisect.add_argument("--keep-list", metavar="FILE.json", help="write them, for 'export --keep-fp32'")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from yolact_deploy.artifact import write_json
    from yolact_deploy.console import print_json
    from yolact_deploy.datasets.image_sets import plain_images
    from yolact_deploy.evaluation.comparison import compare_models, write_pairs
    from yolact_deploy.evaluation.engines import EngineSource

    target = _check(args)
    images = _annotated(args) if args.annotations else plain_images(args.images, args.limit)
    sources = [EngineSource.from_spec(m, threads=args.threads) for m in (args.reference, args.engine)]
    bisected = None
    with sources[0].load() as a, sources[1].load() as b:
        reference, engine = (sources[0].name, a), (sources[1].name, b)
        if args.bisect:  # a precision or file that does not do should be known first
            bisect_file, precision = _bisect_file(args, a, b), _bisect_precision(args, b)
            change = _bisect_change(args, bisect_file, precision, b, images)
        trunk, why_not = _compare_layers(args, a, b, images)
        result = compare_models(
            reference, engine, images, score_threshold=args.score, trunk=trunk, progress=args.progress
        )
        written = []
        if args.pictures:
            worst = result.images[: args.worst]
            written = write_pairs(Path(args.pictures), worst, reference, engine, score_threshold=args.score)
        if args.bisect:
            bisected = _bisect(args, bisect_file, precision, change, target, images)
    if args.keep_list and bisected:
        write_json(args.keep_list, bisected.to_json())
    if args.json:
        print_json({**result.to_json(), "bisect": None if bisected is None else bisected.to_json()})
    elif not args.quiet:
        _print(result, args.worst, why_not)
        if bisected:
            _print_bisect(bisected, args.keep_list)
        if written:
            print(f"wrote {len(written)} pairs of pictures to {args.pictures}")
    _check_gate(args, result)
    return 0


def _check(args: argparse.Namespace) -> Target | None:
    """Refuse options that mean nothing before anything is loaded."""
    from yolact_deploy.errors import InputError
    from yolact_deploy.export.search.bisect import Target

    for name, least in (("limit", 1), ("layer_images", 0), ("layer_memory", 1), ("worst", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: expected {least} or more, got {value}")
    if not 0 <= args.score < 1:
        raise InputError(f"--score: expected 0 <= value < 1, got {args.score}")
    if not args.layer_threshold > 0:
        raise InputError(f"--layer-threshold: expected more than 0, got {args.layer_threshold}")
    if args.min_agreement is not None and not 0 < args.min_agreement <= 1:
        raise InputError(f"--min-agreement: expected 0 < share <= 1, got {args.min_agreement}")
    targets = (args.target_agreement, args.target_sqnr, args.target_ap_drop)
    has_target = any(value is not None for value in targets)
    if has_target and not args.bisect:
        raise InputError("--target-agreement, --target-sqnr and --target-ap-drop are of --bisect: give it, too")
    if args.keep_list and not has_target:
        raise InputError(
            "--keep-list needs --bisect with a target: --target-agreement, --target-sqnr or --target-ap-drop"
        )
    if args.target_ap_drop is not None and not args.annotations:
        raise InputError("--target-ap-drop needs ground truth: give --annotations FILE")
    if args.calibration and args.bisect not in ("int8", "engine"):
        raise InputError("--calibration is of --bisect int8: give that, too")
    if args.bisect == "int8" and not args.calibration:
        raise InputError("--bisect int8 needs pictures for the ranges: give --calibration DIR")
    if args.calibration_images < 1:
        raise InputError(f"--calibration-images: expected 1 or more, got {args.calibration_images}")
    return Target(*targets) if has_target else None


def _annotated(args: argparse.Namespace) -> CocoImages:
    from yolact_deploy.datasets.image_sets import open_images
    from yolact_deploy.errors import InputError

    if len(args.images) != 1:
        raise InputError("--annotations needs the pictures in one folder: give that alone as --images")
    return open_images(annotations=args.annotations, images_dir=args.images[0], limit=args.limit)


def _check_gate(args: argparse.Namespace, result: CompareResult) -> None:
    from yolact_deploy.errors import GateError

    if args.min_agreement is None:
        return
    share = result.agreement.agreed_share
    if share is not None and share < args.min_agreement:
        raise GateError(
            f"{result.engine} and {result.reference} agree on {share:.3f} of their detections, --min-agreement asks "
            f"for {args.min_agreement:g}: {result.diagnosis.sentence}"
        )


# -- layers ---------------------------------------------------------------------------------------------------------


def _compare_layers(
    args: argparse.Namespace, reference: Predictor, engine: Predictor, images: CocoImages
) -> tuple[TrunkComparison | None, str]:
    """The comparison, or why there is none."""
    from yolact_deploy.errors import BackendError
    from yolact_deploy.evaluation.taps import open_tap
    from yolact_deploy.evaluation.trunk_comparison import compare_trunks

    if args.layer_images == 0:
        return None, "--layer-images 0"
    try:
        a, b = (
            open_tap(spec, predictor.backend, threads=args.threads)
            for spec, predictor in ((args.reference, reference), (args.engine, engine))
        )
    except BackendError as error:
        return None, str(error)
    inputs = [(reference.preprocess([picture]), engine.preprocess([picture])) for picture in _pictures(args, images)]
    threshold, memory = args.layer_threshold, args.layer_memory << 20
    return compare_trunks(a, b, inputs, threshold=threshold, memory_bytes=memory, progress=args.progress), ""


def _pictures(args: argparse.Namespace, images: CocoImages) -> list[Any]:
    from yolact_deploy.preprocess import read_image

    return [read_image(path) for path in images.paths[: args.layer_images]]


# -- mixed precision ------------------------------------------------------------------------------------------------


def _bisect_file(args: argparse.Namespace, reference: Predictor, engine: Predictor) -> Path:
    """The FP32 file among the two models."""
    from yolact_deploy.errors import InputError
    from yolact_deploy.loading import ONNX_SUFFIXES, ModelSpec

    for spec, predictor in ((args.reference, reference), (args.engine, engine)):
        path = ModelSpec.parse(spec).path
        if path.suffix.lower() in ONNX_SUFFIXES and predictor.backend.metadata.precision == "fp32":
            return path
    raise InputError(
        "--bisect needs an FP32 ONNX file as --reference or --engine: make it with 'yolact-deploy export --fp32'"
    )


def _bisect_precision(args: argparse.Namespace, engine: Predictor) -> str:
    from yolact_deploy.errors import InputError
    from yolact_deploy.graph.half_precision import HALF_TYPES

    precision: str = engine.backend.precision if args.bisect == "engine" else args.bisect
    if precision not in (*HALF_TYPES, "int8"):
        raise InputError(f"--bisect: the engine computes in {precision}; name the precision, as in --bisect fp16")
    if (precision == "int8") != bool(args.calibration):
        have, cure = ("is without", "give it") if precision == "int8" else ("has", "leave it out")
        raise InputError(f"--bisect in {precision} {have} pictures for ranges (--calibration DIR): {cure}")
    return precision


def _bisect_change(
    args: argparse.Namespace, path: Path, precision: str, engine: Predictor, images: CocoImages
) -> Change:
    """How the graphs are changed; in INT8 after a calibration on other pictures."""
    import sys

    from yolact_deploy.export.search.changes import half_precision, int8

    if precision != "int8":
        return half_precision(precision)
    from yolact_deploy.datasets.held_out import calibration_apart
    from yolact_deploy.export.calibration import DEFAULT_METHOD, calibrate
    from yolact_deploy.graph.onnx_graph import read_onnx

    paths, note = calibration_apart(args.calibration, args.calibration_images, images)
    method = args.calibration_method or DEFAULT_METHOD
    calibration = calibrate(read_onnx(path), paths, method=method, progress=args.progress)
    if not args.quiet:
        for text in filter(None, (note, *calibration.notes)):
            print(f"note: {text}", file=sys.stderr)
    made_for = engine.backend.metadata.quantization
    return int8(calibration, made_for["target"] if made_for else "symmetric")


def _bisect(
    args: argparse.Namespace,
    path: Path,
    precision: str,
    change: Change,
    target: Target | None,
    images: CocoImages,
) -> BisectResult:
    from dataclasses import replace

    from yolact_deploy.export.search.bisect import bisect_precision

    return bisect_precision(
        path,
        replace(images, images=images.images[: args.layer_images]),
        precision=precision,
        change=change,
        target=target,
        judged=images if args.target_ap_drop is not None else None,
        score_threshold=args.score,
        threads=args.threads,
        progress=args.progress,
    )


# -- tables ---------------------------------------------------------------------------------------------------------


def _print(result: CompareResult, worst: int, why_not: str) -> None:
    import textwrap

    from yolact_deploy.benchmarks.tables import agreement_tables
    from yolact_deploy.console import print_table
    from yolact_deploy.evaluation.comparison import tensor_rows

    if result.trunk is None:
        print(textwrap.fill(f"note: layers are not compared: {why_not}", width=120))
    else:
        _print_layers(result.trunk)
    if result.tensors is not None:
        title = f"Raw outputs: {result.engine} against {result.reference}"
        print_table(("output", "max diff", "mean diff", "largest value"), tensor_rows(result.tensors), title=title)
    for table in agreement_tables(result.reference, [(result.engine, result.agreement)]):
        print_table(table.columns, table.rows, title=table.title)
    rows = [
        (
            image.file_name,
            image.agreement.reference,
            image.agreement.missed,
            image.agreement.extra,
            image.agreement.label_flips,
            f"{min(image.agreement.box_ious, default=1.0):.4f}",
            f"{min(image.agreement.mask_ious, default=1.0):.4f}",
            f"{max(image.agreement.score_differences, default=0.0):.4f}",
        )
        for image in result.images[:worst]
    ]
    if rows:
        columns = ("image", "detections", "missed", "extra", "flips", "least box IoU", "least mask IoU", "score drift")
        print_table(columns, rows, title="Images, the worst first")
    print(textwrap.fill(f"verdict: {result.diagnosis.sentence}", width=120))


def _print_layers(trunk: TrunkComparison) -> None:
    from yolact_deploy.console import print_table

    first = trunk.first_over
    rows = [
        (layer.name, f"{layer.max_error:.2e}", f"{layer.relative_rms:.2e}", f"{layer.sqnr_db:.1f}")
        for layer in trunk.worst(_MOST_LISTED)
    ]
    title = f"Layers: the worst of {len(trunk.layers)} tensors on {trunk.images} images"
    print_table(("tensor", "max error", "relative RMS", "SQNR dB"), rows, title=title)
    if first is None:
        print(f"no layer is over a relative RMS error of {trunk.threshold:g}")
    else:
        print(f"the first over a relative RMS error of {trunk.threshold:g} is {first.name} ({first.relative_rms:.2e})")
    if trunk.unmatched:
        print(f"{trunk.unmatched} tensors are in one of the two only")


def _print_bisect(result: BisectResult, keep_list: str | None) -> None:
    import textwrap

    from yolact_deploy.benchmarks.cost_tables import cost_tables
    from yolact_deploy.console import print_table
    from yolact_deploy.export.search.trials import least_decibels

    for table in cost_tables(result.precision, result.images, result.blocks, result.costs, _MOST_LISTED):
        print_table(table.columns, table.rows, title=table.title)
    print(f"all {len(result.costs)} layers in {result.precision}: {least_decibels(result.lowered)}")
    if result.target is None or result.mixed is None:
        return
    if not result.keep_fp32:
        print(f"{result.target}: met without keeping a layer in FP32")
        return
    kept = f"{result.target}: keep {len(result.keep_fp32)} in FP32 ({_reached(result.mixed)} with them)"
    print(textwrap.fill(f"{kept}: {', '.join(result.keep_fp32)}", width=120, break_on_hyphens=False))
    if keep_list:
        print(f"wrote {keep_list}: yolact-deploy export --{result.precision} --keep-fp32 {keep_list} ...")


def _reached(mixed: Measured) -> str:
    from yolact_deploy.export.search.layer_search import shortfall
    from yolact_deploy.export.search.trials import least_decibels

    return least_decibels(mixed) if mixed.relative_rms else shortfall(mixed)
