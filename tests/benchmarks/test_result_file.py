"""Results as data: what is written fits the schema, every key of it is documented, and what does not fit is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from scripted import SCRIPT, ScriptedBackend, bench, source, write_coco, write_pictures

from yolact_deploy.artifact import sha256_file, write_json
from yolact_deploy.benchmarks import result_file
from yolact_deploy.benchmarks.limits import MachineLimits, Roofline
from yolact_deploy.benchmarks.measure import BenchResult, run_bench
from yolact_deploy.benchmarks.result_file import (
    SCHEMA_FILE,
    environment_differences,
    find_row,
    read_result,
    result_from_json,
    same_images,
    stored,
)
from yolact_deploy.datasets.image_sets import fingerprint, open_images, plain_images
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.machine.energy import Energy, EnergySource

RESULTS = Path(result_file.__file__).parent / "results"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> BenchResult:
    return bench(tmp_path_factory.mktemp("bench"), repeats=2)


def strict(schema: Any) -> Any:
    """The schema with every key forbidden that it does not document."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    if "properties" in closed and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def test_what_is_written_is_documented(result: BenchResult) -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    measured = dataclasses.replace(
        result.rows[1],
        diagnosis="labels are shifted by one",
        energy=Energy(2.0, 10, (EnergySource("package-0", "rapl", 12.5),), ("GPU: none",)),
        roofline=Roofline("fp32", 1.0, 2, 3.0, 4.0, 5.0, 0.8, "compute"),
    )
    limits = {"cpu": MachineLimits("cpu", {"fp32": 1.0}, {"fp32": "torch"}, 1.0)}
    result = dataclasses.replace(result, rows=(result.rows[0], measured), limits=limits)
    written = json.loads(json.dumps(result.to_json()))
    jsonschema.Draft202012Validator(strict(schema)).validate(written)
    with pytest.raises(jsonschema.ValidationError, match="'secret' was unexpected"):
        jsonschema.Draft202012Validator(strict(schema)).validate({**written, "secret": 1})


def test_read_back(result: BenchResult, tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", result.to_json())
    read = read_result(tmp_path / "r.json")
    assert list(read.rows) == ["eager", "fast"]
    fast = read.row("fast")
    assert fast.samples is not None
    np.testing.assert_allclose(fast.samples, result.rows[1].latency.samples, atol=1e-4)
    assert fast.stages == result.rows[1].latency.stages
    assert read.row("eager").ap_points("box") == pytest.approx(100)
    again = stored(result)
    assert (again.content, same_images(read, again), environment_differences(read, again)) == (read.content, True, [])
    with pytest.raises(InputError, match=r"has no engine 'slow': it has eager, fast"):
        read.row("slow")


def test_keys_of_later_versions_are_passed_over(result: BenchResult) -> None:
    content = json.loads(json.dumps(result.to_json()))
    content["engines"][0]["latency"]["p999_ms"] = 3.0
    assert list(result_from_json(content, "later.json").rows) == ["eager", "fast"]


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
        (put("bench-v9", "schema"), "is of schema 'bench-v9'"),
        (drop("environment", "cpu"), "at environment: 'cpu' is a required property"),
        (put("fast", "engines", 0, "latency", "p50_ms"), "at engines/0/latency/p50_ms: 'fast' is not of type 'number'"),
        (put(-1, "engines", 1, "latency", "samples_ms", 2), "at engines/1/latency/samples_ms/2: -1 is less than"),
        (put(2, "engines", 1, "agreement", "agreed_share"), "at engines/1/agreement"),
        (put("ab", "engines", 1, "file_sha256"), "at engines/1/file_sha256: 'ab' does not match"),
        (drop("engines", 1, "latency", "samples_ms", 0), "fast has 5 samples of 6 calls"),
        (put("eager", "engines", 1, "name"), "two engines of one name"),
        (put("other", "reference"), "no engine 'other', its reference"),
        (put([], "engines"), "at engines: "),
    ],
)
def test_what_does_not_fit_is_refused(result: BenchResult, change: Callable[[Any], None], message: str) -> None:
    content = json.loads(json.dumps(result.to_json()))
    change(content)
    with pytest.raises(DatasetError) as caught:
        result_from_json(content, "r.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("r.json ") or "r.json:" in str(caught.value)
    assert "measure again with bench --output FILE" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_not_a_result(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such results file"):
        read_result(tmp_path / "absent.json")
    with pytest.raises(DatasetError, match="names no schema"):
        result_from_json([1, 2], "list.json")


def test_results_that_are_kept() -> None:
    """Every file of benchmarks/results that lists engines is of the schema."""
    of_bench = [path for path in sorted(RESULTS.glob("*.json")) if "engines" in json.loads(path.read_text())]
    assert len(of_bench) >= 3
    for path in of_bench:
        assert read_result(path).rows


def test_environments_are_compared(result: BenchResult) -> None:
    other = copy.deepcopy(result.environment)
    other.update(cpu="Other CPU", date="2020-01-01T00:00:00+00:00", fan="slow")
    other["versions"]["numpy"] = "0.1"
    changed = stored(dataclasses.replace(result, environment=other))
    assert environment_differences(stored(result), changed) == [
        f"cpu: {result.environment['cpu']} and Other CPU",
        f"versions.numpy: {np.__version__} and 0.1",
        "fan: not told and slow",
    ]


def test_same_images(result: BenchResult) -> None:
    def with_dataset(**changes: Any) -> Any:
        return stored(dataclasses.replace(result, dataset={**result.dataset, **changes}))

    ours = stored(result)
    assert not same_images(ours, with_dataset(fingerprint="0" * 64))
    assert same_images(ours, with_dataset(fingerprint=None)), "files of old tell their images by COCO ids"
    assert not same_images(ours, with_dataset(fingerprint=None, image_ids=[1, 2, 4]))
    assert not same_images(ours, with_dataset(fingerprint=None, annotations=None, image_ids=None))


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
    rows = run_bench([file, unknown], plain_images(write_pictures(tmp_path))).rows
    assert (rows[0].file_sha256, rows[0].weights_sha256) == (sha256_file(model), weights)
    assert (rows[1].file_sha256, rows[1].weights_sha256) == (None, None)
    assert EngineSource.from_spec(f"{model}@openvino").path == model


def test_files_with_engines(tmp_path: Path) -> None:
    file = tmp_path / "r:1.json"
    file.write_text("{}")
    assert find_row(str(file)) == (str(file), None)
    assert find_row(f"{file}:m.onnx@openvino:threads=2") == (str(file), "m.onnx@openvino:threads=2")
    with pytest.raises(InputError, match="no such results file"):
        find_row(f"{tmp_path}/absent.json:eager")
