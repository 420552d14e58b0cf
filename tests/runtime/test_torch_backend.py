"""The eager backend, and how far exported files agree with it on the sample images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few

import yolact_deploy
from yolact_deploy.errors import BackendError
from yolact_deploy.evaluation.agreement import Agreement, AgreementMeter
from yolact_deploy.mask_forms import MaskWindows
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.samples import DEMO_MODEL, sample_images

torch = pytest.importorskip("torch")

from yolact_deploy.runtime.torch.torch_backend import TorchBackend


@pytest.fixture(scope="module")
def pictures() -> list[Any]:
    return [read_image(path) for path in sample_images()]


# -- exports against the eager model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["demo", pytest.param("resnet50", marks=pytest.mark.slow)])
def weights(request: pytest.FixtureRequest) -> Path:
    """The demo model, or random weights of ResNet-50 at full size."""
    return DEMO_MODEL if request.param == "demo" else request.getfixturevalue("resnet50_checkpoint")


@pytest.fixture(scope="module")
def frames(weights: Path, pictures: list[Any]) -> list[Any]:
    """Pictures in which the network detects something."""
    from yolact_deploy.datasets.shapes import render

    return pictures if weights != DEMO_MODEL else [render(seed, height=240, width=320).image for seed in range(10)]


@pytest.fixture(scope="module")
def by_eager(weights: Path, frames: list[Any]) -> list[Any]:
    """All detections of the eager model; nothing but the resized images is shared with the other backends."""
    with yolact_deploy.load(weights, score_threshold=0, lazy_masks=False) as eager:
        return [eager(picture) for picture in frames]


@pytest.fixture(scope="module")
def export(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """``export(precision)``: with uint8 input, as users get it."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.model.checkpoint import load_model

    folder = tmp_path_factory.mktemp("eager")

    def get(precision: str) -> Path:
        path = folder / f"{precision}.onnx"
        if not path.exists():
            export_onnx(load_model(weights), path, ExportSpec(precision=precision))
        return path

    yield get
    for path in folder.iterdir():
        path.unlink()


def agreement(path: Path, tail: str, by_eager: list[Any], pictures: list[Any]) -> Agreement:
    meter = AgreementMeter(score_threshold=0.15)
    with yolact_deploy.load(path, tail=tail, score_threshold=0) as model:
        for picture, expected in zip(pictures, by_eager, strict=True):
            meter.add(expected, model(picture))
    return meter.result()


@pytest.mark.parametrize("tail", ["host", "graph"])
def test_fp32_agrees_with_eager(
    export: Callable[[str], Path], by_eager: list[Any], frames: list[Any], tail: str
) -> None:
    result = agreement(export("fp32"), tail, by_eager, frames)
    print(result)
    assert result.images == len(frames)
    assert result.reference_detections > 25
    assert (result.missed, result.extra) == (0, 0)
    assert result.min_box_iou is not None
    assert result.min_box_iou >= 0.99
    assert result.max_score_difference is not None
    assert result.max_score_difference <= 1e-3
    assert result.mean_mask_iou is not None
    assert result.mean_mask_iou >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["host", pytest.param("graph", marks=pytest.mark.slow)])
def test_fp16_agrees_with_eager(
    export: Callable[[str], Path], by_eager: list[Any], frames: list[Any], tail: str
) -> None:
    result = agreement(export("fp16"), tail, by_eager, frames)
    print(result)
    assert result.matched_share_90 is not None
    assert result.matched_share_90 >= 0.97  # of the same class, box IoU 0.9 or more
    assert result.mean_mask_iou is not None
    assert result.mean_mask_iou >= 0.97


# -- the backend itself, at a small size ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(resnet50_checkpoint: Path) -> Any:
    from yolact_deploy.model.checkpoint import load_model

    return load_model(resnet50_checkpoint, image_size=138)


def test_a_list_is_one_after_the_other(model: Any, pictures: list[Any]) -> None:
    predictor = Predictor(TorchBackend(model))
    together = predictor([*pictures, pictures[0]])
    for detections, picture in zip(together, [*pictures, pictures[0]], strict=True):
        alone = predictor(picture)
        assert (detections.height, detections.width) == picture.shape[:2]
        np.testing.assert_array_equal(detections.labels, alone.labels)
        np.testing.assert_allclose(detections.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(detections.boxes, alone.boxes, atol=0.05)


@pytest.mark.parametrize("nms", few(["fast", "cross-class", "traditional"], 0))
def test_the_numpy_tail_agrees(model: Any, pictures: list[Any], nms: str) -> None:
    """The same heads through the torch functions and through NumPy: detections, cropped masks and pasted ones."""
    from yolact_deploy.runtime.tails import DetectSettings, HostTail

    backend, host = TorchBackend(model), HostTail(model.config)
    predictor = Predictor(backend)
    settings = DetectSettings(0.15, nms)
    for picture in pictures:
        outputs = backend.run(predictor.preprocess([picture]))
        ours = backend.tail.detect(outputs, 0, settings)
        numpy = host.detect(outputs, 0, settings)
        assert len(ours.scores) == len(numpy.scores) > 0
        np.testing.assert_array_equal(ours.labels, numpy.labels)
        np.testing.assert_allclose(ours.scores, numpy.scores, atol=1e-6)
        np.testing.assert_allclose(ours.boxes, numpy.boxes, atol=1e-5)
        assert isinstance(ours.masks, MaskWindows)
        assert isinstance(numpy.masks, MaskWindows)
        height, width = picture.shape[:2]
        full = backend.tail.paste(ours.masks, height, width).full()
        fast = host.paste(numpy.masks, height, width).full()
        assert full.shape == fast.shape == (len(ours.scores), height, width)
        union = (full | fast).sum()
        assert (full & fast).sum() >= 0.98 * union > 0


def test_threshold_and_order(model: Any, pictures: list[Any]) -> None:
    detections = Predictor(TorchBackend(model), score_threshold=0.4)(pictures[0])
    everything = Predictor(TorchBackend(model), score_threshold=0)(pictures[0])
    assert 0 < len(detections) < len(everything) <= 100
    assert (detections.scores > 0.4).all()
    assert (np.diff(everything.scores) <= 0).all()
    assert detections.scores.dtype == np.float32
    assert detections.labels.dtype == np.int64


def test_nothing_found(model: Any) -> None:
    detections = Predictor(TorchBackend(model), score_threshold=0.999)(np.zeros((40, 60, 3), np.uint8))
    assert len(detections) == 0
    assert detections.masks.shape == (0, 40, 60)


def test_the_model_is_put_into_evaluation_mode(model: Any) -> None:
    model.train()
    TorchBackend(model)
    assert not model.training


def test_describe_and_threads(model: Any) -> None:
    before = torch.get_num_threads()
    try:
        assert TorchBackend(model, threads=1).describe() == {
            "backend": "torch",
            "version": torch.__version__,
            "threads": 1,
            "device": "cpu",
            "precision": "fp32",
            "channels_last": False,
            "compiled": False,
            "tail": "torch",
        }
    finally:
        torch.set_num_threads(before)


def test_input_dtype(model: Any, pictures: list[Any]) -> None:
    predictor = Predictor(TorchBackend(model, input_dtype="float32"))
    assert predictor.preprocess(pictures[:1]).dtype == np.float32
    assert len(predictor(pictures[0])) > 0


def test_closed(pictures: list[Any]) -> None:
    with yolact_deploy.load(DEMO_MODEL, image_size=96) as predictor:
        assert predictor.backend.name == "torch"
        predictor(pictures[0])
    with pytest.raises(BackendError, match="closed: load the model again"):
        predictor(pictures[0])


@pytest.mark.parametrize("lazy_masks", [True, False])
def test_closing_while_another_thread_detects(model: Any, pictures: list[Any], lazy_masks: bool) -> None:
    backend = TorchBackend(model)
    predictor = Predictor(backend, lazy_masks=lazy_masks)
    expected, detect = predictor(pictures[0]), backend.tail.detect

    def detect_in_a_closed_one(*arguments: Any) -> Any:
        predictor.close()
        return detect(*arguments)

    backend.tail.detect = detect_in_a_closed_one  # type: ignore[assignment, method-assign]
    assert predictor(pictures[0]) == expected
    with pytest.raises(BackendError, match="closed: load the model again"):
        predictor(pictures[0])
    with pytest.raises(BackendError, match="closed: load the model again"):
        backend.run(predictor.preprocess(pictures[:1]))
