"""The options that select the images, shared by the commands that measure."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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
    )
