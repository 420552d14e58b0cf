"""The model of cell nuclei that ships, on pictures it has not seen: those that ship, and all that are held out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("onnxruntime")
pytest.importorskip("pycocotools")

from data import data_dir

from yolact_deploy import load, samples
from yolact_deploy.cli.main import main
from yolact_deploy.datasets.image_sets import CocoImages, open_images
from yolact_deploy.evaluation.evaluate import evaluate
from yolact_deploy.training import model_card


def mask_scores(model: str | Path, images: CocoImages) -> tuple[float, float]:
    """Mask AP and AP50 with up to 500 detections in a picture."""
    with load(model, score_threshold=0.0, lazy_masks=False) as predictor:
        assert predictor.config.max_detections == 500
        accuracy = evaluate(predictor, images).accuracy
    assert accuracy.max_detections == 500
    assert accuracy.mask is not None
    return accuracy.mask.ap or 0.0, accuracy.mask.ap50 or 0.0


def test_on_the_pictures_that_ship() -> None:
    images = open_images(annotations=samples.NUCLEI.annotations, images_dir=samples.NUCLEI.images)
    ap, ap50 = mask_scores(samples.NUCLEI_MODEL, images)
    assert ap > 0.40
    assert ap50 > 0.80


def test_the_model_card_is_as_training_writes_them() -> None:
    """Its sections are those of the writer, and its figures those of docs/shipped-models.md."""
    source = (Path(model_card.__file__)).read_text(encoding="utf-8")
    text = (samples.NUCLEI_MODEL.parent / "nuclei_model_card.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## .+$", text, re.MULTILINE)
    assert sections == re.findall(r'"(## [^"]+)"', source)
    docs = (Path(__file__).parents[1] / "docs" / "shipped-models.md").read_text(encoding="utf-8")
    box, mask, ap50 = (float(n) for n in re.findall(r"\(ships\) \| 416 \| (.+?) \| (.+?) \| (.+?) \|", docs)[0])
    figures = {kind: [float(n) for n in row] for kind, *row in re.findall(r"\| (box|mask) \| (.+?) \| (.+?) \|", text)}
    assert figures["box"][0] == pytest.approx(box, abs=0.051)
    assert figures["mask"] == pytest.approx([mask, ap50], abs=0.051)


@pytest.mark.slow
def test_on_all_held_out_pictures_in_every_precision(tmp_path: Path) -> None:
    folder = data_dir("nuclei")
    images = open_images(annotations=folder / "instances_val.json", images_dir=folder / "images")
    ap, ap50 = mask_scores(samples.NUCLEI_MODEL, images)
    assert ap > 0.435
    assert ap50 > 0.795
    calibration = ["--calibration", str(folder / "images"), "--images", "100"]
    for precision, extra in (("fp16", []), ("int8", calibration)):
        command = ["export", "--weights", str(samples.NUCLEI_MODEL), f"--{precision}", "--engine", "none", "--quiet"]
        assert main([*command, *extra, "-o", str(tmp_path / precision)]) == 0
        assert mask_scores(tmp_path / f"{precision}.onnx", images)[0] == pytest.approx(ap, abs=0.01)
