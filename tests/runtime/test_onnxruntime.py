"""Exported files in ONNX Runtime: both tails, threads, batches, closing and refusals."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import yolact_deploy
from yolact_deploy.errors import ArtifactError, BackendError, MissingDependencyError
from yolact_deploy.graph.onnx_graph import cut_tail
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.tails import DetectionOutputs, HeadOutputs
from yolact_deploy.samples import sample_images

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

SIZE = 138


@pytest.fixture(scope="module")
def files(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A small network: "dynamic" takes 1 to 4 images, "two" says that it takes 2, "heads" ends in heads."""
    import onnx

    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec

    folder = tmp_path_factory.mktemp("onnxruntime")
    paths = {name: folder / f"{name}.onnx" for name in ("dynamic", "two", "heads")}
    written = export_onnx(make_model("small", SIZE), paths["dynamic"], ExportSpec(batch=(1, 2, 4)))
    # The others are made from it, which is quicker than to export them.
    model = onnx.load(str(paths["dynamic"]))
    model.metadata_props[0].value = dataclasses.replace(written, batch=(2, 2, 2)).to_json()
    onnx.save(model, str(paths["two"]))
    cut_tail(model)
    model.metadata_props[0].value = dataclasses.replace(written, tail="heads").to_json()
    onnx.save(model, str(paths["heads"]))
    yield paths
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def pictures() -> list[Any]:
    return [read_image(path) for path in sample_images()]


def same(a: Any, b: Any) -> None:
    """The same detections; masks may differ in a few pixels on their edges."""
    assert len(a) == len(b) > 0
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=0.05)
    assert np.abs(a.areas() - b.areas()).max() <= 5


def test_the_tails_agree(files: dict[str, Path], pictures: list[Any]) -> None:
    with yolact_deploy.load(files["dynamic"]) as host, yolact_deploy.load(files["dynamic"], tail="graph") as graph:
        assert host.backend.describe()["tail"] == "host"
        assert graph.backend.describe()["tail"] == "graph"
        assert isinstance(host.backend.run(host.preprocess(pictures[:1])), HeadOutputs)
        assert isinstance(graph.backend.run(graph.preprocess(pictures[:1])), DetectionOutputs)
        for picture in pictures:
            same(host(picture), graph(picture))


def test_a_list_in_batches(files: dict[str, Path], pictures: list[Any]) -> None:
    with yolact_deploy.load(files["dynamic"]) as model:
        assert (model.backend.max_batch, model.backend.fixed_batch) == (4, False)
        together = model([*pictures, *pictures])  # a batch of four and one of two
        alone = [model(picture) for picture in pictures]
    for found, expected in zip(together, [*alone, *alone], strict=True):
        same(found, expected)


def test_a_fixed_batch_is_filled_up(files: dict[str, Path], pictures: list[Any]) -> None:
    with yolact_deploy.load(files["two"]) as model:
        assert (model.backend.max_batch, model.backend.fixed_batch) == (2, True)
        assert model.preprocess(pictures[:1]).shape == (2, SIZE, SIZE, 3)
        found = model(pictures)
        assert [len(one) > 0 for one in found] == [True] * 3
        same(found[2], model(pictures[2]))


def test_a_file_of_heads(files: dict[str, Path], pictures: list[Any]) -> None:
    with (
        yolact_deploy.load(files["heads"], tail="graph") as model,  # there is no tail in the graph
        yolact_deploy.load(files["dynamic"]) as whole,
    ):
        assert model.backend.describe()["tail"] == "host"
        same(model(pictures[0]), whole(pictures[0]))


@pytest.mark.parametrize("nms", ["fast", "cross-class", "traditional"])
def test_every_nms_on_the_host(files: dict[str, Path], pictures: list[Any], nms: str) -> None:
    with yolact_deploy.load(files["dynamic"], nms=nms) as model:
        assert len(model(pictures[0])) > 0


def test_threads(files: dict[str, Path], pictures: list[Any]) -> None:
    with yolact_deploy.load(f"{files['dynamic']}@onnxruntime:threads=1") as model:
        facts = model.backend.describe()
        assert facts["threads"] == 1
        assert model.backend._session.get_session_options().intra_op_num_threads == 1  # type: ignore[attr-defined]
        assert len(model(pictures[0])) > 0
    with yolact_deploy.load(files["dynamic"]) as model:
        assert model.backend.describe()["threads"] == "all cores"


def test_describe(files: dict[str, Path]) -> None:
    import onnxruntime

    backend = OnnxRuntimeBackend(files["dynamic"])
    assert backend.describe() == {
        "backend": "onnxruntime",
        "version": onnxruntime.__version__,
        "precision": "fp32",
        "providers": ["CPUExecutionProvider"],
        "threads": "all cores",
        "tail": "host",
    }
    assert backend.metadata.config.image_size == SIZE


def test_closed(files: dict[str, Path], pictures: list[Any]) -> None:
    with yolact_deploy.load(files["dynamic"]) as model:
        model(pictures[0])
    with pytest.raises(BackendError, match="closed: load the model again"):
        model(pictures[0])
    model.close()


def test_wrong_shapes_are_an_error_of_ours(files: dict[str, Path]) -> None:
    backend = OnnxRuntimeBackend(files["dynamic"])
    with pytest.raises(BackendError, match=r"^ONNX Runtime failed: .*[Ii]nvalid") as caught:
        backend.run(np.zeros((1, 96, 96, 3), np.uint8))
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        backend.run(np.zeros((1, SIZE, SIZE, 3), np.float32))


def test_damaged_files(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data = files["dynamic"].read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="not an ONNX file, or a truncated one"):
        yolact_deploy.load(path)


def test_a_file_that_the_runtime_refuses(files: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(files["dynamic"]))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Sorcery", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ArtifactError, match=r"^ONNX Runtime rejects .*m\.onnx: .*Sorcery") as caught:
        yolact_deploy.load(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["onnxruntime", "onnx"])
def test_missing_package(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"needs the Python package '{module}'.*yolact-deploy\[onnx\]"):
        yolact_deploy.load(files["dynamic"])
