"""Run the scenarios of MLPerf on models, with MLPerf's own load generator, LoadGen.

single-stream: one image after the other. multi-stream: eight at once, again and again. offline: all images at once.
server: images arrive at random and must be finished within a bound. Times cover everything from a decoded image in
memory to masks of its size. LoadGen gives the verdict VALID or INVALID, and its logs are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.console import print_text

if TYPE_CHECKING:
    from yolact_deploy.benchmarks.mlperf.loadgen_run import ScenarioResult
    from yolact_deploy.benchmarks.mlperf.loadgen_settings import LoadgenOptions

_EPILOG = """\
examples:
  yolact-deploy loadgen m.onnx m.onnx@openvino-bf16 --images pictures/ --logs logs/
  yolact-deploy loadgen m.onnx --images pictures/ --logs logs/ --scenario server --latency-ms 500 --rate 3
  yolact-deploy loadgen m.trt --images pictures/ --logs logs/ --mode full          LoadGen's own: 10 minutes each

Engines are FILE[@BACKEND[-PRECISION][:OPTION[,OPTION]]], as for the command bench.

Exit code 1: LoadGen reports a run as INVALID; the results are printed all the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from yolact_deploy.benchmarks.mlperf.loadgen_settings import MODES, SCENARIOS, SHORT_SECONDS

    parser.epilog = _EPILOG
    parser.add_argument("engine", nargs="+", metavar="ENGINE", help="model to measure")
    parser.add_argument(
        "--images", required=True, nargs="+", metavar="DIR_OR_FILE", help="images, or folders of images"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--logs", required=True, metavar="DIR", help="folder for LoadGen's logs, in ENGINE/SCENARIO/")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of every model")
    run = parser.add_argument_group("scenarios")
    run.add_argument("--scenario", action="append", choices=SCENARIOS, help="repeatable; by default all four")
    run.add_argument(
        "--mode", choices=MODES, default="short", help="short (default), or full for LoadGen's durations and counts"
    )
    run.add_argument(
        "--seconds", type=float, metavar="S", help=f"least duration in the short mode (default {SHORT_SECONDS:g})"
    )
    run.add_argument("--rate", type=float, metavar="R", help="server: images per second (default: as the bound allows)")
    run.add_argument(
        "--latency-ms", type=float, metavar="MS", help="server: latency bound (default: 5 times one image)"
    )
    run.add_argument("--from-files", action="store_true", help="decode the images inside the measured time")
    run.add_argument(
        "--memory-mib",
        type=int,
        default=1024,
        metavar="M",
        help="for decoded images; as many as fit are used (default 1024)",
    )
    parser.add_argument("--output", "-o", metavar="FILE.json", help="write the results as JSON")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.artifact import write_json
    from yolact_deploy.benchmarks.mlperf.loadgen_settings import LoadgenOptions
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import GateError
    from yolact_deploy.machine.environment import environment

    options = LoadgenOptions(
        mode=args.mode,
        seconds=args.seconds,
        rate=args.rate,
        latency_ms=args.latency_ms,
        from_files=args.from_files,
        memory_mib=args.memory_mib,
    )
    results = _measure(args, options)
    content = {"environment": environment(), "results": [result.to_json() for result in results]}
    if args.output:
        write_json(args.output, content)
    if args.json:
        print_json(content)
    elif not args.quiet:
        _print(results)
    invalid = [f"{result.engine} {result.scenario}" for result in results if not result.valid]
    if invalid:
        raise GateError(f"LoadGen reports INVALID: {', '.join(invalid)}")
    return 0


def _measure(args: argparse.Namespace, options: LoadgenOptions) -> list[ScenarioResult]:
    from yolact_deploy.benchmarks.mlperf.loadgen_run import is_running, run_scenarios
    from yolact_deploy.benchmarks.mlperf.loadgen_settings import SCENARIOS
    from yolact_deploy.datasets.image_sets import plain_images
    from yolact_deploy.errors import InputError
    from yolact_deploy.evaluation.engines import EngineSource, told_apart
    from yolact_deploy.progress import SILENT

    for name in ("threads", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}: expected 1 or more, got {value}")
    sources = told_apart([EngineSource.from_spec(engine, threads=args.threads) for engine in args.engine])
    pictures = plain_images(args.images, args.limit).paths
    scenarios = list(dict.fromkeys(args.scenario or SCENARIOS))
    progress = SILENT if args.json else args.progress
    try:
        return run_scenarios(
            sources, pictures, Path(args.logs), scenarios=scenarios, options=options, progress=progress
        )
    except BaseException as error:
        if is_running():
            _leave(error)
        raise


def _leave(error: BaseException) -> None:
    """End the process at once: LoadGen cannot be stopped, and Python would wait for it, up to ten minutes."""
    import os
    import sys

    from yolact_deploy.errors import YolactDeployError

    if isinstance(error, YolactDeployError):
        print_text(f"yolact-deploy: error: {' '.join(str(error).split())}", file=sys.stderr)
        os._exit(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        print_text("yolact-deploy: error: interrupted; LoadGen's logs are incomplete", file=sys.stderr)
        os._exit(2)


def _print(results: list[ScenarioResult]) -> None:
    from yolact_deploy.benchmarks.mlperf.loadgen_run import CLOCK_TOLERANCE
    from yolact_deploy.console import print_table

    columns = ("engine", "scenario", "verdict", "p50 ms", "p90", "p99", "images/s", "queries", "own p50", "own p99")
    rows = [
        (
            result.engine,
            result.scenario,
            "VALID" if result.valid else "INVALID",
            *(f"{value:.1f}" for value in (result.p50_ms, result.p90_ms, result.p99_ms)),
            f"{result.images_per_s:.2f}",
            result.queries,
            f"{result.own_p50_ms:.1f}",
            f"{result.own_p99_ms:.1f}",
        )
        for result in results
    ]
    start = "image file" if results[0].from_files else "decoded image"
    title = f"MLPerf LoadGen, {results[0].mode} mode: {start} to pasted masks, {results[0].pictures} images"
    print_table(columns, rows, title=title)
    for result in results:
        where = f"{result.engine}, {result.scenario}"
        notes = list(result.reasons)
        if result.target_rate is not None:
            notes.append(f"{result.target_rate:.3g} images/s requested, bound {result.latency_bound_ms:.4g} ms")
        if result.clock_difference > CLOCK_TOLERANCE:
            notes.append(f"LoadGen's and our own times differ by {100 * result.clock_difference:.0f} %")
        for note in notes:
            print_text(f"note: {where}: {note}")
