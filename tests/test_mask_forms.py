"""Values that are computed on first use: once, and side by side in threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from yolact_deploy.detections import Detections
from yolact_deploy.mask_forms import MaskCrops, lazy_property


class Picture:
    count = 0

    def __init__(self, together: threading.Barrier | None = None) -> None:
        self._together = together

    @lazy_property
    def masks(self) -> list[int]:
        """What is computed."""
        self.count += 1
        if self._together is not None:
            self._together.wait(20)  # passes only while another picture computes its own
        return [1, 2]


def test_computed_once() -> None:
    picture = Picture()
    assert picture.masks is picture.masks
    assert picture.count == 1
    assert Picture.masks.__doc__ == "What is computed."


def test_two_pictures_at_once() -> None:
    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda picture: picture.masks, (Picture(both), Picture(both)))) == [[1, 2]] * 2


def test_masks_are_pasted_side_by_side() -> None:
    assert isinstance(Detections.__dict__["crops"], lazy_property)
    assert isinstance(MaskCrops.__dict__["_compressed"], lazy_property)
