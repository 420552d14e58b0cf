"""Embed a model in your own loop: load it once, then call it on each frame.

    python examples/embed_in_a_loop.py yolact.onnx street.mp4

The second argument is a video file or the number of a camera.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

import yolact_deploy

Frame = NDArray[np.uint8]


def read_frames(source: str) -> Iterator[Frame]:
    """The frames of a video file or camera, uint8 BGR [H, W, 3]."""
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        raise SystemExit(f"cannot open {source}: expected a video file or a camera number")
    try:
        while (frame := capture.read()[1]) is not None:
            yield frame.astype(np.uint8, copy=False)
    finally:
        capture.release()


def report(frames: Iterable[Frame], model: yolact_deploy.Predictor) -> Iterator[str]:
    """One line per frame: how many objects of each class, the share of the frame they cover, and the time."""
    for number, frame in enumerate(frames):
        detections = model(frame).above(0.5)
        counts = Counter(detections.names)
        objects = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing"
        covered = detections.masks.any(axis=0).mean()  # masks are bool [n, H, W]; any(axis=0) is their union
        yield f"frame {number}: {objects}, {covered:.0%} covered, {sum(model.timings.values()):.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="ONNX file, engine or checkpoint")
    parser.add_argument("source", help="video file or camera number")
    arguments = parser.parse_args()

    with yolact_deploy.load(arguments.model) as model:
        model.warm_up()  # the first call is slow: pay for it before the first frame arrives
        for line in report(read_frames(arguments.source), model):
            print(line)


if __name__ == "__main__":
    main()
