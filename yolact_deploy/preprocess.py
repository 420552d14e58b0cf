"""From an image file to the network's input: reading, checking, resizing, normalizing.

The whole image is resized to S x S bilinearly, without letterbox and without antialiasing. Exported graphs contain the
normalization; :func:`normalize` serves the eager model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolact_deploy.array_types import Array, Float32, Floats, Pixels, Shaped, UInt8
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import InputError


def read_image(path: str | os.PathLike[str]) -> UInt8[Pixels, "H W 3"]:
    """Read an image file as uint8 BGR [H, W, 3], rotated upright as its EXIF says.

    Raises:
        InputError: no such file, or not an image that OpenCV can decode.
    """
    try:
        data = np.frombuffer(Path(path).read_bytes(), dtype=np.uint8)
    except FileNotFoundError as error:
        raise InputError(f"no such image: {path}") from error
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror or error}") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:  # larger than OpenCV agrees to decode
        raise InputError(f"cannot decode image {path}: {error.err}") from error
    if image is None:
        raise InputError(f"cannot decode image {path}: it is damaged or not a JPEG, PNG, BMP, WebP or TIFF file")
    return image  # type: ignore[return-value]  # IMREAD_COLOR gives uint8


def check_image(image: Any) -> UInt8[Pixels, "H W 3"]:
    """Return a uint8 BGR image [H, W, 3] unchanged; raise :class:`InputError` for anything else."""
    if not isinstance(image, np.ndarray):
        raise InputError(f"expected a NumPy image uint8 BGR [H, W, 3], got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"expected an image uint8 BGR [H, W, 3], got {image.dtype} {list(image.shape)}; "
            "convert gray or RGBA images with cv2.cvtColor, and floats in 0..1 with (image * 255).astype('uint8')"
        )
    return image


def resize_image(image: UInt8[Pixels, "H W 3"], size: int, dtype: str = "uint8") -> Shaped[Array, "{size} {size} 3"]:
    """Resize BGR [H, W, 3] to [size, size, 3].

    Args:
        dtype: "uint8" rounds to gray levels; "float32" (0..255) keeps the fractions, as the original does
    """
    source = image if dtype == "uint8" else image.astype(np.float32)
    return cv2.resize(source, (size, size), interpolation=cv2.INTER_LINEAR)


def normalize(images: Shaped[Array, "N S S 3"], config: YolactConfig) -> Float32[Floats, "N 3 S S"]:
    """BGR [N, S, S, 3] in 0..255 to the trunk's input: float32 RGB [N, 3, S, S]."""
    mean = np.array(config.pixel_mean, dtype=np.float32)
    std = np.array(config.pixel_std, dtype=np.float32)
    scaled = (images.astype(np.float32) - mean) / std
    return np.ascontiguousarray(scaled[..., ::-1].transpose(0, 3, 1, 2))
