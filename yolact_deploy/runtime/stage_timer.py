"""The stages on the way from an image to its detections: their names, and a timer for them.

A stage is named after its work. Where a runtime does several things in one call that cannot be timed apart, the stage
has all their names, joined by "+": "network+nms+assembly" is a graph that ends in detections.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

#: all work that a stage can do, in the order of tables
PARTS = (
    "decode",  # image file to pixels
    "copy",  # frames into pinned memory
    "transfer",  # resized images to a server, and the network's outputs back
    "launch",  # the host enqueues the work of the GPU
    "wait",  # and waits for it
    "upload",  # frames or resized images to the GPU
    "preprocess",  # to the network's input
    "network",
    "nms",  # which priors are kept, and their classes
    "assembly",  # masks at prototype resolution
    "paste",  # masks at image size
    "download",  # results to host memory
    "read",  # packed masks out of pinned memory
    "detect",  # results as `Detections`
    "merge",  # detections of the tiles of a large picture
)

#: a graph that ends in detections
NETWORK_WITH_TAIL = "network+nms+assembly"


def stage_with(part: str, stages: Iterable[str]) -> str | None:
    """The first of these stages that does ``part``, alone or together with other work; None if there is none."""
    return next((stage for stage in stages if part in stage.split("+")), None)


class _Timed:
    """A class, since a generator takes several times as long as the shortest stages."""

    __slots__ = ("_name", "_spent", "_start")

    def __init__(self, spent: dict[str, float], name: str) -> None:
        self._spent, self._name = spent, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._spent[self._name] = self._spent.get(self._name, 0.0) + (time.perf_counter() - self._start) * 1e3


class StageTimer:
    """Adds up the milliseconds spent in each stage of one call.

    Attributes:
        spent: milliseconds of each stage, in their order; 0 until time is added
    """

    def __init__(self, stages: Iterable[str] = ()) -> None:
        self.spent: dict[str, float] = dict.fromkeys(stages, 0.0)

    def stage(self, name: str) -> _Timed:
        """Time the body of a ``with`` statement by the host's clock; a body that raises is not counted."""
        return _Timed(self.spent, name)

    def add(self, spent: Mapping[str, float]) -> None:
        """Add milliseconds that were measured elsewhere."""
        for name, value in spent.items():
            self.spent[name] = self.spent.get(name, 0.0) + value
