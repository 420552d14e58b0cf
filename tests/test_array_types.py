"""Wrong dtypes and shapes are errors under pytest, and cost nothing without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from yolact_deploy import get_config, mask_iou, preprocess, priors

jaxtyping = pytest.importorskip("jaxtyping")
pytest.importorskip("beartype")
from array_checker import MODULES

F32, U8 = np.float32, np.uint8
CONFIG = get_config("yolact_base")

WRONG: dict[str, Callable[[], object]] = {
    "rank": lambda: priors.decode_boxes(np.zeros(4, F32), np.zeros((1, 4), F32)),
    "last dimension": lambda: priors.decode_boxes(np.zeros((3, 5), F32), np.zeros((3, 5), F32)),
    "same letter": lambda: priors.decode_boxes(np.zeros((2, 4), F32), np.zeros((3, 4), F32)),
    "dtype": lambda: preprocess.resize_image(np.zeros((2, 2, 3), F32), 4),
    "one image": lambda: preprocess.normalize(np.zeros((2, 3, 3), U8), CONFIG),
    "channels": lambda: preprocess.normalize(np.zeros((1, 2, 2, 4), U8), CONFIG),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays_are_errors(name: str) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[name]()


def test_right_arrays_pass() -> None:
    assert priors.decode_boxes(np.zeros((2, 3, 4), F32), np.zeros((3, 4), F32)).shape == (2, 3, 4)
    assert preprocess.resize_image(np.zeros((2, 2, 3), U8), 4).shape == (4, 4, 3)
    assert mask_iou.SMALLEST_SIDE == 63


def test_nothing_is_checked_without_pytest() -> None:
    code = f"""
import sys, yolact_deploy
from yolact_deploy import array_types, {", ".join(MODULES)}
from yolact_deploy.priors import decode_boxes
assert "jaxtyping" not in sys.modules and "beartype" not in sys.modules
assert not hasattr(decode_boxes, "__wrapped__")
assert array_types.Float32[array_types.Floats, "n 4"] is array_types.Floats
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=Path(__file__).parents[1], check=True)
