"""``export --int8`` with limits on what it may cost: a model that 8 bits ruin is rescued, and what ruins it is named.

The demo's model is changed so that it computes the same in FP32: of one layer in protonet, one channel is a thousand
times as large, and the next layer multiplies it with a thousandth. The range of that tensor is then the channel's, and
of all others next to nothing is left in 8 bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("pycocotools")

import torch

from yolact_deploy import load, samples
from yolact_deploy.cli.main import main
from yolact_deploy.datasets.calibration_images import spread
from yolact_deploy.datasets.image_sets import CocoImages, open_images
from yolact_deploy.datasets.shapes import write_shapes
from yolact_deploy.evaluation.evaluate import evaluate
from yolact_deploy.export.mixed_precision import read_keep_list
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.graph.onnx_int8 import wants_unsigned
from yolact_deploy.model.checkpoint import load_model, save_checkpoint

Capture = pytest.CaptureFixture[str]
#: the layer whose input has the channel, all others, and the latter but for a part in which little time is lost
HURT = "proto_net.4"
OTHERS = "backbone,fpn,prediction_layers,proto_net.0,proto_net.2,proto_net.8,proto_net.10"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with doctored.safetensors and shapes/ of 40 images, of which an export leaves 8 out."""
    folder = tmp_path_factory.mktemp("limits")
    model = load_model(samples.DEMO_MODEL)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in ("proto_net.2.weight", "proto_net.2.bias"):
            weights[name][3] *= 1000
        weights[f"{HURT}.weight"][:, 3] /= 1000
    save_checkpoint(model, folder / "doctored.safetensors")
    for _ in write_shapes(folder / "shapes", {"val": 40}):
        pass
    return folder


@pytest.fixture(autouse=True)
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One calibration serves all tests over the same pictures."""
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(place / "cache"))


def export(place: Path, output: Path, *more: str) -> int:
    weights = ["--weights", str(place / "doctored.safetensors"), "--engine", "none", "-o", str(output)]
    return main(["export", *weights, "--int8", "--calibration", str(place / "shapes"), *more])


def scores(model: Path, images: CocoImages) -> tuple[float, float]:
    with load(model, score_threshold=0.0, lazy_masks=False) as predictor:
        accuracy = evaluate(predictor, images).accuracy
    assert accuracy.box is not None
    assert accuracy.mask is not None
    return accuracy.box.ap or 0.0, accuracy.mask.ap or 0.0


@pytest.mark.slow
def test_the_layer_is_found_and_ap_is_back(place: Path, tmp_path: Path, capsys: Capture) -> None:
    """Most is kept from the start, which leaves few layers to try."""
    arguments = [
        "--max-ap-drop",
        "1",
        "--search-images",
        "8",
        "--keep-fp32",
        "backbone,fpn,prediction_layers",
        "--calibration-method",
        "minmax",
    ]
    assert export(place, tmp_path / "m", *arguments, "--sensitivity", str(tmp_path / "found.json")) == 0
    out, err = capsys.readouterr()
    assert f"1 of 65 layers stay in FP32: {HURT}" in out
    assert "Blocks in int8 that cost most, each alone, on 4 images" in " ".join(out.split())
    assert "AP x 100 and agreement with FP32 on 8 images (at most 1 points of AP lost)" in " ".join(out.split())
    assert "Searching for the layers to keep, about " in err
    assert "measuring blocks: 1/1 blocks" in err

    metadata = onnx_metadata(read_onnx(tmp_path / "m.onnx"), "")
    assert metadata.keep_fp32 == ("backbone", "fpn", "prediction_layers", HURT)
    assert metadata.keep_reasons.keys() == {HURT}
    assert metadata.keep_reasons[HURT].startswith("at most 1 points of AP lost; int8 in this layer alone: ")
    assert metadata.quantization is not None
    assert metadata.quantization["images"] == 32, "those that are not judged by"

    found = json.loads((tmp_path / "found.json").read_text())
    assert found["lowered"]["ap_drop"]["mask"] > 0.3
    assert found["mixed"]["ap_drop"]["mask"] <= 0.01
    assert found["signed"] is None or found["signed"]["ap_drop"]["mask"] <= 0.01
    assert ("with signed activations" in " ".join(out.split())) == wants_unsigned()
    assert found["found"] == [HURT]
    assert found["costs"][0]["layer"] == HURT
    assert HURT in read_keep_list(str(tmp_path / "found.json"))

    images = open_images(coco=place / "shapes")
    judged = CocoImages(tuple(spread(images.images, 8)), images.annotations, images.content, len(images))
    box, mask = scores(place / "doctored.safetensors", judged)
    assert (box, mask) == pytest.approx((found["fp32"]["ap"]["box"], found["fp32"]["ap"]["mask"]), abs=0.005)
    assert scores(tmp_path / "m.onnx", judged) == (found["mixed"]["ap"]["box"], found["mixed"]["ap"]["mask"])


@pytest.mark.slow
def test_nothing_is_written_where_no_layer_may_be_in_int8(place: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [
        "--min-agreement",
        "0.9",
        "--search-images",
        "8",
        "--keep-fp32",
        OTHERS,
        "--calibration-method",
        "minmax",
    ]
    assert export(place, tmp_path / "m", *arguments, "--sensitivity", str(tmp_path / "f.json"), "--quiet") == 1
    error = capsys.readouterr().err
    assert "agreement on 90 % of the detections: not reached with any layer in int8, so nothing was written" in error
    assert "The best graph tried has one layer of 65 in int8: " in error
    assert "agrees with FP32 on " in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coco", "shapes"], "--coco requires a limit for --int8: give --max-ap-drop or --min-agreement"),
        (["--sensitivity", "f.json"], "--sensitivity requires a limit for --int8"),
        (["--lenient"], "--lenient requires a limit for --int8"),
        (["--max-ap-drop", "-1"], "expected 0 <= points < 100, got -1.0"),
        (["--min-agreement", "98"], "--min-agreement: expected 0 < share <= 1, got 98"),
        (["--min-agreement", "0.9", "--search-images", "0"], "--search-images: expected 1 or more, got 0"),
        (["--max-ap-drop", "1", "--images-dir", "shapes/images"], "--max-ap-drop needs ground truth: give --coco DIR"),
        (["--max-ap-drop", "1", "--coco", "none"], "no such dataset: none"),
    ],
)
def test_wrong_options(
    place: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    """Known before anything is traced."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("yolact_deploy.export.pipeline.export_model", lambda *args, **more: pytest.fail("begun"))
    assert export(place, tmp_path / "m", *options) == 2
    assert message in capsys.readouterr().err


def test_limits_are_of_int8(place: Path, capsys: Capture) -> None:
    assert main(["export", "--weights", str(place / "doctored.safetensors"), "--fp16", "--max-ap-drop", "1"]) == 2
    assert "--max-ap-drop and --min-agreement require --int8" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_network(place: Path, tmp_path: Path, capsys: Capture) -> None:
    """All layers are tried; judged by other images than the result is then scored on."""
    arguments = ["--max-ap-drop", "1", "--search-images", "100", "--quiet", "--json"]
    for _ in write_shapes(tmp_path / "shapes", {"val": 300}, seed=1):
        pass
    for _ in write_shapes(tmp_path / "others", {"val": 200}, seed=2):
        pass
    more: dict[str, Any] = {}
    for name, limited in (("plain", []), ("found", arguments)):
        calibration = ["--calibration", str(tmp_path / "shapes"), *(limited or ["--quiet", "--keep-fp32", HURT])]
        assert export(place, tmp_path / name, *calibration) == 0
        more[name] = capsys.readouterr().out
    search = json.loads(more["found"])["search"]
    assert search["keep_fp32"] == [HURT]
    assert search["lowered"]["ap_drop"]["mask"] > 0.3
    images = open_images(coco=tmp_path / "others")
    box, mask = scores(place / "doctored.safetensors", images)
    for name in ("plain", "found"):
        assert scores(tmp_path / f"{name}.onnx", images) == pytest.approx((box, mask), abs=0.01)
