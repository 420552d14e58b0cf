"""Measure models on the same images, side by side: accuracy, agreement with the eager model, speed, memory.

Every model gets the same pictures, in turns, one a call; times cover everything from the picture's file to masks of its
size. The model of --weights runs in eager PyTorch and is the reference; without it, the first --engine is.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from yolact_deploy.cli.datasets import add_dataset_arguments, open_dataset

if TYPE_CHECKING:
    from yolact_deploy.benchmarks.bench import BenchResult
    from yolact_deploy.benchmarks.engines import EngineSource

HELP = "measure accuracy and speed of engines side by side"

_EPILOG = """\
examples:
  yolact-deploy bench --weights yolact_base_54_800000.pth --engine yolact_base.onnx --coco coco/ --images 100
  yolact-deploy bench --weights w.pth --engine m.onnx --engine m.onnx@openvino-bf16 --coco coco/ --report bench.html
  yolact-deploy bench --engine m.onnx --images-dir pictures/ --json                 speed only, as JSON
  yolact-deploy bench --weights w.pth --engine m.onnx --coco coco/ --max-ap-drop 0.5 --min-fps 2     in CI

Engines are FILE[@BACKEND[-PRECISION][:OPTION[,OPTION]]], such as m.onnx@openvino-bf16:threads=2. Options: threads=N,
tail=auto|host|graph, device=cpu|cuda|cuda:N, provider=cpu|cuda|tensorrt|rtx (onnxruntime), compile=yes (torch).
Exit code 1: a limit (--max-ap-drop, --min-fps) was missed; the report is written all the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    models = parser.add_argument_group("models")
    models.add_argument("--engine", action="append", default=[], metavar="SPEC", help="model to measure; repeatable")
    models.add_argument("--weights", metavar="W", help="checkpoint (or name of official weights) of the eager model")
    models.add_argument("--config", metavar="NAME", help="configuration of --weights; by default told from the tensors")
    models.add_argument("--size", type=int, metavar="S", help="input side of --weights; by default the configuration's")
    models.add_argument("--threads", type=int, metavar="N", help="CPU threads of every model")
    add_dataset_arguments(parser)
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--warmup", type=int, default=3, metavar="N", help="calls before measuring (default 3)")
    measuring.add_argument("--repeats", type=int, default=1, metavar="N", help="rounds over the images (default 1)")
    output = parser.add_argument_group("results")
    output.add_argument("--report", metavar="FILE.html", help="write a report with pictures")
    output.add_argument("--output", "-o", metavar="FILE.json", help="write the result as JSON")
    output.add_argument("--max-ap-drop", type=float, metavar="POINTS", help="mask AP (of 100) an engine may lose")
    output.add_argument("--min-fps", type=float, metavar="FPS", help="images/s that an engine must reach")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.benchmarks.bench import run_bench
    from yolact_deploy.benchmarks.gates import check_gates
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import DatasetError

    sources = _sources(args)
    images = open_dataset(args)
    if args.max_ap_drop is not None and images.content is None:
        raise DatasetError("--max-ap-drop needs ground truth: give --coco DIR or --annotations FILE with annotations")
    quiet = args.quiet or args.json
    if not quiet:
        print(f"{images.describe()}: {', '.join(source.name for source in sources)}", flush=True)
    result = run_bench(sources, images, warmup=args.warmup, repeats=args.repeats, quiet=args.quiet)
    if args.json:
        print_json(result.to_json())
    elif not args.quiet:
        _print(result)
    _write(args, result)
    check_gates(result, max_ap_drop=args.max_ap_drop, min_fps=args.min_fps)
    return 0


def _sources(args: argparse.Namespace) -> list[EngineSource]:
    from yolact_deploy.benchmarks.engines import EAGER, EngineSource
    from yolact_deploy.errors import InputError, import_optional

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads: expected 1 or more, got {args.threads}")
    for name in ("config", "size"):
        if getattr(args, name) is not None and not args.weights:
            raise InputError(f"--{name} is of the eager model: give --weights, too")
    sources = []
    if args.weights:
        import_optional("torch", "train", "The eager model")
        from yolact_deploy.training.pretrained import resolve_weights

        weights = str(resolve_weights(args.weights))
        sources.append(
            EngineSource.from_spec(
                weights, EAGER, backend="torch", threads=args.threads, config=args.config, image_size=args.size
            )
        )
    sources += [EngineSource.from_spec(engine, threads=args.threads) for engine in args.engine]
    if not sources:
        raise InputError("nothing to measure: give --weights, --engine, or both")
    return sources


def _print(result: BenchResult) -> None:
    import textwrap

    from yolact_deploy.benchmarks.tables import bench_tables, warning_lines
    from yolact_deploy.console import print_table

    for table in bench_tables(result):
        print_table(table.columns, table.rows, title=table.title)
    for line in warning_lines(result):
        print(textwrap.fill(f"note: {line}", width=120))


def _write(args: argparse.Namespace, result: BenchResult) -> None:
    from yolact_deploy.artifact import write_json

    if args.output:
        write_json(args.output, result.to_json())
    if args.report:
        from yolact_deploy.benchmarks.report import write_report

        write_report(result, args.report)
        if not (args.quiet or args.json):
            print(f"wrote {args.report}")
