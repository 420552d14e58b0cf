"""YOLACT++ in training: its loss term, steps, compiling, and initial weights of a plain backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

import tiny
import torch

from yolact_deploy.config import YolactConfig
from yolact_deploy.model import YolactModel
from yolact_deploy.model.initialization import initialize
from yolact_deploy.training.data import Augmentation, CocoDataset, open_dataset, training_loader
from yolact_deploy.training.distributed import World
from yolact_deploy.training.losses import YolactLoss
from yolact_deploy.training.state import set_seed
from yolact_deploy.training.step import TrainStep

SIZE = 96
CONFIG = YolactConfig(
    name="small_plus",
    backbone="resnet50",
    image_size=SIZE,
    num_classes=8,
    fpn_channels=16,
    num_prototypes=4,
    prior_scales=tuple((s, 1.4 * s) for s in (8.0, 16.0, 32.0, 64.0, 90.0)),
    square_priors=False,
    deformable_blocks=(0, 0, 2, 3),
    mask_iou=True,
)
OFFSETS = "backbone.layers.3.2.conv2.conv_offset_mask.weight"


def make_model() -> YolactModel:
    set_seed(1)
    return YolactModel(CONFIG)


def targets(count: int) -> list[dict[str, Any]]:
    """An object of another class in each image: a disc."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    disc = ((rows - 48) ** 2 + (columns - 40) ** 2 < 30**2)[None].to(torch.uint8)
    box = torch.tensor([[10.0, 18.0, 70.0, 78.0]])
    return [
        {
            "boxes": box,
            "labels": torch.tensor([i % 3]),
            "iscrowd": torch.tensor([0]),
            "masks": disc,
            "width": SIZE,
            "height": SIZE,
        }
        for i in range(count)
    ]


def test_every_parameter_gets_a_gradient() -> None:
    model = make_model().train()
    losses = YolactLoss()(model(torch.randn(2, 3, SIZE, SIZE)), targets(2))
    assert list(losses) == ["box", "class", "mask", "mask_iou", "semantic"]
    assert losses["mask_iou"] > 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    for name in (OFFSETS, "maskiou_net.maskiou_net.0.weight"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


@pytest.mark.slow  # test_steps trains it, and each of its parameters gets a gradient
def test_the_mask_iou_network_learns_what_masks_are_worth() -> None:
    """With all else held still, its IoUs come near the true ones: the term falls to a fraction."""
    model = make_model()
    model.requires_grad_(False)
    assert model.maskiou_net is not None
    last = len(model.maskiou_net.maskiou_net) - 2
    torch.nn.init.constant_(
        model.get_parameter(f"maskiou_net.maskiou_net.{last}.bias"), 0.1
    )  # no class begins beyond ReLU's reach
    model.maskiou_net.requires_grad_(True)
    model.train()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, SIZE, SIZE))
    optimizer = torch.optim.Adam(model.maskiou_net.parameters(), lr=3e-3)
    terms = []
    for _ in range(40):
        term = YolactLoss()(outputs, targets(2))["mask_iou"]
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        terms.append(term.item())
    assert terms[-1] < 0.1 * terms[0]


def test_steps(tmp_path: Path) -> None:
    dataset = CocoDataset.of_split(open_dataset(tiny.tiny_set(tmp_path)), "train")
    batch = next(iter(training_loader(dataset, Augmentation(size=SIZE), 4, stop=1, workers=0)))
    recipe = tiny.tiny_recipe("batch=4", f"config.image_size={SIZE}", "lr=1e-4")
    step = TrainStep(make_model(), recipe, World(torch.device("cpu")))
    before = step.model.get_parameter(OFFSETS).clone()
    step(batch, 0)
    losses, skipped = step.read()
    assert skipped == 0
    assert set(losses) == {"box", "class", "mask", "mask_iou", "semantic", "gradient"}
    assert losses["mask_iou"] > 0
    assert not torch.equal(step.model.get_parameter(OFFSETS), before)


@pytest.mark.slow
def test_a_compiled_model_gives_its_mask_iou_network() -> None:
    model = make_model().train()
    torch.compiler.reset()
    out = torch.compile(model, backend="eager")(torch.randn(1, 3, SIZE, SIZE))
    losses = YolactLoss()(out, targets(1))
    sum(losses.values()).backward()
    assert model.get_parameter("maskiou_net.maskiou_net.0.weight").grad is not None


def test_a_plain_backbone_begins_it(tmp_path: Path) -> None:
    """Deformable convolutions take a plain one's weights; offsets and biases keep their zeros."""
    plain = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(plain, tmp_path / "resnet50-19c8e357.pth")
    model = make_model()
    report = initialize(model, str(tmp_path / "resnet50-19c8e357.pth"))
    own = model.state_dict()
    assert torch.equal(own["backbone.layers.3.2.conv2.weight"], plain["layer4.2.conv2.weight"])
    assert not own["backbone.layers.3.2.conv2.bias"].any()
    assert not own[OFFSETS].any()
    assert "backbone" not in report.reset
    assert "maskiou_net" in report.reset
