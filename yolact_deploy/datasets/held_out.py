"""Keeps the pictures to calibrate on apart from those to judge by, since ranges fit the pictures they come from.

If there are too few pictures to keep the two apart, a note says so.
"""

from __future__ import annotations

import os
from pathlib import Path

from yolact_deploy.datasets.calibration_images import FEW, calibration_images
from yolact_deploy.datasets.calibration_images import spread as spread
from yolact_deploy.datasets.image_sets import CocoImages, plain_images

#: share of a folder that is held out if the folder serves for both
_HELD_OUT_SHARE = 0.2


def calibration_apart(source: str | os.PathLike[str], count: int | None, judged: CocoImages) -> tuple[list[Path], str]:
    """Pictures of ``source`` that are not in ``judged``, evenly spread, and a note if there are too few of them.

    Args:
        source: folder of pictures or dataset
        count: how many, at most; None for all

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    every = calibration_images(source)
    taken = {path.resolve() for path in judged.paths}
    left = [path for path in every if path.resolve() not in taken]
    note = ""
    if len(left) < min(FEW, len(every)):
        note = (
            f"only {len(left)} calibration pictures are not among those that the result is judged by. All of them set "
            "the ranges, so the figures are better than on other pictures: give more, or other ones"
        )
        left = every
    return spread(left, len(left) if count is None else count), note


def judged_of_folder(source: str | os.PathLike[str], count: int) -> CocoImages:
    """Up to ``count`` pictures of a calibration folder, held out to judge by: at most a fifth of all, evenly spread.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    every = calibration_images(source)
    return plain_images(spread(every, max(1, min(count, int(_HELD_OUT_SHARE * len(every))))))
