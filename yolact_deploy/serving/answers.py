"""Answers of requests: detections as JSON with masks in the form that the client asked for, or a drawn picture."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.serving.service_errors import bad_request

Image = NDArray[np.uint8]

#: forms of masks in JSON; the first is the default
MASK_FORMS = ("rle", "polygons", "png", "none")
JSON_TYPE = "application/json"
_PICTURE_TYPES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}


@dataclass(frozen=True)
class AnswerForm:
    """What the client wants.

    Attributes:
        media_type: "application/json", or that of a drawn picture
        masks: one of :data:`MASK_FORMS`
        score_threshold: drops detections below; None keeps what the model returns
        classes: labels to keep; None keeps all
    """

    media_type: str = JSON_TYPE
    masks: str = MASK_FORMS[0]
    score_threshold: float | None = None
    classes: frozenset[int] | None = None

    def select(self, detections: Detections) -> Detections:
        """The detections that the client wants."""
        if self.score_threshold is not None:
            detections = detections.above(self.score_threshold)
        if self.classes is not None:
            detections = detections[np.isin(detections.labels, list(self.classes))]
        return detections

    def encode(self, model: str, image: Image, detections: Detections, spent: Mapping[str, float]) -> bytes:
        """The body of the answer."""
        wanted = self.select(detections)
        if self.media_type != JSON_TYPE:
            return encode_picture(wanted.draw(image), _PICTURE_TYPES[self.media_type])
        timings = {stage: round(ms, 3) for stage, ms in spent.items()}
        return json.dumps({"model": model, **describe(wanted, self.masks), "timings_ms": timings}).encode()


def choose_media_type(accept: str) -> str:
    """What to answer to an ``Accept`` header: JSON, or the picture type that the client prefers to it.

    Raises:
        RequestError: 406, none of what the client accepts can be given.
    """
    offers = (JSON_TYPE, *_PICTURE_TYPES)
    best, rank = None, (0.0, 0)
    for part in (accept or "*/*").split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = _quality(parameters)
        for offer in offers:
            # A type by name counts more than one by a wildcard, as browsers that want HTML also accept image/webp.
            exact = 2 if kind == offer else 1 if kind in ("*/*", f"{offer.partition('/')[0]}/*") else 0
            if exact and quality and (quality, exact) > rank:
                best, rank = offer, (quality, exact)
    if best is None:
        raise bad_request(
            f"none of the accepted types can be given: expected one of {', '.join(offers)}", status=406, reason="type"
        )
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def describe(detections: Detections, masks: str) -> dict[str, Any]:
    """As :meth:`~yolact_deploy.Detections.to_json`, with masks in one of :data:`MASK_FORMS`.

    ``rle`` is a COCO run-length encoding, ``polygons`` a list of outlines [x, y, x, y, ...] without holes, ``png`` a
    Base64 PNG of one bit per pixel at the size of the picture.
    """
    if masks == "rle":
        return detections.to_json()
    without = {"width": detections.width, "height": detections.height}
    boxes = detections.boxes.astype(float).round(2).tolist()
    items: list[dict[str, Any]] = [
        {"name": name, "label": int(label), "score": float(score), "box": box}
        for name, label, score, box in zip(detections.names, detections.labels, detections.scores, boxes, strict=True)
    ]
    if detections.mask_scores is not None:
        for item, mask_score in zip(items, detections.mask_scores.tolist(), strict=True):
            item["mask_score"] = mask_score
    if masks == "polygons":
        for item, outlines in zip(items, detections.polygons(), strict=True):
            item["polygons"] = [outline.ravel().tolist() for outline in outlines]
    elif masks == "png":
        for item, mask in zip(items, (one.masks[0] for one in detections), strict=True):
            item["png"] = base64.b64encode(encode_picture(mask.astype(np.uint8) * 255, ".png", bilevel=True)).decode()
    return {**without, "detections": items}


def encode_picture(image: Image, suffix: str, *, bilevel: bool = False) -> bytes:
    """A picture file."""
    ok, data = cv2.imencode(suffix, image, [cv2.IMWRITE_PNG_BILEVEL, 1] if bilevel else [])
    if not ok:
        raise bad_request(f"the picture is too large for {suffix}: accept another type", status=406, reason="type")
    return data.tobytes()
