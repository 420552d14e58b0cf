"""Detections of overlapping tiles become those of the picture: duplicates are dropped, parts of an object are joined.

Two detections of different tiles are the same object if their masks agree on the pixels that both tiles see: there,
both had the chance to find it. Comparing whole masks would fail for an object that is larger than the overlap, since
each tile sees another part of it.

The best detection goes first. One that ends inside its tile is complete, and what agrees with it is dropped. One that
a border of its tile cuts is joined with the best that agrees with it from each other tile, which may lead to further
tiles: a long object grows from tile to tile.

Legend: n detections of all tiles, H x W the picture. Boxes are xyxy in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.mask_forms import MaskCrops
from yolact_deploy.runtime.slicing import Slicing, Tile

#: a mask is cut if it comes this close to a border of its tile: prototypes are coarser than pixels
_BORDER_SHARE = 0.01
_BORDER_PIXELS = 2

Mask = NDArray[np.bool_]


@dataclass(eq=False)
class Patch:
    """Binary mask [h, w] whose first pixel is at column ``left`` and row ``top`` of the picture."""

    left: int
    top: int
    mask: Mask

    @property
    def right(self) -> int:
        return self.left + int(self.mask.shape[1])

    @property
    def bottom(self) -> int:
        return self.top + int(self.mask.shape[0])

    @classmethod
    def trimmed(cls, left: int, top: int, mask: Mask) -> Patch:
        """Without rows and columns that have no pixels; a copy, so that the memory of the tile is freed."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            return cls(left, top, np.zeros((0, 0), np.bool_))
        y, x = int(rows[0]), int(columns[0])
        return cls(left + x, top + y, mask[y : int(rows[-1]) + 1, x : int(columns[-1]) + 1].copy())

    def within(self, left: int, top: int, right: int, bottom: int) -> Mask:
        """The pixels in a rectangle that lies inside this patch."""
        return self.mask[top - self.top : bottom - self.top, left - self.left : right - self.left]

    def count_in(self, tiles: Sequence[Tile]) -> int:
        """Pixels that any of the tiles sees."""
        seen = np.zeros_like(self.mask)
        for tile in tiles:
            y1, y2 = max(tile.top - self.top, 0), max(tile.bottom - self.top, 0)
            x1, x2 = max(tile.left - self.left, 0), max(tile.right - self.left, 0)
            seen[y1:y2, x1:x2] = True
        return int(np.count_nonzero(self.mask & seen))

    def overlap(self, other: Patch) -> int:
        """Pixels of both."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        if right <= left or bottom <= top:
            return 0
        both = self.within(left, top, right, bottom) & other.within(left, top, right, bottom)
        return int(np.count_nonzero(both))

    def joined(self, other: Patch) -> Patch:
        """The pixels of either."""
        if not self.mask.size or not other.mask.size:
            return self if self.mask.size else other
        left, top = min(self.left, other.left), min(self.top, other.top)
        mask = np.zeros((max(self.bottom, other.bottom) - top, max(self.right, other.right) - left), np.bool_)
        for patch in (self, other):
            y, x = patch.top - top, patch.left - left
            mask[y : y + patch.mask.shape[0], x : x + patch.mask.shape[1]] |= patch.mask
        return Patch(left, top, mask)


class TileMerger:
    """Collects the detections of the tiles of one picture.

    Args:
        height, width: of the picture, in pixels
    """

    def __init__(self, slicing: Slicing, height: int, width: int) -> None:
        self._slicing, self._height, self._width = slicing, height, width
        self._tiles: list[Tile] = []
        self._found: list[Detections] = []
        self._patches: list[Patch] = []
        self._tile_of: list[int] = []
        self._cut: list[bool] = []

    def add(self, tile: Tile, detections: Detections) -> None:
        """Add what was detected in a tile, as a picture of its own; its masks are kept only where they have pixels."""
        crops = detections.crops
        patches = [
            Patch.trimmed(int(x) + tile.left, int(y) + tile.top, crop)
            for (x, y), crop in zip(crops.offsets, crops.crops, strict=True)
        ]
        self._patches += patches
        self._cut += [self._is_cut(patch, tile) for patch in patches]
        self._tile_of += [len(self._tiles)] * len(patches)
        self._tiles.append(tile)
        nothing = MaskCrops(1, 1, np.zeros((0, 2), np.int64), ())
        shifted = detections.boxes + np.array([tile.left, tile.top] * 2, np.float32)
        self._found.append(
            Detections(
                shifted, detections.scores, detections.labels, detections.class_names, self._height, self._width,
                nothing, detections.mask_scores,
            )
        )  # fmt: skip

    def _is_cut(self, patch: Patch, tile: Tile) -> bool:
        """Whether a border of the tile that is none of the picture cuts the object."""
        if not patch.mask.size:
            return False
        near = max(_BORDER_PIXELS, round(_BORDER_SHARE * max(tile.right - tile.left, tile.bottom - tile.top)))
        return (
            (tile.left > 0 and patch.left - tile.left < near)
            or (tile.top > 0 and patch.top - tile.top < near)
            or (tile.right < self._width and tile.right - patch.right < near)
            or (tile.bottom < self._height and tile.bottom - patch.bottom < near)
        )

    def merged(self) -> Detections:
        """The detections of the picture, best first."""
        found = self._found
        boxes = np.concatenate([d.boxes for d in found])
        scores = np.concatenate([d.scores for d in found])
        labels = np.concatenate([d.labels for d in found])
        mask_scores = [d.mask_scores for d in found if d.mask_scores is not None]
        open_ = np.ones(len(scores), np.bool_)
        rows: list[int] = []
        objects: list[tuple[NDArray[np.float32], Patch]] = []
        for row in np.argsort(-scores, kind="stable").tolist():
            if open_[row]:
                open_[row] = False
                rows.append(row)
                objects.append(self._grown(row, boxes, scores, labels, open_))
        offsets = np.array([(patch.left, patch.top) for _, patch in objects], np.int64).reshape(-1, 2)
        crops = MaskCrops(self._height, self._width, offsets, tuple(patch.mask for _, patch in objects))
        return Detections(
            np.array([box for box, _ in objects], np.float32).reshape(-1, 4),
            scores[rows],
            labels[rows],
            found[0].class_names,
            self._height,
            self._width,
            crops,
            np.concatenate(mask_scores)[rows] if len(mask_scores) == len(found) else None,
        )

    def _grown(
        self,
        row: int,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.int64],
        open_: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], Patch]:
        """Box and mask of an object, given its best detection; detections of the same object are no longer open."""
        box, patch, cut = boxes[row], self._patches[row], self._cut[row]
        own, tile_of = {self._tile_of[row]}, np.array(self._tile_of)
        compared = np.zeros(len(boxes), np.bool_)
        while True:
            near = open_ & ~compared & ~np.isin(tile_of, list(own))
            near &= (boxes[:, :2] < box[2:]).all(axis=1) & (boxes[:, 2:] > box[:2]).all(axis=1)
            if not self._slicing.class_agnostic:
                near &= labels == labels[row]
            places = np.flatnonzero(near)
            partner = None
            for other in places[np.argsort(-scores[places], kind="stable")].tolist():
                if not self._same(box, patch, own, boxes[other], other):
                    compared[other] = True
                    continue
                open_[other] = False
                if cut:
                    partner = other
                    break
            if partner is None:
                return box, patch
            grown = patch.joined(self._patches[partner])
            box = np.concatenate([np.minimum(box[:2], boxes[partner, :2]), np.maximum(box[2:], boxes[partner, 2:])])
            patch = grown
            own.add(self._tile_of[partner])
            compared[:] = False

    def _same(
        self, box: NDArray[np.float32], patch: Patch, own: set[int], other_box: NDArray[np.float32], other: int
    ) -> bool:
        """Whether an object and a detection of another tile agree on what both see."""
        second = self._patches[other]
        tile = self._tiles[self._tile_of[other]]
        tiles = [self._tiles[number] for number in own]
        if patch.mask.size and second.mask.size:
            both = patch.overlap(second)
            if not both:
                return False
            first_area, second_area = patch.count_in([tile]), second.count_in(tiles)
        else:  # without masks, boxes decide
            rectangle, other_rectangle = _filled(box), _filled(other_box)
            both = rectangle.overlap(other_rectangle)
            first_area, second_area = rectangle.count_in([tile]), other_rectangle.count_in(tiles)
        of_both = {"ios": min(first_area, second_area), "iou": first_area + second_area - both}
        least = of_both[self._slicing.match_metric]
        return least > 0 and both >= self._slicing.match_threshold * least


def _filled(box: NDArray[np.float32]) -> Patch:
    x1, y1, x2, y2 = np.round(box).astype(int).tolist()
    return Patch(x1, y1, np.ones((max(0, y2 - y1), max(0, x2 - x1)), np.bool_))
