"""Exported files in ONNX Runtime and OpenVINO against the original's numbers, for every golden file of a network.

Files of further configurations are picked up when they are put into tests/golden. The exports are FP32 with float32
input, so that nothing but the runtime is between them and the original.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deterministic import GOLDEN, golden_networks
from few import few
from goldencheck import check_sample, match_detections

from yolact_deploy.config import get_config
from yolact_deploy.datasets.coco_results import score_of
from yolact_deploy.detections import Detections
from yolact_deploy.preprocess import read_image
from yolact_deploy.priors import VARIANCES, make_priors
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import DetectSettings, HeadOutputs, ImageDetections, Outputs

pytestmark = pytest.mark.golden

NAMES = golden_networks()
BACKENDS = ("onnxruntime", "openvino")
IMAGES = (0, 1)
#: one picture shows what an export does wrong; eager is compared on both in tests/test_golden_net.py
PARAMETERS = [0, pytest.param(1, marks=pytest.mark.slow)]
#: name in the golden files, NMS variant, where the tail runs
TAILS = (
    ("fast", "fast", "host"),
    pytest.param("fast", "fast", "graph", marks=pytest.mark.slow),  # test_functions.py holds it to the original
    ("cc", "cross-class", "host"),
    pytest.param("cc", "cross-class", "graph", marks=pytest.mark.slow),  # a graph of its own
    ("trad", "traditional", "host"),
)


@dataclass
class Net:
    """A golden file beside an export of the same weights in one runtime; what is run is kept."""

    name: str
    export: Callable[..., Path]
    backend: Callable[..., Backend]
    z: Any = field(init=False)
    facts: dict[str, Any] = field(init=False)
    opened: dict[str, Backend] = field(default_factory=dict)
    done: dict[Any, Outputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with np.load(GOLDEN / f"net_{self.name}.npz") as arrays:
            self.z = dict(arrays)
        self.facts = json.loads((GOLDEN / f"net_{self.name}.json").read_text())

    @cached_property
    def pictures(self) -> list[Any]:
        return [read_image(GOLDEN / f"input{image}.png") for image in IMAGES]

    def open(self, kind: str) -> Backend:
        """ "host": heads, whatever the NMS; "graph-fast" and "graph-cross-class": detections from the graph."""
        if kind not in self.opened:
            options = {"cross_class": True} if kind == "graph-cross-class" else {}
            path = self.export(self.name, input_dtype="float32", **options)
            self.opened[kind] = self.backend(path, tail=kind.partition("-")[0])
        return self.opened[kind]

    def outputs(self, kind: str, image: int) -> Outputs:
        if (kind, image) not in self.done:
            backend = self.open(kind)
            self.done[kind, image] = backend.run(Predictor(backend).preprocess([self.pictures[image]]))
        return self.done[kind, image]

    def detect(self, image: int, nms: str, tail: str, score_threshold: float = 0.0) -> ImageDetections:
        kind = "host" if tail == "host" else f"graph-{nms}"
        settings = DetectSettings(score_threshold, nms)
        return self.open(kind).tail.detect(self.outputs(kind, image), 0, settings)

    def detections(self, image: int, nms: str, tail: str, score_threshold: float) -> Detections:
        kind = "host" if tail == "host" else f"graph-{nms}"
        predictor = Predictor(self.open(kind), score_threshold=score_threshold, nms=nms)
        return predictor.postprocess(self.outputs(kind, image), 0, self.pictures[image].shape)


#: by default in ONNX Runtime, with which test_openvino.py and test_functions.py compare OpenVINO
NETS = [
    pytest.param((name, backend), id=f"{name}-{backend}", marks=pytest.mark.slow if backend == "openvino" else ())
    for name in NAMES
    for backend in BACKENDS
]


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest, export: Callable[..., Path]) -> Iterator[Net]:
    name, backend = request.param
    pytest.importorskip(backend)
    net = Net(name, export, _backend(backend))
    yield net
    for opened in reversed(net.opened.values()):
        opened.close()


def _backend(name: str) -> Callable[..., Backend]:
    if name == "onnxruntime":
        from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend
    from yolact_deploy.runtime.openvino import OpenVinoBackend

    return OpenVinoBackend


def _check(net: Net, name: str, array: Any, atol: float) -> None:
    ok, worst = check_sample(net.z, name, array, atol)
    assert ok, f"{name}: largest difference {worst}"


# -- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", PARAMETERS)
def test_scores(net: Net, image: int) -> None:
    scores = net.outputs("host", image).scores.astype(np.float64)
    conf = np.concatenate([1 - scores.sum(axis=2, keepdims=True), scores], axis=2)  # with the background
    _check(net, f"img{image}.conf", conf, 5e-5)
    best = conf.reshape(-1)[net.z[f"img{image}.conf_top.idx"]]
    np.testing.assert_allclose(best, net.z[f"img{image}.conf_top.val"], atol=5e-5)


@pytest.mark.parametrize("image", PARAMETERS)
def test_coefficients_and_prototypes(net: Net, image: int) -> None:
    heads = net.outputs("host", image)
    assert isinstance(heads, HeadOutputs)
    _check(net, f"img{image}.mask", heads.coeff, 2e-4)
    _check(net, f"img{image}.proto", heads.proto, 5e-4)


@pytest.mark.parametrize("image", PARAMETERS)
def test_boxes(net: Net, image: int) -> None:
    """Encoded again, which magnifies errors by the priors' size, the boxes are the original's regression."""
    boxes = net.outputs("host", image).boxes.astype(np.float64)
    priors = make_priors(get_config(net.name)).astype(np.float64)
    center = ((boxes[..., :2] + boxes[..., 2:]) / 2 - priors[:, :2]) / priors[:, 2:] / VARIANCES[0]
    size = np.log((boxes[..., 2:] - boxes[..., :2]) / priors[:, 2:]) / VARIANCES[1]
    _check(net, f"img{image}.loc", np.concatenate([center, size], axis=2), 2e-4)


# -- detections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "nms", "tail"), TAILS)
@pytest.mark.parametrize("image", PARAMETERS)
def test_detections(net: Net, image: int, key: str, nms: str, tail: str) -> None:
    box, label, score = (net.z[f"img{image}.det.{key}.{part}"] for part in ("box", "class", "score"))
    found = net.detect(image, nms, tail)
    matched, missing, extra = match_detections(box, label, score, found.boxes, found.labels, found.scores, 2e-5, 5e-5)
    assert (matched, missing, extra) == (len(box), [], [])
    assert (np.diff(found.scores) <= 0).all()


def _pairs(net: Net, key: str, found: Detections) -> list[int]:
    """For each golden detection the index of ours, each used once: same class and score, pixel box within 1."""
    free = np.ones(len(found), dtype=bool)
    pairs = []
    for box, label, score in zip(*(net.z[f"{key}.{part}"] for part in ("box", "class", "score")), strict=True):
        same = free & (found.labels == label) & (np.abs(found.scores - score) <= 5e-5)
        same &= np.abs(found.pixel_boxes - box).max(axis=1) <= 1
        assert same.any(), f"{key}: nothing of class {label} and score {score} at {box}"
        pairs.append(int(np.flatnonzero(same)[0]))
        free[pairs[-1]] = False
    return pairs


def _close_areas(found: Any, expected: Any) -> None:
    assert (np.abs(found - expected) <= np.maximum(10, 0.01 * expected)).all(), np.abs(found - expected).max()


def _check_masks(masks: Any, rles: Any) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    compared = 0
    for mask, rle in zip(masks, rles, strict=True):
        expected = coco.decode(rle).astype(bool)
        if expected.sum() > 100:
            compared += 1
            assert (mask & expected).sum() / (mask | expected).sum() >= 0.99
    assert compared > 5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
@pytest.mark.parametrize(("key", "nms", "tail"), TAILS)
@pytest.mark.parametrize("image", PARAMETERS)
def test_masks_in_the_image(net: Net, image: int, key: str, nms: str, tail: str) -> None:
    name = f"img{image}.post.{key}"
    found = net.detections(image, nms, tail, 0.15)
    assert len(found) == len(net.z[f"{name}.box"])
    pairs = _pairs(net, name, found)
    _close_areas(found.areas()[pairs], net.z[f"{name}.area"])
    _check_masks(found.masks[pairs], net.facts["images"][image]["variants"][key]["rle"])
    assert (found.mask_scores is not None) == (f"{name}.mask_score" in net.z)
    if found.mask_scores is not None:
        np.testing.assert_allclose(found.mask_scores[pairs], net.z[f"{name}.mask_score"], atol=5e-5)


@pytest.mark.parametrize("tail", few(["host", "graph"], 0))
@pytest.mark.parametrize("image", PARAMETERS)
def test_all_masks(net: Net, image: int, tail: str) -> None:
    name = f"img{image}.post_thr0.fast"
    found = net.detections(image, "fast", tail, 0.0)
    assert len(found) == len(net.z[f"{name}.box"])
    pairs = _pairs(net, name, found)
    _close_areas(found.areas()[pairs], net.z[f"{name}.area"])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
@pytest.mark.slow  # of both pictures
@pytest.mark.parametrize("tail", ["host", "graph"])
def test_coco_results(net: Net, tail: str) -> None:
    path = GOLDEN / f"coco_json_{net.name}.json"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    golden = json.loads(path.read_text())
    ids = get_config(net.name).category_ids
    results: list[Any] = []
    for image in IMAGES:
        results += net.detections(image, "fast", tail, 0.15).to_coco(image, ids)
    assert len(results) == len(golden["bbox"]) == len(golden["mask"])
    boxes = np.array([result["bbox"] for result in results])
    order = []
    for box, mask in zip(golden["bbox"], golden["mask"], strict=True):
        assert all(box[part] == mask[part] for part in ("image_id", "category_id"))
        same = [
            index
            for index, result in enumerate(results)
            if index not in order
            and all(result[part] == box[part] for part in ("image_id", "category_id"))
            and abs(score_of(result, "bbox") - box["score"]) <= 5e-5
            and abs(score_of(result, "segm") - mask["score"]) <= 5e-5
            and np.abs(_corners(boxes[index]) - _corners(np.array(box["bbox"]))).max() <= 1.01  # cut to whole pixels
        ]
        assert same, f"nothing like {box}"
        order.append(same[0])
    coco = pytest.importorskip("pycocotools.mask")
    masks = [coco.decode(results[index]["segmentation"]).astype(bool) for index in order]
    _check_masks(masks, [mask["segmentation"] for mask in golden["mask"]])


def _corners(bbox: Any) -> Any:
    """x, y, width, height to xyxy."""
    return np.concatenate([bbox[..., :2], bbox[..., :2] + bbox[..., 2:]], axis=-1)
