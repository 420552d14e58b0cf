"""Train a network on a COCO-style dataset with a recipe.

examples:
  yolact-deploy train --recipe yolact_resnet50 --data coco/
  yolact-deploy train --recipe yolact_resnet50 --data my.yaml --weights yolact_resnet50 --set batch=4 --set lr=5e-4
  yolact-deploy train --recipe shapes_demo --data shapes/shapes.yaml --output runs/shapes --resume
  yolact-deploy train --recipe my_recipe.py --data my.yaml --set config.top_k=400 --set config.max_detections=400
  torchrun --nproc-per-node 4 -m yolact_deploy train --recipe yolact_base --data coco/ --set batch=32

Ctrl-C, SIGTERM or the end of the session stops after the current step and saves; --resume continues exactly where it
stopped. 'export' and 'predict' read the weights, best.safetensors and last.safetensors. --recipe list and --set help
show the choices.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.cli.options.parsing import whole
from yolact_deploy.cli.options.size_options import add_size_arguments, size_options
from yolact_deploy.config import size_text
from yolact_deploy.console import print_next, print_text

if TYPE_CHECKING:
    from yolact_deploy.training.fit import FitResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        required=True,
        metavar="NAME",
        help="how to train: the name of a recipe ('list' shows all), or your own Python file, which is executed",
    )
    parser.add_argument("--data", metavar="DATA", help="dataset in any format that 'data convert --help' lists")
    parser.add_argument("--images-dir", metavar="DIR", help="folder of the pictures (default: searched)")
    parser.add_argument("--lenient", action="store_true", help="leave out images and annotations that are not sound")
    parser.add_argument(
        "--weights",
        metavar="INIT",
        help="initial weights: a file (backbone or YOLACT), the name of published YOLACT weights, 'imagenet' (from "
        "torchvision), 'imagenet-int8' (the MobileNetV2 in this package) or 'none' (default: the recipe's)",
    )
    parser.add_argument("--output", "-o", metavar="DIR", help="folder for states and weights (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue from the last saved state in the folder")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the recipe, such as lr=5e-4 or augmentation.mirror=no; repeatable; 'help' lists all",
    )
    parser.add_argument(
        "--hours", type=_hours, metavar="H", help="end after so many hours of this run, with an evaluation and weights"
    )
    add_size_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument(
        "--workers", type=whole(0), metavar="N", help="processes that prepare images (default: one per CPU core)"
    )


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.errors import InputError, import_optional

    for module in ("torch", "torchvision", "pycocotools", "safetensors"):
        import_optional(module, "train", "Training")
    from yolact_deploy.training.overrides import override
    from yolact_deploy.training.recipes import get_recipe

    if args.recipe == "list":
        return _list_recipes()
    recipe = get_recipe(args.recipe)
    if "help" in args.settings:
        return _list_settings(recipe)
    recipe = override(recipe.for_input(**size_options(args)), args.settings)  # what is set is for that input
    if args.data is None:
        raise InputError("--data is missing: give a dataset file (YAML) or a COCO folder")
    from yolact_deploy.training.fit import fit

    result = fit(
        recipe,
        args.data,
        args.output or f"runs/{Path(args.recipe).stem if args.recipe.endswith('.py') else args.recipe}",
        weights=args.weights,
        resume=args.resume,
        device=args.device,
        workers=args.workers,
        images_dir=args.images_dir,
        lenient=args.lenient,
        hours=args.hours,
        progress=args.progress,
    )
    if result.is_main:
        _print_result(args, result)
    return 0 if result.outcome.finished else 2


def _print_result(args: argparse.Namespace, result: FitResult) -> None:
    from yolact_deploy.console import print_json, print_table

    outcome = result.outcome
    if args.json:
        print_json(result.to_json())
        return
    if not outcome.finished:
        if not args.quiet:
            print_text(f"stopped after {outcome.step} iterations, saved in {result.folder}: continue with --resume")
        return
    if outcome.accuracy is not None:
        from yolact_deploy.benchmarks.tables import accuracy_table

        table = accuracy_table([(result.folder.name, outcome.accuracy)])
        print_table(table.columns, table.rows, title=table.title)
    print(result.folder / "last.safetensors")
    best = result.folder / "best.safetensors"
    weights = best if best.is_file() else result.folder / "last.safetensors"
    if not args.quiet:
        print_next(["yolact-deploy", "export", "--weights", str(weights), "-o", str(result.folder / "model")])


def _list_recipes() -> int:
    from yolact_deploy.console import print_table
    from yolact_deploy.training.recipes import RECIPES, get_recipe

    recipes = [get_recipe(name) for name in RECIPES]
    rows = [
        (r.name, r.config.backbone, size_text(r.config.image_size), r.batch, r.iterations, r.expected, r.paper)
        for r in recipes
    ]
    print_table(["recipe", "backbone", "size", "batch", "iterations", "expected", "paper"], rows)
    return 0


def _list_settings(recipe: object) -> int:
    from yolact_deploy.console import print_table
    from yolact_deploy.training.overrides import keys

    rows = []
    for key in keys():
        value = recipe
        for part in key.split("."):
            value = getattr(value, part)
        rows.append((key, str(value).replace(" ", "") if isinstance(value, tuple) else str(value)))
    print_table(["key", "value"], rows)
    return 0


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 < hours < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number of hours above 0, got {text!r}")
    return hours
