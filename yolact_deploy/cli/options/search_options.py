"""Limits on what INT8 may cost, and the images that they are about; part of ``export``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from yolact_deploy.cli.options.dataset_options import add_match_argument, class_match

if TYPE_CHECKING:
    from yolact_deploy.datasets.image_sets import CocoImages
    from yolact_deploy.export.search.bisect import Target


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "limits for --int8",
        "If INT8 costs more than a limit allows, export finds the fewest layers that must stay\n"
        "in FP32. If no layer can be in INT8, nothing is written and the exit code is 1.",
    )
    group.add_argument(
        "--max-ap-drop",
        type=float,
        metavar="POINTS",
        help="points (of 100) of box and of mask AP that INT8 may lose against FP32; needs images with annotations",
    )
    group.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="share (0..1) of detections on which INT8 and FP32 must agree: same class, IoU of box and mask at least "
        "0.9",
    )
    group.add_argument(
        "--data", "--coco", dest="coco", metavar="DATA",
        help="images to judge by: dataset (YAML file, COCO folder or annotations file), or folder of pictures",
    )  # fmt: skip
    group.add_argument("--annotations", metavar="FILE", help="COCO instances file, with --images-dir or --coco")
    group.add_argument(
        "--images-dir",
        metavar="DIR",
        help="folder of the images to judge by (default: the annotated images in --calibration, or a fifth of that "
        "folder; images to judge by are left out of the calibration)",
    )
    group.add_argument(
        "--lenient", action="store_true", help="leave out images to judge by and annotations that are not sound"
    )
    add_match_argument(group)
    group.add_argument(
        "--search-images", type=int, default=100, metavar="N", help="images to judge by, spread evenly (default 100)"
    )
    group.add_argument(
        "--sensitivity", metavar="FILE.json", help="write all that was measured; --keep-fp32 reads this file"
    )


def search_limits(args: argparse.Namespace) -> Target | None:
    """The limits that the options set, if any.

    Raises:
        InputError: a limit out of range, or an option that requires a limit.
    """
    from yolact_deploy.errors import InputError
    from yolact_deploy.export.search.bisect import Target

    if args.max_ap_drop is None and args.min_agreement is None:
        for option in ("coco", "annotations", "images_dir", "sensitivity", "lenient", "match_classes"):
            if getattr(args, option) not in (None, False):
                name = option.replace("_", "-")
                raise InputError(f"--{name} requires a limit for --int8: give --max-ap-drop or --min-agreement")
        return None
    if args.search_images < 1:
        raise InputError(f"--search-images: expected 1 or more, got {args.search_images}")
    return Target(max_ap_drop=args.max_ap_drop, min_agreement=args.min_agreement)


def judged_images(args: argparse.Namespace) -> CocoImages:
    """The images that the limits are about.

    Raises:
        DatasetError: they cannot be used, or have no ground truth for a limit on AP.
    """
    from dataclasses import replace

    from yolact_deploy.datasets.calibration_images import judged_of_folder, spread
    from yolact_deploy.datasets.image_sets import open_images
    from yolact_deploy.datasets.resolve import has_annotations
    from yolact_deploy.errors import DatasetError

    named = args.coco or args.annotations or args.images_dir
    if not named and not has_annotations(args.calibration):
        images = judged_of_folder(args.calibration, args.search_images)
    else:
        coco = args.coco if named else args.calibration
        images = open_images(
            coco=coco, annotations=args.annotations, images_dir=args.images_dir, lenient=args.lenient,
            match_classes=class_match(args),
        )  # fmt: skip
    if args.max_ap_drop is not None and images.content is None:
        raise DatasetError("--max-ap-drop needs ground truth: give --coco DIR or --annotations FILE with annotations")
    return replace(images, images=tuple(spread(images.images, args.search_images)))
