from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional

from yolact_deploy.training.entropies import binary_cross_entropy, cross_entropy


def _normal(*shape: int, scale: float = 1.0, dtype: Any = torch.float32) -> Any:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale).to(dtype)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_cross_entropy(scale: float) -> None:
    logits = _normal(2, 50, 7, scale=scale).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    labels = torch.arange(100).view(2, 50) % 7
    weights = torch.linspace(0, 1, 100).view(2, 50)
    ours = cross_entropy(logits, labels)
    theirs = functional.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="none").view(2, 50)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("weighted", [True, False])
def test_binary_cross_entropy(scale: float, weighted: bool) -> None:
    logits = _normal(3, 4, 50, scale=scale).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    wanted = (_normal(3, 4, 50) > 0.3).float()
    weights = torch.linspace(0, 1, 600).view(3, 4, 50) if weighted else None
    ours = binary_cross_entropy(logits, wanted, weights) * 3
    theirs = functional.binary_cross_entropy_with_logits(exact, wanted.double(), weights, reduction="sum") * 3
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    torch.autograd.backward([ours, theirs])
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_gradients_by_differences() -> None:
    logits = _normal(2, 5, 3, dtype=torch.float64).requires_grad_()
    labels = torch.arange(10).view(2, 5) % 3
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), logits)
    wanted, weights = torch.rand(2, 5, 3, dtype=torch.float64), torch.rand(2, 5, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: binary_cross_entropy(x, wanted, weights), logits)
