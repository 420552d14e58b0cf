"""The learning rate against the original's rule, written here as its loop has it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from yolact_deploy.training.recipes import get_recipe
from yolact_deploy.training.schedule import learning_rate


def test_against_the_originals_loop() -> None:
    recipe = get_recipe("yolact_base").for_iterations(8000)
    rate, index = recipe.lr, 0
    for step in range(8000):
        current = recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * (step / recipe.warmup_iterations)
        while index < len(recipe.milestones) and step >= recipe.milestones[index]:
            index += 1
            rate = recipe.lr * 0.1**index
        expected = current if step <= recipe.warmup_iterations else rate
        assert learning_rate(recipe, step) == pytest.approx(expected, rel=1e-12)


def test_no_warm_up() -> None:
    recipe = get_recipe("yolact_base").for_iterations(5)
    assert recipe.warmup_iterations == 0
    assert learning_rate(recipe, 0) == recipe.lr
