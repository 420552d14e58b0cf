"""The command compare over small exported files: its tables, pictures, gate and bisection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from scripted import coco_content, write_coco
from small_net import CONFIG, LAYERS, SIDE, make_model, write_blobs, write_model, write_truth

from yolact_deploy.artifact import Metadata
from yolact_deploy.cli import compare as compare_command
from yolact_deploy.cli.main import command_parser, main
from yolact_deploy.datasets.image_sets import plain_images
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.export.calibration import calibrate
from yolact_deploy.export.mixed_precision import lower_trunk, read_keep_list
from yolact_deploy.export.quantize import quantize_trunk

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with full.onnx, half.onnx and pictures/."""
    path = tmp_path_factory.mktemp("compare")
    write_model(path / "full.onnx")
    half = make_model()
    lower_trunk(half)
    metadata = Metadata(config=CONFIG, tail="heads", precision="fp16").to_json()
    onnx.helper.set_model_props(half, {"yolact_deploy": metadata})
    onnx.save(half, str(path / "half.onnx"))
    write_blobs(path / "pictures")
    return path


def compare(folder: Path, *more: str, reference: str = "full.onnx", engine: str = "half.onnx") -> int:
    models = ["--reference", f"{folder}/{reference}", "--engine", f"{folder}/{engine}", "--threads", "1"]
    return main(["compare", *models, "--images", str(folder / "pictures"), *more])


def test_tables(folder: Path, capsys: Capture) -> None:
    assert compare(folder) == 0
    out = capsys.readouterr().out
    assert "tensors on 2 images" in out
    assert "no layer exceeds a relative RMS error of 0.02" in out
    assert "Raw outputs: half.onnx against full.onnx" in out
    assert "score drift" in out
    assert "verdict: the models agree (similarity " in out
    assert max(map(len, out.splitlines())) <= 120
    assert compare(folder, "--layer-threshold", "1e-6", "--layer-memory", "1") == 0
    assert "first to exceed a relative RMS error of 1e-06: backbone.conv1 (" in capsys.readouterr().out


def test_without_layers(folder: Path, capsys: Capture) -> None:
    assert compare(folder, "--layer-images", "0") == 0
    out = capsys.readouterr().out
    assert "note: layers are not compared: --layer-images 0" in out
    assert "tensors on" not in out


def test_json(folder: Path, capsys: Capture) -> None:
    assert compare(folder, "--json", "--layer-images", "1", "--limit", "2") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bisect"] is None
    assert result["diagnosis"]["kind"] == "agree"
    assert result["trunk"]["images"] == 1
    assert result["trunk"]["first_over"] is None
    assert result["trunk"]["layers"][1]["name"] == "backbone.conv1"
    assert 50 < result["trunk"]["layers"][1]["sqnr_db"] < 90
    assert len(result["images"]) == 2


def test_pictures(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """Pairs of the worst images, the worst first: twice as wide and one line of text higher."""
    assert compare(folder, "--pictures", str(tmp_path / "worst"), "--worst", "2", "--layer-images", "0") == 0
    out = capsys.readouterr().out
    assert f"wrote 2 pairs of pictures to {tmp_path}/worst" in " ".join(out.split())
    assert compare(folder, "--json", "--layer-images", "0") == 0
    worst = [Path(image["file_name"]).stem for image in json.loads(capsys.readouterr().out)["images"]]
    files = sorted((tmp_path / "worst").iterdir())
    assert [file.name for file in files] == [f"{i:02d}_{stem}.jpg" for i, stem in enumerate(worst[:2], 1)]
    pair = cv2.imread(str(files[0]))
    assert pair is not None
    assert pair.shape[0] > SIDE
    assert pair.shape[1] > 2 * SIDE
    plain = cv2.imread(str(folder / "pictures" / f"{worst[0]}.png"))
    assert plain is not None
    for half in (pair[-SIDE:, :SIDE], pair[-SIDE:, -SIDE:]):
        assert abs(half.astype(int) - plain).mean() > 5, "something is drawn"


def test_gate(folder: Path, capsys: Capture) -> None:
    assert compare(folder, "--min-agreement", "0.9", "--layer-images", "0", "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_bisect(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    keep = tmp_path / "keep.json"
    assert compare(folder, "--bisect", "--json", "--layer-images", "1") == 0
    costs = json.loads(capsys.readouterr().out)["bisect"]
    assert sorted(cost["layer"] for cost in costs["costs"]) == sorted(LAYERS)
    assert (costs["precision"], costs["model"], costs["keep_fp32"]) == ("fp16", "full.onnx", [])
    target = min(costs["lowered"]["sqnr_db"].values()) + 2
    arguments = ["--bisect", "--target-sqnr", f"{target:.2f}", "--keep-list", str(keep), "--layer-images", "1"]
    assert compare(folder, *arguments) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Layers in fp16 that cost most, each alone, on 1 images" in out
    kept = read_keep_list(str(keep))
    assert 0 < len(kept) < len(LAYERS)
    assert f"{target:.2f}".rstrip("0") in out
    assert f"keep {len(kept)} in FP32" in out
    assert kept[0] in out
    assert min(json.loads(keep.read_text())["mixed"]["sqnr_db"].values()) >= float(f"{target:.2f}")


def test_a_target_that_is_met_already(folder: Path, capsys: Capture) -> None:
    assert compare(folder, "--bisect", "bf16", "--target-sqnr", "5", "--layer-images", "1", engine="full.onnx") == 0
    assert "5 dB in each output: met without keeping a layer in FP32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "more", "annotated"),
    [
        (["coco"], {}, True),
        (["coco/annotations/instances_val2017.json"], {}, True),
        (["coco/images"], {}, False),
        (["coco/images/000001.png", "coco/images"], {}, False),
        (["coco/images"], {"annotations": "coco/annotations/instances_val2017.json"}, True),
    ],
)
def test_data_is_a_dataset_or_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: list[str], more: dict[str, str], annotated: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    write_coco(Path("coco"))
    args = command_parser("compare").parse_args(["--reference", "a", "--engine", "b", "--data", *data])
    vars(args).update(more)
    images = compare_command._images(args)
    assert len(images) >= 3
    assert (images.content is not None) == annotated


def test_lenient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = coco_content()
    content["annotations"][0]["bbox"] = [1, 2, float("nan"), 4]
    write_coco(Path("coco"), content)
    for data in (["coco"], ["coco/images", "--annotations", "coco/annotations/instances_val2017.json"]):
        parser = command_parser("compare")
        options = ["--reference", "a", "--engine", "b", "--data", *data]
        with pytest.raises(DatasetError, match="compare, export and train leave such records out with --lenient"):
            compare_command._images(parser.parse_args(options))
        images = compare_command._images(parser.parse_args([*options, "--lenient"]))
        assert images.content is not None
        assert len(images.content["annotations"]) == len(content["annotations"]) - 1
    with pytest.raises(InputError, match="--lenient is about annotations, and these pictures have none"):
        compare_command._images(parser.parse_args([*options[:4], "--data", "coco/images", "--lenient"]))


@pytest.mark.slow  # test_bisect is faster, test_bisect_of_an_int8_engine starts from an engine
def test_bisect_int8(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """Blocks and layers with AP if there are annotations; ranges come from the other pictures."""
    pytest.importorskip("pycocotools")
    judged = write_blobs(tmp_path / "judged", 5)
    write_truth(tmp_path, plain_images([judged]))
    arguments = ["--reference", f"{folder}/full.onnx", "--engine", f"{folder}/full.onnx", "--threads", "1"]
    arguments += ["--images", str(judged), "--annotations", str(tmp_path / "instances.json"), "--layer-images", "1"]
    arguments += ["--bisect", "int8", "--calibration", str(folder / "pictures"), "--calibration-method", "minmax"]
    assert main(["compare", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    costs = json.loads(out)["bisect"]
    assert (costs["precision"], costs["images"], costs["judged"]) == ("int8", 1, 1)
    assert sorted(cost["layer"] for cost in costs["costs"]) == sorted(LAYERS)
    blocks = {cost["block"]: cost for cost in costs["blocks"]}
    assert blocks.keys() == {
        "backbone.conv1", "backbone.conv2", "backbone.layers.0.conv1", "fpn", "prediction_layers.0", "proto_net"
    }  # fmt: skip
    assert blocks["proto_net"]["sqnr_db"]["boxes"] is None, "it is not on the way to the boxes"
    assert 20 < blocks["proto_net"]["sqnr_db"]["proto"] < 60
    assert blocks["proto_net"]["ap"].keys() == {"box", "mask"}
    assert "note: only 3 pictures for the calibration" in err

    limit = 100 * costs["lowered"]["ap_drop"]["mask"] + 50
    assert (
        main(["compare", *arguments, "--target-ap-drop", f"{limit:.2f}", "--keep-list", str(tmp_path / "k.json")]) == 0
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "Blocks in int8 that cost most, each alone, on 1 images (SQNR in dB)" in out
    assert "mask AP x 100" in out
    assert f"at most {limit:.4g} points of AP lost: met without keeping a layer in FP32" in out
    stored = json.loads((tmp_path / "k.json").read_text())
    assert (stored["judged"], stored["keep_fp32"]) == (5, [])


@pytest.mark.slow
def test_bisect_of_an_int8_engine(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """The precision is the engine's, and its metadata names the target runtime."""
    model = make_model()
    calibration = calibrate(model, sorted((folder / "pictures").iterdir()), method="minmax")
    quantize_trunk(model, calibration, target="onnxruntime")
    about = {"target": "onnxruntime", "method": "minmax", "images": 3, "images_sha256": calibration.images_sha256}
    metadata = Metadata(config=CONFIG, tail="heads", precision="int8", quantization=about).to_json()
    onnx.helper.set_model_props(model, {"yolact_deploy": metadata})
    onnx.save(model, str(tmp_path / "eight.onnx"))
    more = ["--bisect", "--calibration", str(folder / "pictures"), "--calibration-method", "minmax", "--json"]
    arguments = ["--reference", f"{folder}/full.onnx", "--engine", f"{tmp_path}/eight.onnx", "--layer-images", "3"]
    assert main(["compare", *arguments, "--images", str(folder / "pictures"), "--threads", "1", *more]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed["bisect"]["precision"] == "int8"
    lowered = printed["bisect"]["lowered"]
    assert lowered["agreed_share"] == printed["agreement"]["agreed_share"], "same graph, same pictures"
    assert lowered["agreement"] == printed["agreement"]["matched_share"]
    assert "note: only 0 calibration pictures are not among those that the result is judged by" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bisect", "int8"], "--bisect int8 requires pictures for the ranges: add --calibration DIR"),
        (["--bisect", "bf16", "--calibration", "."], "--calibration requires --bisect int8"),
        (
            ["--bisect", "--calibration", "."],
            "--bisect in fp16 does not use --calibration: leave it out",
        ),
        (["--bisect", "--target-ap-drop", "1"], "--target-ap-drop requires a dataset as --data"),
        (["--bisect", "int8", "--calibration", "none"], "--calibration: expected a folder with pictures"),
        (["--bisect", "int8", "--calibration", ".", "--calibration-images", "0"], "--calibration-images: expected 1"),
        (
            ["--annotations", "a.json", "--images", "a.png", "b.png"],
            "--annotations requires all pictures in one",
        ),
        (["--layer-images", "-1"], "--layer-images: expected 0 or more, got -1"),
        (["--layer-memory", "0"], "--layer-memory: expected 1 or more, got 0"),
        (["--limit", "0"], "--limit: expected 1 or more, got 0"),
        (["--score", "1"], "--score-threshold: expected 0 <= value < 1"),
        (["--layer-threshold", "0"], "--layer-threshold: expected more than 0"),
        (["--min-agreement", "2"], "--min-agreement: expected 0 < share <= 1"),
        (["--target-sqnr", "40"], "or --target-ap-drop requires --bisect"),
        (["--bisect", "--keep-list", "k.json"], "--keep-list requires --bisect with a target"),
        (["--bisect", "--target-agreement", "3"], "--target-agreement: expected 0 < share <= 1"),
        (["--bisect", "--layer-images", "0"], "--bisect needs at least one picture: raise --layer-images"),
    ],
)
def test_wrong_options(folder: Path, capsys: Capture, options: list[str], message: str) -> None:
    assert compare(folder, *options, "--quiet") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "internal error" not in error


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"engine": "full.onnx"}, "--bisect: the engine computes in fp32; name the precision, as in --bisect fp16"),
        ({"reference": "half.onnx"}, "--bisect needs an FP32 ONNX file as --reference or --engine"),
    ],
)
def test_bisect_needs_both_precisions(folder: Path, capsys: Capture, models: Any, message: str) -> None:
    assert compare(folder, "--bisect", "--quiet", **models) == 2
    assert message in capsys.readouterr().err
