"""A whole benchmark over scripted models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from scripted import (
    CONFIG,
    SCRIPT,
    WORSE,
    HeadsBackend,
    ScriptedBackend,
    bench,
    bench_run,
    predictor,
    source,
    write_coco,
    write_pictures,
)

from yolact_deploy.benchmarks.limits import MachineLimits
from yolact_deploy.benchmarks.measure import run_bench
from yolact_deploy.benchmarks.record import to_json
from yolact_deploy.benchmarks.record_tables import bench_tables, warning_lines
from yolact_deploy.datasets.image_sets import open_images, plain_images
from yolact_deploy.errors import InputError
from yolact_deploy.evaluation.bootstrap import PairedBootstrap
from yolact_deploy.evaluation.comparison import compare_models
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.graph.macs import LayerMacs, Macs
from yolact_deploy.machine.energy import EnergySource


#: of image 1 the dog is lost and the cat moved; image 2 is right
def test_rows(tmp_path: Path) -> None:
    run = bench_run(tmp_path, repeats=2)
    result = run.record
    eager, fast = result.engines
    assert (eager.name, eager.backend, eager.precision, eager.file_mib) == ("eager", "torch", "fp32", 1.0)
    assert result.reference == "eager"
    assert eager.agreement is None
    assert eager.speedup == 1
    assert fast.speedup == pytest.approx(eager.latency.p50_ms / fast.latency.p50_ms)
    assert len(fast.latency.samples_ms) == 6
    assert eager.accuracy is not None
    assert fast.accuracy is not None
    assert eager.accuracy.box is not None
    assert eager.accuracy.box.ap == pytest.approx(1)
    assert fast.accuracy.box is not None
    assert fast.accuracy.box.ap is not None
    assert 0 < fast.accuracy.box.ap < 0.9
    assert fast.agreement is not None
    assert (fast.agreement.reference_detections, fast.agreement.missed, fast.agreement.extra) == (3, 1, 0)
    assert fast.agreement.box_ap == pytest.approx(fast.accuracy.box.ap), "here the truth is what eager finds"
    assert fast.warnings == ()
    assert [worst.image_id for worst in result.worst_images] == [1, 2, 3]
    assert [picture.errors for picture in run.pictures] == list(result.worst_images)
    assert len(run.pictures[0].detections["eager"]) == 2, "what scores 0.05 is not shown"


def test_the_reference_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many engines are compared with it: once for boxes and once for masks."""
    made: list[PairedBootstrap] = []
    start = PairedBootstrap.__init__

    def counted(self: PairedBootstrap, *args: Any, **options: Any) -> None:
        made.append(self)
        start(self, *args, **options)

    monkeypatch.setattr(PairedBootstrap, "__init__", counted)
    write_coco(tmp_path)
    sources = [source(name, ScriptedBackend(script)) for name, script in (("a", SCRIPT), ("b", WORSE), ("c", WORSE))]
    result = run_bench(sources, open_images(coco=tmp_path)).record
    assert len(made) == 2
    assert result.engines[1].ap_difference == result.engines[2].ap_difference
    assert result.engines[1].ap_difference["box"].difference < 0
    assert result.engines[0].ap_difference == {}


def test_json(tmp_path: Path) -> None:
    values = json.loads(json.dumps(to_json(bench_run(tmp_path).record)))
    assert values["dataset"]["images"] == 3
    assert values["settings"]["repeats"] == 1
    assert [engine["name"] for engine in values["engines"]] == ["eager", "fast"]
    assert values["engines"][1]["agreement"]["missed"] == 1
    assert values["engines"][1]["latency"]["p50_ms"] > 0
    assert values["worst_images"][0] == {
        "image_id": 1,
        "file_name": "000001.png",
        "engines": {"fast": {"missed": 1, "extra": 0, "label_flips": 0, "badness": pytest.approx(1 + 5 / 30, abs=0.1)}},
    }
    assert str(tmp_path) not in json.dumps(values), "no paths of this machine"


def test_tables_fit_120_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from yolact_deploy.console import print_table

    result = bench(tmp_path)
    long = dataclasses.replace(result.engines[1], name="yolact_resnet50.onnx@openvino-bf16", backend="onnxruntime")
    tables = list(bench_tables(dataclasses.replace(result, engines=(result.engines[0], long))))
    assert [table.title.split()[0] for table in tables] == [
        "Speed:",
        "Stages,",
        "Accuracy:",
        "Difference",
        "Agreement",
        "Of",
    ]
    for table in tables:
        print_table(table.columns, table.rows, title=table.title)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    assert printed.count("yolact_resnet50.onnx@openvino-bf16") == len(tables) - 1, "only stages need the room"


def test_keep_worst(tmp_path: Path) -> None:
    assert [worst.image_id for worst in bench(tmp_path, keep_worst=1).worst_images] == [1]
    assert bench(tmp_path, keep_worst=0).worst_images == ()


def test_plain_pictures_have_agreement_only(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    sources = [source("eager", ScriptedBackend(SCRIPT)), source("e", ScriptedBackend(SCRIPT))]
    result = run_bench(sources, images).record
    assert [row.accuracy for row in result.engines] == [None, None]
    assert result.engines[1].agreement is not None
    assert result.engines[1].agreement.box_ap == pytest.approx(1)
    assert "Accuracy" not in " ".join(table.title for table in bench_tables(result))


def test_warnings_about_unfair_comparisons(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    smaller = dataclasses.replace(CONFIG, image_size=128)
    sources = [
        source("eager", ScriptedBackend(SCRIPT), "aaaa"),
        source("other", ScriptedBackend(SCRIPT, sha="bbbb")),
        source("silent", ScriptedBackend(SCRIPT)),
        source("large", ScriptedBackend(SCRIPT, sha="aaaa", config=smaller)),
    ]
    _, other, silent, large = run_bench(sources, images).record.engines
    assert other.warnings == ("made from other weights (bbbb) than eager (aaaa)",)
    assert silent.warnings == ("does not record which weights it was made from",)
    assert large.warnings == ("input size 128, eager has 64",)


def test_warning_about_a_busy_machine(tmp_path: Path) -> None:
    result = dataclasses.replace(bench(tmp_path), conditions=None)
    cores = result.environment["cores"]
    for share, lines in ((0.1, 0), (0.5, 1)):
        settings = dataclasses.replace(result.settings, cores_used_by_others=share * cores)
        assert len(list(warning_lines(dataclasses.replace(result, settings=settings)))) == lines


def test_warnings_of_conditions(tmp_path: Path) -> None:
    result = bench(tmp_path)
    assert result.conditions is not None
    debug = dataclasses.replace(result.conditions, debug=("a debug build: use another",))
    assert "a debug build: use another" in list(warning_lines(dataclasses.replace(result, conditions=debug)))


def test_ap_difference(tmp_path: Path) -> None:
    eager, fast = bench(tmp_path).engines
    assert eager.ap_difference == {}
    assert list(fast.ap_difference) == ["box", "mask"]
    interval = fast.ap_difference["box"]
    assert fast.accuracy is not None
    assert fast.accuracy.box is not None
    assert fast.accuracy.box.ap is not None
    assert interval.difference == pytest.approx(fast.accuracy.box.ap - 1)
    assert interval.low <= interval.difference <= interval.high


def test_roofline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = MachineLimits("cpu", {"fp32": 100.0}, {"fp32": "torch"}, 1e12)
    layer = LayerMacs("conv", "backbone", "Conv", 10**8, 10, 10, 10)
    monkeypatch.setattr("yolact_deploy.benchmarks.measure.machine_limits", lambda device: limits)
    monkeypatch.setattr("yolact_deploy.benchmarks.measure._macs", lambda *_: Macs(1, "fp32", (layer,)))
    result = bench(tmp_path, with_roofline=True)
    assert result.limits == {"cpu": limits}
    roofline = result.engines[0].roofline
    assert roofline is not None
    assert roofline.network_ms == next(
        ms for name, ms in result.engines[0].latency.stages_p50_ms.items() if "network" in name
    )
    assert roofline.share == pytest.approx(0.1 / (roofline.network_ms / 1e3) / 100)
    (table,) = (t for t in bench_tables(result) if t.title.startswith("Roofline"))
    assert [row[0] for row in table.rows] == ["eager", "fast"]
    assert bench(tmp_path).limits == {}


def test_memory_and_energy(tmp_path: Path) -> None:
    result = bench(tmp_path, energy_seconds=0.01)
    for row in result.engines:
        assert row.memory is not None
        assert row.memory_mib == row.memory.host_growth_mib
        assert row.energy is not None
    measured = result.engines[0].energy
    assert measured is not None
    energy = dataclasses.replace(measured, seconds=2.0, images=30, sources=(EnergySource("package-0", "rapl", 10.0),))
    rows = (dataclasses.replace(result.engines[0], energy=energy), dataclasses.replace(result.engines[1], energy=None))
    (cost,) = (t for t in bench_tables(dataclasses.replace(result, engines=rows)) if t.title.startswith("Cost"))
    assert [row[-2:] for row in cost.rows] == [["5.0", "3.000"], ["", ""]]
    assert bench(tmp_path).engines[0].energy is None


def test_models_of_other_classes_are_refused(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    other = dataclasses.replace(CONFIG, class_names=("cat", "fox", "owl"))
    backend = ScriptedBackend(SCRIPT)
    sources = [source("a", backend), source("b", ScriptedBackend(SCRIPT, config=other))]
    with pytest.raises(InputError, match="'dog' and 'fox'"):
        run_bench(sources, images)
    assert backend.closed, "what was loaded is freed"


def test_wrong_uses(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    with pytest.raises(InputError, match="nothing to measure"):
        run_bench([], images)
    with pytest.raises(InputError, match="same name"):
        run_bench([source("a", ScriptedBackend(SCRIPT))] * 2, images)


def test_sources_from_specs(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x" * 10)
    (tmp_path / "w.pth").write_bytes(b"y")
    source = EngineSource.from_spec(f"{tmp_path}/m.onnx@openvino-bf16:threads=2")
    assert (source.name, source.file_bytes, source.weights_sha256) == ("m.onnx@openvino-bf16:threads=2", 10, "")
    eager = EngineSource.from_spec(f"{tmp_path}/w.pth", "eager")
    assert (eager.name, len(eager.weights_sha256)) == ("eager", 64)
    with pytest.raises(InputError, match="no such model file"):
        EngineSource.from_spec("absent.onnx")


# -- compare --------------------------------------------------------------------------------------------------------


def test_compare(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    a, b = predictor(ScriptedBackend(SCRIPT)), predictor(ScriptedBackend(WORSE))
    result = compare_models(("a", a), ("b", b), images)
    assert result.tensors is None, "these models give detections, not heads"
    assert (result.agreement.reference_detections, result.agreement.missed) == (3, 1)
    assert result.images[0].file_name == "000001.png"
    json.dumps(result.to_json())


def test_compare_raw_outputs(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    models = ("a", predictor(HeadsBackend())), ("b", predictor(HeadsBackend(shift=0.25)))
    result = compare_models(*models, images)
    assert result.tensors is not None
    assert set(result.tensors) == {"boxes", "scores", "coeff", "proto"}
    assert result.tensors["scores"].max == pytest.approx(0.25)
    assert result.tensors["scores"].mean == pytest.approx(0.25 / 12)
    assert result.tensors["scores"].largest == pytest.approx(0.5)
    assert result.tensors["proto"].max == 0
    assert result.agreement.max_score_difference == pytest.approx(0.25)
