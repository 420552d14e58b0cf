"""The commands that `demo` puts together; each of them has tests of its own."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import yolact_deploy.cli.main as program
import yolact_deploy.runtime.checks as doctor
from yolact_deploy import samples

_main = program.main


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What `demo` runs, instead of running it."""
    ran: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        ran.append(arguments)
        return 2 if "broken.pth" in arguments else 0

    monkeypatch.setattr(program, "main", run)
    works = type("Finding", (), {"works": True})
    found = {"openvino": works(), "tensorrt-rtx builder": works()}
    for name, finding in found.items():
        finding.name = name
    monkeypatch.setattr(doctor, "examine", lambda names, progress: [found[name] for name in names])
    monkeypatch.setattr(doctor, "describe_machine", lambda: {"instructions": ["avx512_bf16"]})
    return ran


def _demo(*arguments: str) -> int:
    return _main(["demo", *arguments])


def test_the_model_of_the_package_on_generated_images(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _demo("-o", str(tmp_path), "--images", "7") == 0
    data, export, half, int8, inspect, bench, predict = commands
    assert data == ["data", "shapes", "-o", str(tmp_path / "shapes"), "--train", "100", "--val", "7"]
    for command in (export, half, int8, bench):
        assert command[command.index("--weights") + 1] == str(samples.DEMO_MODEL)
    assert "--fp16" in half
    assert int8[int8.index("--int8") + 1 :][:4] == ["--calibration", str(tmp_path / "shapes"), "--images", "100"]
    assert inspect == ["inspect", str(tmp_path / "model_fp16.trt")]
    assert bench[bench.index("--coco") + 1] == str(tmp_path / "shapes")
    engines = [Path(bench[i + 1]).name for i, word in enumerate(bench) if word == "--engine"]
    assert engines == [
        "model.onnx", "model_fp16.onnx", "model_int8.onnx",
        "model.onnx@openvino", "model.onnx@openvino-bf16", "model_int8.onnx@openvino",
    ]  # fmt: skip
    assert predict[1].endswith("model_int8.onnx@openvino")
    out = capsys.readouterr().out
    for command in commands:
        assert f"$ yolact-deploy {shlex.join(command)}" in out


def test_other_weights_on_the_sample_images(commands: list[list[str]], tmp_path: Path) -> None:
    assert _demo("-o", str(tmp_path), "--weights", "mine.pth", "--size", "320", "--quiet") == 0
    export, half, _, bench, predict = commands
    for command in (export, half, bench):
        assert command[command.index("--weights") + 1] == "mine.pth"
        assert command[command.index("--size") + 1] == "320"
    assert bench[bench.index("--annotations") + 1] == str(samples.ANNOTATIONS)
    assert set(map(str, samples.sample_images())) < set(predict)
    assert all(command[-1] == "--quiet" for command in commands)


def test_it_ends_with_what_failed(commands: list[list[str]], tmp_path: Path) -> None:
    assert _demo("-o", str(tmp_path), "--weights", "broken.pth") == 2
    assert len(commands) == 1
