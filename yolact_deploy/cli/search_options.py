"""Limits on what INT8 may cost, and the search for the layers to keep in FP32 that keeps them; part of ``export``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolact_deploy.artifact import Metadata
    from yolact_deploy.datasets.image_sets import CocoImages
    from yolact_deploy.export.calibration import Calibration
    from yolact_deploy.export.pipeline import Int8Options
    from yolact_deploy.export.search.bisect import Target
    from yolact_deploy.export.search.layer_search import SearchResult
    from yolact_deploy.progress import Progress

_MOST_LISTED = 8


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "limits for --int8",
        "Where INT8 costs more, the fewest layers are looked for that must stay in FP32;\n"
        "where no layer can be in INT8, nothing is written and the exit code is 1.",
    )
    group.add_argument(
        "--max-ap-drop",
        type=float,
        metavar="POINTS",
        help="points (of 100) that neither box nor mask AP may lose against FP32; needs images with annotations",
    )
    group.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="share (0..1) of detections on which INT8 must agree with FP32: class, and box and mask to an IoU of 0.9",
    )
    group.add_argument("--coco", metavar="DIR", help="images to judge by: folder with (annotations/)instances_*.json")
    group.add_argument("--annotations", metavar="FILE", help="COCO instances file, with --images-dir or --coco")
    group.add_argument(
        "--images-dir",
        metavar="DIR",
        help="folder of the images to judge by (default: those with annotations in --calibration, or a fifth of it; "
        "what is judged by is not calibrated on)",
    )
    group.add_argument(
        "--search-images", type=int, default=100, metavar="N", help="images to judge by, spread evenly (default 100)"
    )
    group.add_argument(
        "--sensitivity", metavar="FILE.json", help="write what was measured and found; --keep-fp32 takes this file"
    )


@dataclass
class LayerSearch:
    """A search that was asked for.

    Attributes:
        judged: images that the limits are about
        result: what was found, after :meth:`find`
    """

    target: Target
    judged: CocoImages
    progress: Progress
    result: SearchResult | None = None

    def options(self, options: Int8Options, source: str, count: int) -> Int8Options:
        """How to quantise, with this search in it.

        Args:
            options: without it
            source: what --calibration names; pictures of it that are judged by are not calibrated on
            count: of the pictures to calibrate on, at most
        """
        from dataclasses import replace
        from functools import partial

        from yolact_deploy.datasets.held_out import calibration_apart

        pictures, note = calibration_apart(source, count, self.judged)
        if note:
            self.progress.note(f"note: {note}")
        found = partial(self.find, pictures=pictures, target=options.target)
        return replace(options, images=pictures, find_layers=found)

    def find(
        self, graph: Any, metadata: Metadata, calibration: Calibration, *, pictures: Sequence[Path], target: str
    ) -> Mapping[str, str]:
        """Layers to keep in FP32, with the reasons.

        Args:
            graph: ``ModelProto`` in FP32
            pictures: those of the calibration, of which a few serve to measure the noise of layers
            target: of :data:`yolact_deploy.vocabulary.QUANTIZATION_FORMS`

        Raises:
            GateError: the limits cannot be kept with any layer in INT8.
        """
        from yolact_deploy.datasets.image_sets import plain_images
        from yolact_deploy.export.search.changes import int8
        from yolact_deploy.export.search.layer_search import RANKING_IMAGES, search_layers
        from yolact_deploy.export.search.trials import Trials
        from yolact_deploy.graph.onnx_int8 import wants_unsigned

        change, always = int8(calibration, target), metadata.keep_fp32
        few = plain_images(_readable(pictures, RANKING_IMAGES))
        ranking = Trials(graph, metadata, few, change, always=always)
        judging = Trials(graph, metadata, self.judged, change, always=always, raw_outputs=False)
        signed = None
        if target == "symmetric" and wants_unsigned():
            signed = judging.changed_by(int8(calibration, target, unsigned=False))
        self.result = search_layers(ranking, judging, self.target, signed=signed, progress=self.progress)
        return self.result.reasons


def _readable(pictures: Sequence[Path], count: int) -> list[Path]:
    """So many of the pictures, from all over the list; a calibration passes over those that cannot be read."""
    from yolact_deploy.datasets.held_out import spread
    from yolact_deploy.errors import InputError
    from yolact_deploy.preprocess import read_image

    found: list[Path] = []
    for path in dict.fromkeys([*spread(pictures, count), *pictures]):
        try:
            read_image(path)
        except InputError:
            continue
        found.append(path)
        if len(found) == count:
            break
    return found


def prepare_search(args: argparse.Namespace) -> LayerSearch | None:
    """The search that the options ask for, before anything long is done.

    Raises:
        InputError: options that do not fit each other.
        DatasetError: images to judge by that cannot be used.
    """
    from yolact_deploy.errors import InputError
    from yolact_deploy.export.search.bisect import Target

    limited = args.max_ap_drop is not None or args.min_agreement is not None
    if limited and not args.int8:
        raise InputError("--max-ap-drop and --min-agreement are of --int8: give it, too")
    if not limited:
        for option in ("coco", "annotations", "images_dir", "sensitivity"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise InputError(f"--{name} goes with a limit for --int8: give --max-ap-drop or --min-agreement")
        return None
    if args.search_images < 1:
        raise InputError(f"--search-images: expected 1 or more, got {args.search_images}")
    target = Target(max_ap_drop=args.max_ap_drop, min_agreement=args.min_agreement)
    return LayerSearch(target, _judged(args), args.progress)


def _judged(args: argparse.Namespace) -> CocoImages:
    from dataclasses import replace

    from yolact_deploy.datasets.held_out import judged_of_folder, spread
    from yolact_deploy.datasets.image_sets import open_images
    from yolact_deploy.datasets.resolve import has_annotations
    from yolact_deploy.errors import DatasetError

    named = args.coco or args.annotations or args.images_dir
    if not named and not has_annotations(args.calibration):
        images = judged_of_folder(args.calibration, args.search_images)
    else:
        coco = args.coco if named else args.calibration
        images = open_images(coco=coco, annotations=args.annotations, images_dir=args.images_dir)
    if args.max_ap_drop is not None and images.content is None:
        raise DatasetError("--max-ap-drop needs ground truth: give --coco DIR or --annotations FILE with annotations")
    return replace(images, images=tuple(spread(images.images, args.search_images)))


def print_search(found: SearchResult) -> None:
    """Tables of what blocks and layers cost, what was found, and what it does to the accuracy."""
    import textwrap

    from yolact_deploy.benchmarks.cost_tables import cost_tables, search_notes, search_table
    from yolact_deploy.console import print_table

    for table in (
        *cost_tables(found.precision, found.ranking_images, found.blocks, found.costs, _MOST_LISTED),
        search_table(found),
    ):
        print_table(table.columns, table.rows, title=table.title)
    if found.keep_fp32:
        kept = f"{len(found.keep_fp32)} of {found.layers} layers stay in FP32: {', '.join(found.keep_fp32)}"
    else:
        kept = f"no layer has to stay in FP32: {found.target}"
    for text in (kept, *(f"note: {note}" for note in search_notes(found))):
        print(textwrap.fill(text, width=120, break_on_hyphens=False))
