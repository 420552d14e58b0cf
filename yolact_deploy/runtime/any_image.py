"""Whatever users hold as an image, as uint8 BGR [H, W, 3]: files, bytes, addresses, PIL images, arrays, torch tensors.

Channels are BGR where an array does not say otherwise, as OpenCV has them; a PIL image knows its own.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import check_image, check_pixels, decode_image, eight_bits, read_image

Image = NDArray[np.uint8]

_ADDRESS = re.compile(r"(?i)https?://\S+")
_MOST_BYTES = 256 << 20
_PATIENCE = 20.0  # seconds for which a server may be silent


def is_single(value: object) -> bool:
    """Whether this is one image and not several, although some of these can be iterated over."""
    return isinstance(value, (np.ndarray, str, bytes, bytearray, memoryview, os.PathLike)) or _library(value) != ""


def as_image(value: Any) -> Image:
    """An image as uint8 BGR [H, W, 3].

    Args:
        value: a path or an ``http(s)://`` address, the bytes of a file, a PIL image, an array or a CPU tensor
            [H, W], [H, W, 1], [H, W, 3] (BGR) or [H, W, 4] (BGRA) of uint8 or uint16. Files and PIL images are turned
            upright as their EXIF says; transparency is dropped; 16 bits are scaled as :func:`read_image` does

    Raises:
        InputError: anything else, or something that cannot be read.
    """
    if isinstance(value, np.ndarray):
        return _from_array(value)
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        return _fetched(text) if isinstance(text, str) and _ADDRESS.fullmatch(text) else read_image(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return decode_image(bytes(value), "the bytes of an image")
    library = _library(value)
    if library == "PIL":
        return _from_pil(value)
    if library == "torch":
        value = _from_torch(value)
    return _from_array(value)


def _library(value: object) -> str:
    """ "PIL" or "torch" for their images and tensors, without importing either."""
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(value).__mro__}
    return "PIL" if ("PIL", "Image") in names else "torch" if ("torch", "Tensor") in names else ""


def _from_array(value: Any) -> Image:
    if not isinstance(value, np.ndarray) or value.dtype not in (np.uint8, np.uint16) or 0 in value.shape:
        return check_image(value)  # raises
    if value.ndim == 2:
        value = value[..., None]
    if value.ndim != 3 or value.shape[2] not in (1, 3, 4):
        return check_image(value)  # raises
    if value.dtype == np.uint16:
        value = eight_bits(value, "a 16-bit array")
    if value.shape[2] == 3:
        return value  # type: ignore[no-any-return]
    code = cv2.COLOR_GRAY2BGR if value.shape[2] == 1 else cv2.COLOR_BGRA2BGR
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(value), code), np.uint8)


def _from_pil(image: Any) -> Image:
    from PIL import ImageOps

    check_pixels("this PIL image", (image.height, image.width))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _from_array(np.asarray(image).astype(np.uint16))
    if image.mode in ("I", "F"):
        raise InputError(
            f"a PIL image of mode {image.mode} has values of unknown range: convert it to 'L', 'I;16' or 'RGB' first"
        )
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])


def _from_torch(tensor: Any) -> Any:
    shape = list(tensor.shape)
    if tensor.device.type != "cpu":
        raise InputError(
            f"got a tensor on {tensor.device}, and this backend takes images in host memory: pass tensor.cpu()"
        )
    if str(tensor.dtype) != "torch.uint8" or (tensor.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4)):
        raise InputError(
            f"expected a tensor uint8 BGR [H, W, 3], got {tensor.dtype} {shape}; from RGB [3, H, W] in 0..1 it is "
            "(tensor * 255).byte().permute(1, 2, 0).flip(-1)"
        )
    return tensor.detach().numpy()


def _fetched(address: str) -> Image:
    shown = re.sub(r"(?<=://)[^/@\s]*@", "***@", address)
    try:
        with urllib.request.urlopen(address, timeout=_PATIENCE) as answer:  # http(s) alone matches
            data = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise InputError(f"cannot fetch {shown}: {error}. Check the address and the network") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{shown} is larger than {_MOST_BYTES >> 20} MiB: download it and pass the file")
    return decode_image(data, shown)
