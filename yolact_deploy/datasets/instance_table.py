"""The annotations of a whole dataset in a few flat arrays, and those of one image taken out of them.

A dataset of 118,000 images with 860,000 objects takes some 250 MB this way, where Python lists would take gigabytes.

Legend: I images, n objects of one image, T objects of all, K keypoints, R polygon rings, P polygon points.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image, crowds last; masks as they were annotated, in pixels of the image."""

    height: int
    width: int
    boxes: Floats  #: [n, 4] xyxy in pixels, within the image
    labels: NDArray[np.int64]  #: [n], 0-based
    area: Floats  #: [n] as annotated
    iscrowd: NDArray[np.bool_]  #: [n]
    #: n lists of polygon rings [k, 2] in pixels; empty where the mask is run-length encoded
    rings: tuple[tuple[Floats, ...], ...]
    #: n COCO run-length encodings of the whole image; empty where the mask is polygons
    rle: tuple[bytes, ...]
    #: [n, K, 3] x, y in pixels and visibility (0 not annotated, 1 hidden, 2 seen); None if the dataset has none
    keypoints: Floats | None = None
    #: which keypoint each becomes in a mirror (left hand, right hand), [K]
    keypoint_mirror: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, keep: NDArray[np.bool_]) -> Objects:
        """The objects for which ``keep`` [n] is true."""
        if keep.all():
            return self
        index = np.flatnonzero(keep)
        return Objects(
            self.height,
            self.width,
            self.boxes[index],
            self.labels[index],
            self.area[index],
            self.iscrowd[index],
            tuple(self.rings[i] for i in index),
            tuple(self.rle[i] for i in index),
            None if self.keypoints is None else self.keypoints[index],
            self.keypoint_mirror,
        )


@dataclass(frozen=True)
class ObjectTable:
    """The objects of all images, image after image; ``*_first`` hold where the parts of each begin, and the end."""

    first: Offsets  #: [I + 1] objects of each image
    boxes: Floats  #: [T, 4]
    labels: NDArray[np.int32]  #: [T]
    area: Floats  #: [T]
    iscrowd: NDArray[np.bool_]  #: [T]
    ring_first: Offsets  #: [T + 1] rings of each object
    point_first: Offsets  #: [R + 1] points of each ring
    points: Floats  #: [P, 2]
    rle_first: Offsets  #: [T + 1] bytes of each object's encoding
    rle: NDArray[np.uint8]
    keypoints: Floats | None = None  #: [T, K, 3]
    keypoint_mirror: tuple[int, ...] = ()  #: [K]

    def __len__(self) -> int:
        """I, the number of images."""
        return len(self.first) - 1

    @property
    def nbytes(self) -> int:
        """Memory of all arrays."""
        return sum(value.nbytes for value in self.arrays().values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def counts(self) -> NDArray[np.int64]:
        """Objects of each image, int64 [I]."""
        return np.diff(self.first)

    def objects(self, index: int, height: int, width: int) -> Objects:
        """The objects of image ``index``, whose size is given."""
        start, stop = self.first[index : index + 2].tolist()
        rings, points = self.ring_first[start : stop + 1].tolist(), self.points
        bounds = self.point_first[rings[0] : rings[-1] + 1].tolist()
        cut = [points[a:b] for a, b in pairwise(bounds)]
        encoded = self.rle_first[start : stop + 1].tolist()
        return Objects(
            height,
            width,
            self.boxes[start:stop],
            self.labels[start:stop].astype(np.int64),
            self.area[start:stop],
            self.iscrowd[start:stop],
            tuple(tuple(cut[a - rings[0] : b - rings[0]]) for a, b in pairwise(rings)),
            tuple(self.rle[a:b].tobytes() for a, b in pairwise(encoded)),
            None if self.keypoints is None else self.keypoints[start:stop],
            self.keypoint_mirror,
        )


@dataclass
class TableBuilder:
    """Collects objects, which must come image after image, as flat machine numbers."""

    keypoint_mirror: tuple[int, ...] = ()
    _image: array[int] = field(default_factory=lambda: array("q"))
    _boxes: array[float] = field(default_factory=lambda: array("f"))
    _labels: array[int] = field(default_factory=lambda: array("i"))
    _area: array[float] = field(default_factory=lambda: array("f"))
    _crowd: array[int] = field(default_factory=lambda: array("b"))
    _rings: array[int] = field(default_factory=lambda: array("q"))
    _ring_points: array[int] = field(default_factory=lambda: array("q"))
    _points: array[float] = field(default_factory=lambda: array("f"))
    _rle_bytes: array[int] = field(default_factory=lambda: array("q"))
    _rle: bytearray = field(default_factory=bytearray)
    _keypoints: array[float] = field(default_factory=lambda: array("f"))

    def add(
        self,
        image: int,
        label: int,
        box: Iterable[float],
        area: float,
        iscrowd: bool,
        mask: Sequence[Sequence[float]] | bytes,
        keypoints: Sequence[float] = (),
    ) -> None:
        """Add an object of image number ``image``, which must not be below the previous one.

        Args:
            box: xyxy in pixels
            mask: polygon rings [x, y, x, y, ...] in pixels, or a run-length encoding
            keypoints: [3 * K] or none
        """
        assert not self._image or image >= self._image[-1]
        self._image.append(image)
        self._labels.append(label)
        self._boxes.extend(box)
        self._area.append(area)
        self._crowd.append(iscrowd)
        rings = () if isinstance(mask, bytes) else mask
        self._rings.append(len(rings))
        for ring in rings:
            self._ring_points.append(len(ring) // 2)
            self._points.extend(ring)
        encoded = mask if isinstance(mask, bytes) else b""
        self._rle_bytes.append(len(encoded))
        self._rle += encoded
        if self.keypoint_mirror:
            self._keypoints.extend(keypoints or [0.0] * (3 * len(self.keypoint_mirror)))

    def build(self, images: int) -> ObjectTable:
        """The table of a dataset with so many images."""
        of_image = np.bincount(np.array(self._image, np.int64), minlength=images)
        number = len(self.keypoint_mirror)
        keypoints = _array(self._keypoints, np.float32).reshape(-1, number, 3) if number else None
        return ObjectTable(
            first=_bounds(of_image),
            boxes=_array(self._boxes, np.float32).reshape(-1, 4),
            labels=_array(self._labels, np.int32),
            area=_array(self._area, np.float32),
            iscrowd=_array(self._crowd, np.int8).astype(np.bool_),
            ring_first=_bounds(self._rings),
            point_first=_bounds(self._ring_points),
            points=_array(self._points, np.float32).reshape(-1, 2),
            rle_first=_bounds(self._rle_bytes),
            rle=_array(self._rle, np.uint8),
            keypoints=keypoints,
            keypoint_mirror=self.keypoint_mirror,
        )


def _array(values: Any, dtype: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(values, dtype).copy() if len(values) else np.zeros(0, dtype)


def _bounds(counts: Any) -> Offsets:
    """Where each of so many parts begins, and where the last ends: [len + 1]."""
    return np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64)
