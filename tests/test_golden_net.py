"""The whole network compared with the original, for every golden file of a network or its tensor names.

Further files in tests/golden are picked up automatically.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
from deterministic import GOLDEN, deterministic_state, golden_networks
from few import few
from goldencheck import check_sample, match_detections

from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.priors import make_priors

torch = pytest.importorskip("torch")

from torch.nn.functional import interpolate

from yolact_deploy.model import RawHeads, YolactModel, fuse_batch_norm
from yolact_deploy.model import torch_ops as ops

pytestmark = pytest.mark.golden

VARIANTS = {"fast": "fast", "cc": "cross-class", "trad": "traditional"}
IMAGES = (0, 1)


def _names(kind: str, suffix: str) -> list[str]:
    return sorted(path.stem.removeprefix(f"{kind}_") for path in GOLDEN.glob(f"{kind}_*{suffix}"))


@pytest.mark.parametrize("name", _names("keys", ".json"))
def test_tensor_names_and_shapes(name: str) -> None:
    config = get_config(name)
    with torch.device("meta"):
        model = YolactModel(config)
    detectedrs = [[key, list(value.shape), str(value.dtype)[6:]] for key, value in model.state_dict().items()]
    assert detectedrs == json.loads((GOLDEN / f"keys_{name}.json").read_text())


@dataclass
class Net:
    """A golden file, and the outputs of our model for the same weights and images."""

    config: YolactConfig
    z: Any
    facts: dict[str, Any]
    model: Any
    inputs: list[Any]
    raw: list[RawHeads]
    stages: list[list[Any]]
    levels: list[tuple[Any, ...]]
    semantic: list[Any]

    def detect(self, image: int, variant: str) -> Any:
        config = self.config
        loc, logits, coeff, _ = (value[0] for value in self.raw[image])
        return ops.detect(
            ops.decode_boxes(loc, self.model.priors),
            logits.softmax(-1)[:, 1:],
            coeff,
            score_threshold=config.nms_score_threshold,
            iou_threshold=config.iou_threshold,
            top_k=config.top_k,
            max_detections=config.max_detections,
            nms=VARIANTS[variant],
            image_size=config.image_size,
        )


def _preprocess(image: int, config: YolactConfig) -> Any:
    bgr = cv2.imread(str(GOLDEN / f"input{image}.png"))
    x = torch.from_numpy(bgr).permute(2, 0, 1)[None].float()
    x = interpolate(x, config.input_shape, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.pixel_mean, config.pixel_std))
    return ((x - mean) / std).flip(1)


@pytest.fixture(scope="module", params=golden_networks())
def net(request: pytest.FixtureRequest) -> Net:
    name = request.param
    config = get_config(name)
    model = YolactModel(config).eval()
    model.load_state_dict(deterministic_state(name))
    stages: list[list[Any]] = []
    for stage in model.backbone.layers:
        stage.register_forward_hook(lambda module, args, output: stages[-1].append(output.clone()))
    raw, levels, semantic, inputs = [], [], [], [_preprocess(i, config) for i in IMAGES]
    with torch.inference_mode():
        for image in inputs:
            stages.append([])
            levels.append(model.features(image))
            raw.append(model.predict(levels[-1]))
            semantic.append(model.semantic_seg_conv(levels[-1][0]))
    facts = json.loads((GOLDEN / f"net_{name}.json").read_text())
    with np.load(GOLDEN / f"net_{name}.npz") as arrays:
        golden = dict(arrays)
    return Net(config, golden, facts, model, inputs, raw, stages, levels, semantic)


def _check(net: Net, name: str, tensor: Any, atol: float) -> None:
    ok, worst = check_sample(net.z, name, tensor.numpy(), atol)
    assert ok, f"{name}: largest difference {worst}"


def test_parameters(net: Net) -> None:
    assert sum(p.numel() for p in net.model.parameters()) == net.facts["num_params"]


def test_priors_are_the_same_bytes(net: Net) -> None:
    priors = make_priors(net.config)
    np.testing.assert_array_equal(priors, net.z["priors"])
    assert hashlib.sha256(priors.astype("<f4").tobytes()).hexdigest() == net.facts["priors"]["sha256_float32"]
    np.testing.assert_array_equal(net.model.priors.numpy(), priors)
    assert [list(size) for size in net.z["fpn.sizes"]] == [[side, side] for side in net.config.level_sizes]


@pytest.mark.parametrize("image", few(IMAGES, 0))
def test_input(net: Net, image: int) -> None:
    _check(net, f"img{image}.pre.fast", net.inputs[image], 1e-4)


@pytest.mark.parametrize("image", IMAGES)
def test_features(net: Net, image: int) -> None:
    for kind, tensors in (("backbone", net.stages[image]), ("fpn", net.levels[image])):
        for k, tensor in enumerate(tensors):
            if f"img{image}.{kind}.{k}.shape" in net.z:
                _check(net, f"img{image}.{kind}.{k}", tensor, 5e-4)
    _check(net, f"img{image}.segm", net.semantic[image], 5e-4)


@pytest.mark.parametrize("image", IMAGES)
def test_heads(net: Net, image: int) -> None:
    raw = net.raw[image]
    _check(net, f"img{image}.loc", raw.loc, 2e-4)
    _check(net, f"img{image}.conf_logits", raw.logits, 2e-4)
    _check(net, f"img{image}.conf", raw.logits.softmax(-1), 5e-5)
    _check(net, f"img{image}.mask", raw.coeff, 2e-4)
    _check(net, f"img{image}.proto", raw.proto, 5e-4)


@pytest.mark.parametrize("image", IMAGES)
def test_best_scores(net: Net, image: int) -> None:
    scores = net.raw[image].logits[0].softmax(-1)
    best = scores.flatten()[torch.from_numpy(net.z[f"img{image}.conf_top.idx"])]
    np.testing.assert_allclose(best.numpy(), net.z[f"img{image}.conf_top.val"], atol=5e-5)
    over = int((scores[:, 1:].amax(1) > 0.05).sum())
    assert abs(over - int(net.z[f"img{image}.n_prior_over_0.05"][0])) <= 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("image", few(IMAGES, 0))
def test_detections(net: Net, image: int, variant: str) -> None:
    key = f"img{image}.det.{variant}"
    box, label, score, coeff = (net.z[f"{key}.{field}"] for field in ("box", "class", "score", "mask"))
    detected = net.detect(image, variant)
    matched, missing, extra = match_detections(
        box, label, score, detected.boxes.numpy(), detected.labels.numpy(), detected.scores.numpy(), 2e-5, 5e-5
    )
    assert (matched, missing, extra) == (len(box), [], [])
    pairs = _pairs(box, label, score, our_boxes=detected.boxes, detected=detected)
    np.testing.assert_allclose(detected.coeff[pairs].numpy(), coeff, atol=2e-4)


def _pairs(box: Any, label: Any, score: Any, *, our_boxes: Any, detected: Any, box_tol: float = 2e-5) -> list[int]:
    """The index of our detection for each golden one; each is used once."""
    free = set(range(len(our_boxes)))
    pairs = []
    for b, c, s in zip(box, label, score, strict=True):
        distance = (our_boxes.double() - torch.from_numpy(b)).abs().amax(1)
        same = (detected.labels == int(c)) & ((detected.scores - float(s)).abs() <= 5e-5) & (distance <= box_tol)
        index = next(i for i in same.nonzero()[:, 0].tolist() if i in free)
        free.remove(index)
        pairs.append(index)
    return pairs


def _close_areas(areasted: Any, expected: Any) -> None:
    assert (np.abs(areasted - expected) <= np.maximum(10, 0.01 * expected)).all(), np.abs(areasted - expected).max()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("image", few(IMAGES, 0))
def test_masks_in_the_image(net: Net, image: int, variant: str) -> None:
    key, threshold = f"img{image}.post.{variant}", 0.15
    facts = net.facts["images"][image]
    detected = net.detect(image, variant)
    detected = detected._replace(boxes=ops.pixel_boxes(detected.boxes, facts["h"], facts["w"]))
    assert int((detected.scores > threshold).sum()) == len(net.z[f"{key}.box"])
    golden = [net.z[f"{key}.{field}"] for field in ("box", "class", "score")]
    pairs = _pairs(*golden, our_boxes=detected.boxes, detected=detected, box_tol=1)
    masks = _image_masks(net, image, variant, crop=True)[pairs]
    _close_areas(masks.sum((1, 2)), net.z[f"{key}.area"])
    coco = pytest.importorskip("pycocotools.mask")
    for mask, rle in zip(masks, facts["variants"][variant]["rle"], strict=True):
        expected = coco.decode(rle).astype(bool)
        if expected.sum() > 100:
            assert (mask & expected).sum() / (mask | expected).sum() >= 0.99


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("image", IMAGES)
def test_mask_scores(net: Net, image: int, variant: str) -> None:
    key = f"img{image}.post.{variant}"
    assert (f"{key}.mask_score" in net.z) == net.config.mask_iou
    if not net.config.mask_iou:
        pytest.skip("its masks have no scores of their own")
    detected = net.detect(image, variant)
    masks = ops.assemble_masks(net.raw[image].proto[0], detected.coeff, detected.boxes)
    with torch.inference_mode():
        mask_scores = ops.rescore_masks(net.model.maskiou_net, masks, detected.scores, detected.labels)
    facts = net.facts["images"][image]
    detected = detected._replace(boxes=ops.pixel_boxes(detected.boxes, facts["h"], facts["w"]))
    golden = [net.z[f"{key}.{field}"] for field in ("box", "class", "score")]
    pairs = _pairs(*golden, our_boxes=detected.boxes, detected=detected, box_tol=1)
    np.testing.assert_allclose(mask_scores[pairs].numpy(), net.z[f"{key}.mask_score"], atol=5e-5)


@pytest.mark.parametrize(("key", "threshold", "crop"), [("post_thr0", 0.0, True), ("post_nocrop", 0.15, False)])
@pytest.mark.parametrize("image", IMAGES)
def test_mask_areas(net: Net, image: int, key: str, threshold: float, crop: bool) -> None:
    detected = net.detect(image, "fast")
    keep = (detected.scores > threshold).numpy()
    areas = _image_masks(net, image, "fast", crop).sum((1, 2))[keep]
    expected = net.z[f"img{image}.{key}.fast.area"]
    assert len(areas) == len(expected)
    _close_areas(np.sort(areas), np.sort(expected))


def _image_masks(net: Net, image: int, variant: str, crop: bool) -> Any:
    facts = net.facts["images"][image]
    detected = net.detect(image, variant)
    masks = ops.assemble_masks(net.raw[image].proto[0], detected.coeff, detected.boxes if crop else None)
    return ops.paste_masks_full(masks, facts["h"], facts["w"]).numpy()


@pytest.mark.slow
def test_fused_model_gives_the_same(net: Net) -> None:
    fused = fuse_batch_norm(net.model)
    with torch.inference_mode():
        raw = fused.heads(net.inputs[0])
    for field, tensor, atol in zip(raw._fields, raw, (2e-4, 2e-4, 2e-4, 5e-4), strict=True):
        torch.testing.assert_close(tensor, getattr(net.raw[0], field), atol=atol, rtol=1e-4)
