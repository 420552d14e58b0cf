"""Graphs changed in memory and run against FP32: the figures, and what is kept of the FP32 graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("pycocotools")

from random_coco import ap_difference
from small_net import CONFIG, LAYERS, make_model, write_blobs, write_model, write_truth

from yolact_deploy.artifact import Metadata
from yolact_deploy.datasets.image_sets import CocoImages, plain_images
from yolact_deploy.errors import ArtifactError, DatasetError, ExportError
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.evaluation.evaluate import evaluate
from yolact_deploy.export.calibration import calibrate
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.export.search.changes import int8
from yolact_deploy.export.search.trials import HEADS, Change, Trials, pack_masks
from yolact_deploy.graph.onnx_int8 import wants_unsigned
from yolact_deploy.loading import load
from yolact_deploy.mask_forms import MaskCrops

METADATA = Metadata(config=CONFIG, tail="heads")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CocoImages:
    folder = tmp_path_factory.mktemp("trials")
    return write_truth(folder, plain_images([write_blobs(folder / "blobs", 6)]))


def count_calls(change: Change) -> tuple[Change, list[Sequence[str]]]:
    calls: list[Sequence[str]] = []

    def counted(model: Any, kept: Sequence[str]) -> None:
        calls.append(kept)
        change(model, kept)

    return counted, calls


@pytest.fixture(scope="module")
def quantized(images: CocoImages) -> Change:
    return int8(calibrate(make_model(), images.paths, method="minmax"))


@pytest.mark.slow
def test_figures_are_those_of_a_file_with_the_same_graph(images: CocoImages, tmp_path: Path) -> None:
    """AP, its interval, agreement and noise, each as the other commands compute it of two files."""
    calibration = calibrate(make_model(), images.paths, method="minmax")
    trials = Trials(make_model(), METADATA, images, int8(calibration), threads=1)
    measured = trials.run(["proto_net.0"])

    write_model(tmp_path / "fp32.onnx")
    model = make_model()
    quantize_trunk(model, calibration, keep_fp32=["proto_net.0"])
    onnx.helper.set_model_props(model, {"yolact_deploy": replace(METADATA, precision="int8").to_json()})
    onnx.save(model, str(tmp_path / "int8.onnx"))
    meter, signal, noise = AgreementMeter(), dict.fromkeys(HEADS, 0.0), dict.fromkeys(HEADS, 0.0)
    results: tuple[list[Any], list[Any]] = ([], [])
    with (
        load(tmp_path / "fp32.onnx", score_threshold=0.0, threads=1) as a,
        load(tmp_path / "int8.onnx", score_threshold=0.0, threads=1) as b,
    ):
        ap = [evaluate(predictor, images).accuracy for predictor in (a, b)]
        for image in images.images:
            found = [predictor(image.path) for predictor in (a, b)]
            meter.add(*found)
            for kept, detections in zip(results, found, strict=True):
                kept += detections.to_coco(image.image_id, CONFIG.category_ids)
            inputs = a.preprocess([onnx_picture(image.path)])
            outputs: list[Any] = [a.backend.run(inputs), b.backend.run(inputs)]
            for name, x, y in zip(HEADS, *outputs, strict=True):
                signal[name] += float(np.square(x.astype(np.float64)).sum())
                noise[name] += float(np.square(x.astype(np.float64) - y).sum())
    for place, kind in ((ap[0], trials.reference), (ap[1], measured)):
        assert place.box is not None
        assert place.mask is not None
        assert kind.ap == {"box": place.box.ap, "mask": place.mask.ap}
    assert 0.05 < trials.reference.ap["mask"] < 0.95
    assert measured.ap_drop["box"] == trials.reference.ap["box"] - measured.ap["box"] != 0
    total = meter.result()
    assert (measured.agreement, measured.agreed) == (total.matched_share, total.agreed_share)
    assert 0 < (measured.agreed or 0) < 1
    for name in HEADS:
        assert measured.relative_rms[name] == pytest.approx(np.sqrt(noise[name] / signal[name]), rel=1e-6)
    assert images.content is not None
    expected = ap_difference(dict(images.content), *results, images.image_ids, "segm")
    assert trials.intervals(["proto_net.0"])["mask"] == expected


def onnx_picture(path: Path) -> Any:
    from yolact_deploy.preprocess import read_image

    return read_image(path)


def test_a_graph_is_run_once_and_fp32_never_again(images: CocoImages, quantized: Change) -> None:
    change, calls = count_calls(quantized)
    trials = Trials(make_model(), METADATA, images, change, threads=1, raw_outputs=False)
    assert trials.reference.agreed == 1
    assert trials.run(LAYERS) == trials.reference
    assert (calls, trials.trials, trials.tried()) == ([], 0, [])
    first = trials.run(["proto_net.0", "backbone.conv1"])
    assert trials.run({"backbone.conv1", "proto_net.0"}) is first
    assert calls == [["backbone.conv1", "proto_net.0"]]
    assert trials.trials == 1
    assert trials.tried() == [(frozenset({"backbone.conv1", "proto_net.0"}), first)]
    assert first.relative_rms == {}
    assert trials.seconds > 0


def test_another_change_of_the_same_graph(images: CocoImages, quantized: Change) -> None:
    """The FP32 graph is not run again, and what each change gave is kept apart."""
    trials = Trials(make_model(), METADATA, images, quantized, threads=1, raw_outputs=False)
    calibration = calibrate(make_model(), images.paths, method="minmax")
    signed = trials.changed_by(int8(calibration, unsigned=False))
    assert signed.reference is trials.reference
    assert (signed.trials, trials.trials) == (0, 0)
    coarse, fine = signed.run(()), trials.run(())
    assert (signed.trials, trials.trials) == (1, 1)
    assert (coarse != fine) == wants_unsigned()
    assert signed.intervals(())["mask"].difference == pytest.approx(-coarse.ap_drop["mask"])


def test_layers_that_are_always_kept(images: CocoImages, quantized: Change) -> None:
    change, calls = count_calls(quantized)
    trials = Trials(make_model(), METADATA, images, change, always=["proto_net"], threads=1)
    assert trials.always == {"proto_net.0", "proto_net.2"}
    assert trials.run(()).relative_rms["proto"] > 0, "what it reads has noise"
    assert calls == [["proto_net.0", "proto_net.2"]]
    with pytest.raises(ExportError, match="no layer of this network is named 'proto'"):
        Trials(make_model(), METADATA, images, change, always=["proto"], threads=1)


def test_what_cannot_be_tried(images: CocoImages, quantized: Change) -> None:
    model = make_model()
    for constant in model.graph.initializer:
        if constant.name.endswith(".weight"):
            constant.name += "_elsewhere"
    with pytest.raises(ArtifactError, match=r"m\.onnx has no layers with weights"):
        Trials(model, METADATA, images, quantized, threads=1, source="m.onnx")
    other = replace(images, content={**(images.content or {}), "annotations": [{"category_id": 77}]})
    with pytest.raises(DatasetError, match="category ids 77"):
        Trials(make_model(), METADATA, other, quantized, threads=1)


def test_without_ground_truth(images: CocoImages, quantized: Change) -> None:
    trials = Trials(make_model(), METADATA, plain_images(images.paths), quantized, threads=1)
    measured = trials.run(())
    assert (measured.ap, measured.ap_drop, trials.intervals(())) == ({}, {}, {})
    assert "ap" not in measured.to_json()


def test_masks_as_bits() -> None:
    """Crops at any column come back where they were, with empty columns before them at most."""
    rng = np.random.default_rng(3)
    places = [(0, 0, 5, 7), (3, 2, 8, 37), (13, 9, 1, 1), (39, 4, 30, 1), (7, 0, 50, 33), (0, 0, 0, 0)]
    crops = tuple(rng.random((height, width)) < 0.5 for _, _, height, width in places)
    masks = MaskCrops(50, 40, np.array([(x, y) for x, y, _, _ in places]), crops)
    packed = pack_masks(masks)
    assert np.array_equal(packed.unpacked().full(), masks.full())
    assert np.array_equal(packed.packed(), masks.packed())
    assert packed.bits.nbytes < sum(crop.size for crop in crops) / 3
    none = pack_masks(MaskCrops(50, 40, np.zeros((0, 2), np.int64), ()))
    assert len(none) == len(none.unpacked()) == 0
