from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deterministic import deterministic_state
from few import few
from lossinputs import ellipse_masks, predictions

from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.errors import ConfigError, InputError
from yolact_deploy.priors import make_priors as config_priors

torch = pytest.importorskip("torch")

import scenes
from plain_loss import plain_losses
from torch import distributed

from yolact_deploy.model.mask_iou_net import MaskIouNet
from yolact_deploy.training import LossSettings, YolactLoss, YolactModel, mask_losses
from yolact_deploy.training.mask_losses import sample_positives
from yolact_deploy.training.matching import Match
from yolact_deploy.training.targets import GroundTruth

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = torch.device("cpu")
TERMS = ["box", "class", "mask", "semantic"]
PREDICTIONS = {"boxes": "loc", "scores": "conf", "masks": "mask", "proto_masks": "proto", "semantic_masks": "segm"}


def _scene(seed: int, counts: Any = ((3, 0), (5, 1), (1, 2), (0, 0)), priors: int = 90) -> tuple[Any, Any]:
    """Outputs (float64) and images with these objects and crowds."""
    rng = np.random.default_rng(seed)
    images = [scenes.make_image(rng, *count) for count in counts]
    return scenes.make_outputs(rng, len(images), scenes.make_priors(rng, priors)), images


def _targets(images: Any) -> list[Any]:
    return [scenes.target(image) for image in images]


def _crowded(seed: int = 0, priors: int = 900) -> tuple[Any, Any]:
    """A scene in which all priors are positive: they lie around the only object of the image."""
    outputs, images = _scene(seed, [(1, 0)], priors)
    images[0]["boxes"] = np.array([[12, 12, 36, 36]], np.float32) / scenes.SIZE
    images[0]["masks"] = torch.from_numpy(ellipse_masks(images[0]["boxes"], scenes.SIZE))
    jitter = torch.rand((priors, 4), generator=torch.Generator().manual_seed(seed)) * 0.02
    outputs["prior_boxes"] = torch.tensor([0.5, 0.5, 0.5, 0.5]) + jitter
    return outputs, images


def _gradients(outputs: Any, losses: Any) -> dict[str, Any]:
    for value in outputs.values():
        value.grad = None
    sum(losses.values()).backward()
    leaves = {key: value for key, value in outputs.items() if value.requires_grad}
    return {key: torch.zeros_like(value) if value.grad is None else value.grad for key, value in leaves.items()}


def _assert_same(ours: Any, plain: Any, our_losses: Any, plain_terms: Any) -> None:
    assert list(our_losses) == [key for key in (*TERMS[:3], "mask_iou", "semantic") if key in plain_terms]
    for key, value in our_losses.items():
        torch.testing.assert_close(value.double(), plain_terms[key], rtol=2e-5, atol=1e-6, msg=key)
    theirs = _gradients(plain, plain_terms)
    for key, grad in _gradients(ours, our_losses).items():
        torch.testing.assert_close(grad.double(), theirs[key], rtol=1e-4, atol=1e-7, msg=key)


# -- the original ---------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("loss_case*.npz")), ids=lambda path: path.stem)
def test_golden_losses_and_gradients(path: Path) -> None:
    described = json.loads(path.with_suffix(".json").read_text())
    flags, want = described["flags"], described["results"]["losses"]
    with np.load(path) as file:
        golden = dict(file)
    config = get_config(str(golden["config"]))
    arrays = predictions(
        int(golden["pred_seed"][0]), len(golden["conf_t"]), config.num_priors, flags["num_classes"],
        proto_hw=tuple(golden["proto_hw"]), segm_hw=tuple(golden["segm_hw"]),
    )  # fmt: skip
    outputs = {key: torch.from_numpy(arrays[name]).requires_grad_() for key, name in PREDICTIONS.items()}
    outputs["prior_boxes"] = torch.from_numpy(config_priors(config).copy())
    size = int(golden["img_size"][0])
    settings = LossSettings(
        positive_iou=flags["positive_iou_threshold"],
        negative_iou=flags["negative_iou_threshold"],
        crowd_iou=flags["crowd_iou_threshold"],
        negatives_per_positive=flags["ohem_negpos_ratio"],
        max_masks=flags["masks_to_train"],
        box_weight=flags["bbox_alpha"],
        class_weight=flags["conf_alpha"],
        mask_weight=flags["mask_alpha"],
        semantic_weight=flags["semantic_segmentation_alpha"],
        mask_iou_weight=flags["maskiou_alpha"],
        min_mask_area=max(flags["discard_mask_area"], 0),
    )
    assert config.mask_iou == flags["use_maskiou"]
    network = {"mask_iou_net": _golden_mask_iou_net(config.name)} if config.mask_iou else {}
    losses = YolactLoss(settings)(
        outputs | network, [_golden_target(golden[f"targets.{i}"], size) for i in range(len(golden["conf_t"]))]
    )
    for key, letter in zip(TERMS, "BCMS", strict=True):
        np.testing.assert_allclose(losses[key].item(), want[letter], rtol=1e-4, err_msg=key)
    assert ("mask_iou" in losses) == ("I" in want)
    if network:
        np.testing.assert_allclose(losses["mask_iou"].item(), want["I"], rtol=1e-4)
    for key, grad in _gradients(outputs, losses).items():
        name = f"grad.{PREDICTIONS[key]}"
        norm = golden[f"{name}.norm"][0]
        np.testing.assert_allclose(grad.double().norm(), norm, rtol=1e-3, err_msg=key)
        np.testing.assert_allclose(
            grad.flatten()[golden[f"{name}.idx"]], golden[f"{name}.val"], rtol=1e-3, atol=1e-6 * norm, err_msg=key
        )


def _golden_mask_iou_net(name: str) -> MaskIouNet:
    state, prefix = deterministic_state(name), "maskiou_net."
    network = MaskIouNet(get_config(name).num_classes)
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return network


def _golden_target(objects: Any, size: int) -> dict[str, Any]:
    boxes = objects[:, :4]
    return {
        "boxes": torch.from_numpy((boxes.astype(np.float64) * size).astype(np.float32)),
        "labels": torch.from_numpy(objects[:, 4]).long(),
        "iscrowd": torch.from_numpy(objects[:, 4] < 0),
        "masks": torch.from_numpy(ellipse_masks(boxes, size)),
        "width": size,
        "height": size,
    }


# -- plain loops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", few(range(6), 0, 1, 2))
@pytest.mark.parametrize("look", [True, False], ids=["cpu", "device"])
def test_against_plain_loops(seed: int, look: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Off the CPU all slots are computed, used or not, in groups of images.
    monkeypatch.setattr(mask_losses, "_groups", _with(mask_losses._groups, look))
    monkeypatch.setattr(mask_losses, "_PIXELS_AT_ONCE", 3 * 90 * scenes.SIDE**2)
    outputs, images = _scene(seed)
    ours = scenes.single(outputs)
    _assert_same(ours, outputs, YolactLoss()(ours, _targets(images)), plain_losses(outputs, images))


def _with(groups: Any, look: bool) -> Any:
    return lambda used, pixels, **_: groups(used, pixels, look=look)


@pytest.mark.parametrize("counts", [[(0, 0), (2, 0)], [(0, 2), (2, 1)], [(0, 0)], [(0, 0), (0, 3)]])
def test_images_without_objects_or_with_crowds_only(counts: Any) -> None:
    outputs, images = _scene(11, counts)
    ours = scenes.single(outputs)
    losses = YolactLoss()(ours, _targets(images))
    _assert_same(ours, outputs, losses, plain_losses(outputs, images))
    if not any(objects for objects, _ in counts):
        assert [losses[key].item() for key in TERMS[:3]] == [0, 0, 0]
        assert losses["semantic"].item() > 0


@pytest.mark.parametrize("limit", few([100, 300], 0))
def test_more_positives_than_the_limit(limit: int) -> None:
    outputs, images = _crowded()
    ours, targets = scenes.single(outputs), _targets(images)
    settings = LossSettings(max_masks=limit)
    truth = GroundTruth.of(targets, scenes.CLASSES, CPU)
    match = YolactLoss().match(truth, outputs["prior_boxes"])
    assert (match.labels > 0).all()
    drawn = sample_positives(truth, match, limit, step=3).priors.tolist()
    assert len(set(drawn[0])) == limit
    losses = YolactLoss(settings)(ours, targets, step=3)
    _assert_same(ours, outputs, losses, plain_losses(outputs, images, drawn, max_masks=limit))


def test_the_limits_of_the_original() -> None:
    assert LossSettings.of(get_config("yolact_im700")).max_masks == 300
    assert LossSettings.of(get_config("yolact_base")) == LossSettings()


@pytest.mark.parametrize("look", [True, False], ids=["cpu", "device"])
def test_mask_iou_term(look: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_losses, "_groups", _with(mask_losses._groups, look))
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(6, scenes.CLASSES, 3, stride=2),
        torch.nn.ReLU(), torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(),
    ).double()  # fmt: skip
    outputs, images = _scene(2)
    theirs = plain_losses(outputs, images, mask_iou_net=network)
    ours = scenes.single(outputs)
    losses = YolactLoss()(ours | {"mask_iou_net": lambda masks: network(masks.double())}, _targets(images))
    assert losses["mask_iou"].item() > 0
    _assert_same(ours, outputs, losses, theirs)


def test_the_mask_iou_network_takes_part_without_objects() -> None:
    network = torch.nn.Conv2d(1, scenes.CLASSES, scenes.SIDE)
    outputs, images = _scene(0, [(0, 0)])
    losses = YolactLoss()(scenes.single(outputs) | {"mask_iou_net": lambda x: network(x).flatten(1)}, _targets(images))
    assert losses["mask_iou"].item() == 0
    sum(losses.values()).backward()
    assert network.weight.grad.abs().sum() == 0


# -- the draw of positives ------------------------------------------------------------------------------------------


def _draw(images: Any, priors: Any, limit: int, step: int) -> list[list[int]]:
    truth = GroundTruth.of(_targets(images), scenes.CLASSES, CPU)
    labels = torch.ones((len(images), len(priors)), dtype=torch.int64)
    labels[:, ::2] = 0
    found: list[list[int]] = sample_positives(truth, Match(labels, labels), limit, step).priors.tolist()
    return found


def test_the_draw_depends_on_image_and_step_alone() -> None:
    outputs, images = _scene(3)
    priors = outputs["prior_boxes"]
    together = _draw(images, priors, 20, step=7)
    assert [_draw([image], priors, 20, step=7)[0] for image in images] == together
    assert _draw(images, priors, 20, step=7) == together
    assert all(a != b for a, b in zip(_draw(images, priors, 20, step=8), together, strict=True))
    assert len({tuple(row) for row in together}) == len(images)


def test_the_draw_is_even() -> None:
    outputs, images = _scene(3, [(3, 0)])
    priors, steps, limit = outputs["prior_boxes"], 400, 9
    times = np.zeros(len(priors))
    for step in range(steps):
        times[_draw(images, priors, limit, step)[0]] += 1
    positives = times[1::2]
    assert times[::2].sum() == 0
    expected = steps * limit / len(positives)
    chance = ((positives - expected) ** 2 / expected).sum()  # chi-squared with 44 degrees of freedom, 95 % below 61
    assert chance < 75


# -- precision, and values that are not finite ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_large_values(dtype: Any) -> None:
    outputs, images = _scene(4)
    ours = {
        key: value if key == "prior_boxes" else value.detach() * (1 if key == "masks" else 1e4)
        for key, value in outputs.items()
    }
    ours = scenes.single(ours, dtype)
    assert ours["scores"].abs().max() > 3e4
    with torch.autocast("cpu", dtype=dtype):
        losses = YolactLoss()(ours, _targets(images))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    wide = scenes.single(ours)
    torch.testing.assert_close(losses, YolactLoss()(wide, _targets(images)))
    wanted = _gradients(wide, YolactLoss()(wide, _targets(images)))
    for key, grad in _gradients(ours, losses).items():
        assert grad.isfinite().all()
        torch.testing.assert_close(grad, wanted[key].to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", list(PREDICTIONS))
def test_values_that_are_not_finite(key: str, value: float) -> None:
    outputs, images = _scene(5)
    labels = YolactLoss().match(GroundTruth.of(_targets(images), scenes.CLASSES, CPU), outputs["prior_boxes"]).labels
    for prior in (int(labels[0].argmax()), int(labels[0].argmin())):  # a positive, and one of which no loss looks
        ours = {name: tensor.detach().clone() for name, tensor in scenes.single(outputs).items()}
        if key in ("boxes", "scores", "masks"):
            ours[key][0, prior] = value
        else:
            ours[key][0, 0, 0] = value
        losses = YolactLoss()(scenes.single(ours), _targets(images))
        assert not sum(losses.values()).isfinite()


def test_boxes_that_are_not_finite() -> None:
    outputs, images = _scene(5)
    images[1]["boxes"][0, 2] = np.nan
    losses = YolactLoss()(scenes.single(outputs), _targets(images))
    assert not sum(losses.values()).isfinite()
    images[1]["boxes"][0] = images[1]["boxes"][0, 0]  # without width and height
    assert not sum(YolactLoss()(scenes.single(outputs), _targets(images)).values()).isfinite()


# -- how it is computed ---------------------------------------------------------------------------------------------


def test_the_same_bits_on_each_run_in_deterministic_mode() -> None:
    def run() -> list[Any]:
        ours = scenes.single(outputs)
        losses = YolactLoss(LossSettings(max_masks=5))(ours, _targets(images), step=1)
        return [*losses.values(), *_gradients(ours, losses).values()]

    outputs, images = _scene(6)
    state = torch.random.get_rng_state()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("counts", [(3, 0), (0, 0)])
def test_a_device_is_never_waited_for(counts: tuple[int, int]) -> None:
    # Fake tensors have shapes and a device but no values: whatever would read one raises.
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    outputs, _ = _scene(7)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ours = {key: torch.empty(value.shape, device="cuda") for key, value in outputs.items()}
        targets = [
            {
                "boxes": torch.empty((n, 4), device="cuda"),
                "labels": torch.empty(n, device="cuda", dtype=torch.int64),
                "iscrowd": torch.empty(n, device="cuda"),
                "masks": torch.empty((n, scenes.SIZE, scenes.SIZE), device="cuda"),
                "width": scenes.SIZE,
                "height": scenes.SIZE,
            }
            for n in (*counts, 5, 0)
        ]
        losses = YolactLoss()(ours, targets)
        assert {str(value.device) for value in losses.values()} == {"cuda:0"}
        with pytest.raises(DataDependentOutputException):
            losses["box"].item()


def test_processes_average_to_the_loss_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, images = _scene(8, [(3, 0), (5, 1), (1, 0), (0, 0)])
    whole = scenes.single(outputs)
    losses = YolactLoss()(whole, _targets(images))
    wanted = _gradients(whole, losses)

    shards = [slice(0, 1), slice(1, 4)]  # of unequal size
    criterion = YolactLoss()
    truths = [GroundTruth.of(_targets(images[shard]), scenes.CLASSES, CPU) for shard in shards]
    positives = [int((criterion.match(truth, outputs["prior_boxes"]).labels > 0).sum()) for truth in truths]
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda x: x.copy_(torch.tensor([sum(positives), len(images)])))
    parts, gradients = [], []
    for shard in shards:
        part = {
            key: value if key == "prior_boxes" else value.detach()[shard].requires_grad_()
            for key, value in whole.items()
        }
        parts.append(criterion(part, _targets(images[shard])))
        gradients.append(_gradients(part, parts[-1]))
    for key, value in losses.items():
        torch.testing.assert_close((parts[0][key] + parts[1][key]) / 2, value)
    for key, grad in wanted.items():
        torch.testing.assert_close(torch.cat([part[key] for part in gradients]) / 2, grad)
    monkeypatch.setattr(distributed, "all_reduce", None)
    YolactLoss(sum_over_processes=False)(whole, _targets(images))


# -- with a model ---------------------------------------------------------------------------------------------------


def _model(size: int = 97) -> Any:
    torch.manual_seed(0)
    return YolactModel(
        YolactConfig(
            name="small", backbone="mobilenet_v2", image_size=size, num_classes=scenes.CLASSES, fpn_channels=16
        )
    )


def test_a_model_learns() -> None:
    model = _model(scenes.SIZE * 2).train()
    rng = np.random.default_rng(0)
    images = [scenes.make_image(rng, 2), scenes.make_image(rng, 0), scenes.make_image(rng, 3, 1)]
    pictures = torch.randn(3, 3, 2 * scenes.SIZE, 2 * scenes.SIZE)
    model.freeze_batch_norm()
    criterion = YolactLoss()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    history = []
    for step in range(12):
        losses = criterion(model(pictures), _targets(images), step=step)
        assert list(losses) == TERMS
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_outputs_of_evaluation_are_refused() -> None:
    model = _model().eval()
    with torch.inference_mode(), pytest.raises(InputError, match=r"have no prior_boxes, .* call model.train\(\)"):
        YolactLoss()(model(torch.randn(1, 3, 97, 97)), [])


def test_another_number_of_targets_is_refused() -> None:
    outputs, images = _scene(0)
    with pytest.raises(InputError, match="one target for each of the 4 images, got 3"):
        YolactLoss()(outputs, _targets(images[:3]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positive_iou": 0.3}, "negative_iou 0.4 and positive_iou 0.3"),
        ({"max_masks": 0}, "max_masks: expected 1 or more"),
        ({"box_weight": -1.0}, "box_weight: expected 0 or more"),
    ],
)
def test_settings_are_checked(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossSettings(**values)


def test_focal_loss_is_its_definition() -> None:
    outputs, images = _scene(0)
    ours = scenes.single(outputs)
    settings = LossSettings(class_loss="focal")
    match = YolactLoss().match(GroundTruth.of(_targets(images), scenes.CLASSES, CPU), outputs["prior_boxes"])
    logits, total = ours["scores"].double(), torch.zeros((), dtype=torch.float64)
    probability = logits.softmax(dim=-1)
    for image, labels in enumerate(match.labels.tolist()):
        for prior, label in enumerate(labels):
            if label >= 0:
                p = probability[image, prior, label]
                total = total + (0.25 if label else 0.75) * (1 - p) ** 2 * -p.log()
    positives = max(int((match.labels > 0).sum()), 1)
    losses = YolactLoss(settings)(ours, _targets(images))
    torch.testing.assert_close(losses["class"].double(), total / positives, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="class_loss: expected entropy or focal, got 'ohem'"):
        LossSettings(class_loss="ohem")
