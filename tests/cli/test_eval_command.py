"""The command `eval` over scripted models: its cache, its reference, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools")

from data import data_dir
from scripted import SCRIPT, Instance, ScriptedBackend, predictor, write_coco

from yolact_deploy.cli.main import main
from yolact_deploy.datasets import yolact_dets
from yolact_deploy.evaluation import engines
from yolact_deploy.vocabulary import EVALUATORS

WORSE = {**SCRIPT, 1: (Instance(0, 0.9, (12, 15, 44, 45)), Instance(1, 0.6, (50, 15, 75, 45)))}


class Turns:
    """Counts the loads of models, and interrupts a run."""

    def __init__(self) -> None:
        self.loads = 0
        self.interrupt_at: int | None = None

    def load(self, model: object, **options: Any) -> Any:
        self.loads += 1
        backend = ScriptedBackend(WORSE if "worse" in str(model) else SCRIPT)
        plain = backend.run

        def run(images: Any) -> Any:
            outputs = plain(images)
            if backend.seen[-1] == self.interrupt_at:
                raise KeyboardInterrupt
            return outputs

        backend.run = run  # type: ignore[method-assign]
        return predictor(backend)


@pytest.fixture
def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Models good.onnx and worse.onnx in the working folder, and images in coco."""
    monkeypatch.chdir(tmp_path)
    for name in ("good", "worse"):
        Path(f"{name}.onnx").write_bytes(name.encode())
    write_coco(Path("coco"))
    turns = Turns()
    monkeypatch.setattr(engines, "load", turns.load)
    monkeypatch.setattr("yolact_deploy.evaluation.evaluate.inspect_file", lambda path: {})  # there is nothing in them
    return turns


def evaluated(capsys: pytest.CaptureFixture[str], *more: str, engine: str = "worse.onnx") -> dict[str, Any]:
    assert main(["eval", "--engine", engine, "--coco", "coco", "--json", "--quiet", *more]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def figures(printed: dict[str, Any]) -> dict[str, Any]:
    return {key: printed[key] for key in ("model", "box", "mask", "images", "detections", "curves")}


def test_interrupted_and_resumed(turns: Turns, capsys: pytest.CaptureFixture[str]) -> None:
    once = evaluated(capsys)
    turns.interrupt_at = 2
    assert main(["eval", "--engine", "worse.onnx", "--coco", "coco", "--cache", "d.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "the detections so far are in d.jsonl: run the same command with --resume to continue" in error
    assert "interrupted" in error
    turns.interrupt_at = None
    assert main(["eval", "--engine", "worse.onnx", "--coco", "coco", "--cache", "d.jsonl"]) == 2
    assert "d.jsonl exists: continue it with --resume" in capsys.readouterr().err
    again = evaluated(capsys, "--cache", "d.jsonl", "--resume")
    assert (again["time"]["images_run"], again["time"]["images_stored"]) == (2, 1)
    assert figures(again) == figures(once)
    assert 0 < once["mask"]["ap"] < 1
    loads = turns.loads
    stored = evaluated(capsys, "--cache", "d.jsonl", "--resume")
    assert turns.loads == loads, "nothing is left to run"
    assert figures(stored) == figures(once)


def test_the_cache_of_another_model(turns: Turns, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(capsys, "--cache", "d.jsonl")
    for other in (
        ["good.onnx"],
        ["worse.onnx@openvino"],
        ["worse.onnx", "--threads", "2"],
        ["worse.onnx", "--images", "2"],
    ):
        assert main(["eval", "--coco", "coco", "--cache", "d.jsonl", "--resume", "--engine", *other]) == 2
        assert "d.jsonl has other detections: " in capsys.readouterr().err


def test_what_is_printed(turns: Turns, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["eval", "--coco", "coco", "--engine"]
    assert main([*common, "good.onnx", "--cache", "good.jsonl", "--save-results", "good.json"]) == 0
    plain = capsys.readouterr().out
    assert "Time: 3 images run in " in plain
    assert "Outside network+nms+assembly: " in plain
    assert all(stage in plain for stage in ("decode", "encode", "store", "match", "accumulate", "rest"))
    assert "AP x 100 of each class" not in plain
    for reference in ("good.jsonl", "good.json"):
        more = ["--reference", reference, "--samples", "200", "--per-class"]
        assert main([*common, "worse.onnx", *more]) == 0
        out = capsys.readouterr().out
        assert f"points against {reference}, 95 % interval " in out
        assert "(200 draws of 3 images)" in out
        assert "AP x 100 of each class" in out
        assert "owl" in out
        assert max(map(len, out.splitlines())) <= 125  # in a sentence, names may take it beyond 120


def test_difference_to_a_reference(turns: Turns, capsys: pytest.CaptureFixture[str]) -> None:
    good = evaluated(capsys, "--save-results", "good.json", engine="good.onnx")
    assert good["difference"] is None
    worse = evaluated(capsys, "--save-results", "worse.json", "--reference", "good.json")
    for kind in ("box", "mask"):
        interval = worse["difference"][kind]
        assert interval["difference"] == pytest.approx(worse[kind]["ap"] - good[kind]["ap"], abs=1e-12)
        assert interval["difference"] < 0
    files = ["eval", "--results", "worse.json", "--annotations", "coco/annotations/instances_val2017.json"]
    assert main([*files, "--reference", "good.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["difference"] == worse["difference"]


def test_saved_results_are_coco_results(turns: Turns, capsys: pytest.CaptureFixture[str]) -> None:
    printed = evaluated(capsys, "--save-results", "r.json", "--cache", "d.jsonl")
    assert len(json.loads(Path("r.json").read_text())) == printed["detections"]
    again = evaluated(capsys, "--save-results", "again.json", "--cache", "d.jsonl", "--resume")
    assert Path("r.json").read_text() == Path("again.json").read_text(), "from the file, too"
    assert figures(again) == figures(printed)
    turns.interrupt_at = 2
    assert main(["eval", "--engine", "good.onnx", "--coco", "coco", "--save-results", "half.json"]) == 2
    assert not Path("half.json").exists()


def test_no_detections_are_saved_as_an_empty_list(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "load", lambda *_, **__: predictor(ScriptedBackend({})))
    assert main(["eval", "--engine", "good.onnx", "--coco", "coco", "--save-results", "r.json", "--quiet"]) == 0
    assert json.loads(Path("r.json").read_text()) == []
    assert capsys.readouterr() == ("", ""), "quiet is quiet"


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_each_evaluator_can_be_chosen(turns: Turns, capsys: pytest.CaptureFixture[str], evaluator: str) -> None:
    if evaluator != EVALUATORS[0]:
        pytest.importorskip("faster_coco_eval")
    printed = evaluated(capsys, "--evaluator", evaluator)
    assert printed["evaluator"] == evaluator
    assert printed["mask"]["ap"] == pytest.approx(evaluated(capsys)["mask"]["ap"], abs=1e-9)


def test_the_evaluator_is_not_installed(
    turns: Turns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    arguments = ["eval", "--engine", "good.onnx", "--coco", "coco", "--evaluator", "faster-coco-eval"]
    assert main(arguments) == 2
    assert "pip install 'yolact-deploy[faster-eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume"], "name it with --cache FILE"),
        (
            ["--reference", "x", "--evaluator", "faster-coco-eval"],
            "--reference does not work with --evaluator",
        ),
        (["--reference", "absent.json"], "cannot read absent.json"),
        (["--samples", "1"], "--samples: expected 2 or more, got 1"),
        (["--image-ids", "1"], "--image-ids requires --results"),
        (["--cache", "coco/images/000001.png", "--resume"], "was not written by eval --cache"),
    ],
)
def test_errors(turns: Turns, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert main(["eval", "--engine", "good.onnx", "--coco", "coco", "--quiet", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "internal error" not in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image-ids", "1,x"], "--image-ids: expected numbers separated by commas"),
        (["--image-ids", "1,9"], "has no image 9"),
        (["--cache", "d.jsonl"], "--cache has no effect with --results"),
    ],
)
def test_errors_of_results(turns: Turns, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    Path("r.json").write_text("[]")
    annotations = "coco/annotations/instances_val2017.json"
    assert main(["eval", "--results", "r.json", "--annotations", annotations, *more]) == 2
    assert message in capsys.readouterr().err


# -- the dumps of the original, whose figures are known -------------------------------------------------------------


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(
    ("dump", "count", "expected"),
    [
        ("yolact_base", 110, (0.5686, 0.7356, 0.4263, 0.6989)),
        ("yolact_resnet50", 122, (0.4659, 0.7415, 0.3980, 0.6243)),
    ],
)
def test_dumps_of_the_original(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    evaluator: str,
    dump: str,
    count: int,
    expected: tuple[float, ...],
) -> None:
    """Converted, and scored by the command that the converter prints."""
    if evaluator != EVALUATORS[0]:
        pytest.importorskip("faster_coco_eval")
    file, annotations = data_dir("yolact_dets", f"{dump}.json"), data_dir("coco_mini", "instances_val_mini.json")
    assert yolact_dets.main([str(file), "--annotations", str(annotations), "-o", str(tmp_path / "r.json")]) == 0
    captured = capsys.readouterr()
    assert f"{count} detections of 4 of the 100 images" in captured.err
    command = captured.out.split()
    assert command[0] == "yolact-deploy"
    assert command[-1] == "239627,261712,368212,403385"
    assert main([*command[1:], "--evaluator", evaluator, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["evaluator"], printed["images"], printed["detections"]) == (evaluator, 4, count)
    figures = [printed[kind][name] for kind in ("box", "mask") for name in ("ap", "ap50")]
    assert figures == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("dump", "message"),
    [
        ("{}", "is not a dump of YOLACT's detections"),
        ("[", "is not valid JSON"),
        ('{"images": []}', "has none of the 3 images of the annotations"),
        ('{"images": [{"image_id": 1, "dets": [{"category": "car"}]}]}', "KeyError: 'car'"),
    ],
)
def test_what_is_no_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str], dump: str, message: str) -> None:
    annotations, file = write_coco(tmp_path / "coco"), tmp_path / "dump.json"
    file.write_text(dump)
    assert yolact_dets.main([str(file), "--annotations", str(annotations), "-o", str(tmp_path / "r.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
