"""`predict --workers`: pictures in several processes, with the files of one.

Each process runs blocks of the pictures as a job of its own, with the names and ids that the pictures have among all.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import write_json
from yolact_deploy.cli.prediction import (
    COCO_FILES,
    PredictionJob,
    Summary,
    interrupt_stops,
    require_own,
)
from yolact_deploy.cli.stream_job import StreamOptions
from yolact_deploy.datasets.merge_results import merge_results
from yolact_deploy.datasets.shard import Block
from yolact_deploy.draw import DrawStyle
from yolact_deploy.errors import InputError
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.progress import Progress, describe_pace
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.predictor_pool import PredictorPool
from yolact_deploy.streams.sources import Sources

_log = logging.getLogger(__name__)

#: blocks for each process, so that none waits long for the last one
_BLOCKS_EACH = 8


def predict_in_processes(
    load: Callable[..., Predictor],
    options: Mapping[str, Any],
    sources: Sources,
    folder: Path,
    formats: Sequence[str],
    *,
    workers: int,
    overwrite: bool,
    making: StreamOptions,
    progress: Progress,
) -> Summary:
    """Run all pictures of the sources; raises as :meth:`PredictionJob.run`, and if a process ended.

    Args:
        load: makes a predictor of keyword arguments
        options: the arguments; threads that are None become a share of the cores
    """
    start, pictures = time.perf_counter(), sources.pictures
    workers = min(workers, len(pictures))
    threads = options["threads"] or max(1, usable_cores() // workers)
    count = min(len(pictures), _BLOCKS_EACH * workers)
    blocks = [Block(i, count) for i in range(count)]
    if making.watched:
        raise InputError("--workers shows nothing while it runs: leave out --show and its like")
    if "coco" in formats:
        require_own(folder, COCO_FILES, overwrite=overwrite)
    work = functools.partial(run_block, sources, folder, tuple(formats), overwrite, making.style)
    summary = Summary(left_out=dict(sources.left_out))
    with PredictorPool(functools.partial(load, **{**options, "threads": threads}), work, workers, threads) as pool:
        done = _run_blocks(pool, blocks, len(pictures), summary, progress)
    if left := sum(len(block.of(pictures)) for block in blocks[done:]):
        summary.interrupted = True
        _log.error("interrupted: %d of %d pictures are left; what was done is kept", left, len(pictures))
    if "coco" in formats:
        _merge(folder, blocks[:done], summary)
    summary.seconds = time.perf_counter() - start
    return summary


def _run_blocks(
    pool: PredictorPool[Block, Summary], blocks: Sequence[Block], pictures: int, summary: Summary, progress: Progress
) -> int:
    """Run blocks until the end or a request to stop; how many are done."""
    done, start = 0, time.perf_counter()
    with interrupt_stops() as stopped, progress.steps("predict") as report:
        for part in pool.map(blocks):
            _add(summary, part)
            done += 1
            ended = summary.images + len(summary.failed)
            rate = ended / (time.perf_counter() - start)
            report(describe_pace(rate, "images", (pictures - ended) / rate if rate else None), ended, pictures)
            if stopped.is_set():
                break
    return done


def run_block(
    sources: Sources,
    folder: Path,
    formats: tuple[str, ...],
    overwrite: bool,
    style: DrawStyle,
    predictor: Predictor,
    block: Block,
) -> Summary:
    """In a process: the pictures of a block."""
    logging.getLogger("yolact_deploy.cli.prediction").disabled = True  # the parent reports failures
    job = PredictionJob(predictor, folder, formats, overwrite=overwrite, making=StreamOptions(style=style), shard=block)
    return job.run(sources)


def _add(total: Summary, part: Summary) -> None:
    total.images += part.images
    total.detections += part.detections
    total.outputs += part.outputs
    total.failed += part.failed
    for stage, spent in part.spent_ms.items():
        total.spent_ms[stage] += spent
    for failure in part.failed:
        _log.error("%s", failure["error"])


def _merge(folder: Path, blocks: Sequence[Block], summary: Summary) -> None:
    """Put the COCO files of the blocks together, in the order of the pictures."""
    for name in reversed(COCO_FILES):
        parts = [folder / f"{block.name(name.removesuffix('.json'))}.json" for block in blocks]
        write_json(folder / name, merge_results(parts, complete=False))
        summary.outputs = [path for path in summary.outputs if path not in set(parts)] + [folder / name]
        for part in parts:
            part.unlink()
