"""Makes bytetrack.npz: boxes and scores of moving objects, and the ids that ``trackers`` gives them.

Run in an environment of its own, since ``trackers`` installs another OpenCV:
``pip install trackers==2.6.1 && python make_bytetrack.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FRAMES, OBJECTS = 150, 14


def scene(seed: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Boxes [n, 4] and scores [n] of each frame: objects bounce, hide, come late and leave, with false ones between."""
    random = np.random.default_rng(seed)
    place = random.uniform(50, 550, (OBJECTS, 2))
    speed = random.normal(0, 4, (OBJECTS, 2))
    size = random.uniform(25, 90, (OBJECTS, 2))
    born, gone = random.integers(0, 50, OBJECTS), random.integers(90, FRAMES + 40, OBJECTS)
    hidden = random.integers(20, 120, OBJECTS)
    frames = []
    for frame in range(FRAMES):
        place += speed
        speed[(place < 20) | (place > 600)] *= -1
        here = (born <= frame) & (frame < gone) & ~((hidden <= frame) & (frame < hidden + 9))
        here &= random.random(OBJECTS) > 0.06
        corners = np.concatenate([place - size / 2, place + size / 2], axis=1) + random.normal(0, 1.5, (OBJECTS, 4))
        scores = np.clip(random.normal(0.75, 0.18, OBJECTS), 0.06, 0.99)
        false = random.uniform(0, 560, (random.integers(0, 3), 2))
        boxes = np.concatenate([corners[here], np.concatenate([false, false + random.uniform(20, 60)], axis=1)])
        scores = np.concatenate([scores[here], random.uniform(0.1, 0.75, len(false))])
        order = np.argsort(-scores, kind="stable")
        frames.append((boxes[order].round(2).astype(np.float32), scores[order].round(3).astype(np.float32)))
    return frames


def ids_of(frames: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> list[NDArray[np.int64]]:
    """The ids of the reference in the order of the rows; -1 has none."""
    import supervision
    from trackers import ByteTrackTracker

    tracker = ByteTrackTracker(track_activation_threshold=0.7, high_conf_det_threshold=0.6)
    result = []
    for boxes, scores in frames:
        given = supervision.Detections(xyxy=boxes, confidence=scores, data={"row": np.arange(len(boxes))})
        tracked = tracker.update(given)
        ids = np.full(len(boxes), -1, np.int64)
        if len(tracked):
            ids[tracked.data["row"]] = tracked.tracker_id
        result.append(ids)
    return result


def main() -> None:
    arrays = {}
    for seed in range(3):
        frames = scene(seed)
        arrays[f"lengths{seed}"] = np.array([len(boxes) for boxes, _ in frames])
        arrays[f"boxes{seed}"] = np.concatenate([boxes for boxes, _ in frames])
        arrays[f"scores{seed}"] = np.concatenate([scores for _, scores in frames])
        arrays[f"ids{seed}"] = np.concatenate(ids_of(frames)).astype(np.int16)
        print(seed, len(arrays[f"ids{seed}"]), "rows,", arrays[f"ids{seed}"].max() + 1, "ids", file=sys.stderr)
    np.savez_compressed(Path(__file__).with_name("bytetrack.npz"), **arrays)


if __name__ == "__main__":
    main()
