"""Build a TensorRT engine from an ONNX file that 'yolact-deploy export' wrote.

Needs no torch, so it also runs on a Jetson. The engine is a plain plan that trtexec and Triton load; its network name
holds the metadata. TensorRT for RTX builds without a GPU.

Without ONNX, the only ONNX file in the current folder is taken.

examples:
  yolact-deploy build yolact_base.onnx                       yolact_base.trt beside it
  yolact-deploy build yolact_base.onnx --engine rtx --target-sm 86,89
  yolact-deploy build batch_1_to_16.onnx --profile 1:1:4 --profile 4:8:16
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.cli.options.parsing import whole
from yolact_deploy.console import print_text
from yolact_deploy.vocabulary import FLAVOURS, PLUGIN_MODES

if TYPE_CHECKING:
    from yolact_deploy.export.build_options import BuildOptions, EngineReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("onnx", metavar="ONNX", nargs="?", help="file written by 'yolact-deploy export'")
    parser.add_argument(
        "-o", "--output", metavar="ENGINE", help="engine file (default: name of the ONNX file with .trt)"
    )
    add_engine_arguments(parser, choices=("auto", *FLAVOURS))


def add_engine_arguments(parser: argparse.ArgumentParser, choices: tuple[str, ...]) -> None:
    """Arguments of the engine, for ``build`` and ``export``."""
    parser.add_argument(
        "--engine",
        choices=choices,
        default="auto",
        help="TensorRT to build with; auto: TensorRT if it is installed and a GPU is here, otherwise TensorRT for RTX",
    )
    parser.add_argument("--workspace", type=whole(), metavar="MIB", help="limit of TensorRT's scratch memory")
    parser.add_argument(
        "--optimization-level", type=int, choices=range(6), metavar="0..5", help="effort of the builder (default 3)"
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="round the factors of FP32 products to TF32 (compute capability 8.0 and later): faster, less exact",
    )
    parser.add_argument(
        "--profile",
        type=batch_range,
        action="append",
        default=[],
        metavar="MIN:OPT:MAX",
        help="batches to optimize for, if the ONNX file has a dynamic batch; may be repeated (default: as exported)",
    )
    _add_parser_arguments(parser)
    _add_cache_arguments(parser)


def _add_parser_arguments(parser: argparse.ArgumentParser) -> None:
    """What becomes of the graph, and for which GPUs."""
    parser.add_argument(
        "--plugin",
        choices=PLUGIN_MODES,
        default=PLUGIN_MODES[0],
        help="CUDA plugins for Fast NMS and mask assembly. auto: if they can be embedded in the engine (TensorRT 10.9 "
        "and later); on: always, in Python if they cannot; off: use the functions in the file; aot or v3: only "
        "embedded or only Python plugins. TensorRT for RTX keeps the functions unless v3 is given, which is untested "
        "there",
    )
    parser.add_argument(
        "--target-sm",
        action="append",
        default=[],
        metavar="SM",
        help="RTX: compute capability, such as 89 or 8.6,8.9; may be repeated (default: 8.0 and later)",
    )
    parser.add_argument(
        "--layer-details",
        action="store_true",
        help="keep precisions and tactics of the layers in the engine, for 'inspect --profile'",
    )


def _add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="reuse an engine of an earlier identical build from the cache folder, and keep new ones there",
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
        help="time to wait for another build of the same engine (default 1800)",
    )


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.cli.at_hand import onnx_at_hand
    from yolact_deploy.console import print_json, print_next
    from yolact_deploy.machine.nvidia import has_gpu

    onnx_path = Path(args.onnx) if args.onnx else onnx_at_hand(args)
    engine_path = Path(args.output) if args.output else onnx_path.with_suffix(".trt")
    report = build(args, onnx_path, engine_path, args.engine)
    if args.json:
        print_json(report.to_json())
    elif not args.quiet and has_gpu():
        print_next(["yolact-deploy", "bench", "--engine", str(report.path)])
    return 0


def build(args: argparse.Namespace, onnx_path: Path, engine_path: Path, flavour: str) -> EngineReport:
    """Build the engine with a progress bar and print a summary."""
    from yolact_deploy.export.engine import build_engine

    with args.progress.steps(f"building {engine_path.name}") as report_step:
        report = build_engine(
            onnx_path,
            engine_path,
            flavour=flavour,
            options=_build_options(args),
            progress=report_step,
            tell=args.progress.note,
        )
    how = "taken from the cache" if report.cached else "wrote"
    size = f"{report.bytes / 1e6:.1f} MB, {FLAVOURS[report.flavour]} {report.version}"
    say(args, f"{how} {report.path} ({size}) in {report.seconds:.1f} s, for {report.target}")
    say(args, f"plugins: {report.plugin}. {report.plugin_reason}")
    return report


def _build_options(args: argparse.Namespace) -> BuildOptions:
    from yolact_deploy.export.build_options import BuildOptions

    return BuildOptions(
        workspace_mib=args.workspace,
        optimization_level=args.optimization_level,
        tf32=args.tf32,
        targets=tuple(target for text in args.target_sm for target in text.split(",")),
        profiles=tuple(args.profile),
        plugin=args.plugin,
        cache=args.cache,
        timing_cache=None if args.timing_cache == "off" else args.timing_cache,
        use_timing_cache=args.timing_cache != "off",
        wait=args.wait,
        layer_details=args.layer_details,
    )


def say(args: argparse.Namespace, text: str) -> None:
    """Print a line, except with --quiet or --json."""
    if not args.quiet and not args.json:
        print_text(text)


def batch_range(text: str) -> tuple[int, int, int]:
    """N or MIN:OPT:MAX as three numbers."""
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise argparse.ArgumentTypeError(f"expected N or MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, got {text!r}")
    return numbers[0], numbers[1], numbers[2]


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")
    return number
