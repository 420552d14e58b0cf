"""Exported files in OpenVINO: against ONNX Runtime, both tails, BF16, threads and refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few

import yolact_deploy
from yolact_deploy.errors import ArtifactError, BackendError, InputError, MissingDependencyError
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.tails import DetectionOutputs, HeadOutputs
from yolact_deploy.samples import sample_images

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.runtime.openvino import OpenVinoBackend, shared_core

SIZE = 138
TOLERANCES = {"boxes": 2e-5, "scores": 5e-5, "coeff": 2e-4, "proto": 5e-4}
CAN_BF16 = "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module")
def file(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small network that takes 1 to 4 images."""
    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec

    path = tmp_path_factory.mktemp("openvino") / "small.onnx"
    export_onnx(make_model("small", SIZE), path, ExportSpec(batch=(1, 2, 4)))
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def pictures() -> list[Any]:
    return [read_image(path) for path in sample_images()]


def compare(reference: Any, detections: Any, pictures: list[Any]) -> Any:
    meter = AgreementMeter()
    for picture in pictures:
        meter.add(reference(picture), detections(picture))
    return meter.result()


def test_heads_are_those_of_onnxruntime(file: Path, pictures: list[Any]) -> None:
    with yolact_deploy.load(file) as ort, yolact_deploy.load(f"{file}@openvino") as ov:
        for picture in pictures:
            images = ov.preprocess([picture])
            ours, theirs = ov.backend.run(images), ort.backend.run(images)
            assert isinstance(ours, HeadOutputs)
            assert isinstance(theirs, HeadOutputs)
            for name, atol in TOLERANCES.items():
                a, b = getattr(ours, name), getattr(theirs, name)
                assert a.dtype == np.float32
                np.testing.assert_allclose(a, b, atol=atol, rtol=5e-5, err_msg=name)


def test_the_tails_agree(file: Path, pictures: list[Any]) -> None:
    with (
        yolact_deploy.load(f"{file}@openvino-fp32", score_threshold=0) as host,
        yolact_deploy.load(f"{file}@openvino-fp32:tail=graph", score_threshold=0) as graph,
    ):
        outputs = graph.backend.run(graph.preprocess(pictures[:1]))
        assert isinstance(outputs, DetectionOutputs)
        assert outputs.num_detections.dtype == outputs.labels.dtype == np.int32
        assert (host.backend.describe()["tail"], graph.backend.describe()["tail"]) == ("host", "graph")
        result = compare(host, graph, pictures)
    assert result.reference_detections > 20
    assert (result.missed, result.extra) == (0, 0)
    assert result.max_score_difference < 1e-4
    assert result.min_box_iou > 0.99
    assert result.mean_mask_iou > 0.99


def test_a_list_in_batches(file: Path, pictures: list[Any]) -> None:
    with yolact_deploy.load(f"{file}@openvino") as model:
        assert (model.backend.max_batch, model.backend.fixed_batch) == (4, False)
        together = model([*pictures, *pictures])
        alone = [model(picture) for picture in pictures]
    for detections, expected in zip(together, [*alone, *alone], strict=True):
        assert len(detections) == len(expected) > 0
        np.testing.assert_allclose(detections.scores, expected.scores, atol=1e-4)
        np.testing.assert_array_equal(detections.labels, expected.labels)


def test_outputs_outlive_the_next_call(file: Path, pictures: list[Any]) -> None:
    with yolact_deploy.load(f"{file}@openvino") as model:
        first: Any = model.backend.run(model.preprocess(pictures[:1]))
        copies = [output.copy() for output in first]
        model.backend.run(model.preprocess(pictures[1:2]))
    for output, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(output, copy)


def test_threads(file: Path, pictures: list[Any]) -> None:
    with yolact_deploy.load(f"{file}@openvino:threads=1") as model:
        assert model.backend.describe() == {
            "backend": "openvino",
            "version": openvino.__version__,
            "precision": "fp32",
            "threads": 1,
            "tail": "host",
        }
        assert len(model(pictures[0])) > 0


@pytest.mark.skipif(not CAN_BF16, reason="this CPU has no BF16")
def test_bf16(file: Path, pictures: list[Any]) -> None:
    with (
        yolact_deploy.load(file, score_threshold=0) as fp32,
        yolact_deploy.load(f"{file}@openvino-bf16", score_threshold=0) as bf16,
    ):
        assert bf16.backend.precision == bf16.backend.describe()["precision"] == "bf16"
        images = bf16.preprocess(pictures[:1])
        a, b = fp32.backend.run(images), bf16.backend.run(images)
        assert isinstance(a, HeadOutputs)
        assert isinstance(b, HeadOutputs)
        error = np.abs(a.scores - b.scores).max()
        assert 1e-4 < error < 0.2  # it is BF16, and no more than that
        result = compare(fp32, bf16, pictures)
    assert result.matched_share > 0.9
    assert result.mean_mask_iou > 0.9


def test_bf16_where_there_is_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = openvino.Core.get_property

    def get_property(core: Any, *args: Any) -> Any:
        return ["FP32"] if args[-1] == "OPTIMIZATION_CAPABILITIES" else real(core, *args)

    monkeypatch.setattr(openvino.Core, "get_property", get_property)
    with pytest.raises(BackendError, match=r"no BF16 arithmetic .*: use @openvino-fp32"):
        OpenVinoBackend(file, precision="bf16")
    OpenVinoBackend(file).close()


def test_closed(file: Path, pictures: list[Any]) -> None:
    with yolact_deploy.load(f"{file}@openvino") as model:
        model(pictures[0])
    with pytest.raises(BackendError, match="closed: load the model again"):
        model(pictures[0])


_CLOSE_AND_INTERRUPT = """
import os, signal, sys
import yolact_deploy
first, second = (yolact_deploy.load(sys.argv[1] + "@openvino") for _ in range(2))
for model in (first, second) if sys.argv[2] == "first" else (second, first):
    model.close()
del model, first, second
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.parametrize("closed_first", few(["first", "second"], 0))
def test_ctrl_c_after_two_models_were_closed(file: Path, closed_first: str) -> None:
    """The CPU plugin of each ``ov.Core`` installs a signal stack and, when it is freed, puts back the one before.

    With a Core a model, closing in the order of opening left the process with a stack that was gone, and the next
    signal killed it (https://github.com/openvinotoolkit/openvino/pull/11894 shows the code).
    """
    done = subprocess.run(
        [sys.executable, "-c", _CLOSE_AND_INTERRUPT, str(file), closed_first],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, "")


def test_wrong_shapes_are_an_error_of_ours(file: Path) -> None:
    backend = OpenVinoBackend(file)
    with pytest.raises(BackendError, match=r"^OpenVINO failed: ") as caught:
        backend.run(np.zeros((1, 96, 96, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_damaged_files(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data = file.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="not an ONNX file, or a truncated one"):
        yolact_deploy.load(f"{path}@openvino")


def test_a_file_that_the_runtime_refuses(file: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(file))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Sorcery", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ArtifactError, match=r"^OpenVINO rejects .*m\.onnx: ") as caught:
        yolact_deploy.load(f"{tmp_path / 'm.onnx'}@openvino")
    assert "\n" not in str(caught.value)


def test_missing_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"needs the Python package 'openvino'.*yolact-deploy\[openvino\]"):
        yolact_deploy.load(f"{file}@openvino")


def test_an_unknown_precision(file: Path) -> None:
    with pytest.raises(InputError, match="openvino has no precision 'fp16'; it has fp32, bf16"):
        yolact_deploy.load(f"{file}@openvino-fp16")
