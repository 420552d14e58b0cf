"""Trials in INT8 of real exports: a YOLACT++ with deformable convolutions and mask scores, and a fixed batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("pycocotools")

from yolact_deploy import samples
from yolact_deploy.datasets.image_sets import CocoImages, open_images
from yolact_deploy.export.calibration import calibrate
from yolact_deploy.export.search.changes import int8
from yolact_deploy.export.search.trials import Trials
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.graph.trunk_graph import trunk_nodes
from yolact_deploy.loading import load

Export = Callable[..., Path]
SIZE = 138


@pytest.fixture(scope="module")
def images() -> CocoImages:
    return open_images(annotations=samples.ANNOTATIONS, images_dir=samples.IMAGES)


def make_trials(path: Path, images: CocoImages) -> Trials:
    model = read_onnx(path)
    change = int8(calibrate(model, images.paths, method="minmax"))
    return Trials(model, onnx_metadata(model, path), images, change, threads=2)


@pytest.mark.slow
def test_yolact_plus(export: Export, images: CocoImages) -> None:
    """A layer whose convolution is deformable costs nothing alone: INT8 leaves it as it is."""
    path = export("yolact_plus_resnet50", SIZE)
    trials = make_trials(path, images)
    deformable = [node.layer for node in trunk_nodes(read_onnx(path).graph) if node.op_type == "DeformConv"]
    every = set(trials.layers)
    assert deformable
    assert not any(trials.run(every - {deformable[0]}).relative_rms.values())
    assert all(trials.run(()).relative_rms.values())
    with load(path, score_threshold=0.0, threads=2) as predictor:
        expected = predictor(images.paths[0])
    found = trials.expected(0)
    assert expected.mask_scores is not None
    assert found.mask_scores == pytest.approx(expected.mask_scores, abs=1e-5)
    assert found.crops.rle() == expected.crops.rle()


@pytest.mark.slow
def test_a_fixed_batch_gives_the_same(export: Export, images: CocoImages) -> None:
    """Three images in batches of two, of which the last one is filled up."""
    one, two = (make_trials(export("small", SIZE, batch=(n, n, n)), images) for n in (1, 2))
    assert len(images) == 3
    a, b = one.run(["proto_net"]), two.run(["proto_net"])
    errors: Any = pytest.approx(a.relative_rms, rel=0.02)
    assert b.relative_rms == errors
    assert two.reference.ap == pytest.approx(one.reference.ap, abs=1e-3)
