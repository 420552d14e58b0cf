"""Ranges of activations: right, bounded, resumable, and refused where the network or the pictures are of no use."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from few import few

from yolact_deploy.console import ConsoleProgress
from yolact_deploy.errors import ExportError, InputError
from yolact_deploy.vocabulary import CALIBRATION_METHODS

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.export import calibration
from yolact_deploy.export.calibration import calibrate
from yolact_deploy.graph import tensor_probe
from yolact_deploy.graph.onnx_graph import cut_tail, read_onnx
from yolact_deploy.graph.trunk_graph import trunk_nodes
from yolact_deploy.preprocess import read_image, resize_image
from yolact_deploy.samples import sample_images

NAME, SMALL = "small", 138
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten pictures: parts of the samples."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(10):
        image = read_image(sample_images()[i % 3])
        cv2.imwrite(str(folder / f"{i}.png"), image[10 * i : 200 + 10 * i, 8 * i : 250 + 8 * i])
    return sorted(folder.iterdir())


def activations(model: Any, paths: list[Path]) -> dict[str, Any]:
    """Every tensor of the trunk, and its inputs, over all pictures."""
    copy = type(model)()
    copy.CopyFrom(model)
    cut_tail(copy)
    constants = {c.name for c in copy.graph.initializer}
    names = {n.output for n in trunk_nodes(copy.graph)}
    for n in trunk_nodes(copy.graph):
        names.update(name for name in copy.graph.node[n.index].input[:1] if name not in constants)
    del copy.graph.output[:]
    for name in sorted(names):
        copy.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [session.run(None, {"images": resize_image(read_image(path), SMALL)[None]}) for path in paths]
    return {name: np.stack(values) for name, values in zip(sorted(names), zip(*found, strict=True), strict=True)}


def test_minmax_is_the_largest_and_the_smallest(export: Export, pictures: list[Path]) -> None:
    model = read_onnx(export(NAME, SMALL))
    before = model.SerializeToString()
    found = calibrate(model, pictures, method="minmax")
    assert model.SerializeToString() == before
    assert (found.method, found.images, len(found.images_sha256)) == ("minmax", 10, 64)
    assert "only 10 pictures" in found.notes[0]
    values = activations(model, pictures)
    nodes = [model.graph.node[n.index] for n in trunk_nodes(model.graph)]
    made_by = {node.output[0]: node.op_type for node in nodes}
    for node in nodes:
        if node.op_type not in calibration.WATCHED:
            continue
        for name in (node.input[0], node.output[0]):
            low, high = found.ranges[name]
            readers = {n.op_type for n in model.graph.node if name in n.input}
            if readers <= {"Relu", "Clip"}:
                assert low == 0, "only what passes the activation"
                continue
            assert low <= 0 <= high
            exact = float(min(values[name].min(), 0)), float(max(values[name].max(), 0))
            if made_by.get(name) in ("Resize", "MaxPool"):  # has the range of what entered
                assert low <= exact[0] + 1e-5
                assert high >= exact[1] - 1e-5
            else:
                assert (low, high) == pytest.approx(exact, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gathered")


@pytest.mark.parametrize("method", few([method for method in CALIBRATION_METHODS if method != "minmax"], 0, 2))
def test_other_methods_stay_inside(
    export: Export, pictures: list[Path], method: str, gathered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They choose from what one run has gathered."""
    model = read_onnx(export(NAME, SMALL))
    widest = calibrate(model, pictures, method="minmax", state=gathered).ranges
    monkeypatch.setattr(tensor_probe, "open_cpu_session", lambda *args: pytest.fail("nothing is left to run"))
    ranges = calibrate(model, pictures, method=method, state=gathered).ranges
    assert ranges.keys() == widest.keys()
    narrower = 0
    for name, (low, high) in ranges.items():
        assert widest[name][0] <= low <= 0 <= high <= widest[name][1]
        assert high - low > 0.02 * (widest[name][1] - widest[name][0])
        narrower += (low, high) != widest[name]
    assert narrower > 20
    assert len(list(gathered.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("batch", [(1, 2, 4), (4, 4, 4)])
@pytest.mark.parametrize("tail", ["functions", "heads"])
def test_batches_and_tails_change_nothing(
    export: Export, pictures: list[Path], batch: tuple[int, int, int], tail: str
) -> None:
    """Ten pictures are two and a half batches of four: what fills up the last one does not count."""
    one = calibrate(read_onnx(export(NAME, SMALL)), pictures)
    other = calibrate(read_onnx(export(NAME, SMALL, batch=batch, tail=tail)), pictures)
    assert len(one.ranges) == len(other.ranges)
    np.testing.assert_allclose(sorted(one.ranges.values()), sorted(other.ranges.values()), rtol=1e-3, atol=1e-4)


KILLED = """
import os, signal, sys
from pathlib import Path
from yolact_deploy.export import calibration
from yolact_deploy.graph import tensor_probe
from yolact_deploy.graph.onnx_graph import read_onnx

calibration._SECONDS_BETWEEN_SAVES = 0.0
read, reads = tensor_probe.read_image, []
def read_image(path):
    reads.append(path)
    if len(reads) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path)
tensor_probe.read_image = read_image
model, state, *pictures = map(Path, sys.argv[1:])
calibration.calibrate(read_onnx(model), pictures, state=state)
"""


def test_a_killed_run_goes_on(
    export: Export, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export(NAME, SMALL)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(tmp_path), *map(str, pictures)], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (state,) = tmp_path.glob("*.npz")
    again = calibrate(read_onnx(path), pictures, state=tmp_path, progress=ConsoleProgress())
    # The pictures before the last that was read; some of them may have been at work.
    known, left = map(int, re.findall(r"calibrating \((\d+) known already\): (\d+)/\2, ", capsys.readouterr().err)[-1])
    assert 1 <= known <= 6
    assert known + left == len(pictures)
    assert again == calibrate(read_onnx(path), pictures)

    two = pictures[:2]
    ranges = calibrate(read_onnx(path), two, state=tmp_path)
    (state_of_two,) = set(tmp_path.glob("*.npz")) - {state}
    calibrate(read_onnx(path), two[::-1], state=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 3, "other pictures, another state"
    for damage in (b"", b"PK no state", state_of_two.read_bytes()[:-100]):
        state_of_two.write_bytes(damage)
        assert calibrate(read_onnx(path), two, state=tmp_path) == ranges


def test_values_that_are_not_finite(export: Export, pictures: list[Path]) -> None:
    """Some of one channel; the layer is named."""
    model = read_onnx(export(NAME, SMALL))
    for constant in model.graph.initializer:
        if constant.name == "model.proto_net.2.bias":
            values = onnx.numpy_helper.to_array(constant).copy()
            values[3] = np.inf
            constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    with pytest.raises(ExportError, match=r"proto_net\.2 has values that are not finite in FP32: the checkpoint is"):
        calibrate(model, pictures[:1])


def test_wrong_arguments(export: Export, pictures: list[Path]) -> None:
    model = read_onnx(export(NAME, SMALL))
    with pytest.raises(ExportError, match="calibration method: expected one of percentile, minmax, entropy, mse, got"):
        calibrate(model, pictures, method="max")
    with pytest.raises(InputError, match="of 1 calibration pictures, 1 cannot be read"):
        calibrate(model, [Path("nothing.png")])
