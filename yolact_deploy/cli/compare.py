"""Compare two models on the same pictures, output by output and detection by detection.

Where both give their raw heads (eager, and ONNX files whose tail runs on the host), boxes, scores, coefficients and
prototypes are compared as numbers, too.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolact_deploy.benchmarks.compare import CompareResult

HELP = "compare two models, output by output and detection by detection"

_EPILOG = """\
examples:
  yolact-deploy compare --reference yolact_base_54_800000.pth --engine yolact_base.onnx --images pictures/
  yolact-deploy compare --reference m.onnx --engine m.onnx@openvino-bf16 --images a.jpg b.jpg --json"""


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
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="images to list (default 5)")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.benchmarks.coco import plain_images
    from yolact_deploy.benchmarks.compare import compare_models
    from yolact_deploy.benchmarks.engines import EngineSource
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import InputError

    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: expected 1 or more, got {args.limit}")
    if not 0 <= args.score < 1:
        raise InputError(f"--score: expected 0 <= value < 1, got {args.score}")
    images = plain_images(args.images, args.limit)
    reference, engine = (EngineSource.from_spec(m, threads=args.threads) for m in (args.reference, args.engine))
    with reference.load() as a, engine.load() as b:
        result = compare_models(
            (reference.name, a), (engine.name, b), images, score_threshold=args.score, quiet=args.quiet
        )
    if args.json:
        print_json(result.to_json())
    else:
        _print(result, args.worst)
    return 0


def _print(result: CompareResult, worst: int) -> None:
    from yolact_deploy.benchmarks.compare import tensor_rows
    from yolact_deploy.benchmarks.tables import agreement_tables
    from yolact_deploy.console import print_table

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
        )
        for image in result.images[:worst]
    ]
    if rows:
        columns = ("image", "detections", "missed", "extra", "flips", "least box IoU", "least mask IoU")
        print_table(columns, rows, title="Images, the worst first")
