"""Other people's tools read the demo model in each precision, and what they write detects the same.

Converted files run as they are in ONNX Runtime, and through `load` with each tail.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _module in ("torch", "onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(_module)

import cv2
import onnx
import onnxruntime

from yolact_deploy import load
from yolact_deploy.datasets.shapes import render
from yolact_deploy.export.onnx import export_onnx
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.export.targets.inlined_file import write_inlined
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.model.checkpoint import load_model
from yolact_deploy.samples import DEMO_MODEL

_slow = pytest.mark.slow  # the same tools again
PRECISIONS = ("fp32", pytest.param("fp16", marks=_slow), pytest.param("int8", marks=_slow))
NAMES = ["num_detections", "boxes", "scores", "labels", "masks"]
#: how far scores may move where a tool fuses operators
DRIFT = {"fp32": 1e-4, "fp16": 2e-2, "int8": 2e-2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``files(precision)``: the demo model."""
    folder = tmp_path_factory.mktemp("tools")
    calibration = [folder / f"{seed}.png" for seed in range(4)]
    for path, picture in zip(calibration, pictures(100, len(calibration)), strict=True):
        cv2.imwrite(str(path), picture)

    @cache
    def get(precision: str) -> Path:
        path = folder / f"{precision}.onnx"
        model = load_model(DEMO_MODEL)
        if precision == "int8":
            export_model(model, path, ExportSpec(precision="int8", calibration=calibration))
        else:
            export_onnx(model, path, ExportSpec(precision=precision))
        return path

    return get


@pytest.fixture(scope="module")
def inlined(files: Callable[[str], Path]) -> Callable[[str], Path]:
    """``inlined(precision)``: what ``export --inline`` writes beside it."""

    @cache
    def get(precision: str) -> Path:
        path = files(precision)
        return write_inlined(TargetSource(onnx_path=path, metadata=onnx_metadata(read_onnx(path), path)))

    return get


def pictures(first: int, count: int) -> list[Any]:
    """Generated ones of the model's own kind, which are sure detections; photographs are not."""
    return [render(seed, height=320, width=320).image for seed in range(first, first + count)]


def images() -> list[Any]:
    return [picture[None] for picture in pictures(0, 4)]


def by_onnxruntime(path: Path) -> list[list[Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(NAMES, {"images": image}) for image in images()]


def rows(outputs: list[Any]) -> Any:
    """Label, score, box and mask area of the detections above 0.2, in an order that near-ties do not change."""
    count = int(outputs[0][0])
    boxes, scores, labels, masks = (np.asarray(output[0][:count], np.float64) for output in outputs[1:])
    areas = (masks > 0.5).mean(axis=(1, 2))
    table = np.column_stack([labels, scores, boxes, areas])[scores > 0.2]
    return table[np.lexsort((table[:, 3].round(2), table[:, 2].round(2), table[:, 0]))]


def assert_same(actual: list[list[Any]], expected: list[list[Any]], drift: float) -> None:
    assert sum(len(rows(outputs)) for outputs in expected) > 10
    for one, other in zip(actual, expected, strict=True):
        assert len(rows(one)) == len(rows(other))
        np.testing.assert_allclose(rows(one), rows(other), atol=drift)


def share_found(actual: list[list[Any]], expected: list[list[Any]]) -> float:
    """Of the detections above 0.5, the share with one of the same label and nearly the same box in the other."""
    found = []
    for one, other in zip(actual, expected, strict=True):
        for row in rows(other)[rows(other)[:, 1] > 0.5]:
            same = rows(one)[rows(one)[:, 0] == row[0]]
            found.append(bool((np.abs(same[:, 2:6] - row[2:6]).max(axis=1) < 0.05).any()))
    assert len(found) > 10
    return float(np.mean(found))


def assert_loads(path: Path, precision: str, original: Path) -> None:
    """The file in each tail of `load`, against the original in the same."""
    (picture,) = pictures(0, 1)
    for tail in ("host", "graph"):
        with load(path, tail=tail, score_threshold=0.2) as model, load(original, tail=tail) as plain:
            assert model.backend.tail.name == plain.backend.tail.name
            actual, expected = model(picture), plain(picture)
        kept = expected.scores > 0.2
        assert sorted(actual.labels) == sorted(expected.labels[kept])
        np.testing.assert_allclose(np.sort(actual.scores), np.sort(expected.scores[kept]), atol=DRIFT[precision])


def command(name: str, *arguments: object) -> str:
    """Run a program of this environment."""
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def slim(path: Path, output: Path) -> None:
    slimmed = pytest.importorskip("onnxslim").slim(str(path))
    onnx.save(slimmed, str(output))


def simplify(path: Path, output: Path) -> None:
    model, checked = pytest.importorskip("onnxsim").simplify(onnx.load(str(path)))
    assert checked
    onnx.save(model, str(output))


def sanitize(path: Path, output: Path) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    command("polygraphy", "surgeon", "sanitize", path, "--fold-constants", "-o", output)
    # It drops all metadata, which `load` needs; whoever uses it puts them back, as docs/contract.md says.
    written = onnx.load(str(output))
    assert not written.metadata_props
    written.metadata_props.extend(onnx.load(str(path)).metadata_props)
    onnx.save(written, str(output))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("tool", "form"),
    [
        (slim, "functions"),
        *(
            pytest.param(*more, marks=_slow)
            for more in ((slim, "inlined"), (simplify, "functions"), (simplify, "inlined"))
        ),
        *(pytest.param(sanitize, form, marks=_slow) for form in ("functions", "inlined")),
    ],
)
def test_simplifiers(
    tool: Callable[[Path, Path], None],
    form: str,
    precision: str,
    files: Callable[[str], Path],
    inlined: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    original = files(precision)
    output = tmp_path / "written.onnx"
    tool(inlined(precision) if form == "inlined" else original, output)
    assert_same(by_onnxruntime(output), by_onnxruntime(original), DRIFT[precision])
    assert_loads(output, precision, original)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inlined_files_detect_the_same(
    precision: str, files: Callable[[str], Path], inlined: Callable[[str], Path]
) -> None:
    assert_same(by_onnxruntime(inlined(precision)), by_onnxruntime(files(precision)), DRIFT[precision])
    assert_loads(inlined(precision), precision, files(precision))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.slow
def test_polygraphy_inspects_and_runs(
    precision: str, files: Callable[[str], Path], inlined: Callable[[str], Path]
) -> None:
    pytest.importorskip("polygraphy")
    shown = command("polygraphy", "inspect", "model", inlined(precision))
    assert "images [dtype=uint8, shape=(1, 320, 320, 3)]" in shown
    assert "PASSED" in command("polygraphy", "run", files(precision), "--onnxrt")


@_slow  # tests/runtime/test_openvino.py converts the file in its own way
@pytest.mark.parametrize("precision", PRECISIONS)
def test_openvinos_own_tools(
    precision: str, files: Callable[[str], Path], inlined: Callable[[str], Path], tmp_path: Path
) -> None:
    ov = pytest.importorskip("openvino")
    output = tmp_path / "model.xml"
    command("ovc", inlined(precision), "--output_model", output, "--compress_to_fp16=False")
    compiled = ov.Core().compile_model(str(output), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = [compiled({"images": image}) for image in images()]
    outputs = [[np.asarray(result[name]) for name in NAMES] for result in results]
    expected = by_onnxruntime(files(precision))
    if precision == "int8":  # other kernels, whose sums round to other steps, or saturate on a CPU without VNNI
        assert min(share_found(outputs, expected), share_found(expected, outputs)) >= 0.8
    else:
        assert_same(outputs, expected, DRIFT[precision])
    shown = command("benchmark_app", "-m", inlined(precision), "-niter", 1, "-api", "sync", "-hint", "none")
    assert "Throughput" in shown


@_slow  # two processes that import much
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", ["functions", "inlined"])
def test_onnxruntimes_own_format(
    form: str, precision: str, files: Callable[[str], Path], inlined: Callable[[str], Path], tmp_path: Path
) -> None:
    path = inlined(precision) if form == "inlined" else files(precision)
    module = "onnxruntime.tools.convert_onnx_models_to_ort"
    arguments = [str(path), "--output_dir", str(tmp_path), "--optimization_style", "Fixed"]
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (output,) = tmp_path.glob("*.ort")
    assert_same(by_onnxruntime(output), by_onnxruntime(path), DRIFT[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_netron_serves_the_file(precision: str, files: Callable[[str], Path]) -> None:
    netron = pytest.importorskip("netron")
    host, port = netron.start(str(files(precision)), browse=False)
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/", timeout=30) as page:
            assert b"netron" in page.read().lower()
        with urllib.request.urlopen(f"http://{host}:{port}/data/{files(precision).name}", timeout=30) as file:
            assert file.read() == files(precision).read_bytes()
    finally:
        netron.stop()
