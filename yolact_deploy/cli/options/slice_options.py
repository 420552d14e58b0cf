"""Options for large pictures: tiles, and how their detections are merged. They have the names of SAHI."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.options.size_options import size_argument
from yolact_deploy.vocabulary import MATCH_METRICS

if TYPE_CHECKING:
    from yolact_deploy.runtime.slicing import Slicing

#: options that require --slice
_RULES = ("overlap", "match_metric", "match_threshold")


def add_slice_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("large pictures")
    group.add_argument(
        "--slice", type=size_argument, metavar="S or HxW", help="cut pictures into tiles of so many pixels, and merge "
        "their detections",
    )  # fmt: skip
    group.add_argument("--overlap", type=float, metavar="X", help="share of a tile in the next one (default 0.2)")
    group.add_argument(
        "--no-standard-prediction", action="store_true", help="only tiles: do not also run the picture as a whole"
    )
    group.add_argument(
        "--match-metric",
        choices=MATCH_METRICS,
        help="overlap that makes detections of two tiles one object, where both see it: iou, intersection over union; "
        "ios, intersection over the smaller mask (default iou)",
    )
    group.add_argument("--match-threshold", type=float, metavar="X", help="least overlap for that (default 0.5)")
    group.add_argument("--class-agnostic", action="store_true", help="also merge detections of different classes")


def slicing(args: argparse.Namespace) -> Slicing | None:
    """The tiles that the options ask for.

    Raises:
        InputError: a value out of range, or a rule without --slice.
    """
    from yolact_deploy.errors import InputError
    from yolact_deploy.runtime.slicing import Slicing

    given: dict[str, Any] = {name: getattr(args, name) for name in _RULES}
    given = {name: value for name, value in given.items() if value is not None}
    flags = {"no_standard_prediction": args.no_standard_prediction, "class_agnostic": args.class_agnostic}
    if args.slice is None:
        for name in (*given, *(name for name, is_set in flags.items() if is_set)):
            raise InputError(f"--{name.replace('_', '-')} is a rule for tiles: give their size with --slice")
        return None
    return Slicing(
        size=args.slice,
        standard_prediction=not args.no_standard_prediction,
        class_agnostic=args.class_agnostic,
        **given,
    )
