"""Detections of several pictures as tensors of one shape.

Legend: N pictures, D most detections of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections


def detection_tensors(detections: Sequence[Detections]) -> dict[str, NDArray[Any]]:
    """num_detections int32 [N]; boxes float32 [N, D, 4], xyxy in pixels; scores float32 [N, D]; labels int32 [N, D].

    Slots past num_detections are zero.
    """
    most = max(map(len, detections), default=0)
    return {
        "num_detections": np.array([len(one) for one in detections], np.int32),
        "boxes": _padded([one.boxes for one in detections], (most, 4), np.dtype(np.float32)),
        "scores": _padded([one.scores for one in detections], (most,), np.dtype(np.float32)),
        "labels": _padded([one.labels for one in detections], (most,), np.dtype(np.int32)),
    }


def _padded(rows: Sequence[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    out = np.zeros((len(rows), *shape), dtype)
    for slot, row in zip(out, rows, strict=True):
        slot[: len(row)] = row
    return out
