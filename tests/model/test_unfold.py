"""Folded batch normalizations that are made trainable: the same function, in training mode, too."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from few import few_rows

pytest.importorskip("torch")
pytest.importorskip("torchvision")

import torch
from tiny import tiny_recipe, tiny_set
from torch import nn

from yolact_deploy.model import YolactModel
from yolact_deploy.model.unfold import unfold_batch_norms


def _folded() -> nn.Module:
    """Two convolutions whose batch normalizations only add something, as `quantized` leaves them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 6):
        norm = nn.BatchNorm2d(6)
        nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)
        nn.init.normal_(norm.bias, std=2.0)
        layers += [nn.Conv2d(channels, 6, 3, bias=False), norm, nn.ReLU6()]
    return nn.Sequential(*layers)


def test_the_function_stays() -> None:
    network, fresh = _folded().train(), torch.randn(4, 3, 20, 20)
    images = [torch.randn(8, 3, 20, 20) * 3 + 1 for _ in range(2)]
    with torch.no_grad():
        before = network.eval()(fresh)
        seen = network(torch.cat(images))
        folded_in_training = network.train()(torch.cat(images))
        network = _folded().train()
        unfold_batch_norms(network, images)
        assert network.training
        after, trains = network.eval()(fresh), network.train()(torch.cat(images))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert (folded_in_training - seen).abs().max() > 0.5  # which is why it is needed
    torch.testing.assert_close(trains, seen, rtol=1e-3, atol=1e-3)


def test_a_channel_that_is_always_the_same() -> None:
    network = _folded()
    with torch.no_grad():
        network.state_dict()["0.weight"][2] = 0
        before = network.eval()(torch.ones(2, 3, 9, 9))
        unfold_batch_norms(network, [torch.randn(4, 3, 9, 9)])
        after = network(torch.ones(2, 3, 9, 9))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_layer_that_never_runs() -> None:
    """The last stage of MobileNetV2."""

    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = _folded(), nn.BatchNorm2d(5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, self.used(images))

    network = Spare()
    unfold_batch_norms(network, [torch.randn(4, 3, 9, 9)])
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())


@pytest.mark.parametrize(("setting", "moves"), few_rows([("never", True), ("always", False)], 0))
def test_a_training_does_so_unless_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, moves: bool
) -> None:
    from yolact_deploy.model.initialization import InitReport
    from yolact_deploy.training import fit as module

    def initialize(model: YolactModel, source: str) -> InitReport:
        return InitReport(source, 1, 1, folded=True)

    called: list[tuple[nn.Module, list[torch.Tensor]]] = []
    monkeypatch.setattr(module, "initialize", initialize)
    monkeypatch.setattr(module, "unfold_batch_norms", lambda network, images: called.append((network, list(images))))
    recipe = tiny_recipe("iterations=1", f"freeze_batch_norm={setting}", "eval_interval=0")
    module.fit(recipe, tiny_set(tmp_path / "set"), tmp_path / "run", workers=0)
    assert bool(called) is moves
    for _, images in called:
        assert images[0].shape == (8, 3, 64, 64)  # all there are
