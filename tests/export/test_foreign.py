"""Networks of mmdetection, YolactEdge and Yolact_minimal against their own numbers, for every file in golden/foreign.

Eager, and exported in ONNX Runtime and OpenVINO: FP32 with float32 input, so that nothing but the runtime is between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
from goldencheck import check_sample, match_detections

torch = pytest.importorskip("torch")

from yolact_deploy.detections import Detections
from yolact_deploy.model.checkpoint import load_model
from yolact_deploy.priors import make_priors
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import HeadOutputs, Outputs

pytestmark = [
    pytest.mark.golden,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools with NumPy 2
]

VARIANTS = {"fast": "fast", "cc": "cross-class", "trad": "traditional"}
#: by default eager only: exports of the original's networks are held to its numbers in test_golden_onnx.py
RUNNERS = ("eager", "onnxruntime", "openvino")
#: network, runner, picture
RUNS = [
    pytest.param(name, runner, image, id=f"{name}-{runner}-{image}", marks=[] if default else [pytest.mark.slow])
    for name in foreign.NETS
    for runner in RUNNERS
    for image in foreign.IMAGES
    for default in [(runner, image) == ("eager", foreign.IMAGES[0])]
]
#: one picture shows what a network does wrong
PICTURES = [foreign.IMAGES[0], *(pytest.param(image, marks=pytest.mark.slow) for image in foreign.IMAGES[1:])]


@dataclass
class Net:
    """A golden file and our model of the same weights, with what it was run for."""

    name: str
    folder: Path
    backends: dict[str, Backend] = field(default_factory=dict)
    done: dict[Any, Outputs] = field(default_factory=dict)
    forward: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    @cached_property
    def model(self) -> Any:
        return load_model(foreign.write_checkpoint(self.folder / f"{self.name}.pth", self.name))

    @cached_property
    def z(self) -> Any:
        with np.load(foreign.FOREIGN / f"net_{self.name}.npz") as arrays:
            return dict(arrays)

    @cached_property
    def inputs(self) -> list[Any]:
        return [foreign.golden_input(self.name, image, self.model.config) for image in foreign.IMAGES]

    def eager(self, image: int) -> tuple[Any, Any]:
        """Levels of the pyramid, and the heads on them."""
        if image not in self.forward:
            pixels = torch.from_numpy(foreign.trunk_input(self.inputs[image], self.model.config))
            with torch.inference_mode():
                levels = self.model.features(pixels)
                self.forward[image] = levels, self.model.predict(levels)
        return self.forward[image]

    @cached_property
    def exported(self) -> Path:
        pytest.importorskip("onnxscript")
        from yolact_deploy.export.onnx import export_onnx
        from yolact_deploy.export.spec import ExportSpec

        path = self.folder / f"{self.name}.onnx"
        export_onnx(self.model, path, ExportSpec(input_dtype="float32"))
        return path

    def backend(self, runner: str, tail: str) -> Backend:
        key = f"{runner}-{tail}"
        if key not in self.backends:
            self.backends[key] = self._open(runner, tail)
        return self.backends[key]

    def _open(self, runner: str, tail: str) -> Backend:
        if runner == "eager":
            from yolact_deploy.runtime.torch.torch_backend import TorchBackend

            return TorchBackend(self.model)
        pytest.importorskip(runner)
        if runner == "openvino":
            from yolact_deploy.runtime.openvino import OpenVinoBackend

            return OpenVinoBackend(self.exported, tail=tail)
        from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(self.exported, tail=tail)

    def outputs(self, runner: str, tail: str, image: int) -> Outputs:
        key = runner, tail, image
        if key not in self.done:
            self.done[key] = self.backend(runner, tail).run(self.inputs[image])
        return self.done[key]

    def detections(self, runner: str, tail: str, image: int, nms: str, threshold: float = 0.0) -> Detections:
        predictor = Predictor(self.backend(runner, tail), score_threshold=threshold, nms=nms)
        outputs = self.outputs(runner, tail, image)
        return predictor.postprocess(outputs, 0, foreign.picture(image).shape)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Net]]:
    """Each network, loaded once: a module's fixture with parameters would be set up again whenever they change."""
    nets = {name: Net(name, tmp_path_factory.mktemp("foreign")) for name in foreign.NETS}
    yield nets
    for net in nets.values():
        for opened in reversed(net.backends.values()):
            opened.close()


@pytest.fixture(params=foreign.NETS)
def net(request: pytest.FixtureRequest, nets: dict[str, Net]) -> Net:
    return nets[request.param]


def check(net: Net, name: str, array: Any, atol: float) -> None:
    ok, worst = check_sample(net.z, name, np.asarray(array), atol)
    assert ok, f"{name}: largest difference {worst}"


# -- the network ----------------------------------------------------------------------------------------------------


def test_foreign_parameters_and_priors(net: Net) -> None:
    facts, config = foreign.facts(net.name), net.model.config
    used = dict(net.model.named_parameters())
    extra = sum(int(np.prod(s)) for k, s, *_ in foreign.keys(net.name) if unused(k) and k.endswith(("weight", "bias")))
    assert sum(value.numel() for value in used.values()) + extra == facts["num_params"]
    priors, golden = make_priors(config), net.z["priors"]
    if foreign.family(net.name) == "mmdet":
        corners = np.concatenate([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], axis=1)
        np.testing.assert_allclose(corners * config.image_size, golden, atol=1e-4)
        return
    np.testing.assert_allclose(priors, golden, rtol=1e-6)
    if foreign.family(net.name) == "yolact_edge":
        assert hashlib.sha256(priors.astype("<f4").tobytes()).hexdigest() == facts["priors"]["sha256_float32"]


def unused(key: str) -> bool:
    return key.startswith(("backbone.layers.8.", "flow_net", "spa.", "partial_backbone."))


@pytest.mark.parametrize("image", PICTURES)
def test_foreign_input(net: Net, image: int) -> None:
    check(net, f"img{image}.pre", foreign.trunk_input(net.inputs[image], net.model.config), 1e-4)


@pytest.mark.parametrize("image", PICTURES)
def test_foreign_raw_heads(net: Net, image: int) -> None:
    _, raw = net.eager(image)
    check(net, f"img{image}.loc", raw.loc, 2e-4)
    check(net, f"img{image}.conf_logits", foreign.theirs(net.name, raw.logits.numpy()), 2e-4)
    check(net, f"img{image}.mask", raw.coeff, 2e-4)
    check(net, f"img{image}.proto", raw.proto, 5e-4)


@pytest.mark.parametrize("image", PICTURES)
def test_foreign_pyramid_and_semantic_branch(net: Net, image: int) -> None:
    levels, _ = net.eager(image)
    with torch.inference_mode():
        semantic = net.model.semantic_seg_conv(levels[0])
    for number, level in enumerate(levels):
        check(net, f"img{image}.fpn.{number}", level, 5e-4)
    if foreign.family(net.name) == "mmdet":  # rolled for fine-tuning
        semantic = torch.roll(semantic, -1, dims=1)
    check(net, f"img{image}.segm", semantic, 5e-4)


@pytest.mark.parametrize(("net", "runner", "image"), RUNS, indirect=["net"])
def test_foreign_heads(net: Net, image: int, runner: str) -> None:
    heads = net.outputs(runner, "host", image)
    assert isinstance(heads, HeadOutputs)
    scores = heads.scores.astype(np.float64)
    conf = foreign.theirs(net.name, np.concatenate([1 - scores.sum(axis=2, keepdims=True), scores], axis=2))
    check(net, f"img{image}.conf", conf, 5e-5)
    best = conf.reshape(-1)[net.z[f"img{image}.conf_top.idx"]]
    np.testing.assert_allclose(best, net.z[f"img{image}.conf_top.val"], atol=5e-5)
    over = int((heads.scores[0].max(axis=1) > 0.05).sum())
    assert abs(over - int(net.z[f"img{image}.n_prior_over_0.05"][0])) <= 1
    check(net, f"img{image}.mask", heads.coeff, 2e-4)
    check(net, f"img{image}.proto", heads.proto, 5e-4)


# -- detections -----------------------------------------------------------------------------------------------------


def _runs(net: Net, runner: str, image: int, variant: str) -> Iterator[tuple[str, Any]]:
    """Each place where the tail runs: its name and detections."""
    from yolact_deploy.runtime.tails import DetectSettings

    if f"img{image}.det.{variant}.box" not in net.z:
        pytest.skip(f"{net.name} has no variant {variant}")
    for tail in ("host", "graph") if runner != "eager" and variant == "fast" else ("host",):
        outputs = net.outputs(runner, tail, image)
        yield tail, net.backend(runner, tail).tail.detect(outputs, 0, DetectSettings(0.0, VARIANTS[variant]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("net", "runner", "image"), RUNS, indirect=["net"])
def test_foreign_detections(net: Net, image: int, runner: str, variant: str) -> None:
    for tail, found in _runs(net, runner, image, variant):
        key = f"img{image}.det.{variant}"
        box, label, score = (net.z[f"{key}.{part}"] for part in ("box", "class", "score"))
        box = foreign.golden_boxes(net.name, box, net.model.config)
        ours = match_detections(box, label, score, found.boxes, found.labels, found.scores, 2e-5, 5e-5)
        assert ours == (len(box), [], []), tail


@pytest.mark.parametrize(("net", "runner", "image"), RUNS, indirect=["net"])
def test_foreign_masks_in_the_picture(net: Net, image: int, runner: str) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    facts = foreign.facts(net.name)["images"][image]
    box, label, score = (net.z[f"img{image}.post.fast.{part}"] for part in ("box", "class", "score"))
    box = np.clip(box, 0, [facts["w"], facts["h"]] * 2)  # Yolact_minimal leaves them outside
    rle, compared = facts["variants"]["fast"]["rle"], 0
    for tail in ("host", "graph") if runner != "eager" else ("host",):
        found = net.detections(runner, tail, image, "fast")
        assert len(found) == len(box)
        masks, free = found.masks, np.ones(len(found), bool)
        for b, c, s, encoded in zip(box, label, score, rle, strict=True):
            same = free & (found.labels == c) & (np.abs(found.scores - s) <= 5e-5)
            same &= np.abs(found.pixel_boxes - b).max(axis=1) <= 1.02
            assert same.any(), f"nothing of class {c} and score {s} at {b}"
            free[np.flatnonzero(same)[0]] = False
            expected = coco.decode(encoded).astype(bool)
            if expected.sum() > 100:
                compared += 1
                mask = masks[np.flatnonzero(same)[0]]
                assert (mask & expected).sum() / (mask | expected).sum() >= 0.99
    assert compared > 5


# -- other precisions -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", foreign.NETS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_foreign_in_other_precisions(name: str, precision: str, tmp_path: Path) -> None:
    """The file passes the comparison of every export: trunk, functions, and the noise of each activation in INT8."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from yolact_deploy.export.pipeline import export_model
    from yolact_deploy.export.spec import ExportSpec

    model = load_model(foreign.write_checkpoint(tmp_path / f"{name}.pth", name), image_size=256)
    pictures = [foreign.FOREIGN.parent / f"input{image}.png" for image in foreign.IMAGES]
    spec = ExportSpec(precision=precision, calibration=pictures if precision == "int8" else None)
    done = export_model(model, tmp_path / "model.onnx", spec, check_images=pictures)
    assert done.parity.failures == []
    assert done.metadata.config == model.config
    assert done.metadata.precision == precision
