"""The input of a network that comes from a checkpoint: ``--size``, ``--fit`` and ``--priors``, alike everywhere."""

from __future__ import annotations

import argparse
from typing import Any

from yolact_deploy.config import Size, read_size
from yolact_deploy.errors import ConfigError
from yolact_deploy.vocabulary import FITS, PRIOR_SIZES

_NAMES = ("size", "fit", "priors")


def add_size_arguments(parser: Any, *, of: str = "the network's input", ranges: bool = False) -> None:
    """Add the options to a parser or a group of arguments.

    Args:
        of: what has the size, for the help
        ranges: take a range of sizes as well, of which :func:`size_range_option` makes two values
    """
    more = (
        ". MIN:MAX or MIN:OPT:MAX takes all sizes between two; pictures get one of their ratio and of about OPT's area"
    )
    more = more if ranges else ""
    parser.add_argument(
        "--size",
        type=_size_or_range if ranges else size_argument,
        metavar="S, HxW or MIN:MAX" if ranges else "S or HxW",
        help=f"{of}: a side, or height x width (default: as configured){more}",
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        help="pictures of another shape: stretch them, keep their ratio with padding around (letterbox), or "
        "keep it with padding right and below (pad) (default: as configured)",
    )
    parser.add_argument(
        "--priors",
        choices=PRIOR_SIZES,
        help="prior boxes at --size: their original share of the width and height, or their pixels (default original)",
    )


def size_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :func:`yolact_deploy.loading.load` and others; empty if no option is given."""
    values = {"image_size": args.size, "fit": args.fit, "priors": args.priors}
    return {key: value for key, value in values.items() if value is not None}


def size_range_option(args: argparse.Namespace) -> dict[str, Any]:
    """``size`` and ``size_range`` of :class:`~yolact_deploy.export.spec.ExportSpec`."""
    ranged = isinstance(args.size, list)
    return {"size": None, "size_range": tuple(args.size)} if ranged else {"size": args.size, "size_range": None}


def size_words(args: argparse.Namespace) -> list[str]:
    """The options as they are typed, for a command that calls others."""
    from yolact_deploy.config import size_text

    given = {name: getattr(args, name) for name in _NAMES if getattr(args, name) is not None}
    return [
        word for name, value in given.items() for word in (f"--{name}", value if name != "size" else size_text(value))
    ]


def _size_or_range(text: str) -> Size | list[Size]:
    """A size, or the list of those of a range."""
    parts = text.split(":")
    if len(parts) > 3:
        raise argparse.ArgumentTypeError(f"expected a size, MIN:MAX or MIN:OPT:MAX, got {text!r}")
    sizes = [size_argument(part) for part in parts]
    return sizes if len(sizes) > 1 else sizes[0]


def size_argument(text: str) -> Size:
    """A size as an option has it."""
    try:
        return read_size(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
