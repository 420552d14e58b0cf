"""Run an exported model with ONNX Runtime, NumPy and OpenCV only: nothing of yolact-deploy is imported.

    python examples/plain_onnxruntime.py yolact.onnx street.jpg overlay.png

The file takes uint8 BGR pictures [N, S, S, 3]; docs/contract.md describes its outputs. Copy this file as a start
for another language or an embedded target. Files exported with `--input float32` or `--tail heads` need more code.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import cv2
import numpy as np
import onnxruntime


def detect(session: Any, image: Any, score_threshold: float = 0.15) -> tuple[Any, Any, Any, Any]:
    """Boxes float32 [n, 4] xyxy in pixels, scores [n], labels [n] and masks bool [n, H, W] of one BGR picture."""
    height, width = image.shape[:2]
    side = session.get_inputs()[0].shape[1]
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)  # no letterbox: the aspect ratio changes
    names = ["num_detections", "boxes", "scores", "labels", "masks"]
    count, boxes, scores, labels, masks = (output[0] for output in session.run(names, {"images": resized[None]}))
    keep = np.flatnonzero(scores[:count] > score_threshold)  # slots past num_detections are empty
    boxes = boxes[keep].reshape(-1, 2, 2)  # corners, normalized to 0..1, neither sorted nor clipped
    boxes = np.concatenate([boxes.min(axis=1), boxes.max(axis=1)], axis=1).clip(0, 1)
    boxes = boxes * np.array([width, height, width, height], np.float32)
    # Masks are probabilities at prototype resolution, already cropped to their boxes.
    large = [cv2.resize(mask.astype(np.float32), (width, height)) > 0.5 for mask in masks[keep]]
    return boxes, scores[keep], labels[keep], np.array(large, dtype=bool).reshape(-1, height, width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="ONNX file")
    parser.add_argument("picture")
    parser.add_argument("output", help="picture to write")
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["yolact_deploy"])
    class_names = metadata["config"]["class_names"]
    image = cv2.imread(arguments.picture)
    if image is None:
        raise SystemExit(f"cannot read {arguments.picture}: it is missing or not a picture")
    for box, score, label, mask in zip(*detect(session, image), strict=True):
        print(f"{class_names[label]} {score:.2f} at {box.round().astype(int).tolist()}, {mask.sum()} mask pixels")
        image[mask] = image[mask] // 2 + np.array([64, 127, 0], np.uint8)
        left, top, right, bottom = map(int, box)
        cv2.rectangle(image, (left, top), (right, bottom), (64, 255, 0), 2)
    cv2.imwrite(arguments.output, image)


if __name__ == "__main__":
    main()
