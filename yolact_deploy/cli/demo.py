"""Run the whole path from weights to a measured engine: export, engines, accuracy, speed, report and pictures.

Prints each command before it runs. Needs no GPU and no download: the model comes with the package and was trained on
generated shapes; others are generated to score it. The TensorRT for RTX engine is built but not run. All engines are
scored on the same images, the eager model as well; AP comes with intervals of its difference to the eager model's.

examples:
  yolact-deploy demo
  yolact-deploy demo --weights yolact_resnet50_54_800000.pth -o demo
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from yolact_deploy.cli.options.size_options import add_size_arguments, size_words
from yolact_deploy.console import print_command, print_text, without_next

_SHOWN = 6  # pictures with overlays
_CALIBRATION = 100  # pictures for INT8 ranges, apart from those that are scored
_IMAGES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="W", help="another checkpoint, to run on the sample images of the package")
    parser.add_argument("--config", metavar="NAME", help="configuration: a name or a JSON file (default: inferred)")
    add_size_arguments(parser)
    parser.add_argument("-o", "--output", default="demo", metavar="DIR", help="output folder (default demo)")
    parser.add_argument(
        "--limit", type=int, default=_IMAGES, metavar="N",
        help=f"generated images to score (default {_IMAGES}; 500 take five times as long and halve the intervals)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds over the images (default 1, with --weights 3)")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.cli.main import PROGRAM, main
    from yolact_deploy.errors import import_optional

    import_optional("torch", "export", "The demo")
    from yolact_deploy.export.onnx import shared_traces

    start = time.perf_counter()
    passed_on = [flag for flag in ("debug", "quiet") if getattr(args, flag)]
    with shared_traces(), without_next():
        for command in _commands(args):
            if not args.quiet:
                print_text("")
                print_command(f"$ {PROGRAM} {shlex.join(command)}")
            code = main([*command, *(f"--{flag}" for flag in passed_on)])
            if code:
                return code
    folder, seconds = Path(args.output), time.perf_counter() - start
    scored = "" if args.weights else f" on {args.limit} images; --limit N scores others, and more narrow the intervals"
    print_text(
        f"\nReport: {folder / 'report.html'}   pictures: {folder / 'predictions'}   ({seconds:.0f} s{scored})",
        file=sys.stderr,
    )
    return 0


def _commands(args: argparse.Namespace) -> Iterator[list[str]]:
    from yolact_deploy import samples
    from yolact_deploy.runtime.checks import describe_machine, examine

    folder, data = Path(args.output), Path(args.output) / "shapes"
    model = ["--weights", args.weights or str(samples.DEMO_MODEL)]
    model += ["--config", args.config] if args.config else []
    model += size_words(args)
    works = {
        finding.name
        for finding in examine(["openvino", "tensorrt-rtx builder"], progress=args.progress)
        if finding.works
    }
    has_bf16 = {"avx512_bf16", "amx_bf16"}.intersection(describe_machine()["instructions"])
    onnx, half, int8 = folder / "model.onnx", folder / "model_fp16.onnx", folder / "model_int8.onnx"
    flavour = "rtx" if "tensorrt-rtx builder" in works else "none"
    own = not args.weights  # other models have no calibration pictures
    engines = _engines([onnx, half, int8] if own else [onnx], "openvino" in works, bool(has_bf16))
    images = ["--annotations", str(samples.ANNOTATIONS), "--images-dir", str(samples.IMAGES)]
    if own:
        yield ["data", "shapes", "-o", str(data), "--train", str(_CALIBRATION), "--val", str(args.limit)]
        images = ["--coco", str(data)]
    yield ["export", *model, "--engine", "none", "-o", str(onnx.with_suffix(""))]
    yield ["export", *model, "--fp16", "--engine", flavour, "-o", str(half.with_suffix(""))]
    if own:
        calibration = ["--calibration", str(data), "--images", str(_CALIBRATION)]
        yield ["export", *model, "--int8", *calibration, "--engine", "none", "-o", str(int8.with_suffix(""))]
    yield ["inspect", str(half.with_suffix(".trt") if flavour == "rtx" else half)]
    repeats = args.repeats or (3 if args.weights else 1)
    yield [
        "bench", *engines, *model, *images, "--repeats", str(repeats),
        "--report", str(folder / "report.html"), "--output", str(folder / "bench.json"),
    ]  # fmt: skip
    shown = samples.sample_images() if args.weights else sorted((data / "images").glob("val_*.png"))[:_SHOWN]
    yield ["predict", engines[-1], *map(str, shown), "-o", str(folder / "predictions"), "--overwrite"]


def _engines(files: Sequence[Path], openvino: bool, has_bf16: bool) -> list[str]:
    """Options of the engines to measure: each file in ONNX Runtime, and FP32 and INT8 in OpenVINO as well."""
    engines = list(map(str, files))
    if openvino:
        engines += [f"{files[0]}@openvino", *([f"{files[0]}@openvino-bf16"] if has_bf16 else [])]
        engines += [f"{int8}@openvino" for int8 in files[2:]]
    return [part for engine in engines for part in ("--engine", engine)]
