"""Measure models on the same images, side by side: accuracy, agreement with the eager model, speed, memory.

Every model sees the same images, in turns, one per call; times cover everything from the image file to masks of its
size. The model of --weights runs in eager PyTorch and is the reference; without --weights, the first --engine is.

Without images, those of ./coco or of the dataset that the variable YOLACT_COCO names are taken if the model knows their
classes, else some that come with the package. Then the reference is the checkpoint that the engine was made from, if it
lies beside the engine, in the current folder or in weights/, or is the one that ships.

'bench diff A B' compares two results that --output wrote, 'bench table FILE...' lists the engines of several results,
'bench report FILE' writes the HTML report of one.
"""

from __future__ import annotations

import argparse
import logging
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

from yolact_deploy.cli.options.dataset_options import add_dataset_arguments, names_dataset, open_dataset
from yolact_deploy.cli.options.parsing import whole
from yolact_deploy.cli.options.selection_options import add_nms_arguments, nms_settings
from yolact_deploy.cli.options.size_options import add_size_arguments, size_options
from yolact_deploy.console import print_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from yolact_deploy.benchmarks.gates import Limits
    from yolact_deploy.benchmarks.measure import BenchRun
    from yolact_deploy.benchmarks.tables import Table
    from yolact_deploy.datasets.image_sets import CocoImages
    from yolact_deploy.evaluation.engines import EngineSource

_log = logging.getLogger(__name__)

_EPILOG = """\
examples:
  yolact-deploy bench --engine yolact.trt
  yolact-deploy bench --weights yolact_base_54_800000.pth --engine yolact_base.onnx --data coco/ --limit 100
  yolact-deploy bench --weights w.pth --engine m.onnx --engine m.onnx@openvino-bf16 --data coco/ --report bench.html
  yolact-deploy bench --engine m.onnx --images-dir pictures/ --json                 speed only, as JSON
  yolact-deploy bench --weights w.pth --engine m.onnx --data coco/ --max-ap-drop 0.5 --min-agreement 0.98 \\
    --baseline last.json --tolerance 0.05 --junit bench.xml --output now.json     in CI
  yolact-deploy bench diff last.json now.json
  yolact-deploy bench diff now.json:eager now.json:m.onnx
  yolact-deploy bench table benchmarks/results/*speed.json --markdown

An engine is FILE[@BACKEND[-PRECISION][:OPTION[,OPTION]]], for example m.onnx@openvino-bf16:threads=2. Options:
threads=N, tail=auto|host|graph, device=cpu|cuda|cuda:N, provider=cpu|cuda|tensorrt|rtx (onnxruntime), compile=yes
(torch). A folder that 'export --format opencv' or ncnn wrote is named with its runtime: m_ncnn_model@ncnn.

Exit code 1: a limit was missed, with a sentence for each; report, result and JUnit file are written all the same.
The limits apply to every engine except the reference."""

_DIFF = """\
Compare two results engine by engine: engines of the same name, or those given as FILE:ENGINE. Reports how many times as
long B takes, with a 95 % interval (bootstrap over the stored calls, paired if both ran the same images in the same
order), or that there is no difference. Between two runs, the change of the machine by the yardstick is divided out, and
the interval includes drift from run to run."""

_REPORT = "Write the HTML report of a result that --output wrote; only a report that --report writes has pictures."

_TABLE = "List the engines of several results in one table, with what each run was measured on."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    models = parser.add_argument_group("models")
    models.add_argument("--engine", action="append", default=[], metavar="SPEC", help="model to measure; repeatable")
    models.add_argument("--weights", metavar="W", help="checkpoint (or name of published weights) of the eager model")
    models.add_argument(
        "--config", metavar="NAME", help="configuration of --weights: name or JSON file (default: inferred)"
    )
    add_size_arguments(models, of="the input of --weights")
    models.add_argument("--threads", type=int, metavar="N", help="CPU threads of every model")
    add_nms_arguments(models)
    add_dataset_arguments(parser)
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--warmup", type=whole(0, 10_000), default=3, metavar="N", help="calls before measuring (default 3)"
    )
    measuring.add_argument("--repeats", type=whole(), default=1, metavar="N", help="rounds over the images (default 1)")
    measuring.add_argument(
        "--energy", type=float, nargs="?", const=10.0, metavar="SECONDS",
        help="run each engine alone for this long (default 10) and report its energy, where the machine measures it",
    )  # fmt: skip
    measuring.add_argument(
        "--roofline", action="store_true", help="measure the limits of this machine and report each network's share"
    )
    output = parser.add_argument_group("results")
    output.add_argument("--report", metavar="FILE.html", help="write an HTML report with pictures")
    output.add_argument("--output", "-o", metavar="FILE.json", help="write the result as JSON")
    _add_limits(parser)
    _add_actions(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    gates = parser.add_argument_group("limits")
    gates.add_argument(
        "--max-ap-drop", type=float, metavar="POINTS", help="points of mask AP (of 100) an engine may lose"
    )
    gates.add_argument(
        "--min-agreement", type=float, metavar="SHARE",
        help="share (0 to 1) of all detections on which engine and reference must agree: same class, box and mask IoU "
        "of at least 0.9",
    )  # fmt: skip
    gates.add_argument("--min-fps", type=float, metavar="FPS", help="images/s that an engine must reach")
    gates.add_argument("--max-p99-ms", type=float, metavar="MS", help="highest 99th percentile of the calls")
    gates.add_argument("--baseline", metavar="FILE.json", help="earlier result; no engine may be slower than there")
    gates.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help="share by which the median may exceed the baseline's, beyond chance (default 0.05)",
    )  # fmt: skip
    gates.add_argument("--junit", metavar="FILE.xml", help="write a test case for each limit and engine")


def _add_actions(parser: argparse.ArgumentParser) -> None:
    """`bench diff` and the others; without an action, engines are measured."""
    actions = parser.add_subparsers(dest="action", metavar="{diff,table,report}", title="stored results")
    diff = actions.add_parser("diff", help="compare two results", description=_DIFF)
    diff.add_argument("a", metavar="A.json[:ENGINE]", help="the earlier result, or the model to compare with")
    diff.add_argument("b", metavar="B.json[:ENGINE]", help="the result to judge")
    diff.add_argument("--margin", type=float, metavar="SHARE", help="smaller differences count as none (default 0.03)")
    table = actions.add_parser("table", help="list the engines of several results", description=_TABLE)
    table.add_argument("results", nargs="+", metavar="FILE.json", help="result of a run")
    table.add_argument("--markdown", action="store_true", help="print GitHub's Markdown")
    report = actions.add_parser("report", help="write the report of a result", description=_REPORT)
    report.add_argument("result", metavar="FILE.json", help="result of a run")
    report.add_argument("--output", "-o", required=True, metavar="FILE.html", help="page to write")
    for action in (diff, table, report):
        for flag in ("--debug", "--quiet", "--json"):  # also after the action
            action.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.errors import import_optional

    import_optional("msgspec", "bench", "A benchmark record")
    return {"diff": _diff, "table": _table, "report": _report, None: _measure}[args.action](args)


def _measure(args: argparse.Namespace) -> int:
    from yolact_deploy.benchmarks.measure import run_bench
    from yolact_deploy.errors import InputError

    if args.energy is not None and not 0 < args.energy < math.inf:
        raise InputError(f"--energy: expected seconds above 0, got {args.energy:g}")
    limits = _limits(args)
    sources = _sources(args)
    with _images(args, sources) as images:
        limits.check_usable([source.name for source in sources], has_truth=images.has_objects)
        if images.content is not None and not images.has_objects:
            _log.warning("%s: no objects on these images, so AP is not measured", images.annotations)
        if not (args.quiet or args.json):
            print_text(f"{images.describe()}: {', '.join(source.name for source in sources)}")
        run = run_bench(
            sources,
            images,
            warmup=args.warmup,
            repeats=args.repeats,
            energy_seconds=args.energy,
            find_mistakes=limits.of_detections,
            with_roofline=args.roofline,
            progress=args.progress,
        )
        return _publish(args, run, limits)


@contextmanager
def _images(args: argparse.Namespace, sources: Sequence[EngineSource]) -> Iterator[CocoImages]:
    """The images named, or those at hand for the classes of the first model."""
    from yolact_deploy.cli.at_hand import config_of, pictures_at_hand

    if names_dataset(args):
        yield open_dataset(args)
        return
    spec = sources[0].spec
    assert spec is not None  # from a specification
    with pictures_at_hand(args, config_of(spec.path, args.config), args.images) as images:
        yield images


def _publish(args: argparse.Namespace, run: BenchRun, limits: Limits) -> int:
    """Print and write what was measured, then check the limits."""
    from yolact_deploy.benchmarks.gates import baseline_warnings, judge, raise_missed, write_junit
    from yolact_deploy.benchmarks.record import to_json, write_record
    from yolact_deploy.benchmarks.record_tables import bench_tables, warning_lines
    from yolact_deploy.benchmarks.report.report_page import write_report
    from yolact_deploy.console import print_json

    if args.json:
        print_json(to_json(run.record))
    elif not args.quiet:
        _print(bench_tables(run.record), (f"note: {line}" for line in warning_lines(run.record)))
    if args.output:
        write_record(run.record, args.output)
    for line in baseline_warnings(run.record, limits):
        _log.warning("%s", line)
    checks = judge(run.record, limits)
    if args.report:
        write_report(run.record, args.report, pictures=run.pictures, checks=checks)
    if args.junit:
        write_junit(checks, args.junit)
    if not (args.quiet or args.json) and (written := [*filter(None, (args.output, args.report, args.junit))]):
        print_text(f"wrote {', '.join(written)}")
    raise_missed(checks)
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from yolact_deploy.benchmarks.gates import TOLERANCE, Limits
    from yolact_deploy.benchmarks.record import read_record
    from yolact_deploy.errors import InputError

    if args.tolerance is not None and not args.baseline:
        raise InputError("--tolerance requires --baseline FILE")
    limits = Limits(
        max_ap_drop=args.max_ap_drop,
        min_agreement=args.min_agreement,
        min_fps=args.min_fps,
        max_p99_ms=args.max_p99_ms,
        baseline=read_record(args.baseline) if args.baseline else None,
        tolerance=TOLERANCE if args.tolerance is None else args.tolerance,
    )
    if args.junit and not limits.given:
        raise InputError("--junit reports limits: give at least one, such as --max-ap-drop or --baseline")
    return limits


def _sources(args: argparse.Namespace) -> list[EngineSource]:
    from yolact_deploy.errors import InputError, import_optional
    from yolact_deploy.evaluation.engines import EAGER, EngineSource, told_apart

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads: expected 1 or more, got {args.threads}")
    for name in ("config", "size", "fit", "priors"):
        if getattr(args, name) is not None and not args.weights:
            raise InputError(f"--{name} applies to the eager model: give --weights too")
    nms = nms_settings(args)
    sources = [EngineSource.from_spec(engine, threads=args.threads, **nms) for engine in _engines(args)]
    eager: EngineSource | None = None
    if args.weights:
        import_optional("torch", "train", "The eager model")
        from yolact_deploy.samples.pretrained import resolve_weights

        weights = str(resolve_weights(args.weights))
        eager = EngineSource.from_spec(
            weights, EAGER, backend="torch", threads=args.threads, config=args.config, **size_options(args), **nms
        )
    elif not names_dataset(args):
        eager = _eager_of(args, sources[0])
    return told_apart([eager, *sources] if eager else sources)


def _engines(args: argparse.Namespace) -> list[str]:
    """The models of --engine; without it and --weights, the exported one in the current folder."""
    from yolact_deploy.cli.at_hand import exported_at_hand
    from yolact_deploy.errors import InputError

    if args.engine or args.weights:
        return list(args.engine)
    exported = exported_at_hand(args)
    if exported is None:
        raise InputError(
            "nothing to measure: give --weights, --engine, or both. 'yolact-deploy export --fp16' writes yolact.onnx "
            "and yolact.trt"
        )
    return [str(exported)]


def _eager_of(args: argparse.Namespace, engine: EngineSource) -> EngineSource | None:
    """The eager model that an engine was made from; None if it cannot run here, which is said."""
    from importlib.util import find_spec

    from yolact_deploy.cli.at_hand import made_from, read_metadata
    from yolact_deploy.evaluation.engines import EAGER, EngineSource
    from yolact_deploy.vocabulary import CHECKPOINT_SUFFIXES

    if engine.path is None:
        args.progress.note(f"note: {engine.name} is on a server: the eager model is left out. Name it with --weights")
        return None
    if engine.path.suffix.lower() in CHECKPOINT_SUFFIXES:
        return None
    metadata = read_metadata(engine.path)
    weights = made_from(metadata, engine.path)
    if weights is None:
        digest = metadata.weights_sha256
        why = f"no checkpoint here has its SHA-256 {digest[:12]}..." if digest else f"{engine.name} does not record it"
        args.progress.note(f"note: no weights named, so the eager model is left out: {why}")
        return None
    if find_spec("torch") is None:
        args.progress.note("note: the eager model is left out: torch is not installed")
        return None
    args.progress.note(f"note: no weights named: the reference is {weights.name}, which {engine.name} was made from")
    return EngineSource.from_spec(
        str(weights), EAGER, backend="torch", threads=args.threads, config=metadata.config, **nms_settings(args)
    )


def _print(tables: Iterable[Table], lines: Iterable[str]) -> None:
    from yolact_deploy.console import print_table

    for table in tables:
        print_table(table.columns, table.rows, title=table.title)
    for line in lines:
        print_text(line, indent="  ")


# -- stored results -------------------------------------------------------------------------------------------------


def _diff(args: argparse.Namespace) -> int:
    from yolact_deploy.benchmarks.diff import MARGIN, diff_records
    from yolact_deploy.benchmarks.record import find_record, read_record
    from yolact_deploy.benchmarks.record_tables import diff_lines, diff_table
    from yolact_deploy.console import print_json

    (file_a, name_a), (file_b, name_b) = find_record(args.a), find_record(args.b)
    margin = MARGIN if args.margin is None else args.margin
    diff = diff_records(read_record(file_a), read_record(file_b), (name_a, name_b), margin=margin)
    if args.json:
        print_json(diff.to_json())
    else:
        _print([diff_table(diff)], diff_lines(diff))
    return 0


def _table(args: argparse.Namespace) -> int:
    from yolact_deploy.benchmarks.record import read_record
    from yolact_deploy.benchmarks.record_tables import run_lines, run_rows, runs_table
    from yolact_deploy.console import print_json

    records = [read_record(file) for file in args.results]
    if args.json:
        print_json(run_rows(records))
    elif args.markdown:
        print(runs_table(records, wide=True).markdown(), *(f"- {line}" for line in run_lines(records)), sep="\n")
    else:
        _print([runs_table(records)], run_lines(records))
    return 0


def _report(args: argparse.Namespace) -> int:
    from yolact_deploy.benchmarks.record import read_record
    from yolact_deploy.benchmarks.report.report_page import write_report
    from yolact_deploy.console import print_json

    write_report(read_record(args.result), args.output)
    if args.json:
        print_json({"report": args.output})
    elif not args.quiet:
        print_text(f"wrote {args.output}")
    return 0
