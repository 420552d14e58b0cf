"""``data convert``, ``split``, ``merge`` and ``view``: whole datasets in any format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.options.parsing import seed

if TYPE_CHECKING:
    from yolact_deploy.datasets.formats.read_set import ReadSet

ACTIONS = ("convert", "split", "merge", "view")
_DATA = "dataset in any format that 'data convert --help' lists"


def add_actions(commands: Any) -> None:
    """Add the actions to the parsers of ``data``."""
    convert = commands.add_parser(
        "convert", help="read a dataset in any format and write it as COCO or another one",
        epilog=_FORMATS,
    )  # fmt: skip
    convert.add_argument("data", metavar="DATA", help="dataset in one of the formats below")
    convert.add_argument(
        "--to", default="coco", metavar="FORMAT", help="coco, yolo, labelme, cvat or masks (default: coco)"
    )
    _add_reading(convert)
    _add_output(convert)
    split = commands.add_parser("split", help="divide a dataset into train and val, with all classes in both")
    split.add_argument("data", metavar="DATA", help=_DATA)
    split.add_argument("--val", type=float, default=0.2, metavar="SHARE", help="share of val (default: 0.2)")
    split.add_argument("--test", type=float, default=0.0, metavar="SHARE", help="share of test (default: none)")
    split.add_argument("--seed", type=seed, default=0, help="seed of the random generator (default: 0)")
    _add_reading(split)
    _add_output(split)
    merge = commands.add_parser("merge", help="join datasets; classes of the same name become one")
    merge.add_argument("data", metavar="DATA", nargs="+", help=_DATA)
    _add_reading(merge)
    _add_output(merge)
    view = commands.add_parser("view", help="draw pictures with their masks on one sheet, as PNG or HTML")
    view.add_argument("data", metavar="DATA", help=_DATA)
    view.add_argument("-o", "--output", metavar="FILE", default="view.png", help=".png or .html (default: view.png)")
    view.add_argument("--limit", type=int, default=24, metavar="N", help="pictures, spread evenly (default: 24)")
    view.add_argument("--split", metavar="NAME", help="only this split")
    view.add_argument("--class", dest="only_class", metavar="NAME", help="only pictures and objects of this class")
    _add_reading(view)


_FORMATS = """\
formats that are read:
  COCO                a dataset file (YAML), a folder, or a file; Roboflow's COCO
  YOLO text           data.yaml with images and labels (outlines, not boxes)
  Pascal VOC          JPEGImages, SegmentationObject and SegmentationClass; or XML with polygons, as Roboflow writes it
  SBD                 img, inst/*.mat, train.txt, val.txt (extra 'sbd')
  CVAT XML            'CVAT for images 1.1' with its pictures
  LabelMe JSON        a file for each picture
  Label Studio JSON   polygons and brush masks, with the pictures beside
  mask pictures       images and masks: a PNG with ids for each picture, or one for each object

'train', 'eval', 'bench' and 'export' take all of them as --data, too.

examples:
  yolact-deploy data convert labels/ -o coco
  yolact-deploy data convert coco/ -o yolo --to yolo --pictures link"""


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images-dir", metavar="DIR", help="folder of the pictures (default: searched)")
    parser.add_argument("--lenient", action="store_true", help="leave out images and annotations that are not sound")
    parser.add_argument("--boxes", action="store_true", help="take boxes without an outline as rectangular masks")
    parser.add_argument(
        "--class-name", default="object", metavar="NAME", help="class of mask pictures without one (default: object)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to create")
    parser.add_argument(
        "--pictures", choices=("copy", "link", "keep"), default="copy",
        help="copy them, link them (no space on the same disk), or keep them where they are (default: copy)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.errors import import_optional

    import_optional("pycocotools", "train", "Reading a dataset")
    return {"convert": _convert, "split": _split, "merge": _merge, "view": _view}[args.action](args)


def _read(args: argparse.Namespace, source: str) -> ReadSet:
    from yolact_deploy.datasets.convert import read_any
    from yolact_deploy.datasets.formats.read_set import FormatOptions
    from yolact_deploy.errors import InputError

    images_dir = None if args.images_dir is None else Path(args.images_dir)
    if images_dir is not None and not images_dir.is_dir():
        raise InputError(f"--images-dir: expected a folder, there is none: {images_dir}")
    options = FormatOptions(boxes=args.boxes, class_name=args.class_name, images_dir=images_dir)
    with args.progress.steps(f"reading {source}"):
        return read_any(source, options, lenient=args.lenient)


def _convert(args: argparse.Namespace) -> int:
    from yolact_deploy.datasets.convert import TARGETS
    from yolact_deploy.vocabulary import check_word

    check_word("--to", args.to, TARGETS)
    return _write(args, _read(args, args.data), args.to)


def _split(args: argparse.Namespace) -> int:
    from yolact_deploy.datasets.convert import split_dataset
    from yolact_deploy.errors import InputError

    if not (0 < args.val < 1 and 0 <= args.test < 1 and args.val + args.test < 1):
        raise InputError(
            f"expected shares of which something is left to train, got --val {args.val} --test {args.test}"
        )
    shares = {"train": 1 - args.val - args.test, "val": args.val, **({"test": args.test} if args.test else {})}
    return _write(args, split_dataset(_read(args, args.data), shares, args.seed), "coco")


def _merge(args: argparse.Namespace) -> int:
    from yolact_deploy.datasets.convert import merge_datasets

    return _write(args, merge_datasets([_read(args, source) for source in args.data]), "coco")


def _write(args: argparse.Namespace, dataset: ReadSet, to: str) -> int:
    """Write the dataset, and print where it is and what it has."""
    from yolact_deploy.console import print_json, print_next, print_table
    from yolact_deploy.datasets.convert import write_dataset

    path = write_dataset(dataset, Path(args.output), to=to, pictures=args.pictures, progress=args.progress)
    splits = {
        name: {
            "images": len(pictures),
            "objects": sum(not o.iscrowd for picture in pictures for o in picture.objects),
            "crowds": sum(o.iscrowd for picture in pictures for o in picture.objects),
        }
        for name, pictures in dataset.splits.items()
    }
    if args.json:
        facts = {"dataset": str(path), "format": to, "read_as": dataset.title, "classes": dataset.names}
        print_json({**facts, "splits": splits, "notes": dict(dataset.notes)})
        return 0
    rows = [(name, *counts.values()) for name, counts in splits.items()]
    title = ", ".join(args.data) if isinstance(args.data, list) else f"{dataset.path}: {dataset.title}"
    print_table(["split", "images", "objects", "crowds"], rows, title=title)
    for line in dataset.note_lines():
        args.progress.note(f"note: {line}")
    print(path)
    if not args.quiet:
        print_next(["yolact-deploy", "data", "view", str(path)])
    return 0


def _view(args: argparse.Namespace) -> int:
    from yolact_deploy.console import print_json
    from yolact_deploy.datasets.contact_sheet import MOST_PICTURES, write_sheet
    from yolact_deploy.errors import InputError

    if not 1 <= args.limit <= MOST_PICTURES:
        raise InputError(f"--limit: expected 1 to {MOST_PICTURES} pictures, got {args.limit}")
    dataset = _read(args, args.data)
    shown = write_sheet(
        dataset, Path(args.output), limit=args.limit, split=args.split, only_class=args.only_class,
        progress=args.progress,
    )  # fmt: skip
    if args.json:
        print_json({"output": args.output, "pictures": shown, "notes": dict(dataset.notes)})
    else:
        for line in dataset.note_lines():
            args.progress.note(f"note: {line}")
        print(args.output)
    return 0
