"""MLPerf's scenarios by LoadGen: on tiny exported models, and on scripted ones that sleep, fail or are too slow."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few
from scripted import SCRIPT, ScriptedBackend, predictor, source, write_pictures
from tables import widest

from yolact_deploy import samples
from yolact_deploy.benchmarks.mlperf.loadgen_log import DETAIL, SUMMARY, read_log
from yolact_deploy.benchmarks.mlperf.loadgen_run import (
    CLOCK_TOLERANCE,
    ScenarioResult,
    is_running,
    run_scenario,
    run_scenarios,
)
from yolact_deploy.benchmarks.mlperf.loadgen_settings import SCENARIOS, LoadgenOptions, make_settings, server_rate
from yolact_deploy.benchmarks.mlperf.loadgen_system import PictureLibrary
from yolact_deploy.cli.main import main
from yolact_deploy.errors import BackendError, InputError, MissingDependencyError, OutputError
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.runtime.predictor import Predictor

loadgen = pytest.importorskip("mlperf_loadgen")

# Bounds and rates that any machine meets, as busy as it may be.
EASY = LoadgenOptions(seconds=0.1, rate=100, latency_ms=60_000)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported file of a few kilobytes that takes 1 to 4 images."""
    pytest.importorskip("onnx")
    sys.path.append(str(Path(__file__).parents[2] / "helpers"))
    from tiny_onnx import write_model

    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


def library(pictures: list[Path]) -> PictureLibrary:
    return PictureLibrary(pictures, from_files=False, memory_mib=1)


def run_one(backend: Any, pictures: list[Path], logs: Path, scenario: str, options: LoadgenOptions) -> ScenarioResult:
    return run_scenario("model", predictor(backend), library(pictures), scenario, logs, options)


@pytest.mark.parametrize("backend", few(["onnxruntime", "openvino"], 0))
def test_all_scenarios_are_valid(tiny: Path, pictures: list[Path], tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    engine = EngineSource.from_spec(f"{tiny}@{backend}", threads=1)
    results = run_scenarios([engine], pictures, tmp_path, options=EASY)
    assert [result.scenario for result in results] == list(SCENARIOS)
    for result in results:
        assert result.valid, (result.scenario, result.reasons)
        assert result.reasons == ()
        assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms
        assert 0 < result.own_p50_ms <= result.own_p90_ms <= result.own_p99_ms
        assert result.images_per_s > 0
        assert result.seeds["schedule"] == 16159082839903944936, "MLPerf's"
        assert result.pictures == 3
        folder = tmp_path / f"tiny.onnx@{backend}" / result.scenario
        assert "Result is : VALID" in (folder / SUMMARY).read_text()
        assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result.to_json()))
    single, multi, offline, server = results
    assert [r.queries for r in results if r.queries >= 64] == [single.queries, server.queries]
    assert (multi.queries >= 11, multi.samples_per_query, multi.images_per_call) == (True, 8, 8)
    assert (offline.queries, offline.images_per_call, offline.target_percentile) == (1, 4, None)
    assert (server.target_rate, server.latency_bound_ms, server.target_percentile) == (100, 60_000, 0.9)
    assert single.target_rate is None


def test_batches(tiny: Path, pictures: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    expected = {"single-stream": {1}, "server": {1}, "multi-stream": {4}}
    with EngineSource.from_spec(str(tiny)).load() as model:
        inner, seen = model.backend.run, []

        def run(images: Any) -> Any:
            seen.append(len(images))
            return inner(images)

        model.backend.run = run  # type: ignore[method-assign]
        for scenario in SCENARIOS:
            seen.clear()
            result = run_scenario("tiny", model, library(pictures), scenario, tmp_path, EASY)
            if scenario == "offline":
                rest = result.samples_per_query % 4
                assert set(seen) == ({4, rest} if rest else {4}), "only the end of the query is less than a batch"
            else:
                assert set(seen) == expected[scenario], scenario


class UnevenBackend(ScriptedBackend):
    """Takes 10 ms, and 40 ms in every eighth call."""

    def run(self, images: Any) -> Any:
        time.sleep(0.04 if len(self.seen) % 8 == 7 else 0.01)
        return super().run(images)


@pytest.mark.parametrize("scenario", few(SCENARIOS, 0, 2))
def test_our_clock_agrees(pictures: list[Path], tmp_path: Path, scenario: str) -> None:
    """Median and 99th percentile of the same queries by both clocks; the sleeps are the least that both can say."""
    options = LoadgenOptions(seconds=0.1, rate=20, latency_ms=60_000)
    result = run_one(UnevenBackend(SCRIPT), pictures, tmp_path, scenario, options)
    assert result.valid, result.reasons
    if scenario == "multi-stream":  # of eight images each
        least_p50 = least_p99 = 7 * 10 + 40
    else:  # of all images of the one query, the middle one has waited for the half before it
        least_p50, least_p99 = (10, 40) if scenario != "offline" else (10, 10)
    for p50, p99 in ((result.own_p50_ms, result.own_p99_ms), (result.p50_ms, result.p99_ms)):
        assert p50 >= least_p50
        assert p99 >= least_p99
    if scenario == "server":  # LoadGen's clock starts when a query is due, ours when a busy machine let it be issued
        assert result.own_p50_ms < result.p50_ms
        assert result.own_p99_ms < result.p99_ms
        return
    assert result.own_p50_ms == pytest.approx(result.p50_ms, rel=0.05)
    assert result.own_p99_ms == pytest.approx(result.p99_ms, rel=0.05)
    assert result.clock_difference <= CLOCK_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_demo_model_in_all_scenarios(tmp_path: Path, backend: str) -> None:
    """The model that comes with the package, on its own pictures: valid, and both clocks within 5 %."""
    pytest.importorskip(backend)
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    model = tmp_path / "model"
    export = ["export", "--weights", str(samples.DEMO_MODEL), "--engine", "none", "-o", str(model), "--quiet"]
    assert main(export) == 0
    engine = EngineSource.from_spec(f"{model}.onnx@{backend}")
    results = run_scenarios([engine], samples.sample_images(), tmp_path / "logs")
    assert [result.scenario for result in results] == list(SCENARIOS)
    for result in results:
        assert result.valid, (result.scenario, result.reasons)
        pairs = ((result.p50_ms, result.own_p50_ms), (result.p99_ms, result.own_p99_ms))
        for theirs, ours in pairs:
            assert ours == pytest.approx(theirs, rel=0.05), result.scenario


def test_too_slow_a_server_is_invalid(pictures: list[Path], tmp_path: Path) -> None:
    options = LoadgenOptions(seconds=0.1, rate=60, latency_ms=5)
    result = run_one(ScriptedBackend(SCRIPT, delay=0.02), pictures, tmp_path, "server", options)
    assert not result.valid
    assert "Reduce target QPS to improve latency." in result.reasons
    assert any(reason.startswith("early stopping: Run unsuccessful.") for reason in result.reasons)
    assert "Result is : INVALID" in (tmp_path / SUMMARY).read_text()


class FailingBackend(ScriptedBackend):
    """Fails after so many calls."""

    def __init__(self, calls: int) -> None:
        super().__init__(SCRIPT)
        self.calls = calls

    def run(self, images: Any) -> Any:
        if len(self.seen) >= self.calls:
            raise BackendError("the runtime broke")
        return super().run(images)


def wait_for_the_end() -> None:
    end = time.monotonic() + 60
    while is_running() and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running()


@pytest.mark.parametrize("scenario", few(SCENARIOS, 0))
def test_a_failure_in_the_run_is_raised(
    pictures: list[Path], tmp_path: Path, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is timed beforehand, so that the failure comes up in the run.
    monkeypatch.setattr("yolact_deploy.benchmarks.mlperf.loadgen_run.time_calls", lambda *args, **options: (5.0, 6.0))
    backend = FailingBackend(20)
    with pytest.raises(BackendError, match="the runtime broke"):
        run_one(backend, pictures, tmp_path, scenario, EASY)
    assert len(backend.seen) == 20, "nothing is computed after it"
    wait_for_the_end()
    again = run_one(ScriptedBackend(SCRIPT, delay=0.005), pictures, tmp_path, "single-stream", EASY)
    assert again.valid, "LoadGen goes on working"


def test_a_picture_that_vanishes_is_an_error(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolact_deploy.benchmarks.mlperf.loadgen_run.time_calls", lambda *args, **options: (5.0, 6.0))
    copies = write_pictures(tmp_path / "pictures")
    images = library(copies)
    copies[1].unlink()
    with pytest.raises(InputError, match="no such image"):
        run_scenario("model", predictor(ScriptedBackend(SCRIPT)), images, "single-stream", tmp_path / "logs", EASY)
    wait_for_the_end()


def test_wrong_uses(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ScriptedBackend(SCRIPT)
    lazy = Predictor(backend, lazy_masks=True)
    with pytest.raises(InputError, match="lazy masks"):
        run_scenario("model", lazy, library(pictures), "offline", tmp_path, EASY)
    with pytest.raises(InputError, match="unknown scenario ofline"):
        run_scenarios([source("a", backend)], pictures, tmp_path, scenarios=["ofline"])
    with pytest.raises(InputError, match="give a model"):
        run_scenarios([], pictures, tmp_path)
    with pytest.raises(InputError, match="same name"):
        run_scenarios([source("a", backend)] * 2, pictures, tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot write LoadGen's logs"):
        run_one(backend, pictures, tmp_path / "taken", "single-stream", EASY)
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingDependencyError, match=r"yolact-deploy\[loadgen\]"):
        run_scenarios([source("a", backend)], pictures, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "long"}, "mode: expected one of short, full"),
        ({"mode": "full", "seconds": 1}, "seconds requires the short mode"),
        ({"rate": 0}, "rate: expected more than 0"),
        ({"latency_ms": -1}, "latency_ms: expected more than 0"),
        ({"memory_mib": 0}, "memory_mib: expected more than 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoadgenOptions(**options)


# -- pictures -------------------------------------------------------------------------------------------------------


def test_library_holds_what_fits_and_only_while_asked(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, range(1, 11))  # 14,400 bytes decoded
    few = PictureLibrary(paths * 8, from_files=False, memory_mib=1)
    assert len(few) == (1 << 20) // 14_400
    few.load([1, 0, 1])
    first, second = few.get([0, 1])
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    assert (first[0, 0, 0], second[0, 0, 0]) == (10, 20)
    few.unload([1, 0, 1])
    with pytest.raises(KeyError):
        few.get([0])
    files = PictureLibrary(paths * 8, from_files=True, memory_mib=1)
    assert len(files) == 80
    assert files.get([3, 12]) == [paths[3], paths[2]]


def test_library_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no images: give at least one"):
        PictureLibrary([], from_files=False, memory_mib=1)
    paths = write_pictures(tmp_path)
    paths[2].write_bytes(b"not a picture")
    for from_files in (False, True):
        with pytest.raises(InputError, match="cannot decode image"):
            PictureLibrary(paths, from_files=from_files, memory_mib=1)
    monkeypatch.setattr("yolact_deploy.benchmarks.mlperf.loadgen_system._MEBIBYTE", 1000)
    with pytest.raises(InputError, match="no image fits into 1 MiB"):
        PictureLibrary(paths, from_files=False, memory_mib=1)


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "queries", "percentile"),
    [("single-stream", 100, 0.9), ("multi-stream", 662, 0.99), ("offline", 100, None), ("server", 100, 0.99)],
)
def test_full_mode_is_loadgens_own(scenario: str, queries: int, percentile: float | None) -> None:
    settings = make_settings(loadgen, scenario, LoadgenOptions(mode="full"), (20.0, 25.0), 1)
    assert (settings.min_duration_ms, settings.min_query_count) == (600_000, queries)
    if percentile is not None:
        name = scenario.replace("-", "_")
        assert getattr(settings, f"{name}_target_latency_percentile") == pytest.approx(percentile)
    if scenario == "server":
        assert settings.server_target_latency_ns == 125e6
        assert 13 < settings.server_target_qps < 22.3, "of 44 that one server can do"


@pytest.mark.parametrize(("mode", "reserve"), [("short", 2), ("full", 1.25)])
def test_offline_has_images_for_a_machine_that_becomes_faster(mode: str, reserve: float) -> None:
    settings = make_settings(loadgen, "offline", LoadgenOptions(mode=mode), (50.0, 40.0), 4)
    assert settings.offline_expected_qps == pytest.approx(reserve * 4 / 0.040)


def late_share(rate: float, services: Any, bound: float) -> float:
    """Of a queue simulated query by query, with other random numbers."""
    random = np.random.default_rng(1)
    free = arrival = 0.0
    late = 0
    count = 40_000
    for gap, service in zip(random.exponential(1e3 / rate, count), random.choice(services, count), strict=True):
        arrival += gap
        free = max(free, arrival) + service
        late += free - arrival > bound
    return late / count


def test_server_rate_keeps_the_bound() -> None:
    services = [8.0, 9.0, 10.0, 10.0, 13.0]
    rate = server_rate(services, 35.0, 0.01)
    assert late_share(rate, services, 35.0) < 0.02
    assert late_share(rate * 1.2, services, 35.0) > 0.01, "not needlessly low"
    assert server_rate(services, 500.0, 0.01) == pytest.approx(50, rel=0.02), "half of what the server can do"


def test_a_bound_too_tight_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "yolact_deploy"):
        assert server_rate([10.0, 30.0], 20, 0.01) == pytest.approx(25, rel=0.02)
    assert "a latency bound of 20 ms leaves no useful rate" in caplog.text


# -- logs -----------------------------------------------------------------------------------------------------------


def write_logs(folder: Path, verdict: str, **values: Any) -> None:
    records = {"result_validity": verdict, "early_stopping_met": True, **values}
    lines = [
        f":::MLLOG {json.dumps({'key': key, 'value': value, 'metadata': {'is_error': key == 'error_runtime'}})}\n"
        for key, value in records.items()
    ]
    (folder / DETAIL).write_text("".join(lines))
    (folder / SUMMARY).write_text("Scenario : Server\nResult is : VALID\n")


def test_verdict_needs_both_logs_and_no_error(tmp_path: Path) -> None:
    write_logs(tmp_path, "VALID")
    assert read_log(tmp_path).valid
    write_logs(tmp_path, "INVALID", result_invalid_reason=" exited  early ")
    log = read_log(tmp_path)
    assert (log.valid, log.reasons) == (False, ("exited early",))
    write_logs(tmp_path, "VALID", error_runtime="clocks differ")
    log = read_log(tmp_path)
    assert (log.valid, log.reasons) == (False, ("clocks differ",))
    with pytest.raises(BackendError, match="has no 'result_query_count'"):
        log.number("result_query_count")


def test_logs_cut_short(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="left no logs"):
        read_log(tmp_path)
    write_logs(tmp_path, "VALID")
    (tmp_path / SUMMARY).write_text("")
    with pytest.raises(BackendError, match="have no result"):
        read_log(tmp_path)


# -- command line ---------------------------------------------------------------------------------------------------


def test_command(
    tiny: Path,
    pictures: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    output = tmp_path / "r.json"
    common = ["loadgen", str(tiny), "--images", str(pictures[0].parent), "--logs", str(tmp_path), "--seconds", "0.1"]
    assert main([*common, "--scenario", "single-stream", "--json", "-o", str(output), "--from-files"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(output.read_text()) == printed
    (result,) = printed["results"]
    assert (result["engine"], result["scenario"], result["valid"]) == ("tiny.onnx", "single-stream", True)
    assert (result["from_files"], result["pictures"]) == (True, 3)
    assert main([*common, "--scenario", "server", "--rate", "200", "--latency-ms", "0.001"]) == 1
    captured = capsys.readouterr()
    assert "LoadGen reports INVALID: tiny.onnx server" in captured.err
    assert "decoded image to pasted masks, 3 images" in captured.out
    assert "INVALID" in captured.out
    assert "note: tiny.onnx, server: Reduce target QPS" in captured.out
    assert widest(captured.out) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/absent.onnx", "--images", "{0}"], "no such model file"),
        (["{0}/model.onnx", "--images", "{0}"], "has no pictures"),
        (["{0}/model.onnx", "--images", "{0}/absent.png"], "no such picture or folder"),
        (["{0}/model.onnx", "--images", "{0}", "--threads", "0"], "--threads: expected 1 or more"),
        (["{0}/model.onnx", "--images", "{0}", "--mode", "full", "--seconds", "1"], "seconds requires the short mode"),
    ],
)
def test_command_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    given = [argument.format(tmp_path) for argument in arguments]
    assert main(["loadgen", *given, "--logs", str(tmp_path / "logs")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "internal error" not in error


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_the_command_at_once(tiny: Path, pictures: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    command = [sys.executable, "-m", "yolact_deploy", "loadgen", str(tiny), "--images", str(pictures[0].parent)]
    command += ["--logs", str(tmp_path), "--scenario", "server", "--rate", "0.01", "--latency-ms", "1000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stderr is not None
        try:
            assert "server" in process.stderr.readline()
            log = tmp_path / "tiny.onnx" / "server" / DETAIL
            while not log.exists() and process.poll() is None:
                time.sleep(0.01)
            # LoadGen has begun, and its next query is minutes away.
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 2
        finally:
            process.kill()  # instead of waiting for it
        assert process.stderr.read() == "yolact-deploy: error: interrupted; LoadGen's logs are incomplete\n"
