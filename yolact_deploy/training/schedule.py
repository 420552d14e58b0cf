"""The learning rate of each iteration: a linear warm-up, then steps."""

from __future__ import annotations

from bisect import bisect_right

from yolact_deploy.training.recipe import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of iteration ``step``, counted from 0.

    It rises linearly from ``warmup_lr`` to ``lr`` at iteration ``warmup_iterations``, and is multiplied by ``gamma`` at
    each of ``milestones``.
    """
    if step < recipe.warmup_iterations:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * step / recipe.warmup_iterations
    return recipe.lr * recipe.gamma ** bisect_right(recipe.milestones, step)
