"""Options of ``predict`` for many pictures: processes, a Ray cluster, and shards."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolact_deploy.datasets.shard import Shard
    from yolact_deploy.streams.sources import Sources

#: formats whose files do not depend on other pictures, or can be merged
_PARTED = ("overlay", "json", "coco")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many pictures")
    group.add_argument(
        "--workers", type=int, metavar="N",
        help="run pictures in N processes, each with its share of the cores or with --threads (default 1; with --ray "
        "as many as there is room for)",
    )  # fmt: skip
    group.add_argument(
        "--ray", metavar="ADDRESS", nargs="?", const="",
        help="run pictures on a Ray cluster, by default one on this machine, into Parquet; a second run continues",
    )  # fmt: skip
    group.add_argument(
        "--shards", metavar="I/N", help="run only part I of N of the pictures, as the jobs of an array do; see 'merge'"
    )


def checked_shard(args: argparse.Namespace, sources: Sources) -> Shard | None:
    """The part of the pictures to run, None for all.

    Raises:
        InputError: --workers, --shards, the formats and the sources do not fit each other.
    """
    from yolact_deploy.datasets.shard import Shard
    from yolact_deploy.errors import InputError

    workers = 1 if args.workers is None else args.workers
    if workers < 1:
        raise InputError(f"--workers: expected 1 or more, got {workers}")
    if workers == 1 and args.shards is None:
        return None
    option = "--workers" if args.shards is None else "--shards"
    if sources.streams or (args.ray is None and set(args.format) - set(_PARTED)):
        raise InputError(f"{option} runs pictures, for --format {', '.join(_PARTED)}: run the rest without it")
    if args.shards is None:
        return None
    if workers > 1:
        raise InputError("--shards runs pictures in one process: leave out --workers")
    shard = Shard.parse(args.shards)
    if not shard.of(sources.pictures):
        raise InputError(f"--shards {args.shards}: there are only {len(sources.pictures)} pictures: use fewer shards")
    return shard
