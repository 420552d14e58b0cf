"""Time of a training step in several precisions, side by side.

    python -m yolact_deploy.benchmarks.scenarios.train_step

The variants take turns, so that other work on the machine slows all of them alike. A step covers everything from the
batch in host memory to the updated weights, without the loader. Images and targets are generated. After timing, the
losses of all variants are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from yolact_deploy.benchmarks.command import command_parser, run_command
from yolact_deploy.datasets.shapes import render
from yolact_deploy.errors import InputError
from yolact_deploy.machine.environment import environment
from yolact_deploy.model import YolactModel
from yolact_deploy.training.data import Batch, collate
from yolact_deploy.training.distributed import World, processes
from yolact_deploy.training.recipe import Recipe
from yolact_deploy.training.recipes import get_recipe
from yolact_deploy.training.state import set_seed
from yolact_deploy.training.step import TrainStep

#: precision, channels-last, compiled
VARIANTS = {
    "fp32": ("fp32", False, False),
    "fp32-channels-last": ("fp32", True, False),
    "bf16-channels-last": ("bf16", True, False),
    "fp16-channels-last": ("fp16", True, False),
    "bf16-channels-last-compiled": ("bf16", True, True),
}
_TOLERANCE = 0.1  # of the loss of the first step, between precisions


def measure(recipe: Recipe, variants: Sequence[str], world: World, *, steps: int, warm_up: int) -> dict[str, Any]:
    """Median milliseconds of a step, images/s and the first loss of each variant.

    Raises:
        InputError: losses that differ by more than rounding.
    """
    batch = make_batch(recipe)
    made = {name: _make(recipe, name, world) for name in variants}
    times: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, float] = {}
    for number in range(warm_up + steps):
        for name, step in made.items():
            start = time.perf_counter()
            step(batch, number)
            _wait(world)
            if number >= warm_up:
                times[name].append((time.perf_counter() - start) * 1e3)
            if number == 0:
                losses[name] = _loss(step)
    _require_equal(losses)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "recipe": recipe.name,
        "image_size": recipe.config.image_size,
        "batch": recipe.batch,
        "steps": steps,
        "variants": {
            name: {
                "step_ms": round(median, 1),
                "images_per_second": round(recipe.batch / median * 1e3, 2),
                "speedup": round(medians[variants[0]] / median, 3),
                "first_loss": losses[name],
            }
            for name, median in medians.items()
        },
    }


def make_batch(recipe: Recipe) -> Batch:
    """Generated shapes at the size of the network."""
    shape = recipe.config.input_shape
    return collate([_sample(index, shape, recipe.config.num_classes) for index in range(recipe.batch)])


def _sample(index: int, shape: tuple[int, int], classes: int) -> tuple[Any, dict[str, Any]]:
    made = render(index, seed=0, height=shape[0], width=shape[1])
    masks = torch.stack([torch.from_numpy(shape.mask.astype("uint8")) for shape in made.shapes])
    sides = []
    for mask in masks:
        ys, xs = torch.nonzero(mask, as_tuple=True)
        sides.append([float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1])
    return made.image, {
        "boxes": torch.tensor(sides),
        "labels": torch.tensor([shape.label % classes for shape in made.shapes]),
        "masks": masks,
        "area": masks.flatten(1).sum(1).to(torch.float32),
        "iscrowd": torch.tensor([shape.iscrowd for shape in made.shapes]),
        "image_id": index,
    }


def _make(recipe: Recipe, name: str, world: World) -> TrainStep:
    amp, channels_last, compiled = VARIANTS[name]
    changed = dataclasses.replace(recipe, amp=amp, channels_last=channels_last, compile=compiled)  # type: ignore[arg-type]
    set_seed(0)
    return TrainStep(YolactModel(recipe.config), changed, world)


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def _loss(step: TrainStep) -> float:
    losses, _ = step.read()
    return sum(value for name, value in losses.items() if name != "gradient")


def _require_equal(losses: dict[str, float]) -> None:
    made = {name: loss for name, loss in losses.items() if loss}  # FP16 may have skipped its first step
    if made and max(made.values()) > (1 + _TOLERANCE) * min(made.values()):
        raise InputError(f"the losses differ by more than rounding ({made}): the times are meaningless, report this")


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("scenarios.train_step", __doc__)
    parser.add_argument("--recipe", default="yolact_resnet50")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--variant", action="append", choices=VARIANTS, help="repeatable (default: fp32 and bf16-channels-last)"
    )
    return run_command(parser, argv, _measure)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    recipe = get_recipe(args.recipe).for_batch(args.batch)
    variants = args.variant or ["fp32", "bf16-channels-last"]
    with processes(args.device) as world:
        result = measure(recipe, variants, world, steps=args.steps, warm_up=args.warm_up)
    return {**result, "environment": environment()}


if __name__ == "__main__":
    sys.exit(main())
