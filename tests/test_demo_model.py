"""The model that ships with the package, on generated images it has not seen: its AP in each way to run it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("onnxruntime")
pytest.importorskip("pycocotools")

from yolact_deploy import load, samples
from yolact_deploy.cli.main import main
from yolact_deploy.datasets.image_sets import CocoImages, open_images
from yolact_deploy.datasets.shapes import write_shapes
from yolact_deploy.evaluation.evaluate import evaluate

_CALIBRATION = 100
_FEW = 60
_ALL = 500
#: one engine of each precision
_SHORT = ("fp16.onnx", "int8.onnx@openvino")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, demo_onnx: Path) -> Path:
    """ONNX in FP32, FP16 and INT8, with ranges from pictures of the training set."""
    folder = tmp_path_factory.mktemp("demo")
    for _ in write_shapes(folder / "train", {"train": _CALIBRATION}):
        pass
    weights = ["--weights", str(samples.DEMO_MODEL), "--engine", "none", "--quiet"]
    shutil.copy(demo_onnx, folder / "fp32.onnx")
    assert main(["export", *weights, "--fp16", "-o", str(folder / "fp16")]) == 0
    int8 = ["--int8", "--calibration", str(folder / "train" / "images")]
    assert main(["export", *weights, *int8, "-o", str(folder / "int8")]) == 0
    return folder


@pytest.fixture(scope="module")
def all_exported(exported: Path) -> Path:
    """BF16, and INT8 in the form of ONNX Runtime, in addition."""
    weights = ["--weights", str(samples.DEMO_MODEL), "--engine", "none", "--quiet"]
    int8 = ["--int8", "--calibration", str(exported / "train" / "images")]
    assert main(["export", *weights, "--bf16", "-o", str(exported / "bf16")]) == 0
    assert main(["export", *weights, *int8, "--target", "onnxruntime", "-o", str(exported / "int8_unsigned")]) == 0
    return exported


def _held_out(folder: Path, count: int) -> CocoImages:
    for _ in write_shapes(folder, {"val": count}):
        pass
    return open_images(coco=folder)


def _scores(model: str, images: CocoImages) -> tuple[float, float]:
    with load(model, score_threshold=0.0, lazy_masks=False) as predictor:
        accuracy = evaluate(predictor, images).accuracy
    assert accuracy.box is not None
    assert accuracy.mask is not None
    return accuracy.box.ap or 0.0, accuracy.mask.ap or 0.0


def _all_names() -> list[str]:
    names = ["fp16.onnx", "bf16.onnx", "int8.onnx", "int8_unsigned.onnx"]
    if _has_openvino():
        names += ["bf16.onnx@openvino", "int8.onnx@openvino", "int8_unsigned.onnx@openvino"]
        from yolact_deploy.runtime.openvino import shared_core

        if "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            names.append("fp32.onnx@openvino-bf16")
    return names


def _check(
    exported: Path, names: Sequence[str], images: CocoImages, least: tuple[float, float], half: float, int8: float
) -> None:
    """AP of each engine compared with eager's; ``half`` and ``int8`` are the tolerances for 16 and 8 bits."""
    box, mask = _scores(str(samples.DEMO_MODEL), images)
    print(f"eager: box AP {box:.4f}, mask AP {mask:.4f}")
    assert box >= least[0]
    assert mask >= least[1]
    for name in names:
        other_box, other_mask = _scores(str(exported / name), images)
        print(f"{name}: box AP {other_box:.4f}, mask AP {other_mask:.4f}")
        tolerance = int8 if name.startswith("int8") else half
        assert other_box == pytest.approx(box, abs=tolerance)
        assert other_mask == pytest.approx(mask, abs=tolerance)


def _has_openvino() -> bool:
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    return True


def test_some_images(exported: Path, tmp_path: Path) -> None:
    """Wider tolerances than in the README, because there are few images."""
    names = _SHORT if _has_openvino() else [name.partition("@")[0] for name in _SHORT]
    _check(exported, names, _held_out(tmp_path, _FEW), (0.60, 0.55), 0.01, 0.02)


@pytest.mark.slow
def test_what_the_readme_says(all_exported: Path, tmp_path: Path) -> None:
    _check(all_exported, _all_names(), _held_out(tmp_path, _ALL), (0.65, 0.60), 0.003, 0.01)
