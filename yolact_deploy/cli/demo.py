"""Show the whole path on the sample images that come with the package: export, engines, measurement, pictures.

Runs the commands that you would type, and prints each before it runs. No GPU and no download needed: the TensorRT for
RTX engine is built, not run.

example:
  yolact-deploy demo --weights yolact_resnet50_54_800000.pth -o demo
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

HELP = "export and measure a model on the sample images that come with the package"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, metavar="W", help="checkpoint; this version ships no trained one")
    parser.add_argument("--config", metavar="NAME", help="configuration; by default told from the tensors")
    parser.add_argument("--size", type=int, metavar="S", help="side of the input image")
    parser.add_argument("-o", "--output", default="demo", metavar="DIR", help="folder for what is made (default: demo)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds over the sample images (default 3)")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy import samples
    from yolact_deploy.runtime.doctor import describe_machine, examine

    folder = Path(args.output)
    model = ["--weights", args.weights]
    model += ["--config", args.config] if args.config else []
    model += ["--size", str(args.size)] if args.size else []
    works = {finding.name for finding in examine(["openvino", "tensorrt-rtx builder"]) if finding.works}
    has_bf16 = {"avx512_bf16", "amx_bf16"}.intersection(describe_machine()["instructions"])
    onnx, half = folder / "model.onnx", folder / "model_fp16.onnx"
    flavour = "rtx" if "tensorrt-rtx builder" in works else "none"
    engines = [str(onnx)]
    if "openvino" in works:
        engines += [f"{onnx}@openvino", *([f"{onnx}@openvino-bf16"] if has_bf16 else [])]
    bench = [*(part for engine in engines for part in ("--engine", engine)), *model]
    pictures = [str(path) for path in samples.sample_images()]
    commands = [
        ["export", *model, "--engine", "none", "-o", str(onnx.with_suffix(""))],
        ["export", *model, "--fp16", "--engine", flavour, "-o", str(half.with_suffix(""))],
        ["inspect", str(half.with_suffix(".trt") if flavour == "rtx" else half)],
        [
            "bench", *bench, "--annotations", str(samples.ANNOTATIONS), "--images-dir", str(samples.IMAGES),
            "--repeats", str(args.repeats),
            "--report", str(folder / "report.html"), "--output", str(folder / "bench.json"),
        ],
        ["predict", engines[-1], *pictures, "-o", str(folder / "predictions")],
    ]  # fmt: skip
    from yolact_deploy.cli.main import PROGRAM, main

    passed_on = [flag for flag in ("debug", "quiet") if getattr(args, flag)]
    for command in commands:
        if not args.quiet:
            print(f"\n$ {PROGRAM} {shlex.join(command)}", flush=True)
        code = main([*command, *(f"--{flag}" for flag in passed_on)])
        if code:
            return code
    print(f"\nReport: {folder / 'report.html'}   pictures: {folder / 'predictions'}", file=sys.stderr)
    return 0
