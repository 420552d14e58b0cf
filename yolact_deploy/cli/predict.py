"""Detect objects in pictures, videos, cameras and network streams; write overlays and JSON.

Without MODEL, the exported model in the current folder is taken, else the only checkpoint, else the model that ships.
Without SOURCE, pictures that come with the package.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.vocabulary import BACKENDS, BUFFERS, DECODERS, IMAGE_SUFFIXES, NMS_VARIANTS, VIDEO_SUFFIXES

if TYPE_CHECKING:
    from yolact_deploy.cli.prediction import Summary

_EXAMPLES = """examples:
  yolact-deploy predict yolact.onnx street.jpg photos/ -o results
  yolact-deploy predict yolact.onnx@openvino-bf16 drive.mp4
  yolact-deploy predict yolact.onnx 0 --class person           (camera 0, until Ctrl-C)
  yolact-deploy predict yolact.onnx rtsp://camera/1 --max-frames 1000
  ffmpeg -i a.mov -f mpegts - | yolact-deploy predict yolact.onnx -"""
_FORMATS = ("overlay", "json", "coco")


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
        "(one results file); default overlay,json",
    )
    parser.add_argument(
        "--annotations", metavar="FILE", help="COCO file with the image ids for --format coco; others are left out"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.15, metavar="X", help="drop detections below (default 0.15)"
    )
    parser.add_argument(
        "--class", dest="classes", metavar="NAME", action="append", help="keep only this class; repeatable"
    )
    parser.add_argument(
        "--recursive", action="store_true", help="also take the pictures of folders in folders, into folders like them"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that no earlier run of this command wrote"
    )
    parser.add_argument("--max-frames", type=_positive, metavar="N", help="stop each video or camera after N frames")
    _add_reading(parser)
    parser.add_argument("--backend", choices=BACKENDS, help="default: by the suffix of the file")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--nms", choices=NMS_VARIANTS, help="if the tail runs on the host")
    parser.add_argument("--config", metavar="NAME", help="configuration of a checkpoint: a name or a JSON file")
    parser.add_argument("--size", type=int, metavar="S", help="input side of a checkpoint (default: as configured)")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("streams")
    group.add_argument("--vid-stride", type=_positive, default=1, metavar="N", help="take every N-th frame")
    group.add_argument("--start", type=float, default=0.0, metavar="S", help="skip the first S seconds of videos")
    group.add_argument("--duration", type=float, metavar="S", help="read S seconds of each stream")
    group.add_argument(
        "--buffer", choices=BUFFERS, help="take the newest frame or each (default: latest if live, else all)"
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="S",
        help="a live source without a frame for S seconds has failed; it is reconnected until then (default 10)",
    )
    group.add_argument("--decoder", choices=DECODERS, help="PyAV or OpenCV (default: PyAV if installed)")
    group.add_argument("--raw-size", type=_size, metavar="WxH", help="raw BGR frames of this size on standard input")


def run(args: argparse.Namespace) -> int:
    # Damaged videos are reported by this command, once. OpenCV reads these on first use.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    from yolact_deploy import loading
    from yolact_deploy.cli.prediction import PredictionJob, output_folder, select_classes
    from yolact_deploy.errors import InputError
    from yolact_deploy.progress import SILENT
    from yolact_deploy.streams.sources import find_sources
    from yolact_deploy.streams.timed_frames import ReadOptions

    with contextlib.ExitStack() as stack:
        reading = ReadOptions(
            stride=args.vid_stride,
            start=args.start,
            duration=args.duration,
            buffer=args.buffer,
            timeout=args.timeout,
            decoder=args.decoder,
            raw_size=args.raw_size,
        )
        model_name, names = _named(args, stack)
        sources = find_sources(names, recursive=args.recursive)
        progress = SILENT if args.json else args.progress
        sources.check_formats(args.format)
        if args.annotations is not None:
            if "coco" not in args.format:
                raise InputError("--annotations gives the image ids of --format coco: add that format")
            sources.take_ids(args.annotations)
        for line in sources.describe_rest():
            progress.note(line)
        folder = stack.enter_context(output_folder(args.output))
        model = loading.load(
            model_name,
            backend=args.backend,
            threads=args.threads,
            config=args.config,
            image_size=args.size,
            score_threshold=args.score_threshold,
            nms=args.nms,
            lazy_masks=False,  # the timings include pasting
        )
        stack.enter_context(model)
        labels = select_classes(model.config, args.classes)
        limits = {"max_frames": args.max_frames, "overwrite": args.overwrite}
        job = PredictionJob(model, folder, args.format, labels, progress=progress, reading=reading, **limits)
        summary = job.run(sources)
    _print(summary, args)
    return 2 if summary.failed or summary.interrupted else 0


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


def _print(summary: Summary, args: argparse.Namespace) -> None:
    from yolact_deploy.console import print_json, print_table

    facts = summary.to_dict()
    if args.json:
        print_json(facts)
    elif not args.quiet:
        print_table(["stage", "mean ms"], [(k, f"{v:.2f}") for k, v in facts["mean_ms"].items()])
        rate = f" ({facts['images_per_second']:.1f} images/s)" if summary.images else ""
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        print(f"{summary.images} images{failed}, {summary.detections} detections in {facts['seconds']:.1f} s{rate}")
        shown = summary.outputs if len(summary.outputs) <= 4 else [*summary.outputs[:3], "..."]
        print(f"wrote {len(summary.outputs)} files to {args.output} ({', '.join(map(str, shown))})")


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    unknown = [name for name in names if name not in _FORMATS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"expected a comma-separated list of {', '.join(_FORMATS)}, got {text!r}")
    return names


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) < 1 << 16 and 0 < int(height) < 1 << 16):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 640x480, got {text!r}")
    return int(width), int(height)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more, got {text!r}")
    return int(text)
