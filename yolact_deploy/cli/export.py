"""Write an ONNX file from YOLACT weights, and a TensorRT engine from the ONNX file.

The file takes uint8 BGR images and returns detections and masks. It runs unchanged in ONNX Runtime, OpenVINO and
TensorRT. Every export is run in ONNX Runtime and compared with the eager model; if they disagree, no file is kept.

Without --weights, the only checkpoint in the current folder or in weights/ is taken, else the model that ships.

examples:
  yolact-deploy export --fp16                                           yolact.onnx and yolact.trt
  yolact-deploy export --weights yolact_base_54_800000.pth --fp16       yolact_base.onnx and yolact_base.trt
  yolact-deploy export --weights w.pth --bf16                           the same, with the range of single precision
  yolact-deploy export --weights w.pth --int8 --calibration coco/train2017    8 bits, ranges from 500 of its pictures
  yolact-deploy export --weights w.pth --int8 --fp16 --calibration coco/train2017    the same for GPUs, the rest in FP16
  yolact-deploy export --weights w.pth --int8 --calibration coco/train2017 --coco coco/ --max-ap-drop 0.5
                                                            layers in FP32 where 8 bits cost more than half a point
  yolact-deploy export --weights w.pth --engine none -o out/model       out/model.onnx only
  yolact-deploy export --weights w.pth --batch 1:8:16 --size 400        any batch from 1 to 16, input 400 x 400
  yolact-deploy export --weights w.pth --size 320x320:550:640x960       each picture at its own ratio
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.build import add_engine_arguments, batch_range, build, say
from yolact_deploy.cli.options.parsing import whole
from yolact_deploy.cli.options.search_options import add_search_arguments, judged_images, search_limits
from yolact_deploy.cli.options.selection_options import add_nms_arguments
from yolact_deploy.cli.options.size_options import add_size_arguments, size_range_option
from yolact_deploy.cli.options.target_options import add_target_arguments, chosen_formats, write_formats
from yolact_deploy.console import print_next, print_text
from yolact_deploy.vocabulary import CALIBRATION_METHODS, EXPORT_TAILS, FLAVOURS, INPUT_DTYPES, QUANTIZATION_TARGETS

if TYPE_CHECKING:
    from yolact_deploy.config import YolactConfig
    from yolact_deploy.export.pipeline import Exported
    from yolact_deploy.export.spec import ExportSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        metavar="W",
        help="checkpoint (.pth, .safetensors) or the name of official weights (default: the one at hand)",
    )
    parser.add_argument("--config", metavar="NAME", help="configuration: a name or a JSON file (default: inferred)")
    add_size_arguments(parser, ranges=True)
    _add_precision_arguments(parser)
    _add_int8_arguments(parser)
    add_search_arguments(parser)
    parser.add_argument(
        "--tail",
        choices=EXPORT_TAILS,
        default=EXPORT_TAILS[0],
        help="functions: end in detections and masks; heads: end in boxes, scores, coefficients and prototypes",
    )
    parser.add_argument(
        "--batch", type=batch_range, default=(1, 1, 1), metavar="N or MIN:OPT:MAX", help="images per call (default 1)"
    )
    parser.add_argument(
        "--input",
        choices=INPUT_DTYPES,
        default=INPUT_DTYPES[0],
        help="dtype of the images; float32 (0..255) resizes without rounding to gray levels",
    )
    parser.add_argument("--cross-class", action="store_true", help="one Fast NMS over all classes")
    add_nms_arguments(parser)
    add_target_arguments(parser)
    add_engine_arguments(parser, choices=("auto", *FLAVOURS, "none"))
    parser.add_argument(
        "-o", "--output", metavar="STEM",
        help="write STEM.onnx and STEM.trt (default: name of the configuration; without --weights, yolact)",
    )  # fmt: skip


def _add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fp16",
        action="store_true",
        help="trunk in half precision, for GPUs; detects layers that overflow in FP16 and keeps them in FP32. With "
        "--int8, all of the trunk that is not in 8 bits",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--bf16",
        action="store_true",
        help="trunk in bfloat16, with the range of FP32 and three bits less than FP16: GPUs from Ampere on, CPUs with "
        "AVX512_BF16 or AMX",
    )
    precision.add_argument(
        "--int8",
        action="store_true",
        help="trunk in 8-bit integers, with ranges from pictures: requires --calibration. For GPUs, add --fp16",
    )
    precision.add_argument("--fp32", action="store_true", help="everything in single precision (the default)")
    parser.add_argument(
        "--keep-fp32",
        metavar="FILE|NAME,...",
        help="with --fp16, --bf16 or --int8, layers or modules to keep in FP32: names, or the file written by "
        "'compare --bisect --keep-list' or --sensitivity",
    )
    parser.add_argument(
        "--no-overflow-check", action="store_true", help="with --fp16, do not check for layers that overflow"
    )


def _add_int8_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibration",
        metavar="DIR_OR_COCO",
        help="with --int8, a folder of pictures like those that the network will see, or a COCO folder, of which the "
        "training pictures are used. Do not use pictures that accuracy is measured on. With --fp16, pictures to check "
        "for overflow in addition to the samples of the package",
    )
    parser.add_argument(
        "--calibration-images",
        "--images",
        dest="images",
        type=whole(),
        metavar="N",
        help="number of pictures from --calibration, spread evenly (default 500, or all)",
    )
    parser.add_argument(
        "--calibration-method",
        choices=CALIBRATION_METHODS,
        help="with --int8, how ranges are chosen: minmax keeps the largest values; percentile, entropy and mse clip "
        f"rare ones (default {CALIBRATION_METHODS[0]}). Another method on the same pictures takes seconds",
    )
    parser.add_argument(
        "--target",
        choices=tuple(QUANTIZATION_TARGETS),
        help="with --int8, the runtime that the file is for: auto, tensorrt and openvino write the same form, which "
        "ONNX Runtime rewrites when it loads the file; onnxruntime is for ONNX Runtime alone (default auto)",
    )


def export_spec(args: argparse.Namespace) -> ExportSpec:
    """The options as one value.

    Raises:
        YolactDeployError: options that contradict each other, or images to judge by that cannot be used.
    """
    from yolact_deploy.cache import cache_folder
    from yolact_deploy.errors import InputError
    from yolact_deploy.export.mixed_precision import read_keep_list
    from yolact_deploy.export.spec import ExportSpec

    if args.target == "onnxruntime" and args.engine not in ("auto", "none"):
        raise InputError("TensorRT cannot read files for --target onnxruntime: leave it out, or give --engine none")
    if args.fp16 and (args.bf16 or args.fp32):
        raise InputError(f"--fp16 cannot be combined with --{'bf16' if args.bf16 else 'fp32'}: choose one")
    precision = next((name for name in ("int8", "bf16", "fp16") if getattr(args, name)), "fp32")
    limits = search_limits(args)
    judged = judged_images(args) if limits is not None and args.int8 and args.calibration is not None else None
    return ExportSpec(
        precision=precision,
        rest="fp16" if args.fp16 and args.int8 else "fp32",
        tail=args.tail,
        batch=args.batch,
        input_dtype=args.input,
        cross_class=args.cross_class,
        config=args.config,
        **size_range_option(args),
        fit=args.fit,
        priors=args.priors,
        keep_fp32=read_keep_list(args.keep_fp32) if args.keep_fp32 else (),
        overflow_check=not args.no_overflow_check,
        calibration=args.calibration,
        calibration_images=args.images,
        calibration_method=args.calibration_method,
        calibration_state=cache_folder("calibration") if args.int8 else None,
        target=args.target,
        limits=limits,
        judged=judged,
    )


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.cli.at_hand import STEM, checkpoint_at_hand
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import import_optional

    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        import_optional(module, "export", "Exporting")
    from yolact_deploy.export.pipeline import export_model
    from yolact_deploy.export.targets.target_source import TargetSource
    from yolact_deploy.machine.nvidia import has_gpu
    from yolact_deploy.model.checkpoint import load_model
    from yolact_deploy.samples.pretrained import resolve_weights

    spec, formats = export_spec(args), chosen_formats(args)
    flavour = _flavour(args)
    weights = resolve_weights(args.weights) if args.weights else checkpoint_at_hand(args)
    model = load_model(weights, **spec.of_checkpoint)
    model.config = _with_nms(model.config, args)
    onnx_path = _onnx_path(args.output, model.config.name if args.weights else STEM)
    say(args, f"exporting {model.config.name} ({_precision(spec)}) to {onnx_path} ...")
    start = time.perf_counter()
    exported = export_model(model, onnx_path, spec, weights=weights, progress=args.progress)
    seconds = time.perf_counter() - start
    _tell(args, exported)
    say(args, f"wrote {onnx_path} ({onnx_path.stat().st_size / 1e6:.1f} MB) in {seconds:.1f} s")
    source = TargetSource(onnx_path=onnx_path, metadata=exported.metadata, model=model, ort_web=args.ort_web)
    written = write_formats(args, formats, source)
    engine = None
    if flavour is not None:
        engine = build(args, onnx_path, onnx_path.with_suffix(".trt"), flavour).to_json()
    if args.json:
        print_json({**_facts(exported, onnx_path, seconds), "formats": written, "engine": engine})
    if not args.json and not args.quiet:
        runs_here = onnx_path.with_suffix(".trt") if engine is not None and has_gpu() else onnx_path
        print_next(["yolact-deploy", "bench", "--engine", str(runs_here)])
    return 0


def _tell(args: argparse.Namespace, exported: Exported) -> None:
    """Print what an export has found, and keep the list of layers that was asked for."""
    from yolact_deploy.artifact import write_json
    from yolact_deploy.cli.export_report import print_export

    if not args.quiet:
        for note in exported.notes:
            print_text(f"warning: {note}", file=sys.stderr)
    if args.sensitivity and exported.measured.search is not None:
        write_json(args.sensitivity, exported.measured.search.to_json())
    if not args.json and not args.quiet:
        print_export(exported)


def _with_nms(config: YolactConfig, args: argparse.Namespace) -> YolactConfig:
    """The configuration with the settings of NMS that the options name; the file's metadata has them."""
    from dataclasses import replace

    fields = {"top_k": args.top_k, "iou_threshold": args.nms_iou, "max_detections": args.max_detections}
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    return replace(config, **given) if given else config


def _flavour(args: argparse.Namespace) -> str | None:
    """The TensorRT to build with, or None; checked before the export, which takes longer."""
    from yolact_deploy.export.engine import available_flavour, import_tensorrt
    from yolact_deploy.machine.nvidia import has_gpu

    if args.engine == "none" or args.target == "onnxruntime":
        return None
    if args.engine != "auto":
        import_tensorrt(args.engine)
        return str(args.engine)
    flavour = available_flavour()
    if flavour is None:
        say(args, "TensorRT is not installed here: writing the ONNX file only ('yolact-deploy doctor' shows more)")
    elif flavour == "tensorrt" and not has_gpu():
        say(args, "TensorRT builds engines only where an NVIDIA GPU is: writing the ONNX file only")
        return None
    return flavour


def _precision(spec: ExportSpec) -> str:
    return spec.precision if spec.rest == "fp32" else f"{spec.precision}, the rest in {spec.rest}"


def _onnx_path(output: str | None, name: str) -> Path:
    from yolact_deploy.errors import OutputError

    stem = Path(output or name)
    if stem.is_dir():
        raise OutputError(f"{stem} is a folder: give -o the common stem of the files, such as {stem / name}")
    return stem.with_name(stem.name.removesuffix(".onnx") + ".onnx")


def _facts(exported: Exported, onnx_path: Path, seconds: float) -> dict[str, Any]:
    """What --json prints about the ONNX file."""
    metadata, measured = exported.metadata, exported.measured
    return {
        "onnx": {"path": str(onnx_path), "bytes": onnx_path.stat().st_size, "seconds": round(seconds, 2)},
        "config": metadata.config.name,
        "precision": metadata.precision,
        "keep_fp32": list(metadata.keep_fp32),
        "keep_reasons": metadata.keep_reasons,
        "quantization": metadata.quantization,
        "notes": list(exported.notes),
        "search": None if measured.search is None else measured.search.to_json(),
        "fp16_range": None if measured.ranges is None else measured.ranges.to_json(),
        "parity": exported.parity.to_json(),
    }
