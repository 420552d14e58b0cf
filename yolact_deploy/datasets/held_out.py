"""Pictures to calibrate on and pictures to judge by, kept apart: ranges fit the pictures that they were chosen on.

Where the two cannot be kept apart, because there are too few, a note says so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from yolact_deploy.datasets.calibration_images import FEW, calibration_images
from yolact_deploy.datasets.image_sets import CocoImages, plain_images

_Item = TypeVar("_Item")

#: part of a folder that is held out, where it is to serve for both
_HELD_OUT_SHARE = 0.2


def calibration_apart(source: str | os.PathLike[str], count: int | None, judged: CocoImages) -> tuple[list[Path], str]:
    """Pictures of ``source`` that are not judged, evenly spread, and a note where it had to be others.

    Args:
        source: folder of pictures or COCO folder
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
            f"only {len(left)} pictures of the calibration are not those that the result is judged by, so ranges are "
            "chosen on these, too, and the figures are better than on other pictures: give more, or other ones"
        )
        left = every
    return spread(left, len(left) if count is None else count), note


def judged_of_folder(source: str | os.PathLike[str], count: int) -> CocoImages:
    """Pictures of a calibration folder that are held out to judge by: so many, at most a fifth of all, spread evenly.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    every = calibration_images(source)
    return plain_images(spread(every, max(1, min(count, int(_HELD_OUT_SHARE * len(every))))))


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """So many of the items, evenly spread over the list; all where there are not more.

    >>> spread("abcdefgh", 3)
    ['a', 'c', 'f']
    """
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
