"""Errors by kind as the package tidecv computes them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.evaluation.error_kinds import KINDS, ErrorCosts

TIDE_NAMES = dict(zip(KINDS, ("Loc", "Cls", "Dupe", "Bkg", "Both", "Miss"), strict=True))


def by_tidecv(content: Any, results: Any, kind: str, folder: Path, most: int = 100) -> ErrorCosts:
    """Errors by kind; skips the test where tidecv is missing.

    Args:
        kind: "bbox" or "segm"
        most: detections of an image that count
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tide = pytest.importorskip("tidecv", exc_type=ImportError)
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(results))
    truth, found = (
        tide.datasets.COCO(str(folder / "truth.json")),
        tide.datasets.COCOResult(str(folder / "results.json")),
    )
    truth.max_dets = most  # it takes the limit from the truth
    run = tide.TIDE()
    run.evaluate(truth, found, mode=tide.TIDE.BOX if kind == "bbox" else tide.TIDE.MASK, name="r")
    errors = run.get_all_errors()
    names = {error.short_name: count for error, count in run.runs["r"].count_errors().items()}
    return ErrorCosts(
        run.runs["r"].ap,
        {ours: names[theirs] for ours, theirs in TIDE_NAMES.items()},
        {ours: errors["main"]["r"][theirs] for ours, theirs in TIDE_NAMES.items()},
        errors["special"]["r"]["FalsePos"],
        errors["special"]["r"]["FalseNeg"],
    )
