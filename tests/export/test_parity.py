"""The check after each export: it must pass a good file and fail every wrong one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few

from yolact_deploy.evaluation.agreement import Agreement
from yolact_deploy.runtime.tails import HeadOutputs
from yolact_deploy.samples import sample_images

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper

from yolact_deploy.export import parity
from yolact_deploy.export.parity import ParityReport, TensorParity, check_parity

Export = Callable[..., Path]
NAME, SMALL = "small", 138
HEADS = ("boxes", "scores", "coeff", "proto")


@pytest.fixture
def images() -> list[Path]:
    """One picture, to keep it short."""
    return sample_images()[:1]


def agreement(**changes: Any) -> Agreement:
    values: dict[str, Any] = dict.fromkeys(Agreement.__dataclass_fields__)
    values |= {"score_threshold": 0.0, "iou_threshold": 0.5, "images": 1, "reference_detections": 100}
    return Agreement(**{**values, "missed": 0, "extra": 0, "label_flips": 0, **changes})


# -- good files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", few(["fp32", "fp16"], 1))
def test_a_good_file_passes(export: Export, make_model: Callable[..., Any], precision: str) -> None:
    report = check_parity(make_model(NAME, SMALL), export(NAME, SMALL, precision=precision))
    assert report.failures == []
    assert report.images == 3
    assert tuple(tensor.name for tensor in report.tensors) == HEADS
    for tensor in report.tensors:
        assert 0 < tensor.relative_rms < tensor.limit / 2
        assert tensor.max_error > 0
    assert report.tail is not None
    assert report.tail.reference_detections == 300
    assert report.eager.reference_detections > 20
    assert report.eager.matched_share is not None
    assert report.eager.matched_share > (0.99 if precision == "fp32" else 0.9)
    facts = json.loads(json.dumps(report.to_json()))
    assert [tensor["name"] for tensor in facts["tensors"]] == list(HEADS)
    assert all(tensor["ok"] for tensor in facts["tensors"])
    assert facts["tail"]["missed"] == report.tail.missed


def test_a_file_of_heads_has_no_tail(export: Export, make_model: Callable[..., Any], images: list[Path]) -> None:
    report = check_parity(make_model(NAME, SMALL), export(NAME, SMALL, tail="heads"), images)
    assert report.failures == []
    assert report.tail is None
    assert report.to_json()["tail"] is None


def test_cross_class_is_compared_with_cross_class(
    export: Export, make_model: Callable[..., Any], images: list[Path]
) -> None:
    report = check_parity(make_model(NAME, SMALL), export(NAME, SMALL, cross_class=True), images)
    assert report.failures == []
    assert report.eager.missed == report.eager.extra == 0


# -- wrong files ----------------------------------------------------------------------------------------------------


def doctored(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(str(source))
    change(model)
    onnx.save(model, str(target))
    return target


def initializer(model: Any, name: str) -> Any:
    return next(value for value in model.graph.initializer if value.name.endswith(name))


def swap_mean(model: Any) -> None:
    """RGB for BGR: the mistake that every exporter makes once."""
    mean = initializer(model, "mean")
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean)[..., ::-1].copy(), mean.name))


def scale_weights(model: Any) -> None:
    weight = initializer(model, "proto_net.0.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))


@pytest.mark.parametrize(("change", "wrong"), [(swap_mean, set(HEADS)), (scale_weights, {"proto"})])
def test_a_wrong_trunk_fails(
    export: Export,
    make_model: Callable[..., Any],
    images: list[Path],
    tmp_path: Path,
    change: Callable[[Any], None],
    wrong: set[str],
) -> None:
    path = doctored(export(NAME, SMALL), tmp_path / "wrong.onnx", change)
    report = check_parity(make_model(NAME, SMALL), path, images)
    assert {tensor.name for tensor in report.tensors if not tensor.ok} == wrong
    assert len(report.failures) == len(wrong)
    for text in report.failures:
        assert "differ by" in text
        assert "at most 0.0001" in text


def other_iou(model: Any) -> None:
    nms = next(node for node in model.graph.node if node.op_type == "FastNMS")
    next(attribute for attribute in nms.attribute if attribute.name == "iou_threshold").f = 0.2


def fewer_slots(model: Any) -> None:
    nms = next(node for node in model.graph.node if node.op_type == "FastNMS")
    next(attribute for attribute in nms.attribute if attribute.name == "top_k").i = 2


@pytest.mark.parametrize("change", few([other_iou, fewer_slots], 0))
def test_a_wrong_tail_fails(
    export: Export, make_model: Callable[..., Any], images: list[Path], tmp_path: Path, change: Callable[[Any], None]
) -> None:
    path = doctored(export(NAME, SMALL), tmp_path / "wrong.onnx", change)
    report = check_parity(make_model(NAME, SMALL), path, images)
    assert all(tensor.ok for tensor in report.tensors)
    (text,) = report.failures
    assert "the functions in the file miss" in text


def test_other_weights_fail(export: Export, make_model: Callable[..., Any], images: list[Path], tmp_path: Path) -> None:
    """The model is not the one that the file was made from."""
    import copy

    shutil.copy(export(NAME, SMALL), tmp_path / "m.onnx")
    model = copy.deepcopy(make_model(NAME, SMALL))
    model.proto_net[0].weight.data *= 1.01
    assert check_parity(model, tmp_path / "m.onnx", images).failures


# -- the judgment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [0.02, float("nan"), float("inf")])
def test_a_tensor_over_its_limit_fails(relative: float) -> None:
    tensor = TensorParity("scores", 0.1, relative, 0.01)
    assert not tensor.ok
    report = ParityReport(1, (tensor,), None, agreement())
    assert report.failures == [f"scores differ by {relative:.2g} (relative RMS; at most 0.01)"]


@pytest.mark.parametrize(("missed", "extra", "good"), [(0, 0, True), (1, 1, True), (2, 1, False), (0, 3, False)])
def test_two_in_a_hundred_may_differ_in_the_tail(missed: int, extra: int, good: bool) -> None:
    report = ParityReport(1, (), agreement(missed=missed, extra=extra), agreement(missed=50))
    assert (report.failures == []) is good


def test_nothing_found_is_no_failure() -> None:
    nothing = agreement(reference_detections=0)
    assert ParityReport(1, (), nothing, nothing).failures == []


def heads(value: float) -> HeadOutputs:
    return HeadOutputs(*(np.full((1, 2, 2), value, np.float32) + np.eye(2, dtype=np.float32) for _ in HEADS))


def test_errors_are_relative_to_the_spread() -> None:
    tensors = parity._compare_tensors([heads(5)], [heads(5.25)], 0.1)
    assert [tensor.name for tensor in tensors] == list(HEADS)
    for tensor in tensors:
        assert tensor.max_error == pytest.approx(0.25)
        assert tensor.relative_rms == pytest.approx(0.5)  # the spread of 0 and 1 is 0.5
        assert not tensor.ok


def test_nan_fails() -> None:
    assert not any(tensor.ok for tensor in parity._compare_tensors([heads(0)], [heads(float("nan"))], 1.0))
