"""Compare two models on the same pictures: layer by layer, output by output and detection by detection.

If the models disagree, a verdict names the probable cause: shifted labels, mirrored masks, swapped input channels, or
the first layer that deviates. Layers can be compared for checkpoints and for ONNX files in ONNX Runtime or OpenVINO on
the CPU. --bisect measures which layers must stay in FP32.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.options.dataset_options import add_match_argument, class_match
from yolact_deploy.console import print_text
from yolact_deploy.vocabulary import CALIBRATION_METHODS, HALF_PRECISIONS

if TYPE_CHECKING:
    from yolact_deploy.datasets.image_sets import CocoImages
    from yolact_deploy.evaluation.comparison import ComparedImage, CompareResult
    from yolact_deploy.evaluation.trunk_comparison import TrunkComparison
    from yolact_deploy.export.search.bisect import BisectResult, Target
    from yolact_deploy.export.search.bisect_setup import BisectSetup
    from yolact_deploy.runtime.predictor import Predictor

_EPILOG = """\
examples:
  yolact-deploy compare --reference yolact_base_54_800000.pth --engine yolact_base.onnx --images pictures/
  yolact-deploy compare --reference m.onnx --engine m.onnx@openvino-bf16 --images a.jpg b.jpg --json
  yolact-deploy compare --reference w.pth --engine m.trt --images pictures/ --pictures worst/ --min-agreement 0.98
  yolact-deploy compare --reference fp32.onnx --engine fp16.onnx --images pictures/ --bisect --target-sqnr 60 \\
      --keep-list keep.json
  yolact-deploy export --weights w.pth --fp16 --keep-fp32 keep.json
  yolact-deploy compare --reference m.onnx --engine m.onnx --images val2017/ --annotations instances_val2017.json \\
      --bisect int8 --calibration train2017/ --limit 200 --target-ap-drop 0.5 --keep-list keep.json

Exit code 1: the agreement is below --min-agreement."""

_MOST_LISTED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--reference", required=True, metavar="MODEL", help="the model taken as correct")
    parser.add_argument("--engine", required=True, metavar="SPEC", help="the model to check against it")
    parser.add_argument(
        "--data", "--images", dest="images", required=True, nargs="+", metavar="DATA",
        help="pictures, folders of pictures, or one dataset: YAML file, COCO folder or annotations file",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--lenient", action="store_true", help="leave out images and annotations that are not sound")
    add_match_argument(parser)
    parser.add_argument(
        "--score-threshold", "--score", dest="score", type=float, default=0.15, metavar="X",
        help="score that a detection must exceed (default 0.15)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="images to list and draw (default 5)")
    parser.add_argument("--pictures", metavar="DIR", help="write the worst images as pairs, the reference on the left")
    parser.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="fail if the models agree on a smaller share (0..1) of detections; agreeing means the same class and an "
        "IoU of at least 0.9 for both box and mask",
    )
    _add_layer_arguments(parser.add_argument_group("layers"))
    _add_bisect_arguments(parser.add_argument_group("mixed precision"))


def _add_layer_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--layer-images", type=int, default=2, metavar="N", help="pictures for layers and --bisect; 0: none (default 2)"
    )
    group.add_argument(
        "--layer-threshold", type=float, default=0.02, metavar="RMS", help="relative RMS error to allow (default 0.02)"
    )
    group.add_argument(
        "--layer-memory", type=int, default=256, metavar="MIB", help="memory for their tensors (default 256)"
    )


def _add_bisect_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--bisect",
        nargs="?",
        const="engine",
        choices=("engine", *HALF_PRECISIONS, "int8"),
        help="measure the cost of each block and layer in the engine's precision or the given one; int8 requires "
        "--calibration",
    )
    target = group.add_mutually_exclusive_group()
    for option, metavar, text in (
        ("--target-agreement", "SHARE", "find the layers to keep to reach this share of matched detections"),
        ("--target-sqnr", "DB", "find the layers to keep to reach this signal-to-noise ratio"),
        ("--target-ap-drop", "POINTS", "find the layers to keep to lose at most this many points of AP (of 100) on "
         "all --images"),
    ):  # fmt: skip
        target.add_argument(option, type=float, metavar=metavar, help=text)
    group.add_argument(
        "--annotations", metavar="FILE", help="COCO instances file for the pictures in the folder --images, for AP"
    )
    group.add_argument(
        "--calibration", metavar="DIR_OR_COCO", help="with --bisect int8: pictures for the ranges, other than --images"
    )
    group.add_argument(
        "--calibration-images", type=int, default=500, metavar="N", help="number of these, spread evenly (default 500)"
    )
    group.add_argument(
        "--calibration-method",
        choices=CALIBRATION_METHODS,
        default=CALIBRATION_METHODS[0],
        help=f"how ranges are chosen (default {CALIBRATION_METHODS[0]}, as in export)",
    )
    group.add_argument("--keep-list", metavar="FILE.json", help="write these layers to a file for 'export --keep-fp32'")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from yolact_deploy.artifact import write_json
    from yolact_deploy.console import print_json
    from yolact_deploy.evaluation.comparison import compare_models, write_pairs
    from yolact_deploy.evaluation.engines import EngineSource, told_apart

    target = _check(args)
    images = _images(args)
    models = (args.reference, args.engine)
    sources = told_apart([EngineSource.from_spec(model, threads=args.threads) for model in models])
    bisected = None
    with sources[0].load() as a, sources[1].load() as b:
        reference, engine = (sources[0].name, a), (sources[1].name, b)
        # First what may fail: a file or precision that cannot be bisected.
        setup = _set_up_bisect(args, a, b, images) if args.bisect else None
        trunk, why_not = _compare_layers(args, a, b, images)
        result = compare_models(
            reference, engine, images, score_threshold=args.score, trunk=trunk, progress=args.progress
        )
        pairs = []
        if args.pictures:
            worst = result.images[: args.worst]
            pairs = write_pairs(Path(args.pictures), worst, reference, engine, score_threshold=args.score)
        if setup:
            bisected = _bisect(args, setup, target, images)
    if args.keep_list and bisected:
        write_json(args.keep_list, bisected.to_json())
    if args.json:
        print_json({**result.to_json(), "bisect": None if bisected is None else bisected.to_json()})
    elif not args.quiet:
        _print(result, args.worst, why_not)
        if bisected:
            _print_bisect(bisected, args.keep_list)
        if pairs:
            print_text(f"wrote {len(pairs)} pairs of pictures to {args.pictures}")
    _check_gate(args, result)
    return 0


def _check(args: argparse.Namespace) -> Target | None:
    """Check the options before anything is loaded."""
    from yolact_deploy.errors import InputError
    from yolact_deploy.export.search.bisect import Target

    at_least = {"limit": 1, "layer_images": 0, "layer_memory": 1, "worst": 0, "calibration_images": 1}
    for name, least in at_least.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: expected {least} or more, got {value}")
    targets = (args.target_agreement, args.target_sqnr, args.target_ap_drop)
    has_target = any(value is not None for value in targets)
    named = "--target-agreement, --target-sqnr or --target-ap-drop"
    for wrong, message in (
        (not 0 <= args.score < 1, f"--score-threshold: expected 0 <= value < 1, got {args.score}"),
        (not args.layer_threshold > 0, f"--layer-threshold: expected more than 0, got {args.layer_threshold}"),
        (
            args.min_agreement is not None and not 0 < args.min_agreement <= 1,
            f"--min-agreement: expected 0 < share <= 1, got {args.min_agreement}",
        ),
        (has_target and not args.bisect, f"{named} requires --bisect"),
        (args.keep_list and not has_target, f"--keep-list requires --bisect with a target: {named}"),
        (
            args.target_ap_drop is not None and not (args.annotations or _is_dataset(args)),
            "--target-ap-drop requires a dataset as --data, or --annotations FILE",
        ),
        (args.calibration and args.bisect not in ("int8", "engine"), "--calibration requires --bisect int8"),
        (
            args.bisect == "int8" and not args.calibration,
            "--bisect int8 requires pictures for the ranges: add --calibration DIR",
        ),
        (
            args.annotations and len(args.images) != 1,
            "--annotations requires all pictures in one folder: give only that folder as --data",
        ),
    ):
        if wrong:
            raise InputError(message)
    return Target(*targets) if has_target else None


def _is_dataset(args: argparse.Namespace) -> bool:
    from pathlib import Path

    from yolact_deploy.datasets.resolve import has_annotations

    source = Path(args.images[0])
    may_be = source.is_dir() or source.suffix.lower() in (".json", ".yaml", ".yml")
    return len(args.images) == 1 and may_be and has_annotations(source)


def _images(args: argparse.Namespace) -> CocoImages:
    from yolact_deploy.datasets.image_sets import open_images, plain_images
    from yolact_deploy.errors import InputError

    options = {"limit": args.limit, "lenient": args.lenient, "match_classes": class_match(args)}
    if args.annotations:
        return open_images(annotations=args.annotations, images_dir=args.images[0], **options)
    if _is_dataset(args):
        return open_images(coco=args.images[0], **options)
    for option in ("lenient", "match_classes"):
        if getattr(args, option):
            name = option.replace("_", "-")
            raise InputError(f"--{name} is about annotations, and these pictures have none: leave it out")
    return plain_images(args.images, args.limit)


def _check_gate(args: argparse.Namespace, result: CompareResult) -> None:
    from yolact_deploy.errors import GateError

    share = result.agreement.agreed_share
    if args.min_agreement is not None and share is not None and share < args.min_agreement:
        raise GateError(
            f"{result.engine} and {result.reference} agree on {share:.3f} of their detections, below --min-agreement "
            f"{args.min_agreement:g}: {result.diagnosis.sentence}"
        )


def _compare_layers(
    args: argparse.Namespace, reference: Predictor, engine: Predictor, images: CocoImages
) -> tuple[TrunkComparison | None, str]:
    """The comparison, or the reason why there is none."""
    from yolact_deploy.errors import BackendError
    from yolact_deploy.evaluation.taps import open_tap
    from yolact_deploy.evaluation.trunk_comparison import compare_trunks
    from yolact_deploy.preprocess import read_image

    if args.layer_images == 0:
        return None, "--layer-images 0"
    if any(model.backend.metadata.sizes is not None for model in (reference, engine)):
        return None, "the two have different inputs, because a file takes a range of sizes"
    try:
        a = open_tap(args.reference, reference.backend, threads=args.threads)
        b = open_tap(args.engine, engine.backend, threads=args.threads)
    except BackendError as error:
        return None, str(error)
    pictures = [read_image(path) for path in images.paths[: args.layer_images]]
    inputs = [(reference.preprocess([picture]), engine.preprocess([picture])) for picture in pictures]
    threshold, memory = args.layer_threshold, args.layer_memory << 20
    return compare_trunks(a, b, inputs, threshold=threshold, memory_bytes=memory, progress=args.progress), ""


def _set_up_bisect(
    args: argparse.Namespace, reference: Predictor, engine: Predictor, images: CocoImages
) -> BisectSetup:
    import sys

    from yolact_deploy.export.search.bisect_setup import set_up_bisect

    setup = set_up_bisect(
        args.bisect,
        (args.reference, reference),
        (args.engine, engine),
        images,
        calibration=args.calibration,
        calibration_images=args.calibration_images,
        calibration_method=args.calibration_method,
        progress=args.progress,
    )
    if not args.quiet:
        for note in setup.notes:
            print_text(f"note: {note}", file=sys.stderr)
    return setup


def _bisect(args: argparse.Namespace, setup: BisectSetup, target: Target | None, images: CocoImages) -> BisectResult:
    from dataclasses import replace

    from yolact_deploy.export.search.bisect import bisect_precision

    return bisect_precision(
        setup.path,
        replace(images, images=images.images[: args.layer_images]),
        precision=setup.precision,
        change=setup.change,
        target=target,
        judged=images if args.target_ap_drop is not None else None,
        score_threshold=args.score,
        threads=args.threads,
        progress=args.progress,
    )


# -- tables ---------------------------------------------------------------------------------------------------------


def _print(result: CompareResult, worst: int, why_not: str) -> None:
    from yolact_deploy.benchmarks.tables import agreement_tables
    from yolact_deploy.console import print_table

    if result.trunk is None:
        print_text(f"note: layers are not compared: {why_not}")
    else:
        _print_layers(result.trunk)
    if result.tensors is not None:
        rows = [(name, f"{d.max:.2e}", f"{d.mean:.2e}", f"{d.largest:.3g}") for name, d in result.tensors.items()]
        title = f"Raw outputs: {result.engine} against {result.reference}"
        print_table(("output", "max diff", "mean diff", "largest value"), rows, title=title)
    for table in agreement_tables(result.reference, [(result.engine, result.agreement)]):
        print_table(table.columns, table.rows, title=table.title)
    if worst:
        columns = ("image", "detections", "missed", "extra", "flips", "least box IoU", "least mask IoU", "score drift")
        print_table(columns, map(_image_row, result.images[:worst]), title="Images, the worst first")
    print_text(f"verdict: {result.diagnosis.sentence}")


def _image_row(image: ComparedImage) -> tuple[Any, ...]:
    agreement = image.agreement
    return (
        image.file_name,
        agreement.reference,
        agreement.missed,
        agreement.extra,
        agreement.label_flips,
        f"{min(agreement.box_ious, default=1.0):.4f}",
        f"{min(agreement.mask_ious, default=1.0):.4f}",
        f"{max(agreement.score_differences, default=0.0):.4f}",
    )


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
        print_text(f"no layer exceeds a relative RMS error of {trunk.threshold:g}")
    else:
        print_text(
            f"first to exceed a relative RMS error of {trunk.threshold:g}: {first.name} ({first.relative_rms:.2e})"
        )
    if trunk.unmatched:
        print_text(f"{trunk.unmatched} tensors exist in only one of the two models")


def _print_bisect(result: BisectResult, keep_list: str | None) -> None:
    from yolact_deploy.benchmarks.cost_tables import cost_tables
    from yolact_deploy.console import print_table
    from yolact_deploy.export.search.layer_search import shortfall
    from yolact_deploy.export.search.trials import least_decibels

    for table in cost_tables(result.precision, result.images, result.blocks, result.costs, _MOST_LISTED):
        print_table(table.columns, table.rows, title=table.title)
    print_text(f"all {len(result.costs)} layers in {result.precision}: {least_decibels(result.lowered)}")
    if result.target is None or result.mixed is None:
        return
    if not result.keep_fp32:
        print_text(f"{result.target}: met without keeping a layer in FP32")
        return
    reached = least_decibels(result.mixed) if result.mixed.relative_rms else shortfall(result.mixed)
    kept = ", ".join(result.keep_fp32)
    print_text(f"{result.target}: keep {len(result.keep_fp32)} in FP32 ({reached} with them): {kept}")
    if keep_list:
        print_text(f"wrote {keep_list}: yolact-deploy export --{result.precision} --keep-fp32 {keep_list} ...")
