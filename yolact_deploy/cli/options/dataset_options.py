"""The options that select the images, shared by the commands that measure."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from yolact_deploy.vocabulary import CLASS_MATCHES

if TYPE_CHECKING:
    from yolact_deploy.datasets.image_sets import CocoImages


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "--data", "--coco", dest="coco", metavar="DATA",
        help="dataset in any format that 'data convert --help' lists; or a folder of pictures",
    )  # fmt: skip
    group.add_argument("--annotations", metavar="FILE", help="COCO instances file; its pictures: see --images-dir")
    group.add_argument("--images-dir", metavar="DIR", help="folder of the pictures (default: searched)")
    group.add_argument(
        "--limit", "--images", dest="images", type=int, metavar="N", help="only the first N pictures, by image id"
    )
    group.add_argument("--lenient", action="store_true", help="leave out images and annotations that are not sound")
    add_match_argument(group)


def add_match_argument(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    group.add_argument(
        "--match-classes",
        choices=CLASS_MATCHES,
        help="whether the classes of model and annotations have the same category ids and names (both, the default), "
        "the same ids though names differ (id), or the same names though ids differ (name)",
    )


def class_match(args: argparse.Namespace) -> str:
    return args.match_classes or CLASS_MATCHES[0]


def names_dataset(args: argparse.Namespace) -> bool:
    """Whether the user names images."""
    return any(value is not None for value in (args.coco, args.annotations, args.images_dir))


def open_dataset(args: argparse.Namespace) -> CocoImages:
    from yolact_deploy.datasets.image_sets import open_images

    return open_images(
        coco=args.coco,
        annotations=args.annotations,
        images_dir=args.images_dir,
        limit=args.images,
        lenient=args.lenient,
        match_classes=class_match(args),
    )
