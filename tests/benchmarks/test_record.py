"""Records as files: what is written comes back equal and fits the schema; what does not fit is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jsonschema")
pytest.importorskip("msgspec")

import jsonschema
from scripted import SCRIPT, ScriptedBackend, bench, source, write_coco, write_pictures
from strict_schema import strict

from yolact_deploy.artifact import sha256_file
from yolact_deploy.benchmarks import record as record_module
from yolact_deploy.benchmarks.limits import MachineLimits, Roofline
from yolact_deploy.benchmarks.measure import run_bench
from yolact_deploy.benchmarks.record import (
    SCHEMA_FILE,
    Record,
    find_record,
    from_json,
    json_schema,
    read_record,
    to_json,
    write_record,
)
from yolact_deploy.benchmarks.report.report_page import render
from yolact_deploy.datasets.image_sets import fingerprint, open_images, plain_images
from yolact_deploy.errors import DatasetError, InputError, OutputError
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.machine.energy import Energy, EnergySource

RESULTS = Path(record_module.__file__).parent / "results"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return bench(tmp_path_factory.mktemp("bench"), repeats=2)


@pytest.fixture(scope="module")
def full(result: Record) -> Record:
    """With everything that a record can hold."""
    measured = dataclasses.replace(
        result.engines[1],
        diagnosis="labels are shifted by one",
        energy=Energy(2.0, 10, (EnergySource("package-0", "rapl", 12.5),), ("GPU: none",)),
        roofline=Roofline("fp32", 1.0, 2, 3.0, 4.0, 5.0, 0.8, "compute"),
    )
    limits = {"cpu": MachineLimits("cpu", {"fp32": 1.0}, {"fp32": "torch"}, 1.0)}
    return dataclasses.replace(result, engines=(result.engines[0], measured), limits=limits)


def as_json(record: Record) -> Any:
    return json.loads(json.dumps(to_json(record), allow_nan=False))


def test_the_schema_is_that_of_the_types() -> None:
    cure = "run python -m yolact_deploy.benchmarks.record > yolact_deploy/benchmarks/schema/bench-v1.schema.json"
    assert json.loads(SCHEMA_FILE.read_text()) == json.loads(json.dumps(json_schema())), cure


def test_what_is_written_is_documented(full: Record) -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    written = as_json(full)
    jsonschema.Draft202012Validator(strict(schema)).validate(written)
    with pytest.raises(jsonschema.ValidationError, match="'secret' was unexpected"):
        jsonschema.Draft202012Validator(strict(schema)).validate({**written, "secret": 1})


def test_comes_back_equal(full: Record, tmp_path: Path) -> None:
    write_record(full, tmp_path / "r.json")
    back = read_record(tmp_path / "r.json")
    assert back == full
    assert (back.name, full.name) == (str(tmp_path / "r.json"), "this run")
    assert back.names == ["eager", "fast"]
    assert back.engine("eager").ap_points("box") == pytest.approx(100)
    assert (back.has_images_of(full), back.environment_differences(full)) == (True, [])
    with pytest.raises(InputError, match=r"r\.json has no engine 'slow': it has eager, fast"):
        back.engine("slow")
    page = render(back)
    assert "labels are shifted by one" in page
    assert "<img" not in page


def test_derived_figures_are_written(full: Record) -> None:
    written = as_json(full)
    engine = written["engines"][1]
    assert (engine["energy"]["joules"], engine["energy"]["watts"]) == (12.5, 6.25)
    assert engine["memory"]["host_growth_mib"] == engine["memory_mib"]
    assert engine["ap_difference"]["box"]["excludes_zero"] in (True, False)
    assert isinstance(written["conditions"]["warnings"], list)
    whole = engine["latency"]
    assert whole["unaccounted_ms"] == pytest.approx(whole["mean_ms"] - sum(whole["stages_mean_ms"].values()))
    assert "name" not in written


def test_keys_of_later_versions_are_skipped(result: Record) -> None:
    content = as_json(result)
    content["engines"][0]["latency"]["p999_ms"] = 3.0
    assert from_json(content, "later.json") == result


def test_files_before_single_calls_were_stored(result: Record) -> None:
    content = as_json(result)
    for key in ("conditions", "limits", "yardstick"):
        del content[key]
    for engine in content["engines"]:
        for key in ("samples_ms", "stages_p50_ms", "unaccounted_ms", "encode_mean_ms"):
            del engine["latency"][key]
        for key in ("memory", "energy", "diagnosis", "ap_difference", "roofline", "file_sha256", "weights_sha256"):
            del engine[key]
    old = from_json(content, "old.json")
    assert old.engine("fast").latency.p50_ms == result.engine("fast").latency.p50_ms
    assert old.engine("fast").latency.usual_stages_ms == result.engine("fast").latency.stages_mean_ms
    with pytest.raises(DatasetError, match=r"^old\.json has no times of single calls: measure again"):
        render(old)


def test_numbers_that_are_not_finite_are_refused(result: Record, tmp_path: Path) -> None:
    broken = dataclasses.replace(result.engines[1], speedup=float("nan"))
    record = dataclasses.replace(result, engines=(result.engines[0], broken))
    with pytest.raises(OutputError, match=r"\$\.engines\[1\]\.speedup is not finite"):
        write_record(record, tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def _nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def drop(*path: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value: object, *path: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("schema"), "names no schema, expected 'bench-v1'"),
        (put("bench-v9", "schema"), "has schema 'bench-v9'"),
        (drop("environment", "cpu"), "Object missing required field `cpu` - at `$.environment`"),
        (
            put("fast", "engines", 0, "latency", "p50_ms"),
            "Expected `float`, got `str` - at `$.engines[0].latency.p50_ms`",
        ),
        (put(-1, "engines", 1, "latency", "samples_ms", 2), "at `$.engines[1].latency.samples_ms[2]`"),
        (
            put(2, "engines", 1, "agreement", "agreed_share"),
            "agreement.agreed_share: expected 0 to 1, got 2 - at `$.eng",
        ),
        (put("ab", "engines", 1, "file_sha256"), "matching regex '^[0-9a-f]{64}$' - at `$.engines[1].file_sha256`"),
        (drop("engines", 1, "latency", "samples_ms", 0), "5 samples of 6 calls - at `$.engines[1].latency`"),
        (put("eager", "engines", 1, "name"), "two engines of one name"),
        (put("other", "reference"), "no engine 'other', its reference"),
        (put([], "engines"), "of length >= 1 - at `$.engines`"),
        (put(float("inf"), "engines", 1, "speedup"), "Expected a finite number - at `$.engines[1].speedup`"),
        (
            put([float("nan")], "yardstick", "samples_ms", "memory"),
            "finite number - at `$.yardstick.samples_ms.memory[0]`",
        ),
        (put(float("nan"), "engines", 1, "latency", "p50_ms"), "Expected a finite number - at `$.engines[1].latency"),
        (put(float("-inf"), "engines", 0, "runtime", "x"), "Expected a finite number - at `$.engines[0].runtime.x`"),
        (put(10**400, "environment", "cores"), "Expected a finite number - at `$.environment.cores`"),
        (put(10**400, "engines", 1, "latency", "p50_ms"), "Expected a finite number - at `$.engines[1].latency.p50"),
        (put(_nested(5000), "engines", 0, "runtime", "x"), "nested too deeply"),
        (put(_nested(50), "schema"), "has schema [[["),
    ],
)
def test_what_does_not_fit_is_refused(result: Record, change: Callable[[Any], None], message: str) -> None:
    content = as_json(result)
    change(content)
    with pytest.raises(DatasetError) as caught:
        from_json(content, "r.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("r.json ") or "r.json:" in str(caught.value)
    assert "measure again with bench --output FILE" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_not_a_result(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such results file"):
        read_record(tmp_path / "absent.json")
    with pytest.raises(DatasetError, match="names no schema"):
        from_json([1, 2], "list.json")


def test_results_that_are_kept() -> None:
    """Every file of benchmarks/results that lists engines is of the schema."""
    of_bench = [path for path in sorted(RESULTS.glob("*.json")) if "engines" in json.loads(path.read_text())]
    assert len(of_bench) >= 3
    for path in of_bench:
        content = json.loads(path.read_text())
        read = as_json(read_record(path))
        if conditions := content.get("conditions"):  # its warnings are derived again, in the words of this version
            assert len(conditions.pop("warnings")) == len(read["conditions"]["warnings"])
        assert holds(read, content), f"{path.name}: what is stored is not what is read"


def holds(read: Any, stored: Any) -> bool:
    """Whether ``read`` has all that is stored; it may have more keys, those of later versions."""
    if isinstance(stored, dict):
        return all(key in read and holds(read[key], value) for key, value in stored.items())
    if isinstance(stored, list):
        return len(read) == len(stored) and all(map(holds, read, stored))
    return bool(read == (pytest.approx(stored, rel=1e-12, abs=1e-12) if isinstance(stored, float) else stored))


def test_environments_are_compared(result: Record) -> None:
    other: Any = copy.deepcopy(result.environment)
    other.update(cpu="Other CPU", date="2020-01-01T00:00:00+00:00", jetpack="7.0")
    other["versions"]["numpy"] = "0.1"
    assert result.environment_differences(dataclasses.replace(result, environment=other)) == [
        f"cpu: {result.environment['cpu']} and Other CPU",
        f"versions.numpy: {np.__version__} and 0.1",
        "jetpack: unknown and 7.0",
    ]


def test_same_images(result: Record) -> None:
    def with_dataset(**changes: Any) -> Record:
        return dataclasses.replace(result, dataset=dataclasses.replace(result.dataset, **changes))

    assert not result.has_images_of(with_dataset(fingerprint="0" * 64))
    assert result.has_images_of(with_dataset(fingerprint=None)), "older files identify images by COCO ids"
    assert not result.has_images_of(with_dataset(fingerprint=None, image_ids=(1, 2, 4)))
    assert not result.has_images_of(with_dataset(fingerprint=None, annotations=None, image_ids=None))


def test_fingerprint(tmp_path: Path) -> None:
    write_coco(tmp_path)
    paths = write_pictures(tmp_path / "plain")
    first = fingerprint(plain_images(paths))
    assert first == fingerprint(plain_images(paths))
    assert len({first, fingerprint(plain_images(paths[::-1])), fingerprint(plain_images(paths[:2]))}) == 3
    assert first != fingerprint(open_images(coco=tmp_path)), "their ids are others"
    paths[0].write_bytes(paths[0].read_bytes() + b" ")
    assert first != fingerprint(plain_images(paths))


def test_hashes_of_model_and_weights(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    weights = "a" * 64
    file = dataclasses.replace(source("file", ScriptedBackend(SCRIPT, sha=weights)), path=model)
    unknown = source("unknown", ScriptedBackend(SCRIPT))
    rows = run_bench([file, unknown], plain_images(write_pictures(tmp_path))).record.engines
    assert (rows[0].file_sha256, rows[0].weights_sha256) == (sha256_file(model), weights)
    assert (rows[1].file_sha256, rows[1].weights_sha256) == (None, None)
    assert EngineSource.from_spec(f"{model}@openvino").path == model


def test_files_with_engines(tmp_path: Path) -> None:
    file = tmp_path / "r:1.json"
    file.write_text("{}")
    assert find_record(str(file)) == (str(file), None)
    assert find_record(f"{file}:m.onnx@openvino:threads=2") == (str(file), "m.onnx@openvino:threads=2")
    with pytest.raises(InputError, match="no such results file"):
        find_record(f"{tmp_path}/absent.json:eager")
