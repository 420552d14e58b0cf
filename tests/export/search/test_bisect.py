"""What layers cost, and the shortest list that meets a target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper
from small_net import LAYERS, make_model, pictures, write_blobs, write_model

from yolact_deploy.datasets.image_sets import plain_images
from yolact_deploy.errors import ArtifactError, InputError
from yolact_deploy.export.mixed_precision import lower_trunk, read_keep_list
from yolact_deploy.export.search.bisect import (
    BisectResult,
    Target,
    bisect_precision,
    fewest,
    keep_order,
)
from yolact_deploy.export.search.trials import HEADS, Measured, least_decibels
from yolact_deploy.loading import load

FRAGILE, NEXT = "proto_net.0", "proto_net.2"


def make_fragile(graph: Any) -> None:
    """Weights so small that FP16 has few bits left for them, made up for by the layer that follows."""
    factors = {f"model.{FRAGILE}.weight": 2**-14, f"model.{FRAGILE}.bias": 2**-14, f"model.{NEXT}.weight": 2**14}
    for constant in graph.initializer:
        if constant.name in factors:
            values = numpy_helper.to_array(constant) * np.float32(factors[constant.name])
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bisect")
    write_blobs(folder / "blobs", 2)
    return write_model(folder / "fragile.onnx", make_fragile)


def run(path: Path, target: Target | None = None, precision: str = "fp16") -> BisectResult:
    images = plain_images([path.parent / "blobs"])
    return bisect_precision(path, images, precision=precision, target=target, threads=1)


def test_the_fragile_layer_costs_most(fragile: Path) -> None:
    result = run(fragile)
    assert sorted(layer for layer, _ in result.costs) == sorted(LAYERS)
    assert result.costs[0][0] == FRAGILE
    worst = result.costs[0][1]
    assert worst.least_sqnr_db < min(cost.least_sqnr_db for _, cost in result.costs[1:])
    assert worst.relative_rms["boxes"] == 0, "it is not on the way to the boxes"
    assert result.lowered.least_sqnr_db <= worst.least_sqnr_db + 1
    assert (result.keep_fp32, result.mixed) == ((), None)


def test_a_target_of_decibels(fragile: Path) -> None:
    """The target is met by the graph as it ran, and by none that keeps a layer less."""
    free = run(fragile)
    target = Target(sqnr=free.lowered.least_sqnr_db + 3)
    result = run(fragile, target)
    assert result.keep_fp32[0] == FRAGILE
    assert len(result.keep_fp32) < len(LAYERS)
    assert result.mixed is not None
    assert target.met_by(result.mixed)
    assert not target.met_by(result.lowered)
    decibels = emulated_decibels(fragile, result.keep_fp32)
    assert decibels == pytest.approx(result.mixed.least_sqnr_db, abs=1e-6)
    for name in result.keep_fp32:
        rest = [other for other in result.keep_fp32 if other != name]
        assert emulated_decibels(fragile, rest) < (target.sqnr or 0)


def emulated_decibels(path: Path, keep: Any) -> float:
    """Computed apart from what is tested: NumPy on the outputs of two sessions."""
    import onnxruntime as ort

    def outputs(model: Any) -> list[Any]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [
            np.concatenate(o) for o in zip(*(session.run(None, {"images": p[None]}) for p in pictures(2)), strict=True)
        ]

    mixed = onnx.load(str(path))
    lower_trunk(mixed, keep, emulate=True)
    pairs = zip(outputs(onnx.load(str(path))), outputs(mixed), strict=True)
    ratios = [(a.astype(np.float64) ** 2).sum() / ((a.astype(np.float64) - b) ** 2).sum() for a, b in pairs]
    return float(10 * np.log10(min(ratios)))


def test_a_target_of_agreement(fragile: Path, tmp_path: Path) -> None:
    result = run(fragile, Target(agreement=1.0), "bf16")
    assert result.mixed is not None
    assert result.mixed.agreement == 1
    assert result.lowered.agreement is not None
    assert (result.lowered.agreement < 1) == bool(result.keep_fp32)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["target"] == {
        "agreement": 1.0,
        "sqnr_db": None,
        "max_ap_drop_points": None,
        "min_agreement": None,
    }
    (tmp_path / "keep.json").write_text(json.dumps(values))
    assert read_keep_list(str(tmp_path / "keep.json")) == result.keep_fp32


def test_a_target_that_needs_no_layer(fragile: Path) -> None:
    result = run(fragile, Target(sqnr=1.0))
    assert result.keep_fp32 == ()
    assert result.mixed == result.lowered


def test_only_from_fp32(tmp_path: Path, fragile: Path) -> None:
    from yolact_deploy.artifact import Metadata

    model = make_model()
    half = Metadata(config=load(fragile).config, tail="heads", precision="fp16").to_json()
    onnx.helper.set_model_props(model, {"yolact_deploy": half})
    onnx.save(model, str(tmp_path / "half.onnx"))
    write_blobs(tmp_path / "blobs", 2)
    with pytest.raises(ArtifactError, match=r"half\.onnx is fp16: --bisect starts from FP32"):
        run(tmp_path / "half.onnx")
    with pytest.raises(InputError, match="--bisect supports fp16, bf16 and int8, not tf32"):
        run(fragile, precision="tf32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected a target"),
        ({"agreement": 1.1}, r"--target-agreement: expected 0 < share <= 1, got 1\.1"),
        ({"sqnr": 0}, "--target-sqnr: expected 0 < dB <= 120"),
        ({"max_ap_drop": -0.5}, r"expected 0 <= points < 100, got -0\.5"),
        ({"min_agreement": 98}, r"--min-agreement: expected 0 < share <= 1, got 98"),
    ],
)
def test_targets(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Target(**options)


def test_target_met() -> None:
    good = Measured({"boxes": 0.001, "scores": 0.01}, None)
    assert Target(sqnr=40).met_by(good)
    assert not Target(sqnr=40.1).met_by(good)
    assert Target(agreement=0.9).met_by(good), "nothing to find, nothing missed"
    assert not Target(agreement=0.9).met_by(Measured({}, 0.89))
    assert Target(max_ap_drop=1).met_by(good), "no ground truth, nothing lost"
    lost = Measured({}, 1.0, agreed=0.9, ap_drop={"box": 0.002, "mask": 0.011})
    assert Target(max_ap_drop=1.2, min_agreement=0.9).met_by(lost)
    assert not Target(max_ap_drop=1).met_by(lost), "of boxes and masks, the worse one counts"
    assert not Target(max_ap_drop=1.2, min_agreement=0.91).met_by(lost), "of two, both"
    assert least_decibels(good) == "40.0 dB (scores)"
    assert least_decibels(Measured({"boxes": 0.0, "scores": float("inf")}, None)) == "not finite (scores)"
    assert least_decibels(Measured({"boxes": 0.0}, None)) == "exact"


def errors(boxes: float, proto: float) -> Measured:
    return Measured({**dict.fromkeys(HEADS, 0.0), "boxes": boxes, "proto": proto}, None)


def test_order_relieves_the_worst_output_first() -> None:
    costs = {"a": errors(0.4, 0), "b": errors(0.3, 0), "c": errors(0, 0.35), "d": errors(0, float("inf"))}
    assert keep_order(costs) == ["d", "a", "c", "b"]


def subsets(order: str, wanted: str) -> tuple[list[str], int]:
    asked = 0

    def good(kept: Any) -> bool:
        nonlocal asked
        asked += 1
        return set(wanted) <= set(kept)

    return fewest(list(order), good), asked


@pytest.mark.parametrize(
    ("order", "wanted"),
    [("abcdefgh", ""), ("abcdefgh", "a"), ("abcdefgh", "h"), ("abcdefgh", "bd"), ("abcdefgh", "abcdefgh")],
)
def test_fewest(order: str, wanted: str) -> None:
    found, asked = subsets(order, wanted)
    assert found == list(wanted)
    assert asked <= 4 + len(order)
