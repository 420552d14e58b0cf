"""The stages on the way from an image to its detections: their names, and a timer for them.

A stage is named after its work. Where a runtime does several things in one call that cannot be timed apart, the stage
has all their names, joined by "+": "network+nms+assembly" is a graph that ends in detections.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

#: all work that a stage can do, in the order of tables
PARTS = (
    "decode",  # image file to pixels
    "copy",  # frames into pinned memory
    "transfer",  # resized images to a server, and the network's outputs back
    "upload",  # frames or resized images to the GPU
    "preprocess",  # to the network's input
    "network",
    "nms",  # which priors are kept, and their classes
    "assembly",  # masks at prototype resolution
    "paste",  # masks at image size
    "download",  # results to host memory
    "detect",  # results as `Detections`
)

#: a graph that ends in detections
NETWORK_WITH_TAIL = "network+nms+assembly"


def stage_with(part: str, stages: Iterable[str]) -> str | None:
    """The first of these stages that does ``part``, alone or together with other work; None if there is none."""
    return next((stage for stage in stages if part in stage.split("+")), None)


class StageTimer:
    """Adds up the milliseconds spent in each stage of one call.

    Attributes:
        spent: milliseconds of each stage, in their order; 0 until time is added
    """

    def __init__(self, stages: Iterable[str] = ()) -> None:
        self.spent: dict[str, float] = dict.fromkeys(stages, 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a ``with`` statement by the host's clock."""
        start = time.perf_counter()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def add(self, spent: Mapping[str, float]) -> None:
        """Add milliseconds that were measured elsewhere."""
        for name, value in spent.items():
            self.spent[name] = self.spent.get(name, 0.0) + value
