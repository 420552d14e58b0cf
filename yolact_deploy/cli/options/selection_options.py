"""The options that select detections and set NMS, shared by the commands that run a model."""

from __future__ import annotations

import argparse
from typing import Any


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    """All of them: for commands that show detections."""
    group = parser.add_argument_group("detections")
    group.add_argument(
        "--score-threshold", default="0.15", metavar="X", help="drop detections below (default 0.15); 0.3,person=0.5 "
        "sets one for some classes",
    )  # fmt: skip
    group.add_argument("--class", dest="one_class", metavar="NAME", action="append", help="keep this class; repeatable")
    group.add_argument("--classes", metavar="NAME,...", help="keep only these classes")
    add_nms_arguments(group)


def add_nms_arguments(parser: argparse._ActionsContainer, *, max_detections: bool = True) -> None:
    """Only those of NMS: for commands that measure or export.

    Args:
        max_detections: False leaves out the option of this name
    """
    if max_detections:
        parser.add_argument("--max-detections", type=int, metavar="N", help="the best N of each image (default 100)")
    parser.add_argument(
        "--top-k", type=int, metavar="N", help="candidates of each class that enter NMS (default 200, or as exported)"
    )
    parser.add_argument(
        "--nms-iou", type=float, metavar="X", help="NMS drops what overlaps a better detection more (default 0.5)"
    )


def selection(args: argparse.Namespace) -> dict[str, Any]:
    """The values of :func:`add_selection_arguments` as arguments of `load`."""
    classes = [*(args.one_class or ()), *_names(args.classes)]
    return {"score_threshold": args.score_threshold, "classes": classes or None, **nms_settings(args)}


def nms_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The values of :func:`add_nms_arguments` as arguments of `load`."""
    return {"max_detections": args.max_detections, "top_k": args.top_k, "nms_iou": args.nms_iou}


def _names(text: str | None) -> list[str]:
    return [name for name in (part.strip() for part in (text or "").split(",")) if name]
