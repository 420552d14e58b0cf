"""The pyramid in BF16 on a CPU: strided convolutions of a single cell are in FP32, all others in BF16."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from yolact_deploy.model.fpn import FeaturePyramid


def gradients(sides: tuple[int, int, int], autocast: bool) -> tuple[list[Any], list[Any]]:
    """Dtypes of P3..P7, and the gradients of the two strided layers for the same features."""
    torch.manual_seed(0)
    pyramid = FeaturePyramid((4, 4, 4), 8).to(memory_format=torch.channels_last)
    features = [torch.randn(2, 4, side, side).contiguous(memory_format=torch.channels_last) for side in sides]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        levels = pyramid(*features)
    sum(level.float().square().sum() for level in levels[3:]).backward()
    return [level.dtype for level in levels], [layer.weight.grad for layer in pyramid.downsample_layers]


@pytest.mark.parametrize(
    ("sides", "single"), [((8, 4, 2), 4), ((4, 2, 1), 3), ((13, 7, 4), 5)], ids=["64 px", "32 px", "100 px"]
)
def test_single_cells_are_in_fp32(sides: tuple[int, int, int], single: int) -> None:
    dtypes, lowered = gradients(sides, autocast=True)
    assert dtypes == [torch.bfloat16] * single + [torch.float32] * (5 - single)
    again = gradients(sides, autocast=True)[1]
    exact: list[Any] = gradients(sides, autocast=False)[1]
    value: Any
    for value, repeated, reference in zip(lowered, again, exact, strict=True):
        assert torch.equal(value, repeated)
        assert torch.linalg.norm(value - reference) <= 0.05 * torch.linalg.norm(reference)


def test_without_autocast_nothing_changes() -> None:
    dtypes, _ = gradients((8, 4, 2), autocast=False)
    assert dtypes == [torch.float32] * 5
