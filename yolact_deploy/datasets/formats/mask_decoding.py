"""Masks stored as pictures, within limits of size and number.

Legend: H x W picture.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.formats.read_set import ReadPicture
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.preprocess import check_pixels, header_size

#: objects of one picture; a photograph or a mask with soft borders has more values
_MOST_OBJECTS = 10_000


def decode_mask(data: bytes, where: str) -> NDArray[Any]:
    """The values of a mask picture [H, W] or [H, W, channels], as they are stored.

    Args:
        where: file and field, for errors

    Raises:
        DatasetError: not a picture, or one of more pixels than :func:`~yolact_deploy.preprocess.check_pixels` allows.
    """
    image = None
    try:
        check_pixels(where, header_size(io.BytesIO(data)))
        if data:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except InputError as error:
        raise DatasetError(str(error)) from error
    except cv2.error:  # of kinds that OpenCV does not agree to decode
        image = None
    if image is None:
        raise DatasetError(f"{where}: expected a PNG that can be read: replace it, or annotate the picture again")
    return image


def decode_mask_of(data: bytes, where: str, picture: ReadPicture) -> NDArray[Any]:
    """The same for a mask of the picture's size, which is compared before anything is decoded."""
    size = header_size(io.BytesIO(data))
    if size is None or size == (picture.height, picture.width):
        image = decode_mask(data, where)
        size = image.shape[0], image.shape[1]
    if size != (picture.height, picture.width):
        raise DatasetError(
            f"{where}: {size[1]} x {size[0]}, expected a mask picture of {picture.width} x {picture.height}: replace it"
        )
    return image


def object_values(values: NDArray[np.int64], where: str) -> list[int]:
    """The values above 0 of a picture [H, W], each of which is an object.

    Raises:
        DatasetError: more than a picture can have.
    """
    ids: list[int] = [value for value in np.unique(values).tolist() if value > 0]
    if len(ids) > _MOST_OBJECTS:
        raise DatasetError(
            f"{where}: {len(ids)} different values, and each would be an object: give a mask picture (PNG) whose "
            f"values are ids, at most {_MOST_OBJECTS}, not a photograph or a mask with soft borders"
        )
    return ids
