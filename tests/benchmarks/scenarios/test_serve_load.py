"""The scenario of the service under load, in short: nothing but 4xx for what is malformed, nothing lost at the end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from services import require_serving

pytest.importorskip("psutil")

from yolact_deploy.benchmarks.scenarios import serve_load

require_serving()


@pytest.mark.slow
def test_short_run(demo_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"
    command = ["--engine", f"{demo_onnx}@onnxruntime:threads=1", "--predictors", "1", "--seconds", "1", "--soak", "40"]
    assert serve_load.main([*command, "--malformed", "120", "-o", str(output)]) == 0, capsys.readouterr()
    result = json.loads(output.read_text())
    assert set(result["loads"]) == {"8", "64"}
    assert all(set(one["statuses"]) == {"200"} for one in result["loads"].values())
    assert set(result["overload"]["statuses"]) <= {"200", "429"}, "429 only if a second fills the queue"
    counts = {kind: sum(statuses.values()) for kind, statuses in result["malformed"].items()}
    assert sum(counts.values()) == 120
    assert min(counts.values()) > 0
    assert result["malformed"]["60000 x 60000 PNG"].keys() == {"413"}
    assert result["malformed"]["slow body"].keys() == {"408"}
    assert set(result["soak"]["statuses"]) == {"200", "400", "404", "415"}
    assert result["soak"]["wrong"] == {}
    assert len(result["soak"]["rss_mib"]) == 10
    assert result["end"] == {"statuses": {"200": 16}, "exit_code": 0}
    assert "malformed" in capsys.readouterr().out


def test_every_client_of_a_soak_sends_every_kind() -> None:
    made = serve_load.soak_requests([b"picture"] * 8)
    kinds = {kind for kind, _, _ in made}
    assert len(kinds) == 8
    for first in range(8):
        assert {kind for kind, _, _ in made[first::8]} == kinds


def good_result() -> dict[str, Any]:
    return {
        "malformed": {"text": {415: 3}},
        "overload": {"statuses": {200: 5, 429: 7}},
        "end": {"statuses": {200: 2}, "exit_code": 0},
        "soak": {"statuses": {200: 40, 415: 9}, "wrong": {}, "rss_mib": [200.0, 201.0, 200.5]},
    }


@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        ("malformed", {"text": {200: 1, 415: 2}}, "text: status 200 1 times, expected 4xx"),
        ("malformed", {"text": {0: 1}}, "text: status 0 1 times, expected 4xx"),
        ("overload", {"statuses": {200: 1, 500: 1}}, r"overload: statuses \[500\], expected \[200, 429\]"),
        ("soak", {"wrong": {"text: 503": 2}, "rss_mib": [200.0]}, "soak: text: 503, 2 times"),
        ("soak", {"wrong": {}, "rss_mib": [200.0, 203.0]}, "memory grew from 200.0 to 203.0 MiB"),
        ("end", {"statuses": {0: 1}, "exit_code": 0}, r"end: statuses \[0\]"),
        ("end", {"statuses": {200: 1}, "exit_code": 3}, "exit code 3"),
    ],
)
def test_problems_are_noticed(part: str, value: Any, sentence: str) -> None:
    assert serve_load.problems(good_result()) == []
    (found,) = serve_load.problems({**good_result(), part: value})
    assert re.search(sentence, found)
