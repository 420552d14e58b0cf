"""`SlicedPredictor`: large pictures in tiles. It detects what is too small in the picture as a whole.

Tiles go through the network in batches. Only the picture, the masks where they have pixels, and one batch of tiles are
in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Image, Predictor, Source
from yolact_deploy.runtime.slicing import Slicing, Tile
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tile_merge import TileMerger

#: with fewer tiles, a picture is done before its progress matters
_TILES_TO_REPORT = 16
#: batches in one call, which overlap on a GPU
_BATCHES_AT_ONCE = 4


class SlicedPredictor(Predictor):
    """A predictor that cuts pictures into tiles and merges what is detected in them.

    Args:
        slicing: the tiles, and how their detections are merged
        options: as for :class:`Predictor`; ``max_detections`` are those of a tile, and of the picture after merging.
            Without it, a picture has as many as all its tiles have
    """

    slicing: Slicing

    def __init__(self, backend: Backend, *, slicing: Slicing, **options: Any) -> None:
        super().__init__(backend, **options)
        self.slicing = slicing
        #: reports the tiles of pictures that have many
        self.progress: Progress = SILENT

    @property
    def stages(self) -> tuple[str, ...]:
        return (*super().stages, "merge")

    def on_device(self, images: Source | Sequence[Source]) -> Any:
        """Not for tiles: raises :class:`InputError`."""
        raise InputError("results of tiles are merged in host memory: load the model without slicing")

    def _predict(self, sources: list[Source]) -> list[Detections]:
        timer = StageTimer(self.stages)
        results = [self._of_picture(source, timer) for source in sources]
        self.timings = timer.spent
        return results

    def _of_picture(self, source: Source, timer: StageTimer) -> Detections:
        hook = self.backend.frames
        if hook is not None and hook.is_device_array(source):
            raise InputError("tiles are cut in host memory, got a picture on the GPU: pass NumPy arrays")
        with timer.stage("decode"):
            image = self._host_image(source)
        height, width = image.shape[:2]
        tiles = self.slicing.tiles(height, width)
        if len(tiles) == 1:
            return self._run_tiles([image], timer)[0]
        if self.slicing.standard_prediction:
            tiles.append(Tile(0, 0, width, height))
        merger = TileMerger(self.slicing, height, width)
        for part in self._reported(tiles):
            found = self._run_tiles([np.ascontiguousarray(image[tile.window]) for tile in part], timer)
            with timer.stage("merge"):
                for tile, detections in zip(part, found, strict=True):
                    merger.add(tile, detections)
        with timer.stage("merge"):
            return merger.merged()[: self.selection.max_detections]

    def _reported(self, tiles: Sequence[Tile]) -> Any:
        """The tiles in groups, with their progress if there are many."""
        step = _BATCHES_AT_ONCE * self.backend.max_batch
        groups = [tiles[first : first + step] for first in range(0, len(tiles), step)]
        if len(tiles) < _TILES_TO_REPORT:
            return groups
        return self.progress.track(groups, f"{len(tiles)} tiles", len(groups), "groups")

    def _run_tiles(self, images: Sequence[Image], timer: StageTimer) -> list[Detections]:
        found = super()._predict(list(images))
        timer.add(self.timings)
        return found
