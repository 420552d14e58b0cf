"""Measure models on the same images, side by side: accuracy, agreement with the eager model, speed, memory.

Every model gets the same pictures, in turns, one a call; times cover everything from the picture's file to masks of its
size. The model of --weights runs in eager PyTorch and is the reference; without it, the first --engine is.

'bench diff A B' compares two results that --output wrote, 'bench table FILE...' lists the engines of several, 'bench
report FILE' makes the HTML report of one.
"""

from __future__ import annotations

import argparse
import logging
import math
from typing import TYPE_CHECKING

from yolact_deploy.cli.dataset_options import add_dataset_arguments, open_dataset

if TYPE_CHECKING:
    from yolact_deploy.benchmarks.gates import Limits
    from yolact_deploy.benchmarks.measure import BenchResult
    from yolact_deploy.evaluation.engines import EngineSource

_log = logging.getLogger(__name__)

_EPILOG = """\
examples:
  yolact-deploy bench --weights yolact_base_54_800000.pth --engine yolact_base.onnx --coco coco/ --images 100
  yolact-deploy bench --weights w.pth --engine m.onnx --engine m.onnx@openvino-bf16 --coco coco/ --report bench.html
  yolact-deploy bench --engine m.onnx --images-dir pictures/ --json                 speed only, as JSON
  yolact-deploy bench --weights w.pth --engine m.onnx --coco coco/ --max-ap-drop 0.5 --min-agreement 0.98 \\
    --baseline last.json --tolerance 0.05 --junit bench.xml --output now.json     in CI
  yolact-deploy bench diff last.json now.json
  yolact-deploy bench diff now.json:eager now.json:m.onnx
  yolact-deploy bench table benchmarks/results/*speed.json --markdown

Engines are FILE[@BACKEND[-PRECISION][:OPTION[,OPTION]]], such as m.onnx@openvino-bf16:threads=2. Options: threads=N,
tail=auto|host|graph, device=cpu|cuda|cuda:N, provider=cpu|cuda|tensorrt|rtx (onnxruntime), compile=yes (torch).
Exit code 1: a limit was missed (there is a sentence for each); report, result and JUnit file are written all the same.
Every engine but the reference is held against the limits."""

_DIFF = """\
Compare two results engine by engine: those of the same name, or the one that FILE:ENGINE names on each side. Tells how
many times as long B takes, with a 95 % interval (bootstrap over the stored calls, paired where both ran the same images
in the same order), or that there is no difference. Of two runs, what the yardstick in both says of the machine is taken
off, and what drifts from run to run is in the interval."""

_REPORT = "Write the HTML report of a result that --output wrote; pictures are only in a report that --report writes."

_TABLE = "One table of the engines of several results, with what each run was measured on."


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
    measuring.add_argument(
        "--energy", type=float, nargs="?", const=10.0, metavar="SECONDS",
        help="run each engine alone for so long (10) and tell its energy, where the machine can",
    )  # fmt: skip
    measuring.add_argument(
        "--roofline", action="store_true", help="measure what this machine can do, and tell each network's share of it"
    )
    output = parser.add_argument_group("results")
    output.add_argument("--report", metavar="FILE.html", help="write a report with pictures")
    output.add_argument("--output", "-o", metavar="FILE.json", help="write the result as JSON")
    gates = parser.add_argument_group("limits")
    gates.add_argument("--max-ap-drop", type=float, metavar="POINTS", help="mask AP (of 100) an engine may lose")
    gates.add_argument(
        "--min-agreement", type=float, metavar="SHARE",
        help="share (0 to 1) of the detections of engine or reference on which both agree: same class, IoU of box and "
        "mask at least 0.9",
    )  # fmt: skip
    gates.add_argument("--min-fps", type=float, metavar="FPS", help="images/s that an engine must reach")
    gates.add_argument("--max-p99-ms", type=float, metavar="MS", help="time within which 99 %% of the calls must end")
    gates.add_argument("--baseline", metavar="FILE.json", help="earlier result than which no engine may be slower")
    gates.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help="by which the median may exceed the baseline's, if that is no chance (default 0.05)",
    )  # fmt: skip
    gates.add_argument("--junit", metavar="FILE.xml", help="write a test case for each limit and engine")
    _add_actions(parser)


def _add_actions(parser: argparse.ArgumentParser) -> None:
    """`bench diff` and the like; without such a word, engines are measured."""
    raw = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(
        dest="action", metavar="{diff,table,report}", title="results that were written before"
    )
    diff = actions.add_parser("diff", help="compare two results", description=_DIFF, formatter_class=raw)
    diff.add_argument("a", metavar="A.json[:ENGINE]", help="the earlier result, or the model to compare with")
    diff.add_argument("b", metavar="B.json[:ENGINE]", help="the result to judge")
    diff.add_argument("--margin", type=float, metavar="SHARE", help="difference to pass over (default 0.03)")
    table = actions.add_parser("table", help="list the engines of several results", description=_TABLE)
    table.add_argument("results", nargs="+", metavar="FILE.json")
    table.add_argument("--markdown", action="store_true", help="print GitHub's Markdown")
    report = actions.add_parser("report", help="write the report of a result", description=_REPORT)
    report.add_argument("result", metavar="FILE.json")
    report.add_argument("--output", "-o", required=True, metavar="FILE.html")
    for action in (diff, table, report):
        for flag in ("--debug", "--quiet", "--json"):  # also after the action
            action.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    return {"diff": _diff, "table": _table, "report": _report, None: _measure}[args.action](args)


def _measure(args: argparse.Namespace) -> int:
    from yolact_deploy.artifact import write_json
    from yolact_deploy.benchmarks.gates import baseline_warnings, judge, raise_missed
    from yolact_deploy.benchmarks.junit import write_junit
    from yolact_deploy.benchmarks.measure import run_bench
    from yolact_deploy.benchmarks.report.report_page import write_report
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import InputError

    if args.energy is not None and not 0 < args.energy < math.inf:
        raise InputError(f"--energy: expected seconds above 0, got {args.energy:g}")
    limits = _limits(args)
    sources = _sources(args)
    images = open_dataset(args)
    limits.check_usable([source.name for source in sources], has_truth=images.content is not None)
    quiet = args.quiet or args.json
    if not quiet:
        print(f"{images.describe()}: {', '.join(source.name for source in sources)}", flush=True)
    result = run_bench(
        sources,
        images,
        warmup=args.warmup,
        repeats=args.repeats,
        energy_seconds=args.energy,
        find_mistakes=limits.of_detections,
        with_roofline=args.roofline,
        progress=args.progress,
    )
    if args.json:
        print_json(result.to_json())
    elif not args.quiet:
        _print(result)
    if args.output:
        write_json(args.output, result.to_json())
    for line in baseline_warnings(result, limits):
        _log.warning("%s", line)
    checks = judge(result, limits)
    if args.report:
        write_report(result, args.report, checks=checks)
        if not quiet:
            print(f"wrote {args.report}")
    if args.junit:
        write_junit(checks, args.junit)
    raise_missed(checks)
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from yolact_deploy.benchmarks.gates import TOLERANCE, Limits
    from yolact_deploy.benchmarks.result_file import read_result
    from yolact_deploy.errors import InputError

    if args.tolerance is not None and not args.baseline:
        raise InputError("--tolerance is of the baseline: give --baseline FILE, too")
    limits = Limits(
        max_ap_drop=args.max_ap_drop,
        min_agreement=args.min_agreement,
        min_fps=args.min_fps,
        max_p99_ms=args.max_p99_ms,
        baseline=read_result(args.baseline) if args.baseline else None,
        tolerance=TOLERANCE if args.tolerance is None else args.tolerance,
    )
    if args.junit and not limits.given:
        raise InputError("--junit tells which limits were kept: give one, such as --max-ap-drop or --baseline")
    return limits


def _sources(args: argparse.Namespace) -> list[EngineSource]:
    from yolact_deploy.errors import InputError, import_optional
    from yolact_deploy.evaluation.engines import EAGER, EngineSource

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads: expected 1 or more, got {args.threads}")
    for name in ("config", "size"):
        if getattr(args, name) is not None and not args.weights:
            raise InputError(f"--{name} is of the eager model: give --weights, too")
    sources = []
    if args.weights:
        import_optional("torch", "train", "The eager model")
        from yolact_deploy.model.pretrained import resolve_weights

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


# -- results that were written before -------------------------------------------------------------------------------


def _diff(args: argparse.Namespace) -> int:
    import textwrap

    from yolact_deploy.benchmarks.diff import MARGIN, diff_results
    from yolact_deploy.benchmarks.result_file import find_row, read_result
    from yolact_deploy.benchmarks.tables import diff_lines, diff_table
    from yolact_deploy.console import print_json, print_table

    (file_a, name_a), (file_b, name_b) = find_row(args.a), find_row(args.b)
    margin = MARGIN if args.margin is None else args.margin
    diff = diff_results(read_result(file_a), read_result(file_b), (name_a, name_b), margin=margin)
    if args.json:
        print_json(diff.to_json())
        return 0
    table = diff_table(diff)
    print_table(table.columns, table.rows, title=table.title)
    for line in diff_lines(diff):
        print(textwrap.fill(line, width=120, subsequent_indent="  "))
    return 0


def _table(args: argparse.Namespace) -> int:
    import textwrap

    from yolact_deploy.benchmarks.result_file import read_result
    from yolact_deploy.benchmarks.tables import markdown, run_lines, run_rows, runs_table
    from yolact_deploy.console import print_json, print_table

    results = [read_result(file) for file in args.results]
    if args.json:
        print_json(run_rows(results))
        return 0
    table = runs_table(results, wide=args.markdown)
    if args.markdown:
        print(markdown(table), *(f"- {line}" for line in run_lines(results)), sep="\n")
        return 0
    print_table(table.columns, table.rows, title=table.title)
    for line in run_lines(results):
        print(textwrap.fill(line, width=120, subsequent_indent="  "))
    return 0


def _report(args: argparse.Namespace) -> int:
    from yolact_deploy.benchmarks.report.report_page import write_report
    from yolact_deploy.benchmarks.restore import restore
    from yolact_deploy.benchmarks.result_file import read_result
    from yolact_deploy.console import print_json

    write_report(restore(read_result(args.result)), args.output)
    if args.json:
        print_json({"report": args.output})
    elif not args.quiet:
        print(f"wrote {args.output}")
    return 0
