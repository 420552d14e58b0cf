"""Options of ``predict`` and ``eval`` for many pictures: processes, a Ray cluster, and shards."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolact_deploy.datasets.shard import Shard
    from yolact_deploy.streams.sources import Sources

#: formats whose files do not depend on other pictures, or can be merged
_PARTED = ("overlay", "json", "coco")


def add_arguments(parser: argparse.ArgumentParser, *, workers: str, ray: str, shards: str) -> None:
    """The options, with what ``--help`` says of each."""
    group = parser.add_argument_group("many pictures")
    group.add_argument("--workers", type=int, metavar="N", help=workers)
    group.add_argument("--ray", metavar="ADDRESS", nargs="?", const="", help=ray)
    group.add_argument("--shards", metavar="I/N", help=shards)


def checked_workers(args: argparse.Namespace) -> int | None:
    """Processes at once, None where the command chooses.

    Raises:
        InputError: less than one.
    """
    from yolact_deploy.errors import InputError

    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers: expected 1 or more, got {args.workers}")
    workers: int | None = args.workers
    return workers


def checked_shard(args: argparse.Namespace, sources: Sources) -> Shard | None:
    """The part of the pictures to run, None for all.

    Raises:
        InputError: --workers, --shards, the formats and the sources do not fit each other.
    """
    from yolact_deploy.datasets.shard import Shard
    from yolact_deploy.errors import InputError

    workers = checked_workers(args) or 1
    if workers == 1 and args.shards is None:
        return None
    option = "--workers" if args.shards is None else "--shards"
    if sources.streams or (args.ray is None and set(args.format) - set(_PARTED)):
        raise InputError(
            f"{option} works for pictures and --format {', '.join(_PARTED)} only: leave it out for videos, streams and "
            "other formats"
        )
    if args.shards is None:
        return None
    if workers > 1:
        raise InputError("--shards runs pictures in one process: leave out --workers")
    shard = Shard.parse(args.shards)
    shard.some_of(sources.pictures)
    return shard
