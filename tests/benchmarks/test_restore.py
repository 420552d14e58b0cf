"""What was written comes back as it was, and makes a report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from scripted import bench

from yolact_deploy.benchmarks.report.report_page import render
from yolact_deploy.benchmarks.restore import restore
from yolact_deploy.benchmarks.result_file import result_from_json
from yolact_deploy.errors import DatasetError
from yolact_deploy.machine.energy import Energy, EnergySource


def test_comes_back(tmp_path: Path) -> None:
    result = bench(tmp_path)
    energy = Energy(2.0, 10, (EnergySource("package-0", "rapl", 12.5),), ("nvml: no such library",))
    row = dataclasses.replace(result.rows[1], energy=energy, diagnosis="labels are shifted by one")
    result = dataclasses.replace(result, rows=(result.rows[0], row))
    written = json.loads(json.dumps(result.to_json()))
    back = restore(result_from_json(written, "file.json"))
    assert back.rows[1].energy == energy
    assert back.conditions == result.conditions
    assert back.rows[0].accuracy == result.rows[0].accuracy
    assert back.rows[1].agreement == result.rows[1].agreement
    again = json.loads(json.dumps(back.to_json()))
    assert again.pop("worst_images") == []
    written.pop("worst_images")
    for engine in written["engines"]:
        # Samples are stored rounded, so what is computed from them differs in the last digits.
        engine["latency"] = {key: pytest.approx(value, rel=1e-3, abs=1e-3) for key, value in engine["latency"].items()}
        engine["speedup"] = pytest.approx(engine["speedup"], rel=1e-3)
    assert again == written
    page = render(back)
    assert "labels are shifted by one" in page
    assert "<img" not in page


def test_a_file_without_times_of_single_calls(tmp_path: Path) -> None:
    content = json.loads(json.dumps(bench(tmp_path).to_json()))
    del content["engines"][0]["latency"]["samples_ms"]
    with pytest.raises(DatasetError, match=r"^old\.json has no times of single calls: measure again"):
        restore(result_from_json(content, "old.json"))
