"""ByteTrack: detections of one frame after the other get the ids of the objects they show.

Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022. Detections with high
scores are matched to the predicted boxes of all tracks; those with low scores only to tracks that are left over.
Matching is by overlap alone, whatever the class. The tracker returns ids for detections as they are: boxes, masks and
their order stay.

The paper's detector has one class. YOLACT's NMS works per class and can return an object once for each of several
classes; the tracker follows the best of these.

A track predicts each side of its box by a Kalman filter with constant velocity. All four sides have the same noise, so
one covariance of position and velocity serves them.

Legend: n detections, t tracks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError, import_optional
from yolact_deploy.vocabulary import OVERLAPS, check_word

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: variances of a prediction by one frame and of a measured side, in square pixels
_PROCESS, _MEASURED = 0.01, 0.1


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """How objects are tracked.

    Attributes:
        high_score: detections from this score on are matched first
        new_score: detections without a track start one from this score on
        min_overlap: least overlap of a detection and the track that it continues
        min_frames: frames in a row after which a track has an id
        first_at_once: objects of the first frame have ids there, without waiting for ``min_frames``, as in the paper's
            code
        keep_frames: frames at 30 per second for which a track without a detection is kept
        overlap: "box" or "mask", the IoU that is compared; masks are moved as the track predicts
        same_object: detections of different classes whose masks overlap by more than this show one object: the best
            is tracked, the others have no id; 1 tracks all

    Raises:
        InputError: a value out of range.
    """

    high_score: float = 0.5
    new_score: float = 0.5
    min_overlap: float = 0.1
    min_frames: int = 2
    first_at_once: bool = True
    keep_frames: int = 30
    overlap: str = "box"
    same_object: float = 0.4

    def __post_init__(self) -> None:
        for name in ("high_score", "new_score", "min_overlap", "same_object"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if self.min_frames < 1 or self.keep_frames < 0:
            raise InputError(
                f"expected min_frames from 1 and keep_frames from 0, got {self.min_frames} and {self.keep_frames}"
            )
        check_word("overlap", self.overlap, OVERLAPS)


@dataclass
class _Track:
    """One object: where each side of its box is, how fast it moves, and how sure that is."""

    place: Floats  #: [4] xyxy
    speed: Floats  #: [4] pixels a frame
    #: variance of place, covariance, variance of speed
    variance: tuple[float, float, float] = (1.0, 0.0, 1.0)
    number: int = -1  #: the id, once it has one
    missed: int = 0  #: frames since the last detection
    in_row: int = 1
    mask: tuple[Bools, Ints] | None = field(default=None, repr=False)  #: the last one, and its place
    seen: Floats | None = field(default=None, repr=False)  #: the box of the last detection

    def predict(self) -> None:
        a, b, c = self.variance
        self.place = self.place + self.speed
        self.variance = (a + 2 * b + c + _PROCESS, b + c, c + _PROCESS)
        if self.missed:
            self.in_row = 0
        self.missed += 1

    def update(self, box: Floats) -> None:
        a, b, c = self.variance
        gain, speed_gain = a / (a + _MEASURED), b / (a + _MEASURED)
        off = box - self.place
        self.place, self.speed = self.place + gain * off, self.speed + speed_gain * off
        self.variance = ((1 - gain) * a, (1 - gain) * b, c - speed_gain * b)
        self.missed = 0
        self.in_row += 1


class ByteTracker:
    """Gives detections their ids, frame by frame.

    >>> tracker = ByteTracker()                                     # doctest: +SKIP
    >>> detections = tracker.track(model(frame))
    >>> detections.track_ids

    Args:
        fps: frames per second, which scale ``keep_frames``

    Raises:
        MissingDependencyError: lap, which solves the assignment, is not installed.
    """

    def __init__(self, options: TrackOptions | None = None, *, fps: float = 30.0) -> None:
        self.options = options or TrackOptions()
        if not 0 < fps < math.inf:
            raise InputError(f"fps: expected more than 0, got {fps}")
        keep = self.options.keep_frames
        self._keep = max(1, math.ceil(fps / 30 * keep)) if keep else 0
        self._solve = import_optional("lap", "track", "Tracking").lapjv
        self.reset()

    def reset(self) -> None:
        """Forget all objects; ids start at 1 again, as for another video."""
        self._tracks: list[_Track] = []
        self._next = 1
        self._first = True  # no frame was there yet

    def track(self, detections: Detections) -> Detections:
        """The detections of the next frame with their ids as ``track_ids``, in their order."""
        import dataclasses

        return dataclasses.replace(detections, track_ids=self.update(detections))

    def update(self, detections: Detections) -> Ints:
        """Ids of the detections of the next frame, int64 [n], from 1; -1 is an object that has no id yet."""
        ids = np.full(len(detections), -1, np.int64)
        for track in self._tracks:
            track.predict()
        boxes = detections.boxes.astype(np.float64)
        high = detections.scores >= self.options.high_score
        single = _single(detections, boxes, self.options.same_object)
        first, second = np.flatnonzero(single & high), np.flatnonzero(single & ~high)
        left, fresh = self._match(self._tracks, first, boxes, detections, ids)
        self._match(left, second, boxes, detections, ids)
        for row in fresh:
            if detections.scores[row] >= self.options.new_score:
                track = _Track(boxes[row], np.zeros(4))
                if self._first and self.options.first_at_once:
                    ids[row] = self._number(track)
                self._tracks.append(track)
                self._remember(track, int(row), boxes, detections)
        self._first = False
        self._tracks = [track for track in self._tracks if self._lives(track)]
        return ids

    def _lives(self, track: _Track) -> bool:
        known = track.number > 0 or track.in_row >= self.options.min_frames
        return track.missed <= self._keep and (known or track.missed == 0)

    def _match(
        self, tracks: list[_Track], rows: NDArray[np.intp], boxes: Floats, detections: Detections, ids: Ints
    ) -> tuple[list[_Track], list[int]]:
        """Continue tracks by detections ``rows``; the tracks and the rows that are left."""
        similar = self._overlaps(tracks, rows, boxes, detections)
        pairs = [(t, d) for t, d in self._assigned(similar) if similar[t, d] >= self.options.min_overlap]
        for t, d in pairs:
            track, row = tracks[t], int(rows[d])
            track.update(boxes[row])
            if track.number < 0 and track.in_row >= self.options.min_frames:
                self._number(track)
            self._remember(track, row, boxes, detections)
            ids[row] = track.number
        used_tracks, used_rows = {t for t, _ in pairs}, {d for _, d in pairs}
        left = [track for t, track in enumerate(tracks) if t not in used_tracks]
        return left, [int(row) for d, row in enumerate(rows) if d not in used_rows]

    def _number(self, track: _Track) -> int:
        """Give a track the next id."""
        track.number, self._next = self._next, self._next + 1
        return track.number

    def _assigned(self, similar: Floats) -> list[tuple[int, int]]:
        """The pairs of track and detection of the largest sum."""
        if 0 in similar.shape:
            return []
        _, columns, _ = self._solve(-similar.astype(np.float64), extend_cost=True)
        return [(t, int(d)) for t, d in enumerate(columns) if d >= 0]

    def _remember(self, track: _Track, row: int, boxes: Floats, detections: Detections) -> None:
        if self.options.overlap == "mask":
            track.mask = detections.crops.crops[row], detections.crops.offsets[row]
            track.seen = boxes[row]

    def _overlaps(self, tracks: list[_Track], rows: NDArray[np.intp], boxes: Floats, detections: Detections) -> Floats:
        """IoU [t, n] of the predicted boxes, or of the moved masks, and the detections."""
        if not tracks or not len(rows):
            return np.zeros((len(tracks), len(rows)))
        places = np.stack([track.place for track in tracks])
        similar = box_overlaps(places, boxes[rows])
        if self.options.overlap == "mask":
            crops = detections.crops
            for t, d in np.argwhere(similar > 0).tolist():
                similar[t, d] = _moved_overlap(tracks[t], crops.crops[rows[d]], crops.offsets[rows[d]])
        return similar


def box_overlaps(first: Floats, second: Floats) -> Floats:
    """IoU of boxes xyxy [t, 4] and [n, 4], as [t, n]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.prod((high - low).clip(0), axis=2)
    areas = [np.prod((boxes[:, 2:] - boxes[:, :2]).clip(0), axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - both
    overlaps: Floats = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return overlaps


def _single(detections: Detections, boxes: Floats, limit: float) -> Bools:
    """Which detections [n] show an object that no better one of another class shows."""
    single = np.ones(len(boxes), np.bool_)
    order = np.argsort(-detections.scores, kind="stable")
    place = np.empty(len(boxes), np.int64)
    place[order] = np.arange(len(boxes))
    labels = detections.labels
    candidates = (place[:, None] > place[None]) & (labels[:, None] != labels[None])
    # Masks are pasted only if boxes give a reason to.
    candidates &= box_overlaps(boxes, boxes) > limit / 2
    for row in order.tolist():
        for better in np.flatnonzero(candidates[row] & single).tolist():
            crops, offsets = detections.crops.crops, detections.crops.offsets
            if _mask_overlap(crops[row], offsets[row], crops[better], offsets[better]) > limit:
                single[row] = False
                break
    return single


def _moved_overlap(track: _Track, mask: Bools, offset: Ints) -> float:
    """IoU of a mask and the last mask of a track, moved as its box has moved since."""
    assert track.mask is not None
    assert track.seen is not None
    last, place = track.mask
    move = ((track.place[:2] + track.place[2:]) - (track.seen[:2] + track.seen[2:])) / 2
    return _mask_overlap(last, place + np.rint(move).astype(np.int64), mask, offset)


def _mask_overlap(first: Bools, place: Ints, second: Bools, offset: Ints) -> float:
    """IoU of two masks, each a crop [h, w] whose corner is at (x, y) of the frame."""
    x1, y1 = np.maximum(place, offset)
    x2, y2 = np.minimum(place + first.shape[::-1], offset + second.shape[::-1])
    if x2 <= x1 or y2 <= y1:
        return 0.0
    a = first[y1 - place[1] : y2 - place[1], x1 - place[0] : x2 - place[0]]
    b = second[y1 - offset[1] : y2 - offset[1], x1 - offset[0] : x2 - offset[0]]
    both = int(np.count_nonzero(a & b))
    return both / max(int(np.count_nonzero(first)) + int(np.count_nonzero(second)) - both, 1)
