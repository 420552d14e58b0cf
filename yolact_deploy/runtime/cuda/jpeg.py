"""JPEG files decoded on the GPU by nvImageCodec; whatever it does not take is left to OpenCV.

Pixels may differ from OpenCV's by a few gray levels, since the two may round the inverse transform differently, and
detections that are close to a threshold with them. So this is an option and not the default.

Legend: H x W image.
"""

from __future__ import annotations

import io
import logging
import os
import threading
from typing import Any

from yolact_deploy.errors import InputError, import_optional
from yolact_deploy.preprocess import check_pixels, header_size
from yolact_deploy.untrusted import read_bytes

_log = logging.getLogger(__name__)

_JPEG = b"\xff\xd8\xff"


class JpegDecoder:
    """Decodes JPEG files into device memory; several threads may use it.

    Args:
        device: ordinal of the GPU; None decodes in host memory, for tests

    Raises:
        MissingDependencyError: nvImageCodec is not installed.
    """

    def __init__(self, device: int | None) -> None:
        codec: Any = import_optional("nvidia.nvimgcodec", "jpeg", "Decoding JPEG files on the GPU")
        self._codec = codec
        self._lock = threading.Lock()
        # Chroma is interpolated as in libjpeg, which OpenCV uses.
        options = ":fancy_upsampling=1"
        if device is None:
            place, backends = codec.NVIMGCODEC_DEVICE_CPU_ONLY, [codec.Backend(codec.BackendKind.CPU_ONLY)]
        else:
            place, backends = device, None
        self._decoder = codec.Decoder(device_id=place, backends=backends, options=options)
        self._params = codec.DecodeParams(apply_exif_orientation=True, sample_format=codec.SampleFormat.I_BGR)
        self._told: set[str] = set()

    def read(self, path: str | os.PathLike[str]) -> Any | None:
        """A JPEG file as uint8 BGR [H, W, 3] in device memory, upright as its EXIF says.

        None if it is left to OpenCV: another kind of file, or one that the GPU cannot decode. The first file of each
        reason is logged.

        Raises:
            InputError: no such file, or more pixels than :func:`~yolact_deploy.preprocess.check_pixels` allows.
        """
        content = read_bytes(path, "image", InputError)
        check_pixels(path, header_size(io.BytesIO(content)))
        image, reason = self._decode(content)
        if image is None:
            self._note(path, reason)
        return image

    def _decode(self, content: bytes) -> tuple[Any | None, str]:
        """The image, or None and the reason."""
        if not content.startswith(_JPEG):
            return None, "only JPEG files are decoded on the GPU"
        try:
            with self._lock:
                image = self._decoder.decode(self._codec.CodeStream(content), params=self._params)
        except Exception as error:  # of pybind11 and its own
            return None, f"nvImageCodec failed: {' '.join(str(error).split())[:200]}"
        if image is None:
            return None, "nvImageCodec cannot decode it"
        if tuple(image.shape)[2:] != (3,):
            return None, f"nvImageCodec gives it the shape {list(image.shape)}"
        return image, ""

    def _note(self, path: object, reason: str) -> None:
        level = logging.DEBUG if reason in self._told else logging.WARNING
        self._told.add(reason)
        _log.log(level, "%s is decoded by OpenCV: %s", path, reason)


def open_decoder(device: int) -> JpegDecoder | None:
    """The decoder of a GPU; None, with a warning that says why, where there is none."""
    try:
        return JpegDecoder(device)
    except Exception as error:  # not installed, or its libraries do not load
        _log.warning("JPEG files are decoded by OpenCV: %s", " ".join(str(error).split()))
        return None
