"""The scenarios of MLPerf by its own load generator: single-stream, multi-stream, offline, and a server with a bound.

LoadGen chooses the images, issues the queries, measures the times and gives the verdict; its logs stay in a folder. The
same queries are timed here as well, as a check of either clock. Times cover everything from a decoded image in memory
(or from its file) to masks pasted at its size.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from yolact_deploy.artifact import write_json
from yolact_deploy.benchmarks.mlperf.loadgen_log import LOG_FILES, LoadgenLog, read_log
from yolact_deploy.benchmarks.mlperf.loadgen_settings import SCENARIOS, LoadgenOptions, make_settings
from yolact_deploy.benchmarks.mlperf.loadgen_system import PictureLibrary, SystemUnderTest, images_per_call, time_calls
from yolact_deploy.errors import BackendError, InputError, OutputError, import_optional
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor

#: if LoadGen's percentiles and ours differ by more, the figures are doubtful
CLOCK_TOLERANCE = 0.05

# LoadGen has one logger per process.
_running = threading.Lock()
#: seconds in which Ctrl-C is noticed
_SIGNALS_S = 0.5


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario of one model; times are milliseconds, of a query (multi-stream: of all its images).

    Attributes:
        valid: LoadGen's verdict
        reasons: why it is not valid, in LoadGen's words
        p50_ms, p90_ms, p99_ms: by LoadGen; offline, where one query has all images, of each image since the start
        images_per_s: by LoadGen; completed ones in the server scenario, which cannot exceed ``target_rate`` by much
        samples_per_query: images in a query
        images_per_call: images given to the model at once; it splits them into its own batches
        target_percentile: percentile that the verdict is based on
        latency_bound_ms, target_rate: of the server scenario
        seeds: of LoadGen's random numbers
        own_p50_ms, own_p90_ms, own_p99_ms: the same queries by our clock, from issue to completion
        logs: folder of LoadGen's logs
    """

    engine: str
    scenario: str
    mode: str
    valid: bool
    reasons: tuple[str, ...]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    queries: int
    samples_per_query: int
    images_per_call: int
    max_batch: int
    from_files: bool
    pictures: int
    min_duration_s: float
    target_percentile: float | None
    latency_bound_ms: float | None
    target_rate: float | None
    seeds: dict[str, int]
    own_p50_ms: float
    own_p90_ms: float
    own_p99_ms: float
    loadgen_version: str
    logs: str

    @property
    def clock_difference(self) -> float:
        """The largest relative difference between LoadGen's percentiles and ours, of p50 and p99."""
        pairs = ((self.p50_ms, self.own_p50_ms), (self.p99_ms, self.own_p99_ms))
        return max(abs(ours - theirs) / theirs for theirs, ours in pairs)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "reasons": list(self.reasons), "clock_difference": self.clock_difference}


def is_running() -> bool:
    """Whether LoadGen is still running: it cannot be stopped, so a failed run continues to its end."""
    return _running.locked()


def run_scenarios(
    sources: Sequence[EngineSource],
    pictures: Sequence[Path],
    logs: Path,
    *,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    options: LoadgenOptions | None = None,
    progress: Progress = SILENT,
) -> list[ScenarioResult]:
    """Run the scenarios on one model after the other.

    Args:
        logs: folder of the logs, which are in MODEL/SCENARIO/ below it, each with our result.json; older ones are
            replaced

    Raises:
        MissingDependencyError: mlcommons-loadgen is not installed.
        InputError: images, models or options that cannot be used.
        BackendError: a model or LoadGen failed. LoadGen may still be running, see :func:`is_running`.
        OutputError: the logs cannot be written.
    """
    import_optional("mlperf_loadgen", "loadgen", "Running MLPerf scenarios")
    if not sources:
        raise InputError("nothing to measure: give a model")
    unknown = [name for name in scenarios if name not in SCENARIOS]
    if unknown or not scenarios:
        raise InputError(f"unknown scenario {', '.join(unknown) or 'none'}; known are {', '.join(SCENARIOS)}")
    options = options or LoadgenOptions()
    folders = [re.sub(r"[^\w.@-]+", "_", source.name) for source in sources]
    if len(set(folders)) < len(folders):
        raise InputError(f"two models have the same name among {', '.join(s.name for s in sources)}: give each once")
    library = PictureLibrary(pictures, from_files=options.from_files, memory_mib=options.memory_mib)
    results = []
    for source, folder in zip(sources, folders, strict=True):
        with source.load() as predictor:
            for scenario in scenarios:
                target = logs / folder / scenario
                with progress.steps(f"{source.name}: {scenario}"):
                    results.append(run_scenario(source.name, predictor, library, scenario, target, options))
    return results


def run_scenario(
    name: str, predictor: Predictor, library: PictureLibrary, scenario: str, logs: Path, options: LoadgenOptions
) -> ScenarioResult:
    """Run one scenario on a loaded model, which pastes its masks in the call; see :func:`run_scenarios`."""
    loadgen = import_optional("mlperf_loadgen", "loadgen", "Running MLPerf scenarios")
    if predictor.lazy_masks:
        raise InputError("lazy masks would leave pasting out of the measurement: load with lazy_masks=False")
    samples_per_query = loadgen.TestSettings().multi_stream_samples_per_query if scenario == "multi-stream" else 1
    count = images_per_call(predictor, scenario, samples_per_query)
    calls, seconds = 20 if scenario == "server" else 3, min(1.0, options.seconds or 1.0)
    call_ms = time_calls(predictor, library, count, calls=calls, seconds=seconds)
    settings = make_settings(loadgen, scenario, options, call_ms, count)
    _prepare(logs)
    system = SystemUnderTest(loadgen, predictor, library, images_per_call=count, queued=scenario == "server")
    _run(loadgen, settings, system, library, logs)
    log = read_log(logs)
    own_ms = sorted(ns / 1e6 for ns in system.latencies_ns[samples_per_query - 1 :: samples_per_query])
    # LoadGen takes the value at this place of the sorted list, without interpolation.
    own: dict[str, Any] = {f"own_p{q}_ms": own_ms[len(own_ms) * q // 100] for q in (50, 90, 99)}
    result = ScenarioResult(
        engine=name,
        scenario=scenario,
        mode=options.mode,
        images_per_s=_images_per_s(scenario, log, samples_per_query),
        images_per_call=count,
        max_batch=predictor.backend.max_batch,
        from_files=library.from_files,
        pictures=len(library),
        logs=str(logs),
        **_from_log(log, scenario),
        **_from_settings(settings, scenario),
        **own,
    )
    write_json(logs / "result.json", result.to_json())
    return result


def _from_log(log: LoadgenLog, scenario: str) -> dict[str, Any]:
    """Fields of the result that LoadGen logs."""
    kind = "per_query_latency_ns" if scenario == "multi-stream" else "latency_ns"
    return {
        "valid": log.valid,
        "reasons": log.reasons,
        **{f"p{q}_ms": log.number(f"result_{q}.00_percentile_{kind}") / 1e6 for q in (50, 90, 99)},
        "queries": int(log.number("result_query_count")),
        "samples_per_query": int(log.number("effective_samples_per_query")),
        "target_percentile": None if scenario == "offline" else log.number("effective_target_latency_percentile"),
        "loadgen_version": str(log.values.get("loadgen_version", "")),
    }


def _from_settings(settings: Any, scenario: str) -> dict[str, Any]:
    """Fields of the result that LoadGen was asked for."""
    server = scenario == "server"
    return {
        "min_duration_s": settings.min_duration_ms / 1e3,
        "latency_bound_ms": settings.server_target_latency_ns / 1e6 if server else None,
        "target_rate": settings.server_target_qps if server else None,
        "seeds": {key: getattr(settings, f"{key}_rng_seed") for key in ("qsl", "sample_index", "schedule")},
    }


def _images_per_s(scenario: str, log: LoadgenLog, samples_per_query: int) -> float:
    if scenario == "multi-stream":  # LoadGen logs it for all others
        return samples_per_query * 1e9 / log.number("result_mean_query_latency_ns")
    key = {
        "single-stream": "result_qps_with_loadgen_overhead",
        "offline": "result_samples_per_second",
        "server": "result_completed_samples_per_sec",
    }[scenario]
    return log.number(key)


def _run(loadgen: ModuleType, settings: Any, system: SystemUnderTest, library: PictureLibrary, logs: Path) -> None:
    """One run of LoadGen in a separate thread, because an interrupt must not occur inside its callbacks."""
    if not _running.acquire(blocking=False):
        raise BackendError("LoadGen is still finishing an interrupted run: wait, or start another process")
    log_settings = loadgen.LogSettings()
    log_settings.log_output.outdir = str(logs)
    log_settings.log_output.copy_summary_to_stdout = False
    log_settings.enable_trace = False

    def run() -> None:
        try:
            with system:
                sut = loadgen.ConstructSUT(system.issue, system.flush)
                qsl = loadgen.ConstructQSL(len(library), len(library), system.load, system.unload)
                # No audit configuration: a file in the working folder would replace the settings.
                loadgen.StartTestWithLogSettings(sut, qsl, settings, log_settings, "")
                loadgen.DestroyQSL(qsl)
                loadgen.DestroySUT(sut)
        finally:
            _running.release()
            system.over.set()

    threading.Thread(target=run, name="yolact-loadgen").start()
    try:
        # Python looks for signals between such waits: one that came just before a wait without end would be lost.
        while not system.over.wait(_SIGNALS_S):
            pass
    except BaseException as error:
        system.fail(error)
        raise
    if system.error is not None:
        raise system.error


def _prepare(folder: Path) -> None:
    """Make the folder and remove older logs; LoadGen itself would end the process if it could not write them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in LOG_FILES:
            (folder / name).unlink(missing_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(f"cannot write LoadGen's logs into {folder}: {error.strerror or error}") from error
