"""Check, convert, divide, join and look at datasets, fit prior scales to one, or generate one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.data import data_sets
from yolact_deploy.cli.options.parsing import seed, whole
from yolact_deploy.cli.options.size_options import add_size_arguments, size_options
from yolact_deploy.console import print_command, print_text

if TYPE_CHECKING:
    from yolact_deploy.config import YolactConfig
    from yolact_deploy.datasets.check import DataReport

_EPILOG = """\
examples:
  yolact-deploy data check my.yaml --deep
  yolact-deploy data check coco/ --json
  yolact-deploy data convert labels/ -o coco
  yolact-deploy data split coco/ -o parts --val 0.2
  yolact-deploy data merge first/ second/ -o both
  yolact-deploy data view my.yaml -o view.html
  yolact-deploy data priors my.yaml --recipe yolact_edge_mobilenetv2 --size 320
  yolact-deploy data shapes -o shapes --train 4000 --val 500
  yolact-deploy data nuclei nuclei-source -o nuclei

Every action takes every format that 'data convert --help' lists. A dataset file:
  names: [cat, dog]
  train: {annotations: train.json, images: images}
  val: {annotations: val.json, images: images}

'check' exits with 2 if the dataset has errors, which 'train' refuses as well.

'priors' fits the prior scales of a recipe to the objects of the training split and prints the option of 'train' that
sets them. The best possible recall is the share of objects that a prior overlaps with an IoU of 0.5 or more: more than
that share a network can hardly learn to detect."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = commands.add_parser("check", help="report the problems of a dataset and how to fix them")
    check.add_argument("data", metavar="DATA", help="dataset in any format that 'data convert --help' lists")
    check.add_argument("--images-dir", metavar="DIR", help="folder of the pictures (default: searched)")
    check.add_argument("--deep", action="store_true", help="also read every picture")
    data_sets.add_actions(commands)
    _add_priors(commands)
    shapes = commands.add_parser("shapes", help="generate pictures of shapes with COCO annotations")
    shapes.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to create")
    shapes.add_argument(
        "--train", type=whole(0, 10**7), default=2000, metavar="N", help="number of training images (default: 2000)"
    )
    shapes.add_argument(
        "--val", type=whole(0, 10**7), default=500, metavar="N", help="number of held-out images (default: 500)"
    )
    shapes.add_argument(
        "--size", default="320x240", metavar="WxH", help="size in pixels, or one number for both (default: 320x240)"
    )
    shapes.add_argument("--seed", type=seed, default=0, help="seed of the random generator (default: 0)")
    shapes.add_argument(
        "--videos", type=int, metavar="N", help="instead of pictures, N videos with the id of each shape (YouTube-VIS)"
    )
    shapes.add_argument("--frames", type=int, metavar="N", help="frames of a video (default: 40)")
    _add_nuclei(commands)
    for listed in commands._choices_actions:
        command = commands.choices[listed.dest]
        text = str(listed.help)
        command.description = command.description or f"{text[0].upper()}{text[1:]}."
        for flag in ("--debug", "--quiet", "--json"):  # also after the action
            command.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_nuclei(commands: Any) -> None:
    nuclei = commands.add_parser(
        "nuclei",
        help="turn the pictures that the model of cell nuclei was trained on into a COCO dataset",
        description="Turn the pictures that the model of cell nuclei was trained on into a COCO dataset: 564 for "
        "training, 60 for validation and 40 for a last test. docs/training.md says where the source is. License: CC0 "
        "1.0.",
    )
    nuclei.add_argument("source", metavar="SOURCE", help="checkout of the source's repository")
    nuclei.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to create")


def _add_priors(commands: Any) -> None:
    priors = commands.add_parser("priors", help="fit prior scales to the objects of a dataset")
    priors.add_argument("data", metavar="DATA", help="dataset in any format that 'data convert --help' lists")
    priors.add_argument("--images-dir", metavar="DIR", help="folder of the pictures (default: searched)")
    priors.add_argument("--lenient", action="store_true", help="leave out images and annotations that are not sound")
    priors.add_argument(
        "--recipe",
        default="yolact_base",
        metavar="NAME",
        help="recipe whose network the priors are for: a name or your own Python file (default: yolact_base)",
    )
    add_size_arguments(priors)
    priors.add_argument("--scales", type=int, metavar="N", help="scales per level (default: the recipe's)")


def run(args: argparse.Namespace) -> int:
    if args.action in data_sets.ACTIONS:
        return data_sets.run(args)
    return {"check": _check, "priors": _priors, "shapes": _shapes, "nuclei": _nuclei}[args.action](args)


# -- check ----------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import import_optional

    import_optional("pycocotools", "train", "Reading a dataset")
    from yolact_deploy.datasets.check import check_dataset
    from yolact_deploy.datasets.dataset_file import open_dataset

    report = check_dataset(
        open_dataset(args.data, images_dir=args.images_dir),
        deep=args.deep,
        progress=args.progress,
    )
    if args.json:
        print_json(report.to_json())
    else:
        _print_report(report)
    report.raise_errors()
    return 0


def _print_report(report: DataReport) -> None:
    from yolact_deploy.console import print_table

    rows = [(s.split.name, s.images, s.objects, s.crowds, len(s.objects_of_class)) for s in report.splits]
    print_table(["split", "images", "objects", "crowds", "classes"], rows, title=str(report.path))
    problems = [
        (split.split.name, "error" if p.is_error else "warning", p.count, p.kind, "; ".join(p.examples[:2]), p.fix)
        for split in report.splits
        for p in split.problems
    ]
    if problems:
        print_table(["split", "", "count", "problem", "examples", "fix"], problems)
    elif report.deep:
        print_text("nothing wrong")
    else:
        print_text("nothing wrong in the annotations; --deep also reads every picture")


# -- priors ---------------------------------------------------------------------------------------------------------


def _priors(args: argparse.Namespace) -> int:
    from yolact_deploy.config import size_text
    from yolact_deploy.console import print_json, print_table
    from yolact_deploy.errors import import_optional

    for module in ("torch", "pycocotools"):
        import_optional(module, "train", "Fitting priors of a recipe")
    from yolact_deploy.datasets.dataset_file import open_dataset
    from yolact_deploy.datasets.prior_fit import fit_priors, object_boxes
    from yolact_deploy.training.recipes import get_recipe

    config = get_recipe(args.recipe).config.with_input(**size_options(args))
    spec = open_dataset(args.data, images_dir=args.images_dir, lenient=args.lenient)
    fit = fit_priors(object_boxes(spec, config), config, scales_per_level=args.scales)
    if args.json:
        print_json({"dataset": str(spec.path), "recipe": args.recipe, **fit.to_json()})
        return 0
    rows = [
        (
            name,
            f"{100 * q.recall:.2f}",
            f"{q.mean_iou:.3f}",
            _scales(c),
            " ".join(f"{100 * s:.0f}" for s in q.per_level),
        )
        for name, c, q in (("recipe", fit.before, fit.quality_before), ("fitted", fit.after, fit.quality_after))
    ]
    columns = ["priors", "best possible recall %", "mean IoU", "scales P3..P7", "% of objects"]
    print_table(columns, rows, title=f"{fit.objects} objects at {size_text(config.image_size)} pixels")
    print_command(fit.setting)
    return 0


def _scales(config: YolactConfig) -> str:
    return " ".join(",".join(f"{scale:g}" for scale in level) for level in config.prior_scales)


# -- shapes ---------------------------------------------------------------------------------------------------------


def _shapes(args: argparse.Namespace) -> int:
    from pathlib import Path

    from yolact_deploy.console import print_json, print_next
    from yolact_deploy.datasets.shapes import write_shapes
    from yolact_deploy.errors import InputError

    if args.train + args.val < 1:
        raise InputError(f"expected one image or more, got --train {args.train} --val {args.val}")
    width, height = _size(args.size)
    folder = Path(args.output)
    if args.videos is None and args.frames is not None:
        raise InputError("--frames is the length of videos: add --videos, or leave it out")
    if args.videos is not None:
        return _shape_videos(args, folder, width, height)
    counts = {"train": args.train, "val": args.val}
    images = write_shapes(folder, counts, seed=args.seed, height=height, width=width)
    for _ in args.progress.track(images, "shapes", sum(counts.values())):
        pass
    description = folder / "shapes.yaml"
    if args.json:
        print_json({"dataset": str(description), **counts, "seed": args.seed, "width": width, "height": height})
    else:
        print(description)
        if not args.quiet:
            print_next(["yolact-deploy", "train", "--recipe", "shapes_demo", "--data", str(description)])
    return 0


def _shape_videos(args: argparse.Namespace, folder: Any, width: int, height: int) -> int:
    from yolact_deploy.console import print_json
    from yolact_deploy.datasets.shape_videos import write_shape_videos
    from yolact_deploy.errors import InputError

    frames = 40 if args.frames is None else args.frames
    if not (1 <= args.videos <= 100_000 and 1 <= frames <= 100_000):
        raise InputError(f"expected 1 to 100000 videos and frames, got --videos {args.videos} --frames {frames}")
    size = {"height": height, "width": width}
    videos = write_shape_videos(folder, args.videos, frames=frames, seed=args.seed, **size)
    for _ in args.progress.track(videos, "shapes", args.videos, "videos"):
        pass
    if args.json:
        facts = {"videos": args.videos, "frames": frames, "seed": args.seed, **size}
        print_json({"annotations": str(folder / "instances.json"), **facts})
    else:
        print(folder / "instances.json")
    return 0


def _size(text: str) -> tuple[int, int]:
    """Width and height of "320x240" or "256"."""
    from yolact_deploy.errors import InputError
    from yolact_deploy.untrusted import shown

    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise InputError(f"--size: expected WxH such as 320x240, or one number, got {shown(text)}")
    return int(parts[0]), int(parts[-1])


# -- nuclei ---------------------------------------------------------------------------------------------------------


def _nuclei(args: argparse.Namespace) -> int:
    from pathlib import Path

    from yolact_deploy.console import print_json, print_next
    from yolact_deploy.datasets.nuclei_set import pictures_in, write_nuclei

    source, folder = Path(args.source), Path(args.output)
    count = len(pictures_in(source))
    for _ in args.progress.track(write_nuclei(folder, source), "nuclei", count):
        pass
    description = folder / "nuclei.yaml"
    if args.json:
        print_json({"dataset": str(description), "images": count})
    else:
        print(description)
        if not args.quiet:
            print_next(["yolact-deploy", "train", "--recipe", "nuclei", "--data", str(description)])
    return 0
