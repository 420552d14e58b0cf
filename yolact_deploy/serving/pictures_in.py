"""Pictures of requests: their kind and size are checked before anything is decoded or queued."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import check_pixels, decode_image, header_size
from yolact_deploy.serving.service_errors import bad_request

Image = NDArray[np.uint8]

#: media types that are accepted; what a picture is, its first bytes say
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")
_MARKS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def picture_decoder(content: bytes, max_pixels: int, name: str = "the picture") -> Callable[[], Image]:
    """Check the header of a picture, and return what decodes the whole of it.

    Args:
        max_pixels: limit of the service; that of :func:`~yolact_deploy.preprocess.check_pixels` holds as well
        name: what errors call it

    Raises:
        RequestError: it is not a JPEG, PNG or WebP picture, its header is damaged, or it has too many pixels. What is
            damaged behind the header, decoding reports as :class:`~yolact_deploy.errors.InputError`.
    """
    if not content:
        raise bad_request(f"{name} is empty: send a JPEG, PNG or WebP file")
    if not (content.startswith(_MARKS) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")):
        raise bad_request(f"{name} is not a JPEG, PNG or WebP file", status=415, reason="type")
    size = header_size(io.BytesIO(content))
    if size is None or 0 in size:
        raise bad_request(f"the header of {name} is damaged", reason="picture")
    height, width = size
    if height * width > max_pixels:
        raise bad_request(
            f"{name} has {width} x {height} pixels, more than the {max_pixels:,} that this service accepts",
            status=413,
            reason="pixels",
        )
    try:
        check_pixels(name, size)
    except InputError as error:
        raise bad_request(str(error), status=413, reason="pixels") from error
    return lambda: decode_image(content, name)
