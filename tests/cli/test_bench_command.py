"""The commands bench, eval and compare, over scripted models."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from scripted import CONFIG, SCRIPT, WORSE, ScriptedBackend, detections, predictor, write_coco, write_pictures
from tables import widest

from yolact_deploy.cli.main import main
from yolact_deploy.errors import InputError
from yolact_deploy.evaluation import engines
from yolact_deploy.loading import ModelSpec

COMPARE = ["compare", "--reference", "{0}/good.onnx", "--engine", "{0}/worse.onnx"]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good.onnx and worse.onnx, which load as scripted models."""
    scripts = {"good.onnx": SCRIPT, "worse.onnx": WORSE}
    for name in scripts:
        (tmp_path / name).write_bytes(b"model")

    def load(model: ModelSpec, **options: Any) -> Any:
        assert options["score_threshold"] == 0
        assert options["lazy_masks"] is False
        return predictor(ScriptedBackend(scripts[model.path.name], name="onnxruntime"))

    monkeypatch.setattr(engines, "load", load)
    write_coco(tmp_path / "coco")
    return tmp_path


def bench(models: Path, *more: str) -> int:
    given = ["--engine", f"{models}/good.onnx", "--engine", f"{models}/worse.onnx@openvino"]
    return main(["bench", *given, "--coco", str(models / "coco"), *more])


def test_bench_table(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(models) == 0
    out = capsys.readouterr().out
    assert "3 images (instances_val2017.json): good.onnx, worse.onnx@openvino" in out
    for word in ("Speed", "Stages", "Accuracy", "Agreement with good.onnx", "x good.onnx"):
        assert word in out
    assert widest(out) <= 120


def test_bench_json_and_files(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, output = models / "r.html", models / "r.json"
    assert bench(models, "--json", "--images", "2", "--report", str(report), "--output", str(output)) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["dataset"]["images"] == 2
    assert json.loads(output.read_text()) == printed
    assert report.read_text().startswith("<!doctype html>")
    assert "measuring: 2/2" in captured.err


def test_bench_quiet(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(models, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_gates_end_with_1_after_the_report(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = models / "r.html"
    assert bench(models, "--max-ap-drop", "0.5", "--report", str(report)) == 1
    assert "worse.onnx@openvino loses" in capsys.readouterr().err
    assert report.exists()
    assert bench(models, "--min-fps", "1e9") == 1
    assert bench(models, "--max-ap-drop", "99", "--min-fps", "0.1") == 0


def test_the_limits_of_a_wrong_engine(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junit, now = models / "junit.xml", models / "now.json"
    limits = ["--max-ap-drop", "0.5", "--min-agreement", "0.98", "--max-p99-ms", "60000", "--junit", str(junit)]
    assert bench(models, *limits, "--output", str(now)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "worse.onnx@openvino loses" in error
    assert "; worse.onnx@openvino agrees with good.onnx on 33.33 % of the detections (limit 98 %): 1 missed" in error
    assert "p99" not in error
    cases = ET.parse(junit).getroot().iter("testcase")
    assert [(case.get("name"), case.find("failure") is None) for case in cases] == [
        ("max-ap-drop", False),
        ("min-agreement", False),
        ("max-p99-ms", True),
    ]
    assert now.exists()


def test_a_baseline(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = models / "last.json"
    assert bench(models, "--output", str(last), "--quiet", "--repeats", "7") == 0
    junit = models / "junit.xml"
    limits = ["--baseline", str(last), "--tolerance", "1000", "--junit", str(junit)]
    assert bench(models, *limits, "--repeats", "7") == 0
    assert ET.parse(junit).getroot().get("failures") == "0"
    content = json.loads(last.read_text())
    content["environment"]["cpu"] = "Other CPU"
    content["engines"][1]["latency"]["samples_ms"] = [1e-4] * 21
    last.write_text(json.dumps(content))
    capsys.readouterr()
    assert bench(models, "--baseline", str(last), "--repeats", "7") == 1
    warning, error = capsys.readouterr().err.splitlines()[-2:]
    assert warning.startswith(f"warning: the baseline {last} is from another environment: cpu: Other CPU and ")
    assert f"worse.onnx@openvino against {last}: takes " in error
    assert " (limit 1.05)" in error


@pytest.mark.slow  # tests/benchmarks/test_gates.py does the same with scripted engines
def test_a_slowed_paste_of_a_real_engine_is_caught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO and ONNX Runtime run an exported file; then pasting in the latter takes 5 ms longer.

    The clock is the test's: each look at it takes 0.1 ms.
    """
    for needed in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "helpers")
    from clock import Clock
    from tiny_onnx import write_model

    from yolact_deploy.benchmarks import latency
    from yolact_deploy.machine import yardstick
    from yolact_deploy.runtime import stage_timer
    from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

    clock = Clock(step=0.1)
    for module in (latency, stage_timer, yardstick):
        monkeypatch.setattr(module, "time", clock)
    model, last, now = write_model(tmp_path / "tiny.onnx"), tmp_path / "last.json", tmp_path / "now.json"
    write_pictures(tmp_path / "pictures", range(1, 13))
    command = ["bench", "--engine", f"{model}@openvino", "--engine", str(model), "--threads", "1"]
    command += ["--images-dir", str(tmp_path / "pictures"), "--repeats", "5", "--quiet", "--output"]
    start = OnnxRuntimeBackend.__init__

    def start_slowed(self: OnnxRuntimeBackend, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        monkeypatch.setattr(self.tail, "paste", clock.takes(5, self.tail.paste))

    assert main([*command, str(last)]) == 0
    baseline = ["--baseline", str(last), "--tolerance", "0.05"]
    assert main([*command, str(now), *baseline]) == 0
    monkeypatch.setattr(OnnxRuntimeBackend, "__init__", start_slowed)
    code = main([*command, str(now), *baseline])
    error = capsys.readouterr().err
    before, after = (json.loads(file.read_text())["engines"][1]["latency"] for file in (last, now))
    assert after["stages_p50_ms"]["paste"] == pytest.approx(5 + before["stages_p50_ms"]["paste"])
    assert code == 1, error
    assert re.search(
        r"tiny\.onnx against .*last\.json: takes [\d.]+ \([\d.]+ to [\d.]+\) times as long on an equally fast "
        r"machine \([\d.]+ as measured\): [\d.]+ instead of [\d.]+ ms at p50.* \(limit 1\.05\)$",
        error.splitlines()[-1],
    )
    assert main(["bench", "diff", f"{last}:tiny.onnx", str(now), "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert engine["verdict"] == "slower"
    assert engine["stages_ms"]["paste"][1] >= 5


def test_diff(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = models / "last.json"
    assert bench(models, "--output", str(last), "--quiet", "--repeats", "7") == 0
    assert main(["bench", "diff", str(last), str(last)]) == 0
    out = capsys.readouterr().out
    assert out.count("no difference: takes 1.000 (1.000 to 1.000) times as long") == 2
    assert "A: last.json, B: last.json" in out
    content = json.loads(last.read_text())
    content["settings"]["cores_used_by_others"] = 0.0  # whatever else runs beside the tests
    last.write_text(json.dumps(content))
    for sample in range(21):
        content["engines"][1]["latency"]["samples_ms"][sample] *= 3
    (models / "slow.json").write_text(json.dumps(content))
    rows = [f"{models}/{name}.json:worse.onnx@openvino" for name in ("last", "slow")]
    for arguments in (["bench", "diff", *rows, "--json"], ["bench", "--json", "diff", *rows]):
        assert main(arguments) == 0
        (engine,) = json.loads(capsys.readouterr().out)["engines"]
        assert (engine["verdict"], engine["p50_ratio"]["low"]) == ("slower", pytest.approx(3, rel=1e-3))
    assert main(["bench", "diff", *rows, "--margin", "3"]) == 0
    assert "within the 300 % by which two runs may differ" in capsys.readouterr().out.replace("\n  ", " ")


def test_a_report_of_a_stored_result(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, report = models / "r.json", models / "r.html"
    assert bench(models, "--output", str(result), "--quiet") == 0
    assert main(["bench", "report", str(result), "-o", str(report)]) == 0
    assert capsys.readouterr().out == f"wrote {report}\n"
    assert "worse.onnx@openvino" in report.read_text()
    assert main(["bench", "report", str(result), "-o", str(report), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(report)}


def test_energy_and_roofline_are_passed_on(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yolact_deploy.benchmarks import measure as module

    given: dict[str, Any] = {}

    def run_bench(*args: Any, **options: Any) -> Any:
        given.update(options)
        raise InputError("enough")

    monkeypatch.setattr(module, "run_bench", run_bench)
    for arguments, expected in (
        ([], (None, False, False)),
        (["--energy", "--roofline", "--max-ap-drop", "1"], (10.0, True, True)),
        (["--energy", "3"], (3.0, False, False)),
    ):
        assert bench(models, *arguments) == 2
        assert (given["energy_seconds"], given["with_roofline"], given["find_mistakes"]) == expected


def test_table(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(models / f"{name}.json") for name in ("a", "b")]
    for file in files:
        assert bench(models, "--output", file, "--quiet") == 0
    assert main(["bench", "table", *files]) == 0
    out = capsys.readouterr().out
    assert out.count("worse.onnx@openvino") == 2
    assert "run 2: b.json: 3 images (instances_val2017.json)" in out
    assert widest(out) <= 120
    assert main(["bench", "table", *files, "--markdown"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| run | engine |")
    assert "\n- run 1: a.json: 3 images" in out
    assert main(["bench", "table", *files, "--json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--coco", "."], "nothing to measure"),
        (["bench", "--engine", "{0}/absent.onnx", "--coco", "."], "no such model file"),
        (["bench", "--engine", "{0}/good.onnx@tpu", "--coco", "."], "backend: expected one of onnxruntime"),
        (["bench", "--engine", "{0}/good.onnx"], "good.onnx is not an ONNX file"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/absent"], "no such dataset"),
        (["bench", "--engine", "{0}/good.onnx", "--size", "400"], "--size applies to the eager model"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/coco", "--threads", "0"], "--threads: expected"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/coco/images", "--max-ap-drop", "1"], "ground truth"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/coco", "--min-agreement", "98"], "a share from 0 to 1"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/coco", "--min-agreement", "1"], "a second --engine"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/coco", "--junit", "j.xml"], "--junit reports limits"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/coco", "--tolerance", "1"], "requires --baseline"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/coco", "--baseline", "absent"], "no such results file"),
        (["bench", "--engine", "{0}/good.onnx", "--coco", "{0}/coco", "--energy", "0"], "expected seconds above 0"),
        (["bench", "diff", "absent.json", "absent.json"], "no such results file"),
        (["bench", "table", "{0}/good.onnx"], "is not valid JSON"),
        (["eval", "--engine", "{0}/good.onnx", "--coco", "{0}/coco/images"], "have no annotations"),
        (["eval", "--engine", "{0}/good.onnx", "--coco", "{0}/coco", "--size", "400"], "--size require --weights"),
        (["eval", "--results", "{0}/r.json"], "add --annotations"),
        (["eval", "--results", "{0}/r.json", "--annotations", "x", "--images", "3"], "--limit has no effect"),
        ([*COMPARE, "--images", "absent"], "no such picture"),
        ([*COMPARE, "--images", ".", "--limit", "0"], "--limit: expected"),
        ([*COMPARE, "--images", ".", "--score", "1"], "--score-threshold: expected"),
    ],
)  # fmt: skip
def test_errors(models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main([argument.format(models) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "internal error" not in error


@pytest.mark.parametrize("option", ["--warmup=-1", "--warmup=10001", "--repeats=0", f"--repeats={10**30}"])
def test_counts_of_calls_have_a_range(models: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--engine", f"{models}/good.onnx", "--coco", f"{models}/coco", option])
    assert "expected a whole number from" in capsys.readouterr().err


def test_eval_of_a_model(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = models / "results.json"
    common = ["eval", "--engine", f"{models}/good.onnx", "--coco", str(models / "coco")]
    assert main([*common, "--json", "--save-results", str(saved)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["box"]["ap"] == pytest.approx(1)
    assert (printed["model"], printed["images"], printed["detections"]) == ("good.onnx", 3, 4)
    annotations = str(models / "coco/annotations/instances_val2017.json")
    assert main(["eval", "--results", str(saved), "--annotations", annotations, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert printed["time"]["images_run"] == 3
    assert again == {**printed, "model": "results.json", "time": None}, "what was saved scores the same"
    assert main(common) == 0
    assert "100.00" in capsys.readouterr().out


def test_eval_of_results(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [r for number, t in SCRIPT.items() for r in detections(t).to_coco(number, CONFIG.category_ids)]
    file = models / "results.json"
    file.write_text(json.dumps(results[:1]))
    annotations = str(models / "coco/annotations/instances_val2017.json")
    assert main(["eval", "--results", str(file), "--annotations", annotations, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["box"]["ap"] == pytest.approx(1 / 3), "one of three classes"
    file.write_text('{"a": 1}')
    assert main(["eval", "--results", str(file), "--annotations", annotations]) == 2
    assert "expected a list of results" in capsys.readouterr().err


def test_compare(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = write_pictures(models / "pictures")
    common = ["compare", "--reference", f"{models}/good.onnx", "--engine", f"{models}/worse.onnx"]
    assert main([*common, "--images", str(models / "pictures"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["reference"], printed["engine"], printed["tensors"]) == ("good.onnx", "worse.onnx", None)
    assert [image["file_name"] for image in printed["images"]] == ["000001.png", "000002.png", "000003.png"]
    assert printed["images"][0]["missed"] == 1
    assert printed["agreement"]["missed"] == 1
    assert main([*common, "--images", *map(str, pictures), "--limit", "1", "--worst", "1"]) == 0
    out = capsys.readouterr().out
    assert "Images, the worst first" in out
    assert "000001.png" in out


@pytest.mark.parametrize("command", ["bench", "eval", "compare"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert f"yolact-deploy {command} --" in out.partition("examples:")[2]
