"""Masks of annotated objects, drawn at the size of the view.

Polygons are transformed first and drawn last, each only within its own window, so that the cost depends on the size of
the object, not of the image. Run-length encodings are decoded, cropped to their object, and only then resized.

Legend: n objects, h x w the view.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.datasets.instance_table import Floats, Objects
from yolact_deploy.datasets.rle import decode
from yolact_deploy.training.data.geometry import View

Masks = NDArray[np.uint8]


def rasterize(objects: Objects, view: View) -> Masks:
    """The masks of the objects in the view: uint8 [n, h, w], zero and one.

    Polygons are drawn by COCO's rule (pycocotools) at the size of the view; encodings are resized bilinearly and
    thresholded at one half.
    """
    masks = np.zeros((len(objects), view.height, view.width), np.uint8)
    for mask, rings, encoded in zip(masks, objects.rings, objects.rle, strict=True):
        if rings:
            _draw(mask, [view.points(ring) for ring in rings])
        else:
            _resize(mask, encoded, objects.height, objects.width, view)
    return masks


def _draw(mask: Masks, rings: list[Floats]) -> None:
    """Draw the union of polygon rings [k, 2] into ``mask`` [h, w]."""
    height, width = mask.shape
    low = np.min([ring.min(axis=0) for ring in rings], axis=0)
    high = np.max([ring.max(axis=0) for ring in rings], axis=0)
    x0, y0 = np.floor(low.clip(0, (width, height))).astype(int).tolist()
    x1, y1 = np.ceil(high.clip(0, (width, height)) + 1).clip(0, (width, height)).astype(int).tolist()
    if x1 <= x0 or y1 <= y0:
        return
    flat = [(ring.astype(np.float64) - (x0, y0)).ravel().tolist() for ring in rings]
    encoded = coco_mask.frPyObjects(flat, y1 - y0, x1 - x0)
    union = encoded[0] if len(encoded) == 1 else coco_mask.merge(encoded)
    mask[y0:y1, x0:x1] = decode(union["counts"], y1 - y0, x1 - x0)


def _resize(mask: Masks, encoded: bytes, height: int, width: int, view: View) -> None:
    """Resize an encoded mask of an image height x width into ``mask`` [h, w]."""
    rle = {"size": [height, width], "counts": encoded}
    x, y, w, h = coco_mask.toBbox(rle).astype(int).tolist()
    # One pixel around the object and around the view, for the interpolation.
    x0, y0 = max(x - 1, view.left - 1, 0), max(y - 1, view.top - 1, 0)
    x1, y1 = min(x + w + 1, view.right + 1, width), min(y + h + 1, view.bottom + 1, height)
    if x1 <= x0 or y1 <= y0:
        return
    a, b, c, d = view.boxes(np.array([[x0, y0, x1, y1]], np.float32))[0].tolist()
    shown = int(a), int(b), int(np.ceil(c)), int(np.ceil(d))
    if shown[2] <= shown[0] or shown[3] <= shown[1]:
        return
    part = np.ascontiguousarray(decode(encoded, height, width)[y0:y1, x0:x1]) * np.uint8(255)
    mask[shown[1] : shown[3], shown[0] : shown[2]] = view.of_part(x0, y0).warp(part, shown) > 127
