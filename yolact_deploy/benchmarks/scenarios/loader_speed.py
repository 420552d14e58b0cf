"""Images per second of the training loader, and where its time goes.

    python -m yolact_deploy.benchmarks.scenarios.loader_speed DATA [--size 550] [--batch 8] [--workers 0 1 2] [--json]

DATA is a dataset file (YAML) or a COCO folder. The steps are timed in one process with one thread, with the random
draws of the first epoch; then the whole loader for each number of workers, after its first batches. The batches of the
loader are compared with those of the steps; the exit code is 1 if they differ.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from yolact_deploy.benchmarks.command import command_parser, run_command
from yolact_deploy.console import print_table
from yolact_deploy.machine.environment import environment
from yolact_deploy.training.data import Augmentation, Batch, CocoDataset, collate, open_dataset, training_loader
from yolact_deploy.training.data.augment import Colors
from yolact_deploy.training.data.loader import BatchSampler, Key

T = TypeVar("T")

#: keys of the result files
STEPS = ("decode", "draw", "colours, warp", "masks, boxes", "collate")  # codespell:ignore colours


class _Stopwatch:
    """Seconds spent in each step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)

    def time(self, step: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self.seconds[step] += time.perf_counter() - start
        return result


def time_steps(
    dataset: CocoDataset, augmentation: Augmentation, batches: Sequence[list[Key]], seed: int
) -> tuple[dict[str, float], float, Batch]:
    """Milliseconds per image of each step, objects per image, and the first batch."""
    watch, first, objects = _Stopwatch(), None, 0
    for keys in batches:
        samples = [_sample(watch, dataset, augmentation, key, seed) for key in keys]
        batch = watch.time("collate", partial(collate, samples))
        first = first or batch  # keeping all of them would measure page faults
        objects += sum(batch.counts)
    assert first is not None
    images = sum(map(len, batches))
    return {step: 1000 * seconds / images for step, seconds in watch.seconds.items()}, objects / images, first


def _sample(watch: _Stopwatch, dataset: CocoDataset, augmentation: Augmentation, key: Key, seed: int) -> Any:
    rng = np.random.default_rng([seed, *key])
    image = watch.time("decode", lambda: dataset.image(key[1]))
    objects = dataset.objects(key[1])
    colors, view = watch.time("draw", lambda: (Colors.draw(augmentation, rng), augmentation.draw_view(objects, rng)))
    shown = watch.time(STEPS[2], lambda: augmentation.show(image, colors, view))
    target = watch.time("masks, boxes", lambda: augmentation.target(objects, view))
    return shown, {**target, "image_id": dataset.record(key[1]).image_id}


def time_loader(
    dataset: CocoDataset, augmentation: Augmentation, batch: int, *, workers: int, seconds: float, seed: int
) -> tuple[float, Batch]:
    """Images per second after the first batches, and the first batch."""
    loader = iter(training_loader(dataset, augmentation, batch, seed=seed, workers=workers))
    first = next(loader)
    for _ in range(2 * workers):  # prepared while the workers started
        next(loader)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(loader))
    return images / (time.perf_counter() - start), first


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All measurements, JSON-ready."""
    dataset = CocoDataset.of_split(open_dataset(args.data), args.split, keep_empty=False)
    augmentation = Augmentation(size=args.size)
    sampler = BatchSampler(len(dataset), args.batch, seed=args.seed)
    keys = list(itertools.islice(sampler, min(sampler.batches_per_epoch, max(1, 200 // args.batch))))
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    time_steps(dataset, augmentation, keys[:2], args.seed)
    steps, objects, made = time_steps(dataset, augmentation, keys, args.seed)
    rates, same = {}, True
    for workers in args.workers:
        rate, first = time_loader(
            dataset, augmentation, args.batch, workers=workers, seconds=args.seconds, seed=args.seed
        )
        rates[str(workers)] = rate
        same &= torch.equal(first.images, made.images) and torch.equal(first.masks, made.masks)
    return {
        "images": len(dataset),
        "objects_per_image": objects,
        "size": args.size,
        "batch": args.batch,
        "steps_ms_per_image": steps,
        "images_per_second": rates,
        "same": same,
        "environment": environment(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("scenarios.loader_speed", __doc__)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=550, metavar="S")
    parser.add_argument("--batch", type=int, default=8, metavar="B")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each number of workers")
    parser.add_argument("--seed", type=int, default=0)
    return run_command(parser, argv, run, show=_print, problems=_problems)


def _problems(result: dict[str, Any]) -> list[str]:
    return [] if result["same"] else ["the loader made different batches than its steps"]


def _print(result: dict[str, Any]) -> None:
    steps = result["steps_ms_per_image"]
    print(
        f"{result['images']} images, batches of {result['batch']} at {result['size']}, "
        f"{result['objects_per_image']:.1f} objects per image"
    )
    rows = [*((step, f"{value:.2f}") for step, value in steps.items()), ("all", f"{sum(steps.values()):.2f}")]
    print_table(("one thread", "ms per image"), rows)
    print_table(("workers", "images/s"), [(n, f"{rate:.0f}") for n, rate in result["images_per_second"].items()])


if __name__ == "__main__":
    sys.exit(main())
