"""Detect objects in pictures, videos, cameras and network streams; write overlays and JSON.

Without MODEL, the exported model in the current folder is taken, else the only checkpoint, else the model that ships.
Without SOURCE, pictures that come with the package.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli import stream_options
from yolact_deploy.cli.options import part_options
from yolact_deploy.cli.options.dataset_options import add_match_argument, class_match
from yolact_deploy.cli.options.parsing import whole
from yolact_deploy.cli.options.selection_options import add_selection_arguments, selection
from yolact_deploy.cli.options.size_options import add_size_arguments, size_options
from yolact_deploy.cli.options.slice_options import add_slice_arguments, slicing
from yolact_deploy.console import print_text
from yolact_deploy.vocabulary import BACKENDS, IMAGE_SUFFIXES, NMS_VARIANTS, OUTPUT_FORMATS, VIDEO_SUFFIXES

if TYPE_CHECKING:
    from yolact_deploy.cli.prediction import Summary
    from yolact_deploy.progress import Progress
    from yolact_deploy.streams.sources import Sources

_EXAMPLES = """examples:
  yolact-deploy predict yolact.onnx street.jpg photos/ -o results
  yolact-deploy predict yolact.onnx@openvino-bf16 drive.mp4
  yolact-deploy predict yolact.onnx 0 --class person           camera 0, until Ctrl-C
  yolact-deploy predict yolact.onnx aerial.tif --slice 640 --overlap 0.2
  yolact-deploy predict yolact.onnx rtsp://camera/1 --max-frames 1000
  ffmpeg -i a.mov -f mpegts - | yolact-deploy predict yolact.onnx -"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="ONNX file, engine or checkpoint; FILE@BACKEND selects a backend"
    )
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="*",
        help="picture, video, folder, pattern, text file with one source a line, camera number or /dev/video0, address "
        "(rtsp://, http://), - for standard input, gst:PIPELINE, screen:",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", default="predictions", help="output folder (default predictions)"
    )
    parser.add_argument(
        "--format",
        metavar="LIST",
        type=_formats,
        default=("overlay", "json"),
        help="comma-separated: overlay (pictures, MP4), json (one file per picture, one line per video frame), coco "
        "(one results file), csv, yolo (segments as text), labelme, masks (PNG with ids), crops, cutouts (transparent "
        "PNG), mot and ytvis (with --track); default overlay,json",
    )
    parser.add_argument(
        "--annotations", metavar="FILE", help="COCO file with the image ids for --format coco; others are left out"
    )
    add_match_argument(parser)
    parser.add_argument(
        "--recursive", action="store_true", help="also take the pictures of folders in folders, into folders like them"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that no earlier run of this command wrote"
    )
    parser.add_argument("--max-frames", type=whole(), metavar="N", help="stop each video or camera after N frames")
    stream_options.add_arguments(parser)
    part_options.add_arguments(
        parser,
        workers="run pictures in N processes, each with its share of the cores or with --threads (default 1; with "
        "--ray as many as there is room for)",
        ray="run pictures on a Ray cluster, by default one on this machine, into Parquet; a second run continues",
        shards="run only part I of N of the pictures, as the jobs of an array do; see 'merge'",
    )
    _add_model_arguments(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=BACKENDS, help="runtime (default: by the suffix of the file)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    add_selection_arguments(parser)
    add_slice_arguments(parser)
    parser.add_argument(
        "--nms", choices=NMS_VARIANTS, help="kind of NMS, if it runs on the host (default: as exported)"
    )
    parser.add_argument("--config", metavar="NAME", help="configuration of a checkpoint: a name or a JSON file")
    add_size_arguments(parser, of="the input of a checkpoint")


def run(args: argparse.Namespace) -> int:
    # Damaged videos are reported by this command, once. OpenCV reads these on first use.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    from yolact_deploy.cli.prediction import output_folder
    from yolact_deploy.progress import SILENT

    with contextlib.ExitStack() as stack:
        model, names = _named(args, stack)
        reading, making = stream_options.reading(args), stream_options.making(args)
        progress = SILENT if args.json else args.progress
        sources = _sources(args, names, progress)
        shard = part_options.checked_shard(args, sources)
        if args.ray is not None:
            return _run_on_ray(args, model, sources, progress)
        folder = stack.enter_context(output_folder(args.output))
        limits = {"overwrite": args.overwrite, "progress": progress, "making": making}
        if (args.workers or 1) > 1 and len(sources.pictures) > 1:
            summary = _run_in_processes(args, model, sources, folder, limits)
        else:
            job = {"reading": reading, "shard": shard, **limits}
            summary = _run_here(args, model, sources, folder, job)
    _print(summary, args, "images" if sources.pictures else "frames")
    return 2 if summary.failed or summary.interrupted else 0


def _sources(args: argparse.Namespace, names: list[str], progress: Progress) -> Sources:
    """What is named, checked against the formats; what is left out is noted."""
    from yolact_deploy.errors import InputError
    from yolact_deploy.streams.sources import find_sources

    sources = find_sources(names, recursive=args.recursive)
    sources.check_formats(args.format)
    if args.annotations is not None:
        if "coco" not in args.format:
            raise InputError("--annotations gives the image ids of --format coco: add that format")
        sources.take_ids(args.annotations, class_match(args))
    elif args.match_classes is not None:
        raise InputError("--match-classes is about the classes of --annotations: leave it out")
    for line in sources.describe_rest():
        progress.note(line)
    return sources


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    """Let threads wait for the interpreter for half a millisecond instead of five, while frames pass through many."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :func:`~yolact_deploy.load`."""
    return {
        "backend": args.backend,
        "threads": args.threads,
        "config": args.config,
        **size_options(args),
        "nms": args.nms,
        **selection(args),
        "slicing": slicing(args),
    }


def _run_here(args: argparse.Namespace, name: str, sources: Sources, folder: Path, options: dict[str, Any]) -> Summary:
    from yolact_deploy import loading
    from yolact_deploy.cli.prediction import PredictionJob

    with loading.load(name, **_load_options(args), lazy_masks=False) as model:  # the timings include pasting
        limits = {"max_frames": args.max_frames, "multiframe": args.video_multiframe}
        with _quick_switches():
            return PredictionJob(model, folder, args.format, **limits, **options).run(sources)


def _run_in_processes(
    args: argparse.Namespace, name: str, sources: Sources, folder: Path, limits: dict[str, Any]
) -> Summary:
    from yolact_deploy import loading
    from yolact_deploy.cli.prediction_workers import predict_in_processes

    load, options = functools.partial(loading.load, name), {**_load_options(args), "lazy_masks": False}
    return predict_in_processes(load, options, sources, folder, args.format, workers=args.workers, **limits)


def _run_on_ray(args: argparse.Namespace, model: str, sources: Sources, progress: Progress) -> int:
    from yolact_deploy.cli.schemas import RAY
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import InputError
    from yolact_deploy.scale.prediction_ray import predict_on_ray

    if (
        sources.streams
        or args.annotations
        or args.classes
        or args.one_class
        or args.shards
        or args.format != ("overlay", "json")
    ):
        raise InputError(
            "--ray runs pictures and writes Parquet files of all classes: leave out streams, --annotations, --class, "
            "--shards and --format"
        )
    pictures = [picture.path for picture in sources.pictures]
    facts = predict_on_ray(
        args.ray or None,
        model,
        _load_options(args),
        pictures,
        Path(args.output),
        workers=args.workers,
        progress=progress,
    )
    if args.json:
        print_json({"schema": RAY, **facts})
    elif not args.quiet:
        print_text(
            f"{facts['images']} images, {len(facts['failed'])} failed, {facts['detections']} detections; "
            f"{facts['skipped']} were done before; {facts['seconds']:.1f} s; wrote {facts['output']}"
        )
    return 2 if facts["failed"] else 0


def _named(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[str, list[str]]:
    """The model and the sources, those at hand where none is named.

    Args:
        stack: keeps pictures at hand until it closes
    """
    from yolact_deploy.cli.at_hand import EXAMPLES, config_of, model_at_hand, pictures_at_hand
    from yolact_deploy.loading import ModelSpec

    names = list(filter(None, (args.model, *args.sources)))
    is_model = bool(names) and not _is_source(names[0], alone=len(names) == 1)
    model = names.pop(0) if is_model else str(model_at_hand(args))
    if not names:
        spec = ModelSpec.parse(model)
        spec.check_file()
        images = stack.enter_context(pictures_at_hand(args, config_of(spec.path, args.config), EXAMPLES))
        args.progress.note(f"note: no pictures named: taking {images.describe()}")
        names = list(map(str, images.paths))
    return model, names


def _is_source(text: str, *, alone: bool) -> bool:
    """Whether the first name is a picture, video, camera or, if it is the only one, a folder, and not a model."""
    from yolact_deploy.streams.readers.kinds import is_stream_name
    from yolact_deploy.streams.sources import LIST_SUFFIXES

    suffix = Path(text).suffix.lower()
    return (
        suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *LIST_SUFFIXES)
        or is_stream_name(text)
        or (alone and Path(text).is_dir())
    )


def _print(summary: Summary, args: argparse.Namespace, what: str) -> None:
    """Print what was done; ``what`` says of what the sources consist."""
    from yolact_deploy.console import print_json, print_table

    facts = summary.to_dict()
    if args.json:
        print_json(facts)
    elif not args.quiet:
        print_table(["stage", "mean ms"], [(k, f"{v:.2f}") for k, v in facts["mean_ms"].items()])
        rate = f" ({facts['images_per_second']:.1f} {what}/s)" if summary.images else ""
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        print_text(
            f"{summary.images} {what}{failed}, {summary.detections} detections in {facts['seconds']:.1f} s{rate}"
        )
        shown = summary.outputs if len(summary.outputs) <= 4 else [*summary.outputs[:3], "..."]
        print_text(f"wrote {len(summary.outputs)} files to {args.output} ({', '.join(map(str, shown))})")


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    unknown = [name for name in names if name not in OUTPUT_FORMATS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"expected a comma-separated list of {', '.join(OUTPUT_FORMATS)}, got {text!r}"
        )
    return names
