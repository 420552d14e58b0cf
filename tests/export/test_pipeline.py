"""A checkpoint to a checked file: whole and right, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.artifact import sha256_file
from yolact_deploy.errors import ExportError, OutputError
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.samples import DEMO_MODEL, sample_images

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.export import onnx as onnx_module
from yolact_deploy.export import pipeline
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec

NAME, SMALL = "small", 138
ONE = sample_images()[:1]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file to stand for the checkpoint: only its hash is taken."""
    path = tmp_path / "weights" / "w.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_good_export(make_model: Callable[..., Any], weights: Path, folder: Path) -> None:
    model = make_model(NAME, SMALL)
    spec = ExportSpec(precision="fp16", batch=(1, 2, 4), cross_class=True)
    exported = export_model(model, folder / "m.onnx", spec, weights=weights, check_images=ONE)
    metadata, parity = exported.metadata, exported.parity
    assert [path.name for path in folder.iterdir()] == ["m.onnx"]
    assert onnx_metadata(read_onnx(folder / "m.onnx"), "m.onnx") == metadata
    assert metadata.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert (metadata.precision, metadata.batch, metadata.cross_class) == ("fp16", (1, 2, 4), True)
    assert parity.images == 1
    assert parity.failures == []
    assert (folder / "m.onnx").stat().st_mode & 0o044  # an ordinary file, not a private one


def perturb(pipeline: Any) -> None:
    """To the graph of other weights than the model's."""
    pipeline.model.prediction_layers[0].bbox_layer.weight.data *= 1.05


def leave_out_flip(pipeline: Any) -> None:
    """To the graph of an RGB network that is fed BGR."""
    pipeline.mean, pipeline.std = pipeline.mean.flip(0), pipeline.std.flip(0)
    weight = next(pipeline.model.backbone.parameters())
    weight.data = weight.data.flip(1)


@pytest.mark.parametrize(
    ("change", "precision", "message"),
    [
        (perturb, "fp32", r"disagrees with the eager model: boxes differ by .*Nothing was kept; please report it"),
        (leave_out_flip, "fp16", r"disagrees .* scores differ by .* proto differ by .*; try --fp32"),
    ],
)
def test_a_wrong_graph_is_not_kept(
    make_model: Callable[..., Any],
    weights: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], None],
    precision: str,
    message: str,
) -> None:
    folder.mkdir()
    (folder / "m.onnx").write_bytes(b"the good one of yesterday")
    trace = onnx_module._trace

    def changed(pipeline: Any, metadata: Any) -> Any:
        change(pipeline)
        return trace(pipeline, metadata)

    monkeypatch.setattr(onnx_module, "_trace", changed)
    with pytest.raises(ExportError, match=message):
        export_model(make_model(NAME, SMALL), folder / "m.onnx", ExportSpec(precision=precision), check_images=ONE)
    assert [path.name for path in folder.iterdir()] == ["m.onnx"]
    assert (folder / "m.onnx").read_bytes() == b"the good one of yesterday"


@pytest.mark.parametrize("where", ["write_onnx", "check_parity"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), ExportError("no")], ids=lambda e: type(e).__name__
)
def test_nothing_is_left_when_it_is_interrupted(
    make_model: Callable[..., Any],
    weights: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: BaseException,
) -> None:
    def write(graph: Any, metadata: Any, path: Path) -> None:
        path.write_bytes(b"a file")

    def write_and_fail(*args: Any) -> None:
        path = next(argument for argument in args if isinstance(argument, Path))
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(pipeline, "trace", lambda model, metadata: None)
    monkeypatch.setattr(pipeline, "write_onnx", write)
    monkeypatch.setattr(pipeline, where, write_and_fail)
    with pytest.raises(type(error)):
        export_model(make_model(NAME, SMALL), folder / "m.onnx", weights=weights)
    assert list(folder.iterdir()) == []


def test_an_unwritable_place_is_known_before_the_work(
    make_model: Callable[..., Any], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "trace", lambda *args: pytest.fail("the work was begun"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file/m\.onnx: .*Choose another place with -o"):
        export_model(make_model(NAME, SMALL), tmp_path / "file" / "m.onnx", weights=weights)


@pytest.mark.slow
def test_a_checkpoint_by_its_path(tmp_path: Path) -> None:
    """Configuration and size are those of the spec."""
    exported = export_model(DEMO_MODEL, tmp_path / "m.onnx", ExportSpec(size=128), check_images=ONE)
    assert exported.metadata.config.image_size == 128
    assert exported.metadata.weights_sha256 == sha256_file(DEMO_MODEL)
    assert exported.parity.failures == []


def test_layers_kept_for_two_reasons(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """What the user named is not named again."""
    model = make_model(NAME, SMALL)
    graph = onnx_module.trace(model, ExportSpec().metadata(model.config))
    reasons = {"proto_net.10": "values up to 1e+05", "fpn.lat_layers.0": "values up to 1e+05"}
    spec = ExportSpec(precision="fp16", keep_fp32=("fpn",))
    metadata = pipeline._keep_more(graph, spec.metadata(model.config), reasons)
    assert metadata.keep_fp32 == ("fpn", "proto_net.10")
    assert metadata.keep_reasons == {"proto_net.10": "values up to 1e+05"}
