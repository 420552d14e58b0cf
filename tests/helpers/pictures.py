"""Picture files in memory."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


def encoded(image: Any, suffix: str = ".jpg") -> bytes:
    """The bytes of a picture file."""
    ok, data = cv2.imencode(suffix, image)
    assert ok
    return bytes(data.tobytes())


def decoded(content: bytes, flags: int = cv2.IMREAD_COLOR) -> Any:
    """The picture in a file's bytes."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    assert image is not None
    return image
