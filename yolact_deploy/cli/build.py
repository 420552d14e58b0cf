"""Build a TensorRT engine from an ONNX file that ``yolact-deploy export`` wrote.

Needs no torch, so it also runs on a Jetson. The engine is a plain plan that trtexec and Triton load; what it is made of
stands in its network name. TensorRT for RTX builds without a GPU.

examples:
  yolact-deploy build yolact_base.onnx                       yolact_base.trt beside it
  yolact-deploy build yolact_base.onnx --engine rtx --target-sm 86,89
  yolact-deploy build batch_1_to_16.onnx --profile 1:1:4 --profile 4:8:16
"""

from __future__ import annotations

import argparse
from pathlib import Path

from yolact_deploy.cli import export
from yolact_deploy.vocabulary import FLAVOURS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("onnx", metavar="ONNX", help="file written by 'yolact-deploy export'")
    parser.add_argument(
        "-o", "--output", metavar="ENGINE", help="engine file (default: the ONNX file's name with .trt)"
    )
    export.add_engine_arguments(parser, choices=("auto", *FLAVOURS))


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.console import print_json

    onnx_path = Path(args.onnx)
    engine_path = Path(args.output) if args.output else onnx_path.with_suffix(".trt")
    report = export.build(args, onnx_path, engine_path, args.engine)
    if args.json:
        print_json(report.to_json())
    return 0
