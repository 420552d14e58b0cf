"""What commands take where nothing is named, in folders with and without models, weights and datasets."""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy import loading, samples
from yolact_deploy.artifact import Metadata, sha256_file
from yolact_deploy.cli import at_hand
from yolact_deploy.cli import main as cli
from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.datasets.shapes import KINDS
from yolact_deploy.errors import BackendError, DatasetError, InputError
from yolact_deploy.machine import nvidia
from yolact_deploy.progress import Progress

SHAPES = YolactConfig(num_classes=len(KINDS), class_names=KINDS)


class Notes(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def args() -> argparse.Namespace:
    return argparse.Namespace(progress=Notes())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder of a machine without a GPU."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv(at_hand.DATASET_VARIABLE, raising=False)

    def missing(index: int = 0) -> nvidia.Gpu:
        raise BackendError(f"{nvidia.NO_DRIVER}: {nvidia.DRIVER_CURE}")

    monkeypatch.setattr(loading, "require_gpu", missing)
    monkeypatch.setattr(at_hand, "has_gpu", lambda: False)
    return folder


def put(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def write_engine(path: Path, metadata: Metadata) -> Path:
    header = b"ftrt".ljust(16, b"\0") + struct.pack("<Q", 1000) + bytes([10, 3, 0, 0])
    path.write_bytes(header + metadata.to_json().encode() + bytes(100))
    return path


# -- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], samples.NUCLEI_MODEL),
        (["mine.pth"], Path("mine.pth")),
        (["weights/mine.safetensors"], Path("weights/mine.safetensors")),
        (["MINE.PT", "notes.txt", "weights/readme.md"], Path("MINE.PT")),
        ([".hidden.pth", "weights/resnet101_reducedfc.pth", "other/mine.pth"], samples.NUCLEI_MODEL),
        (["weights/yolact_base_54_800000.pth", "weights/darknet53.pth"], Path("weights/yolact_base_54_800000.pth")),
    ],
)
def test_the_checkpoint_at_hand(args: argparse.Namespace, files: list[str], expected: Path) -> None:
    put(*files)
    assert at_hand.checkpoint_at_hand(args) == expected
    (note,) = args.progress.notes
    assert note.startswith("note: no weights named")
    assert ("the model that ships" if expected == samples.NUCLEI_MODEL else str(expected)) in note


@pytest.mark.parametrize(
    "files", [["a.pth", "b.pth"], ["a.pth", "weights/a.pth"], [f"weights/{i}.safetensors" for i in range(9)]]
)
def test_several_checkpoints_are_not_guessed_from(args: argparse.Namespace, files: list[str]) -> None:
    put(*files)
    with pytest.raises(InputError, match=rf"several checkpoints here \({files[0]}, .*such as --weights {files[0]}"):
        at_hand.checkpoint_at_hand(args)


@pytest.mark.parametrize("place", ["beside.pth", "models/beside.pth", "models/weights/w.safetensors", "weights/w.pt"])
def test_the_checkpoint_of_an_engine(place: str) -> None:
    put(place, "another.pth")
    metadata = Metadata(config=SHAPES, weights_sha256=sha256_file(Path(place)))
    assert at_hand.made_from(metadata, Path("models/m.trt")) == Path(place)
    assert at_hand.made_from(Metadata(config=SHAPES, weights_sha256="0" * 64), Path("models/m.trt")) is None
    assert at_hand.made_from(Metadata(config=SHAPES), Path("models/m.trt")) is None
    for model in samples.MODELS:
        shipped = Metadata(config=SHAPES, weights_sha256=sha256_file(model))
        assert at_hand.made_from(shipped, Path("m.onnx")) == model


# -- exported models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "gpu", "expected"),
    [
        ([], True, None),
        (["yolact.onnx"], False, "yolact.onnx"),
        (["yolact.onnx", "yolact.trt"], False, "yolact.onnx"),
        (["yolact.onnx", "yolact.trt"], True, "yolact.trt"),
        (["m.plan"], True, "m.plan"),
        (["m.plan", "w.pth"], False, None),
    ],
)
def test_the_exported_model_at_hand(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, files: list[str], gpu: bool, expected: str | None
) -> None:
    put(*files)
    monkeypatch.setattr(at_hand, "has_gpu", lambda: gpu)
    model = at_hand.exported_at_hand(args)
    assert model == (expected and Path(expected))
    assert [note.rpartition(" ")[2] for note in args.progress.notes] == ([expected] if expected else [])


def test_several_models_are_not_guessed_from(args: argparse.Namespace) -> None:
    put("a.onnx", "b.onnx")
    for choose in (at_hand.exported_at_hand, at_hand.model_at_hand, at_hand.onnx_at_hand):
        with pytest.raises(InputError, match=r"several models here \(a.onnx, b.onnx\)"):
            choose(args)


# -- pictures -------------------------------------------------------------------------------------------------------


def write_dataset(folder: str, names: Sequence[str], images: int = 3) -> None:
    from scripted import write_pictures

    for path in write_pictures(Path(folder) / "images", range(1, images + 1)):
        assert path.is_file()
    annotation = {
        "iscrowd": 0,
        "area": 400,
        "bbox": [10, 10, 20, 20],
        "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]],
    }
    content = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        "images": [{"id": i, "file_name": f"{i:06d}.png", "width": 80, "height": 60} for i in range(1, images + 1)],
        "annotations": [{"id": i, "image_id": 1, "category_id": i, **annotation} for i in range(1, len(names) + 1)],
    }
    (Path(folder) / "instances_val.json").write_text(json.dumps(content))


def chosen(args: argparse.Namespace, config: YolactConfig, limit: int | None = None) -> tuple[int, str, bool]:
    """Number, first name, and whether there is truth."""
    with at_hand.pictures_at_hand(args, config, limit) as images:
        assert all(path.is_file() for path in images.paths)
        return len(images), images.paths[0].name, images.content is not None


def test_pictures_of_the_shapes_are_generated(args: argparse.Namespace, here: Path) -> None:
    assert chosen(args, SHAPES, 2) == (2, "val_1000000.png", True)
    assert not list(here.iterdir())


def test_pictures_of_coco_classes_ship(args: argparse.Namespace) -> None:
    assert chosen(args, get_config("yolact_base")) == (3, "000000196393.jpg", True)
    assert chosen(args, get_config("yolact_base"), 2) == (2, "000000196393.jpg", True)


def test_pictures_of_other_classes_have_no_truth(args: argparse.Namespace) -> None:
    config = YolactConfig(num_classes=2, class_names=("cat", "owl"))
    assert chosen(args, config) == (3, "000000196393.jpg", False)
    assert "there is no AP" in args.progress.notes[-1]


@pytest.mark.parametrize("named", ["coco", "elsewhere/data"])
@pytest.mark.parametrize("names", [("cat", "owl"), ("class 1", "class 2")])
def test_a_dataset_at_hand(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, named: str, names: tuple[str, ...]
) -> None:
    pytest.importorskip("msgspec")
    write_dataset(named, ("cat", "owl"))
    if named != "coco":
        monkeypatch.setenv(at_hand.DATASET_VARIABLE, named)
    config = YolactConfig(num_classes=2, class_names=names)
    assert chosen(args, config) == (3, "000001.png", True)
    assert chosen(args, config, 2) == (2, "000001.png", True)


def test_a_dataset_of_other_classes_is_left_out(args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("msgspec")
    write_dataset("coco", ("cat", "owl"))
    write_dataset("mine", KINDS)
    monkeypatch.setenv(at_hand.DATASET_VARIABLE, "mine")
    assert chosen(args, SHAPES) == (3, "000001.png", True)
    assert args.progress.notes == ["note: coco is left out: its classes are not those of the model"]


def test_a_folder_called_coco_without_annotations(args: argparse.Namespace) -> None:
    Path("coco").mkdir()
    assert chosen(args, SHAPES, 1) == (1, "val_1000000.png", True)


def test_the_variable_names_nothing(args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(at_hand.DATASET_VARIABLE, "gone")
    with pytest.raises(DatasetError, match="gone"):
        chosen(args, SHAPES)


# -- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("command", [["bench", "--engine"], ["eval", "--coco", ".", "--engine"], ["predict"]])
def test_an_engine_without_a_gpu(capsys: pytest.CaptureFixture[str], command: list[str], beside: bool) -> None:
    write_engine(Path("yolact.trt"), Metadata(config=SHAPES))
    put(*(["yolact.onnx"] if beside else []))
    Path("a.jpg").write_bytes(samples.sample_images()[0].read_bytes())
    assert cli.main([*command, "yolact.trt", *(["a.jpg"] if command == ["predict"] else [])]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "yolact.trt needs an NVIDIA GPU: no NVIDIA driver here" in error
    assert error.endswith("; yolact.onnx beside it runs here") == beside


def test_an_engine_that_was_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    put("yolact.onnx")
    for command in (["bench", "--engine"], ["eval", "--coco", ".", "--engine"]):
        assert cli.main([*command, "yolact.trt"]) == 2
        assert "no such model file: yolact.trt. yolact.onnx is there" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bench", "build"])
def test_nothing_at_hand(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command]) == 2
    assert "'yolact-deploy export" in capsys.readouterr().err


def test_inspect_shows_the_model_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(samples.NUCLEI_MODEL)
    write_engine(Path("m.trt"), Metadata(config=SHAPES))
    assert cli.main(["inspect", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "m.trt"


@pytest.mark.parametrize("files", [[], ["mine.pth"]])
def test_summary(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: list[str]) -> None:
    pytest.importorskip("torchinfo")
    from yolact_deploy.model import checkpoint

    def load(path: Path) -> None:
        raise InputError(f"reading {path}")

    put(*files)
    monkeypatch.setattr(checkpoint, "load_model", load)
    assert cli.main(["summary"]) == 2
    assert f"reading {files[0] if files else samples.NUCLEI_MODEL}" in capsys.readouterr().err


@pytest.fixture
def tiny(here: Path) -> Path:
    pytest.importorskip("onnxruntime")
    from tiny_onnx import write_model

    return write_model(here / "yolact.onnx")


@pytest.mark.parametrize("engine", [["--engine", "yolact.onnx"], []])
def test_bench_of_a_model_of_unknown_origin(tiny: Path, capsys: pytest.CaptureFixture[str], engine: list[str]) -> None:
    pytest.importorskip("msgspec")
    assert cli.main(["bench", *engine, "--json", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert [row["name"] for row in record["engines"]] == ["yolact.onnx"]
    assert record["dataset"]["images"] == 3
    assert "the eager model is left out: yolact.onnx does not record it" in err
    assert "there is no AP" in err


@pytest.mark.parametrize("names", [[], ["yolact.onnx"], ["a.jpg"]])
def test_predict(tiny: Path, capsys: pytest.CaptureFixture[str], names: list[str]) -> None:
    (picture := Path("a.jpg")).write_bytes(samples.sample_images()[0].read_bytes())
    assert cli.main(["predict", *names, "-o", "out"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: no ")]
    assert ["taking yolact.onnx" in note for note in notes] == {0: [True, False, False], 1: [True]}.get(
        len(names) + ("yolact.onnx" in names), [False, False]
    )
    assert len(list(Path("out").glob("*.json"))) == (1 if picture.name in names else 3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--config", "yolact_base", "applies to checkpoints only, and yolact.onnx was exported with its own"),
        ("--imgsz", "320", "yolact.onnx takes inputs of 64 only, not 320x320: export it for a range of sizes"),
    ],
)
def test_options_that_an_exported_file_cannot_follow(
    tiny: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    picture = str(samples.sample_images()[0])
    assert cli.main(["predict", "yolact.onnx", picture, option, value]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("nms", ["traditional", "cross-class"])
def test_nms_in_the_graph_cannot_be_changed(tiny: Path, nms: str) -> None:
    with pytest.raises(InputError, match=f"nms='{nms}': NMS is in the graph of .*exported as 'fast'"):
        loading.load(tiny, tail="graph", nms=nms)
    for kept, tail in ((nms, "host"), ("fast", "graph"), (None, "graph")):
        loading.load(tiny, tail=tail, nms=kept).close()


@pytest.mark.parametrize(
    ("threshold", "warns"), [(0.01, True), (0.049, True), (0.05, False), (0.0, False), (0.3, False)]
)
def test_a_threshold_below_that_of_nms(
    tiny: Path, caplog: pytest.LogCaptureFixture, threshold: float, warns: bool
) -> None:
    loading.load(tiny, score_threshold=threshold).close()
    assert ("the NMS of" in caplog.text) == warns


@pytest.mark.parametrize(
    ("files", "arguments", "weights", "written"),
    [
        ([], [], samples.NUCLEI_MODEL, "yolact.onnx"),
        (["weights/mine.pth"], ["--fp16"], Path("weights/mine.pth"), "yolact.onnx"),
        (["mine.pth"], ["-o", "other"], Path("mine.pth"), "other.onnx"),
        (["mine.pth"], ["--weights", "mine.pth"], Path("mine.pth"), "yolact_plus.onnx"),
    ],
)
def test_export_names_its_files(
    monkeypatch: pytest.MonkeyPatch, files: list[str], arguments: list[str], weights: Path, written: str
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("torch")
    from yolact_deploy.export import pipeline
    from yolact_deploy.model import checkpoint

    put(*files)
    calls: list[tuple[Any, ...]] = []

    def export(model: Any, path: Path, spec: Any, *, weights: Path, progress: Progress) -> None:
        calls.append((weights, str(path)))
        raise InputError("far enough")

    model = argparse.Namespace(config=argparse.Namespace(name="yolact_plus"))
    monkeypatch.setattr(checkpoint, "load_model", lambda *names, **options: model)
    monkeypatch.setattr(pipeline, "export_model", export)
    assert cli.main(["export", "--engine", "none", *arguments]) == 2
    assert calls == [(weights, written)]


@pytest.mark.parametrize(
    ("installed", "gpu", "flavour"),
    [
        (("tensorrt", "rtx"), True, "tensorrt"),
        (("tensorrt", "rtx"), False, "rtx"),
        (("tensorrt",), False, "tensorrt"),
        (("rtx",), True, "rtx"),
        ((), True, None),
    ],
)
def test_the_tensorrt_that_can_build_here(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], gpu: bool, flavour: str | None
) -> None:
    from yolact_deploy.errors import MissingDependencyError
    from yolact_deploy.runtime import tensorrt_api

    def find(name: str) -> object:
        if name not in installed:
            raise MissingDependencyError(name)
        return object()

    monkeypatch.setattr(tensorrt_api, "import_tensorrt", find)
    monkeypatch.setattr(tensorrt_api, "has_gpu", lambda: gpu)
    assert tensorrt_api.available_flavour() == flavour


def test_export_without_a_gpu_for_tensorrt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from yolact_deploy.cli import export
    from yolact_deploy.export import engine

    monkeypatch.setattr(engine, "available_flavour", lambda: "tensorrt")
    for gpu, flavour in ((False, None), (True, "tensorrt")):
        monkeypatch.setattr(nvidia, "has_gpu", lambda gpu=gpu: gpu)
        options = argparse.Namespace(engine="auto", target=None, quiet=False, json=False)
        assert export._flavour(options) == flavour
        assert ("where an NVIDIA GPU is: writing the ONNX file only" in capsys.readouterr().out) == (not gpu)


def test_the_reference_is_the_checkpoint_of_the_engine(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("msgspec")
    pytest.importorskip("torch")
    from yolact_deploy.cli import bench

    put("weights/mine.pth")
    recorded = Metadata(config=SHAPES, weights_sha256=sha256_file(Path("weights/mine.pth")))
    monkeypatch.setattr(loading, "require_gpu", lambda index=0: None)
    write_engine(Path("m.trt"), recorded)
    write_engine(Path("n.trt"), Metadata(config=SHAPES, weights_sha256="1" * 64))
    parse: Callable[..., Any] = cli.command_parser("bench").parse_args
    for engines, named, expected in (
        (["m.trt"], [], ["eager", "m.trt"]),
        (["m.trt", "n.trt"], [], ["eager", "m.trt", "n.trt"]),
        (["n.trt"], [], ["n.trt"]),
        (["m.trt"], ["--images-dir", "."], ["m.trt"]),
    ):
        args = parse([word for engine in engines for word in ("--engine", engine)] + named)
        args.progress = Notes()
        assert [source.name for source in bench._sources(args)] == expected
        notes = " ".join(args.progress.notes)
        assert ("the reference is mine.pth, which m.trt was made from" in notes) == (expected[0] == "eager")
        assert ("no checkpoint here has its SHA-256 111111111111..." in notes) == (engines == ["n.trt"])
