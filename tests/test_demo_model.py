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
_FEW = 24
_ALL = 500


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the training set, for the ranges of INT8."""
    folder = tmp_path_factory.mktemp("train")
    for _ in write_shapes(folder, {"train": _CALIBRATION}):
        pass
    return folder / "images"


def _export(output: Path, *options: str) -> None:
    weights = ["--weights", str(samples.DEMO_MODEL), "--engine", "none", "--quiet"]
    assert main(["export", *weights, *options, "-o", str(output)]) == 0


@pytest.fixture(scope="module")
def all_exported(tmp_path_factory: pytest.TempPathFactory, demo_onnx: Path, pictures: Path) -> Path:
    """ONNX in each precision, INT8 in both of its forms."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copy(demo_onnx, folder / "fp32.onnx")
    for half in ("fp16", "bf16"):
        _export(folder / half, f"--{half}")
    for name, target in (("int8", "auto"), ("int8_unsigned", "onnxruntime")):
        _export(folder / name, "--int8", "--calibration", str(pictures), "--target", target)
    return folder


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


def test_some_images(tmp_path: Path) -> None:
    """Eager; what each precision loses is measured on more of them."""
    _check(tmp_path, [], _held_out(tmp_path / "val", _FEW), (0.55, 0.5), 0, 0)


@pytest.mark.slow
def test_what_the_readme_says(all_exported: Path, tmp_path: Path) -> None:
    _check(all_exported, _all_names(), _held_out(tmp_path, _ALL), (0.65, 0.60), 0.003, 0.01)
