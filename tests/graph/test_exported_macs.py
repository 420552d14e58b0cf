"""Multiply-accumulates of exported files against those of the model that was exported, layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import published
import pytest

pytest.importorskip("torch")

from deterministic import named_config

from yolact_deploy.config import list_configs
from yolact_deploy.graph.macs import Macs, count_macs
from yolact_deploy.model.model_macs import count_model_macs

SMALL = 138
# By default the structures that other tests export as well: they are traced once.
CASES = [
    pytest.param("yolact_base", "fp16", marks=pytest.mark.slow),
    pytest.param("yolact_resnet50", "fp32", marks=pytest.mark.slow),
    pytest.param("yolact_darknet53", "fp32", marks=pytest.mark.slow),
    ("yolact_edge_mobilenetv2", "fp32"),
    pytest.param("yolact_resnet50_pascal", "fp16", marks=pytest.mark.slow),
    pytest.param("yolact_plus_resnet50", "fp32", marks=pytest.mark.slow),
    pytest.param("yolact_plus_resnet50", "fp16", marks=pytest.mark.slow),
]
NAMES = list_configs()


def check(exported: Macs, name: str, size: int | None = None, batch: int = 1) -> None:
    """The trunk is the model's, layer by layer, in whichever order.

    The tail is the product of masks, and the mask-IoU network on each of them.
    """
    config = named_config(name, size)
    model = count_model_macs(config, batch=batch)
    trunk = {layer.name: layer for layer in exported.layers if layer.part != "tail"}
    assert trunk == {layer.name: layer for layer in model.layers}
    assert exported.gmac == pytest.approx(model.gmac, rel=1e-12)
    side = config.prototype_size
    macs = config.num_prototypes * side * side
    if config.mask_iou:
        macs += mask_iou_macs(side, config.num_classes)
    assert exported.part_gmac().get("tail") == pytest.approx(batch * config.max_detections * macs / 1e9)


def mask_iou_macs(side: int, classes: int) -> int:
    """Of one mask: five 3x3 convolutions of stride 2 without padding, and one 1x1; small masks are filled up to 63."""
    total, side = 0, max(side, 63)
    for narrow, wide in itertools.pairwise((1, 8, 16, 32, 64, 128)):
        side = (side - 3) // 2 + 1
        total += side * side * narrow * wide * 9
    return total + side * side * 128 * classes


def test_the_mask_iou_network_is_that_of_the_original() -> None:
    assert mask_iou_macs(138, 80) == 4_425_984


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_files_are_counted_as_the_model(name: str, precision: str, export: Callable[..., Path]) -> None:
    exported = count_macs(export(name, SMALL, precision=precision))
    check(exported, name, SMALL)
    assert exported.precision == precision


def test_half_precision_moves_half_the_bytes(export: Callable[..., Path]) -> None:
    name = "small"
    exported = count_macs(export(name, SMALL, precision="fp16"))
    assert 2 * exported.moved_bytes() == count_macs(export(name, SMALL)).moved_bytes()


def test_an_open_batch_is_counted_as_asked(export: Callable[..., Path]) -> None:
    name = "small"
    check(count_macs(export(name, SMALL, batch=(1, 2, 4)), batch=3), name, SMALL, batch=3)


def test_a_file_that_ends_in_heads_has_no_tail(export: Callable[..., Path]) -> None:
    name = "small"
    exported = count_macs(export(name, SMALL, tail="heads"))
    assert exported.gmac == pytest.approx(count_model_macs(named_config(name, SMALL)).gmac)
    assert list(exported.part_gmac()) == ["backbone", "fpn", "protonet", "heads"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files_have_the_published_gmac(name: str, export: Callable[..., Path]) -> None:
    exported = count_macs(export(name))
    check(exported, name)
    if name in published.GMAC:
        assert exported.gmac == pytest.approx(published.GMAC[name], rel=0.005)
