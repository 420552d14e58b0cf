"""Options of ``predict`` for streams: how they are read, drawn, watched and tracked."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from yolact_deploy.cli.options.parsing import whole
from yolact_deploy.vocabulary import BUFFERS, COLORS, DECODERS, HIDDEN, OVERLAPS, TRACK_FORMATS

if TYPE_CHECKING:
    from yolact_deploy.cli.stream_job import StreamOptions
    from yolact_deploy.streams.timed_frames import ReadOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all options, in groups."""
    _add_reading(parser)
    _add_drawing(parser)
    _add_tracking(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("streams")
    group.add_argument("--vid-stride", type=whole(), default=1, metavar="N", help="take every N-th frame")
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


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("drawing and watching")
    group.add_argument("--hide", type=_hidden, default=frozenset(), metavar="LIST", help=f"any of {', '.join(HIDDEN)}")
    group.add_argument(
        "--color", choices=COLORS, help="what a color stands for (default: instance, track with --track)"
    )
    group.add_argument("--blur", action="store_true", help="make the objects unrecognizable")
    group.add_argument("--container", choices=("mp4", "mkv"), default="mp4", help="kind of video files (default mp4)")
    group.add_argument("--show", action="store_true", help="show frames in a window; Esc ends")
    group.add_argument("--show-fps", action="store_true", help="write frame rate and latency on the frames")
    group.add_argument(
        "--serve-mjpeg", type=_port, metavar="PORT", help="serve drawn frames at http://127.0.0.1:PORT (0: a free one)"
    )
    group.add_argument(
        "--video-multiframe", type=whole(), metavar="N", help="frames in one batch (default 1, or a fixed batch)"
    )


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tracking")
    group.add_argument("--track", action="store_true", help="give objects of videos ids, by ByteTrack")
    group.add_argument(
        "--track-overlap", choices=OVERLAPS, default="box", help="IoU that the tracker compares (default box)"
    )
    group.add_argument(
        "--track-score", type=float, default=0.5, metavar="X", help="least score of a new track (default 0.5)"
    )
    group.add_argument(
        "--count-line",
        type=_points,
        action="append",
        default=[],
        metavar="X1,Y1,X2,Y2",
        help="count crossings; repeatable",
    )
    group.add_argument(
        "--count-zone", type=_points, action="append", default=[], metavar="X1,Y1,X2,Y2,X3,Y3,...",
        help="count objects in a polygon; repeatable",
    )  # fmt: skip


def reading(args: argparse.Namespace) -> ReadOptions:
    """How streams are read; raises :class:`InputError` for values out of range."""
    from yolact_deploy.streams.timed_frames import ReadOptions

    return ReadOptions(
        stride=args.vid_stride,
        start=args.start,
        duration=args.duration,
        buffer=args.buffer,
        timeout=args.timeout,
        decoder=args.decoder,
        raw_size=args.raw_size,
    )


def making(args: argparse.Namespace) -> StreamOptions:
    """What is made of detections; raises :class:`InputError` for options that do not go together."""
    from yolact_deploy.cli.stream_job import Counter, StreamOptions
    from yolact_deploy.draw import DrawStyle
    from yolact_deploy.errors import InputError
    from yolact_deploy.streams.byte_track import TrackOptions
    from yolact_deploy.streams.counting import LineCounter, ZoneCounter

    need = [f"--format {name}" for name in args.format if name in TRACK_FORMATS]
    need += ["--count-line"] * bool(args.count_line) + ["--count-zone"] * bool(args.count_zone)
    need += ["--color track"] * (args.color == "track")
    if need and not args.track:
        raise InputError(f"{need[0]} needs the ids of tracked objects: add --track")
    for line in args.count_line:
        if len(line) != 2:
            raise InputError(f"--count-line: expected two points X1,Y1,X2,Y2, got {len(line)}")

    def counters() -> list[Counter]:
        return [*(LineCounter(*line) for line in args.count_line), *map(ZoneCounter, args.count_zone)]

    counters()  # raises
    tracking = TrackOptions(high_score=args.track_score, new_score=args.track_score, overlap=args.track_overlap)
    return StreamOptions(
        style=DrawStyle(hide=args.hide, color=args.color or ("track" if args.track else "instance"), blur=args.blur),
        show=args.show,
        show_fps=args.show_fps,
        mjpeg_port=args.serve_mjpeg,
        track=tracking if args.track else None,
        counters=counters,
        suffix=f".{args.container}",
    )


def _hidden(text: str) -> frozenset[str]:
    names = frozenset(filter(None, (name.strip() for name in text.split(","))))
    if not names or not names <= set(HIDDEN):
        raise argparse.ArgumentTypeError(f"expected a comma-separated list of {', '.join(HIDDEN)}, got {text!r}")
    return names


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _points(text: str) -> list[tuple[float, float]]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) < 4 or len(values) % 2 or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"expected pixels X1,Y1,X2,Y2,..., got {text!r}")
    return list(zip(values[::2], values[1::2], strict=True))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) < 1 << 16 and 0 < int(height) < 1 << 16):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 640x480, got {text!r}")
    return int(width), int(height)
