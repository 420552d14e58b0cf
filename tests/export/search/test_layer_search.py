"""The fewest layers to keep so that a limit on accuracy is kept: on scripted trials, and of a network in INT8."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("pycocotools")

from onnx import numpy_helper
from small_net import CONFIG, LAYERS, make_model, write_blobs, write_truth

from yolact_deploy.artifact import Metadata
from yolact_deploy.benchmarks.cost_tables import cost_tables, search_notes, search_table
from yolact_deploy.datasets.image_sets import CocoImages, plain_images
from yolact_deploy.errors import DatasetError, GateError
from yolact_deploy.evaluation.bootstrap import Interval
from yolact_deploy.export.calibration import calibrate
from yolact_deploy.export.mixed_precision import read_keep_list
from yolact_deploy.export.search.bisect import Target
from yolact_deploy.export.search.changes import int8
from yolact_deploy.export.search.layer_search import SearchResult, search_layers
from yolact_deploy.export.search.trials import HEADS, Measured, Trials
from yolact_deploy.graph.trunk_graph import layer_blocks, select_layers
from yolact_deploy.progress import Progress

METADATA = Metadata(config=CONFIG, tail="heads")
BLOCKS = ("backbone.layers.0.0", "backbone.layers.0.1", "fpn", "prediction_layers.0", "proto_net")
NAMES = [f"{block}.{part}" for block in BLOCKS for part in ("a", "b", "c", "d")]


class Scripted:
    """Trials whose losses are told in advance: points of AP of each layer; noise follows them."""

    def __init__(self, points: dict[str, float], always: Iterable[str] = (), truth: bool = True) -> None:
        self.points, self.layers, self.always = points, NAMES, frozenset(always)
        self.images = range(10)
        self.seconds = 1.0
        self.ran: list[frozenset[str]] = []
        self._truth = truth
        self.reference = self._measured(frozenset(NAMES))

    def _measured(self, kept: frozenset[str]) -> Measured:
        lost = sum(value for layer, value in self.points.items() if layer not in kept) / 100
        noise = dict.fromkeys(HEADS, float(np.sqrt(lost + 1e-6 * (len(NAMES) - len(kept)))))
        ap = {"box": 0.5, "mask": 0.4 - lost} if self._truth else {}
        return Measured(noise, 1 - lost, 1 - 2 * lost, ap, {"box": 0.0, "mask": lost} if ap else {})

    def run(self, kept: Iterable[str]) -> Measured:
        key = self.always.union(kept)
        if key not in self.ran and len(key) < len(NAMES):
            self.ran.append(key)
        return self._measured(key)

    @property
    def trials(self) -> int:
        return len(self.ran)

    def tried(self) -> list[tuple[frozenset[str], Measured]]:
        return [(kept, self._measured(kept)) for kept in self.ran]

    def intervals(self, kept: Any) -> dict[str, Interval]:
        return {}


class Notes(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def search(points: dict[str, float], target: Target, **more: Any) -> tuple[SearchResult, Scripted, Scripted]:
    ranking, judging = Scripted(points, **more), Scripted(points, **more)
    notes = Notes()
    found = search_layers(ranking, judging, target, progress=notes)  # type: ignore[arg-type]
    assert bool(notes.texts) == bool(found.blocks), "a note says why and for how long to wait"
    return found, ranking, judging


def test_nothing_more_is_run_where_int8_does() -> None:
    found, ranking, judging = search({"fpn.a": 0.9}, Target(max_ap_drop=1))
    assert found.keep_fp32 == found.blocks == found.costs == ()
    assert found.mixed == found.lowered
    assert (ranking.trials, judging.trials) == (0, 1)


@pytest.mark.parametrize(
    "points",
    [
        {"fpn.c": 5.0},
        {"fpn.c": 5.0, "proto_net.a": 2.0, "backbone.layers.0.1.d": 0.4},
        {"fpn.c": 5.0, "proto_net.a": 2.0, "backbone.layers.0.1.d": 1.2},
    ],
)
def test_the_fewest_layers(points: dict[str, float]) -> None:
    """Exactly those that a plain count says; only blocks that matter are opened."""
    found, ranking, judging = search(points, Target(max_ap_drop=1))
    wanted = {layer for layer, value in points.items() if value > 1}
    assert set(found.keep_fp32) == wanted
    assert list(found.keep_fp32) == [layer for layer in NAMES if layer in wanted], "in the order of the network"
    assert 100 * found.mixed.ap_drop["mask"] <= 1
    assert found.mixed == judging.run(wanted)
    opened = {block for block, layers in layer_blocks(NAMES).items() if wanted.intersection(layers)}
    assert {layer for layer, _ in found.costs} == {layer for block in opened for layer in layer_blocks(NAMES)[block]}
    assert ranking.trials == len(BLOCKS) + len(found.costs) < len(BLOCKS) + len(NAMES)
    assert judging.trials <= 16
    assert found.trials == ranking.trials + judging.trials
    assert found.blocks[0][0] == "fpn"
    assert found.reasons.keys() == wanted
    assert found.reasons["fpn.c"] == "at most 1 points of AP lost; int8 in this layer alone: 13.0 dB (boxes)"


def test_layers_that_the_user_keeps() -> None:
    """They are in every trial and in the file, and what was found is told apart from them."""
    points = {"fpn.c": 5.0, "proto_net.a": 2.0}
    found, _, judging = search(points, Target(max_ap_drop=1), always=["fpn.a", "fpn.b", "fpn.c", "fpn.d"])
    assert found.keep_fp32 == ("proto_net.a",)
    assert found.always == ("fpn.a", "fpn.b", "fpn.c", "fpn.d")
    assert found.to_json()["keep_fp32"] == [*found.always, "proto_net.a"]
    assert all(kept >= set(found.always) for kept in judging.ran)
    assert "fpn" not in dict(found.blocks)


def test_other_runtimes_must_keep_the_limit_too() -> None:
    """Signed activations are coarser. They are run once where that does, and decide with the others where not."""
    points = {"fpn.c": 5.0, "proto_net.a": 0.8}
    for factor, wanted in ((1.1, {"fpn.c"}), (1.5, {"fpn.c", "proto_net.a"})):
        signed = Scripted({layer: factor * value for layer, value in points.items()})
        ranking, judging = Scripted(points), Scripted(points)
        notes = Notes()
        found = search_layers(
            ranking,  # type: ignore[arg-type]
            judging,  # type: ignore[arg-type]
            Target(max_ap_drop=1),
            signed=signed,  # type: ignore[arg-type]
            progress=notes,
        )
        assert set(found.keep_fp32) == wanted
        assert found.signed == signed.run(wanted)
        assert (signed.trials == 1) == (factor == 1.1)
        assert ("with signed activations, as in TensorRT and OpenVINO, that is not enough" in notes.texts) == (
            factor > 1.1
        )
        assert found.trials == ranking.trials + judging.trials + signed.trials


def test_agreement_as_the_limit() -> None:
    found, *_ = search({"fpn.c": 5.0, "proto_net.a": 2.0}, Target(min_agreement=0.95), truth=False)
    assert found.keep_fp32 == ("fpn.c",)
    assert found.mixed.agreed == pytest.approx(0.96)


def test_a_limit_that_no_layer_in_int8_keeps() -> None:
    """With the best graph tried; exit code 1."""
    with pytest.raises(GateError, match=r"not reached with any layer in int8, so nothing was written") as caught:
        search(dict.fromkeys(NAMES, 2.0), Target(max_ap_drop=1))
    assert "The best graph tried has one layer of 20 in int8: box AP 50.00 (+0.00), mask AP 38.00 (-2.00)" in str(
        caught.value
    )
    assert caught.value.exit_code == 1


def test_what_cannot_be_judged() -> None:
    with pytest.raises(DatasetError, match="needs ground truth"):
        search({}, Target(max_ap_drop=1), truth=False)
    nothing = Scripted({})
    nothing.reference = Measured({}, None, None, {"box": 0.0, "mask": 0.0}, {"box": 0.0, "mask": 0.0})
    with pytest.raises(DatasetError, match="detects none of the annotated objects"):
        search_layers(nothing, nothing, Target(max_ap_drop=1))  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="detects nothing in these images"):
        search_layers(nothing, nothing, Target(min_agreement=0.9))  # type: ignore[arg-type]


# -- a network with a channel that is out of proportion ---------------------------------------------------------------

LOUD, HURT, FACTOR = "backbone.conv1", "backbone.conv2", 1000.0


def make_outlier(graph: Any) -> None:
    """One channel a thousand times as large as it was, and its reader the less sensitive to it: the same function."""
    for constant in graph.initializer:
        values = numpy_helper.to_array(constant).copy()
        if constant.name in (f"model.{LOUD}.weight", f"model.{LOUD}.bias"):
            values[5] *= FACTOR
        elif constant.name == f"model.{HURT}.weight":
            values[:, 5] /= FACTOR
        else:
            continue
        constant.CopyFrom(numpy_helper.from_array(values, constant.name))


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> CocoImages:
    folder = tmp_path_factory.mktemp("search")
    return write_truth(folder, plain_images([write_blobs(folder / "blobs", 6)]))


@pytest.mark.slow
def test_the_layer_that_an_outlier_ruins_is_found(truth: CocoImages, tmp_path: Path) -> None:
    plain = Trials(make_model(), METADATA, truth, _never, threads=1, raw_outputs=False).reference
    model = make_model(make_outlier)
    change = int8(calibrate(model, truth.paths, method="minmax"))
    ranking = Trials(model, METADATA, plain_images(truth.paths[:2]), change, threads=1)
    judging = Trials(model, METADATA, truth, change, threads=1, raw_outputs=False)
    assert judging.reference.ap["mask"] == pytest.approx(plain.ap["mask"], abs=0.02), "in FP32 nothing has changed"
    found = search_layers(ranking, judging, Target(max_ap_drop=8))
    assert found.lowered.ap_drop["mask"] > 0.1
    assert found.keep_fp32 == (HURT,)
    assert found.costs[0][0] == HURT
    assert found.mixed.ap_drop["mask"] <= 0.08
    assert found.mixed_intervals["mask"].difference == pytest.approx(-found.mixed.ap_drop["mask"])

    (tmp_path / "found.json").write_text(json.dumps(found.to_json(), allow_nan=False))
    assert read_keep_list(str(tmp_path / "found.json")) == (HURT,)
    blocks, layers = cost_tables("int8", 2, found.blocks, found.costs)
    assert blocks.rows[0][0] == HURT, "it is in no residual block"
    assert layers.rows[0][0] == HURT
    table = search_table(found)
    assert [row[:2] for row in table.rows] == [("all in FP32", "9"), ("all in int8", "0"), ("result", "1")]
    assert all(len(row) == len(table.columns) for row in table.rows)
    low = found.mixed_intervals["mask"].low
    told = " ".join(search_notes(found))
    assert (f"{-100 * low:.2f} points of mask AP" in told) == (-100 * low > 8)


def _never(model: Any, kept: Any) -> None:
    pytest.fail("FP32 alone was asked for")


def test_a_block_means_its_layers() -> None:
    """The name of a block may stand in --keep-fp32 for what was measured as that block."""
    names = [
        "backbone.conv1",
        "backbone.layers.0.0",
        "backbone.layers.1.10.conv.0.0",
        "backbone.layers.1.1.conv1",
        "backbone.layers.1.1.downsample.0",
        "fpn.lat_layers.0",
        "prediction_layers.0.upfeature.0",
        "prediction_layers.0.bbox_layer",
        "prediction_layers.1.bbox_layer",
        "proto_net.0",
        "proto_net.10",
        *LAYERS[3:4],
    ]
    blocks = layer_blocks(names)
    assert list(blocks) == [
        "backbone.conv1", "backbone.layers.0.0", "backbone.layers.1.10", "backbone.layers.1.1", "fpn",
        "prediction_layers.0", "prediction_layers.1", "proto_net",
    ]  # fmt: skip
    for block, layers in blocks.items():
        assert select_layers([block], names) == set(layers)
