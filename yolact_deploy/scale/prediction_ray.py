"""`predict --ray`: pictures on a Ray cluster, into Parquet files that the same command continues."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.errors import import_optional
from yolact_deploy.progress import Progress
from yolact_deploy.scale.ray_rows import ParquetFolder, failures, made_with, predict_rows, running_ray

_log = logging.getLogger(__name__)


def predict_on_ray(
    address: str | None,
    model: str,
    options: Mapping[str, Any],
    pictures: Sequence[Path],
    output: Path,
    *,
    workers: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Run the pictures that are not done yet; a JSON-ready summary.

    Args:
        address: of a cluster; None starts one on this machine
        options: arguments of :class:`~yolact_deploy.scale.Predict`
        workers: predictors at once; None for all the cluster has room for

    Raises:
        BackendError: the cluster cannot be used, or its work failed.
        OutputError: the folder has other results or files.
    """
    start = time.perf_counter()
    import_optional("pyarrow", "ray", "predict --ray")
    folder = ParquetFolder(output, made_with(model, options))
    done, incomplete = folder.finished()
    if incomplete:
        progress.note(f"note: {len(incomplete)} files are incomplete and were renamed: their pictures run again")
    paths = list(dict.fromkeys(str(path.resolve()) for path in pictures))
    left = [path for path in paths if path not in done]
    if left:
        absolute = model if "://" in model else str(Path(model).resolve())
        with running_ray(address) as ray:
            dataset = predict_rows(ray, [{"path": path} for path in left], absolute, options, actors=workers)
            dataset.write_parquet(str(folder.next_run().resolve()))
    return {
        **_facts(folder, set(paths)),
        "skipped": len(paths) - len(left),
        "seconds": round(time.perf_counter() - start, 3),
        "output": str(output),
    }


def _facts(folder: ParquetFolder, wanted: set[str]) -> dict[str, Any]:
    """Counts of the rows of these pictures; failures are reported."""
    rows = [row for row in folder.rows() if row["path"] in wanted]
    failed = failures(rows)
    for failure in failed:
        _log.error("%s", failure["error"])
    return {
        "images": len(rows) - len(failed),
        "detections": sum(len(row["scores"]) for row in rows),
        "failed": failed,
    }
