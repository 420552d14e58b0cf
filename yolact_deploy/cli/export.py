"""Write an ONNX file, and the TensorRT engine from it, out of YOLACT weights.

The file takes uint8 BGR images and gives detections and masks; it runs unchanged in ONNX Runtime, OpenVINO and
TensorRT. After writing it is run in ONNX Runtime and compared with the eager model: where they disagree, nothing is
kept.

examples:
  yolact-deploy export --weights yolact_base_54_800000.pth --fp16       yolact_base.onnx and yolact_base.trt
  yolact-deploy export --weights w.pth --bf16                           the same, with the range of single precision
  yolact-deploy export --weights w.pth --int8 --calibration coco/train2017    8 bits, ranges from 500 of its pictures
  yolact-deploy export --weights w.pth --int8 --calibration coco/train2017 --coco coco/ --max-ap-drop 0.5
                                                            layers in FP32 where 8 bits cost more than half a point
  yolact-deploy export --weights w.pth --engine none -o out/model       out/model.onnx only
  yolact-deploy export --weights w.pth --batch 1:8:16 --size 400        any batch from 1 to 16, input 400 x 400
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.search_options import add_search_arguments, prepare_search, print_search
from yolact_deploy.vocabulary import (
    CALIBRATION_METHODS,
    EXPORT_TAILS,
    FLAVOURS,
    INPUT_DTYPES,
    PLUGIN_MODES,
    QUANTIZATION_TARGETS,
)

if TYPE_CHECKING:
    from yolact_deploy.export.calibration import Calibration
    from yolact_deploy.export.engine import BuildOptions, EngineReport
    from yolact_deploy.export.overflow import RangeReport
    from yolact_deploy.export.parity import ParityReport
    from yolact_deploy.export.pipeline import Int8Options
    from yolact_deploy.progress import Progress

CALIBRATION_IMAGES = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", required=True, metavar="W", help="checkpoint (.pth, .safetensors) or the name of official weights"
    )
    parser.add_argument("--config", metavar="NAME", help="configuration; by default told from the tensors")
    parser.add_argument("--size", type=int, metavar="S", help="side of the input image; by default the configuration's")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--fp16",
        action="store_true",
        help="trunk in half precision, for GPUs; layers whose values FP16 cannot hold are found and kept in FP32",
    )
    precision.add_argument(
        "--bf16",
        action="store_true",
        help="trunk in bfloat16, which has the range of FP32 and three bits less than FP16: GPUs from Ampere on, CPUs "
        "with AVX512_BF16 or AMX",
    )
    precision.add_argument(
        "--int8",
        action="store_true",
        help="trunk in 8-bit integers, with ranges found on pictures: needs --calibration",
    )
    precision.add_argument("--fp32", action="store_true", help="everything in single precision (the default)")
    parser.add_argument(
        "--keep-fp32",
        metavar="FILE|NAME,...",
        help="with --fp16, --bf16 or --int8, layers or modules to keep in FP32: names, or the file of 'compare "
        "--bisect --keep-list' or of --sensitivity",
    )
    add_int8_arguments(parser)
    add_search_arguments(parser)
    parser.add_argument(
        "--no-overflow-check", action="store_true", help="with --fp16, do not look for layers that overflow"
    )
    parser.add_argument(
        "--tail",
        choices=EXPORT_TAILS,
        default=EXPORT_TAILS[0],
        help="functions: end in detections and masks; heads: end in boxes, scores, coefficients and prototypes",
    )
    parser.add_argument(
        "--batch", type=_batch, default=(1, 1, 1), metavar="N or MIN:OPT:MAX", help="images a call (default 1)"
    )
    parser.add_argument(
        "--input",
        choices=INPUT_DTYPES,
        default=INPUT_DTYPES[0],
        help="dtype of the images; float32 (0..255) resizes without rounding to grey levels",
    )
    parser.add_argument("--cross-class", action="store_true", help="one Fast NMS over all classes together")
    add_engine_arguments(parser, choices=("auto", *FLAVOURS, "none"))
    parser.add_argument(
        "-o", "--output", metavar="STEM", help="files become STEM.onnx and STEM.trt (default: the configuration's name)"
    )


def add_int8_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of --int8."""
    parser.add_argument(
        "--calibration",
        metavar="DIR_or_COCO",
        help="with --int8, a folder of pictures like those that the network will see, or a COCO folder, whose training "
        "pictures are taken. Not those that accuracy is measured on. With --fp16, pictures on which no layer may "
        "overflow, beside the package's samples",
    )
    parser.add_argument(
        "--images", type=_positive, metavar="N", help="how many of --calibration's pictures (default 500, or all)"
    )
    parser.add_argument(
        "--calibration-method",
        choices=CALIBRATION_METHODS,
        help="with --int8, how ranges are chosen: minmax keeps the largest values; percentile, entropy and mse clip "
        f"rare ones (default {CALIBRATION_METHODS[0]}). Another one over the same pictures takes seconds",
    )
    parser.add_argument(
        "--target",
        choices=tuple(QUANTIZATION_TARGETS),
        help="with --int8, the form of the file: auto, tensorrt and openvino are one, which ONNX Runtime is given in "
        "the form that it wants when it loads the file; onnxruntime is for ONNX Runtime alone (default auto)",
    )


def add_engine_arguments(parser: argparse.ArgumentParser, choices: tuple[str, ...]) -> None:
    """Arguments of the engine, which ``build`` has too."""
    parser.add_argument(
        "--engine",
        choices=choices,
        default="auto",
        help="TensorRT to build with; auto: TensorRT, else TensorRT for RTX, whichever is installed",
    )
    parser.add_argument("--workspace", type=_positive, metavar="MIB", help="limit of TensorRT's scratch memory")
    parser.add_argument(
        "--optimization-level", type=int, choices=range(6), metavar="0..5", help="effort of the builder (default 3)"
    )
    parser.add_argument(
        "--profile",
        type=_batch,
        action="append",
        default=[],
        metavar="MIN:OPT:MAX",
        help="batches to optimize for, where the ONNX file's batch is dynamic; may be repeated (default: as exported)",
    )
    parser.add_argument(
        "--plugin",
        choices=PLUGIN_MODES,
        default=PLUGIN_MODES[0],
        help="CUDA plugins for Fast NMS and mask assembly: auto, where they go into the engine ahead of time (TensorRT "
        "10.8 and later); on, in Python if need be; off, the functions in the file; v3 or aot, that kind. TensorRT for "
        "RTX keeps the functions, unless v3 asks for what has never been run there",
    )
    parser.add_argument(
        "--target-sm",
        action="append",
        default=[],
        metavar="SM",
        help="RTX: compute capability, such as 89 or 8.6,8.9; may be repeated (default: 8.0 and later)",
    )
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="take the engine from the cache folder if the same was built before, and else keep it there",
    )
    parser.add_argument(
        "--timing-cache",
        metavar="FILE",
        help="TensorRT: timings of earlier builds; 'off' for none (default: a file in the cache folder)",
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=1800.0,
        metavar="SECONDS",
        help="for another build of the same engine (default 1800)",
    )


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.artifact import write_json
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import InputError, OutputError, import_optional

    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        import_optional(module, "export", "Exporting")
    from yolact_deploy.export.engine import available_flavour, import_tensorrt
    from yolact_deploy.export.mixed_precision import read_keep_list
    from yolact_deploy.export.pipeline import ExportOptions, export_checkpoint
    from yolact_deploy.model.checkpoint import load_model
    from yolact_deploy.model.pretrained import resolve_weights

    chosen = "fp16" if args.fp16 else "bf16" if args.bf16 else "int8" if args.int8 else "fp32"
    if args.keep_fp32 and chosen == "fp32":
        raise InputError("--keep-fp32 is of --fp16, --bf16 and --int8: without them all layers are in FP32")
    if args.no_overflow_check and chosen != "fp16":
        raise InputError("--no-overflow-check is of --fp16: nothing else overflows")
    keep_fp32 = read_keep_list(args.keep_fp32) if args.keep_fp32 else ()
    int8 = _int8_options(args)
    overflow_images = _overflow_images(args)
    search = prepare_search(args)
    if int8 is not None and search is not None:
        int8 = search.options(int8, args.calibration, args.images or CALIBRATION_IMAGES)
    flavour = None if args.engine == "none" or args.target == "onnxruntime" else args.engine
    if flavour == "auto":
        flavour = available_flavour()
        if flavour is None:
            _say(args, "no TensorRT is installed here: writing the ONNX file only ('yolact-deploy doctor' tells more)")
    elif flavour is not None:
        import_tensorrt(flavour)  # a missing one should be known before the work

    weights = resolve_weights(args.weights)
    model = load_model(weights, config=args.config, image_size=args.size)
    stem = Path(args.output or model.config.name)
    onnx_path = stem.with_name(stem.name.removesuffix(".onnx") + ".onnx")
    if stem.is_dir():
        raise OutputError(f"{stem} is a folder: give -o the files' common stem, such as {stem / model.config.name}")
    options = ExportOptions(
        precision=chosen,
        tail=args.tail,
        batch=args.batch,
        input_dtype=args.input,
        cross_class=args.cross_class,
        keep_fp32=keep_fp32,
        find_overflow=not args.no_overflow_check,
        int8=int8,
    )
    _say(args, f"exporting {model.config.name} ({options.precision}) to {onnx_path} ...")
    start = time.perf_counter()
    exported = export_checkpoint(model, weights, onnx_path, options, range_images=overflow_images)
    metadata, parity, ranges = exported.metadata, exported.parity, exported.ranges
    seconds = time.perf_counter() - start
    notes = [] if exported.calibration is None else list(exported.calibration.notes)
    if not args.quiet:
        for note in notes:
            print(f"warning: {note}", file=sys.stderr)
    if search is not None and search.result is not None and args.sensitivity:
        write_json(args.sensitivity, search.result.to_json())
    if not args.json and not args.quiet:
        if ranges is not None:
            _print_ranges(ranges)
        if exported.calibration is not None:
            _print_calibration(exported.calibration)
        if search is not None and search.result is not None:
            print_search(search.result)
        _print_parity(parity)
        if metadata.config.mask_iou and metadata.tail == "heads":
            print("a file that ends in heads has no mask scores: masks are ranked by the scores of their boxes")
        _say(args, f"wrote {onnx_path} ({onnx_path.stat().st_size / 1e6:.1f} MB) in {seconds:.1f} s")
    result: dict[str, Any] = {
        "onnx": {"path": str(onnx_path), "bytes": onnx_path.stat().st_size, "seconds": round(seconds, 2)},
        "config": metadata.config.name,
        "precision": metadata.precision,
        "keep_fp32": list(metadata.keep_fp32),
        "keep_reasons": metadata.keep_reasons,
        "quantization": metadata.quantization,
        "notes": notes,
        "search": None if search is None or search.result is None else search.result.to_json(),
        "fp16_range": None if ranges is None else ranges.to_json(),
        "parity": parity.to_json(),
        "engine": None,
    }
    if flavour is not None:
        report = build(args, onnx_path, onnx_path.with_suffix(".trt"), flavour)
        result["engine"] = report.to_json()
    if args.json:
        print_json(result)
    return 0


def build(args: argparse.Namespace, onnx_path: Path, engine_path: Path, flavour: str) -> EngineReport:
    """Build the engine with a progress bar, and say what was made."""
    from yolact_deploy.export.engine import build_engine

    with args.progress.steps(f"building {engine_path.name}") as report_step:
        report = build_engine(
            onnx_path,
            engine_path,
            flavour=flavour,
            options=engine_options(args),
            progress=report_step,
            tell=args.progress.note,
        )
    name = "TensorRT for RTX" if report.flavour == "rtx" else "TensorRT"
    how = "taken from the cache" if report.cached else "wrote"
    size = f"{report.bytes / 1e6:.1f} MB, {name} {report.version}"
    _say(args, f"{how} {report.path} ({size}) in {report.seconds:.1f} s, for {report.target}")
    _say(args, f"plugins: {report.plugin}. {report.plugin_reason}")
    return report


def engine_options(args: argparse.Namespace) -> BuildOptions:
    """The arguments of :func:`add_engine_arguments` as the builder takes them."""
    from yolact_deploy.export.engine import BuildOptions

    return BuildOptions(
        workspace_mib=args.workspace,
        optimization_level=args.optimization_level,
        targets=tuple(target for text in args.target_sm for target in text.split(",")),
        profiles=tuple(args.profile),
        plugin=args.plugin,
        cache=args.cache,
        timing_cache=None if args.timing_cache == "off" else args.timing_cache,
        use_timing_cache=args.timing_cache != "off",
        wait=args.wait,
    )


def _int8_options(args: argparse.Namespace) -> Int8Options | None:
    from yolact_deploy.cache import cache_folder
    from yolact_deploy.datasets.calibration_images import calibration_images
    from yolact_deploy.errors import InputError
    from yolact_deploy.export.pipeline import Int8Options

    if not args.int8:
        for name in ("calibration_method", "target"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} is of --int8: nothing else is calibrated")
        return None
    if args.calibration is None:
        raise InputError(
            "--int8 needs pictures to find ranges on: give a folder of some hundred with --calibration DIR"
        )
    if args.target == "onnxruntime" and args.engine not in ("auto", "none"):
        raise InputError("--target onnxruntime is nothing that TensorRT reads: leave it out, or give --engine none")
    return Int8Options(
        images=calibration_images(args.calibration, args.images or CALIBRATION_IMAGES),
        method=args.calibration_method or CALIBRATION_METHODS[0],
        target=QUANTIZATION_TARGETS[args.target or "auto"],
        state=cache_folder("calibration"),
        progress=args.progress,
    )


def _overflow_images(args: argparse.Namespace) -> Iterable[Path] | None:
    """The pictures on which FP16 must not overflow, where --calibration gives some: the samples, too."""
    from yolact_deploy.datasets.calibration_images import calibration_images, usable_images
    from yolact_deploy.errors import InputError
    from yolact_deploy.samples import sample_images

    if args.int8:
        return None
    looks = args.fp16 and not args.no_overflow_check
    if args.calibration is None or not looks:
        for name in ("calibration", "images"):
            if getattr(args, name) is not None:
                cure = "give --calibration, too" if looks else "nothing else looks at pictures"
                raise InputError(f"--{name} is of --int8, and of --fp16 where it looks for overflows: {cure}")
        return None
    usable = usable_images(calibration_images(args.calibration, args.images or CALIBRATION_IMAGES))
    progress: Progress = args.progress
    return progress.track([*sample_images(), *usable.paths], "looking for overflows")


def _print_calibration(calibration: Calibration) -> None:
    print(f"calibrated on {calibration.images} images ({calibration.method})")


def _print_ranges(ranges: RangeReport) -> None:
    from yolact_deploy.console import print_table
    from yolact_deploy.export.overflow import LARGEST, SAFE_SHARE

    widest = ranges.widest
    limit = f"FP16 ends at {LARGEST:g}"
    if ranges.unsafe:
        print_table(
            ("layer", "kept in FP32 because of"),
            ranges.unsafe.items(),
            title=f"{len(ranges.unsafe)} of {len(ranges.layers)} layers are too much for FP16, found in "
            f"{ranges.images} images ({limit}; above {LARGEST * SAFE_SHARE:g} a layer is kept)",
        )
    else:
        reach = f"values up to {widest.largest:.3g}, in {widest.layer}"
        print(f"no layer overflows in {ranges.images} images: {reach}; {limit}")
    for layer in ranges.near:
        print(f"{layer.layer} comes near the end of FP16 with values up to {layer.largest:.3g}, and stays in FP16")


def _print_parity(
    parity: ParityReport,
) -> None:
    from yolact_deploy.console import print_table

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
        print(f"mask scores: the file's differ from NumPy's by {parity.mask_scores:.2g} at most")
    if parity.noise:
        worst, middle = parity.noise[0], parity.noise[len(parity.noise) // 2]
        print(
            f"signal to noise of {len(parity.noise)} quantised activations: {worst.sqnr_db:.1f} dB at least, in "
            f"{worst.name}; {middle.sqnr_db:.1f} dB in the middle"
        )
    rows = [("whole file, eager", parity.eager)]
    if parity.tail is not None:
        rows.append(("functions in the file, NumPy from the same heads", parity.tail))
    print_table(
        ("compared with", "score above", "detections", "matched", "extra", "box IoU", "mask IoU", "score drift"),
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


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet and not args.json:
        print(text, flush=True)


def _batch(text: str) -> tuple[int, int, int]:
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise argparse.ArgumentTypeError(f"expected N or MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, got {text!r}")
    return numbers[0], numbers[1], numbers[2]


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")
    return number
