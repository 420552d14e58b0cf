"""Detection and pasting: the original method in PyTorch and ours in NumPy, in one run on the same inputs.

    python -m yolact_deploy.benchmarks.scenarios.postprocess_speed [--json]

From decoded heads (19248 priors, 80 classes) to 100 binary masks on a 640 x 480 image. The original method resizes
every mask to the whole image; ours pastes each mask only where it has pixels. Both take turns; times are medians. After
timing, the masks are compared; the exit code is 1 if they differ.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolact_deploy import paste, postprocess
from yolact_deploy.benchmarks.command import command_parser, run_command
from yolact_deploy.benchmarks.scenarios.scene import Scene, make_scene
from yolact_deploy.config import get_config
from yolact_deploy.console import print_table
from yolact_deploy.machine.environment import environment
from yolact_deploy.model import torch_ops as ops

HEIGHT, WIDTH = 480, 640
#: for each mask; pixels with an interpolated probability of 0.5 may differ by rounding
LEAST_IOU = 0.999


def original(scene: Scene) -> tuple[list[float], dict[str, Any]]:
    """Milliseconds of each step of the original method, and its detections."""
    boxes, scores, coeff, proto = map(torch.from_numpy, scene)
    with torch.inference_mode():
        times, (detected, _, pasted) = _timed(
            lambda: ops.detect(boxes, scores, coeff),
            lambda detected: ops.assemble_masks(proto, detected.coeff, detected.boxes),
            lambda masks: ops.paste_masks_full(masks, HEIGHT, WIDTH),
        )
    return times, {"boxes": detected.boxes.numpy(), "labels": detected.labels.numpy(), "masks": pasted}


def ours(scene: Scene) -> tuple[list[float], dict[str, Any]]:
    """Milliseconds of each step of our method, and its detections."""
    times, (detected, _, pasted) = _timed(
        lambda: postprocess.detect(scene.boxes, scene.scores, scene.coeff),
        lambda detected: postprocess.mask_windows(scene.proto, detected.coeff, detected.boxes),
        lambda masks: paste.paste_windows(masks, HEIGHT, WIDTH),
    )
    return times, {"boxes": detected.boxes, "labels": detected.labels, "masks": pasted}


def _timed(first: Callable[[], Any], *rest: Callable[[Any], Any]) -> tuple[list[float], list[Any]]:
    """Run steps, each on the result of the previous one; their milliseconds and results."""
    marks, results = [time.perf_counter()], [first()]
    marks.append(time.perf_counter())
    for step in rest:
        results.append(step(results[-1]))
        marks.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in itertools.pairwise(marks)], results


def run(repeats: int = 30, seed: int = 0) -> dict[str, Any]:
    """Measure and compare; a JSON-ready result."""
    scene = make_scene(get_config("yolact_base"), seed=seed)
    sides: dict[str, Callable[[Scene], Any]] = {"original": original, "ours": ours}
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    results = {}
    for i in range(repeats + 3):
        for name in list(sides) if i % 2 else reversed(list(sides)):
            spent, results[name] = sides[name](scene)
            if i >= 3:  # warm-up
                times[name].append(spent)
    medians = {name: [statistics.median(step) for step in zip(*spent, strict=True)] for name, spent in times.items()}
    totals = {name: statistics.median(map(sum, spent)) for name, spent in times.items()}
    ious = _mask_ious(results["original"], results["ours"])
    return {
        "scene": _facts(scene, results["original"]),
        "steps_ms": {name: dict(zip(("detect", "masks", "paste"), m, strict=True)) for name, m in medians.items()},
        "total_ms": totals,
        "ratio": totals["original"] / totals["ours"],
        "mask_iou": {"mean": float(ious.mean()), "min": float(ious.min())},
        "same": bool(ious.min() >= LEAST_IOU),
        "repeats": repeats,
        "torch_threads": torch.get_num_threads(),
        "environment": environment(),
    }


def _mask_ious(a: dict[str, Any], b: dict[str, Any]) -> NDArray[np.float64]:
    """IoU of each mask of a with that of the same class and nearest box in b; 0 if the numbers differ."""
    if len(a["labels"]) != len(b["labels"]):
        return np.zeros(1)
    overlap = np.nan_to_num(postprocess.box_iou(a["boxes"], b["boxes"]))
    partner = np.where(a["labels"][:, None] == b["labels"], overlap, -1).argmax(axis=1)
    left, right = a["masks"].numpy(), b["masks"].full()[partner]
    inter, union = (left & right).sum(axis=(1, 2)), (left | right).sum(axis=(1, 2))
    return np.asarray(np.where(union, inter / np.maximum(union, 1), 1.0))


def _facts(scene: Scene, result: dict[str, Any]) -> dict[str, Any]:
    clipped = result["boxes"].clip(0, 1)
    areas = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    return {
        "priors": len(scene.boxes),
        "classes": scene.scores.shape[1],
        "priors_above_0.05": int((scene.scores.max(axis=1) > 0.05).sum()),
        "detections": len(result["labels"]),
        "image": [WIDTH, HEIGHT],
        "mean_box_area": float(areas.mean()),
        "mean_mask_area": float(result["masks"].numpy().mean()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("scenarios.postprocess_speed", __doc__)
    parser.add_argument("--repeats", type=int, default=30, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    return run_command(parser, argv, lambda args: run(args.repeats, args.seed), show=_print, problems=_problems)


def _problems(result: dict[str, Any]) -> list[str]:
    return [] if result["same"] else [f"a mask's IoU is {result['mask_iou']['min']:.6f}, expected {LEAST_IOU}"]


def _print(result: dict[str, Any]) -> None:
    facts = result["scene"]
    print(
        f"{facts['priors_above_0.05']} of {facts['priors']} priors above 0.05, {facts['detections']} detections on "
        f"{facts['image'][0]} x {facts['image'][1]}; mean box {facts['mean_box_area']:.1%}, mean mask "
        f"{facts['mean_mask_area']:.1%} of the image; {result['torch_threads']} torch threads"
    )
    rows = [
        (name, *(f"{value:.2f}" for value in steps.values()), f"{result['total_ms'][name]:.2f}")
        for name, steps in result["steps_ms"].items()
    ]
    print_table(("median ms", "detect", "masks", "paste", "total"), rows)
    iou = result["mask_iou"]
    print(f"{result['ratio']:.1f} times faster; masks' IoU: mean {iou['mean']:.6f}, least {iou['min']:.6f}")


if __name__ == "__main__":
    sys.exit(main())
