"""From an image file to the network's input: reading, checking, resizing, normalizing.

The whole image is resized bilinearly, without antialiasing, and with padding if the configuration's ``fit`` says so.
Exported graphs contain the normalization; :func:`normalize` serves the eager model.

Legend: H x W the image, h x w the network's input, N images.
"""

from __future__ import annotations

import io
import logging
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.array_types import Array, Float32, Floats, Pixels, Shaped, UInt8
from yolact_deploy.config import Size, YolactConfig, both_sides
from yolact_deploy.errors import InputError
from yolact_deploy.priors import Placement, place
from yolact_deploy.untrusted import read_bytes, shown
from yolact_deploy.vocabulary import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

_MOST_PIXELS = 200_000_000
#: pixels of the largest canvas that is made for padding
_MOST_CANVAS = 40_000_000
#: codes of the segments of a JPEG file that hold its size
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: fill bytes, and segments without a length
_BARE_MARKERS = {0xFF, 0x01, *range(0xD0, 0xD9)}
#: first bytes of a kind of picture, where its width and height are, and in which form; JPEG 2000 has the height first
_SIZES = (
    (b"\x89PNG", 16, ">II"),
    (b"GIF8", 6, "<HH"),
    (b"BM", 18, "<ii"),
    (b"\0\0\0\x0cjP", 48, ">II"),
    (b"\xffO\xffQ", 8, ">II"),
    (b"\x59\xa6\x6a\x95", 4, ">II"),  # Sun raster
)
#: in the text of the headers of Radiance, PBM to PFM, and PAM
_TEXT_SIZE = re.compile(
    rb"[-+]Y (\d{1,18}) [-+]X (\d{1,18})"
    rb"|^P[1-6fF](?:\s|#[^\n]*\n)+(\d{1,18})(?:\s|#[^\n]*\n)+(\d{1,18})"
    rb"|^P7[\s\S]*?WIDTH (\d{1,18})[\s\S]*?HEIGHT (\d{1,18})"
)

#: the first bytes of formats in which a value can have more than 8 bits without OpenCV scaling it to the real depth
_DEEP = (b"\x89PNG", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xffO\xffQ", b"P2", b"P3", b"P5", b"P6", b"Pf", b"PF")
#: width, height and largest value in the header of a PGM or PPM file, which OpenCV ignores
_NETPBM = re.compile(rb"P[2356]" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3)
#: bits of a channel that cameras write into 16
_DEPTHS = (8, 10, 12, 14, 16)
#: pictures that OpenCV does not decode: by what their first bytes contain, or by suffix
_FOREIGN: dict[bytes | str, str] = {
    b"ftyphei": "HEIC", b"ftyphev": "HEIC", b"ftypmif1": "HEIC", b"ftypmsf1": "HEIC", b"ftypavif": "AVIF",
    b"JXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"8BPS": "Photoshop", b"%PDF": "PDF", b"<svg": "SVG",
    ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".avif": "AVIF", ".jxl": "JPEG XL", ".psd": "Photoshop",
    ".pdf": "PDF", ".svg": "SVG", ".ico": "icon", ".xcf": "GIMP",
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"), "camera raw"),
}  # fmt: skip


def read_image(path: str | os.PathLike[str]) -> UInt8[Pixels, "H W 3"]:
    """Read an image file as uint8 BGR [H, W, 3], rotated upright as its EXIF says.

    Values of more than 8 bits are scaled by their depth. A file with 16 bits per channel does not state how many of
    them are used: 10, 12, 14 or 16, the fewest that hold its largest value, are assumed, with a warning below 16.

    Raises:
        InputError: no such file, not an image that OpenCV can decode, or one of more pixels than :func:`check_pixels`
            allows; its header says so before anything is decoded.
    """
    return decode_image(read_bytes(path, "image", InputError), path)


def decode_image(content: bytes, name: str | os.PathLike[str]) -> UInt8[Pixels, "H W 3"]:
    """The content of an image file as uint8 BGR [H, W, 3], as :func:`read_image` reads it.

    Args:
        name: what errors call it

    Raises:
        InputError: see :func:`read_image`
    """
    check_pixels(name, header_size(io.BytesIO(content)))
    data = np.frombuffer(content, dtype=np.uint8)
    try:
        return _decode(data, name)
    except cv2.error as error:  # larger than OpenCV agrees to decode
        raise InputError(f"cannot decode image {name}: {error.err}") from error


def check_pixels(path: object, size: tuple[int, int] | None) -> None:
    """Raise :class:`InputError` if a picture of this height and width is larger than anybody would want.

    A file of a few kilobytes can describe a picture that fills the memory. The limit is 200 million pixels, or the
    environment variable ``YOLACT_DEPLOY_MAX_PIXELS``.
    """
    text = os.environ.get("YOLACT_DEPLOY_MAX_PIXELS") or str(_MOST_PIXELS)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"YOLACT_DEPLOY_MAX_PIXELS: expected a number of pixels, got {shown(text)}")
    if size is not None and size[0] * size[1] > int(text):
        raise InputError(
            f"{path} has {size[1]} x {size[0]} pixels, more than {int(text):,}: set YOLACT_DEPLOY_MAX_PIXELS to the "
            "number that you want to allow"
        )


def header_size(file: io.BufferedIOBase) -> tuple[int, int] | None:
    """Height and width in the header of a picture, as stored; None if the kind is not known or the header is cut."""
    head = file.read(4096)
    try:
        if head.startswith(b"\xff\xd8"):
            frames = (body for code, body in jpeg_segments(file) if code in JPEG_FRAMES)
            return next((struct.unpack_from(">HH", body, 1) for body in frames), None)
        if head.startswith((b"II", b"MM")):
            return _tiff_size(file, "<" if head.startswith(b"II") else ">")
        for mark, offset, form in _SIZES:
            if head.startswith(mark):
                first, second = (abs(int(value)) for value in struct.unpack_from(form, head, offset))
                return (first, second) if mark == b"\0\0\0\x0cjP" else (second, first)
        if head[8:12] == b"WEBP":
            return _webp_size(head)
    except (struct.error, OSError, OverflowError):  # OverflowError: a place beyond any file
        return None
    if match := _TEXT_SIZE.search(head):
        y, x, width, height, pam_width, pam_height = (int(number or 0) for number in match.groups())
        return y or height or pam_height, x or width or pam_width
    return None


def jpeg_segments(file: io.BufferedIOBase) -> Iterator[tuple[int, bytes]]:
    """The code and content of each segment of a JPEG file before its pixels."""
    file.seek(2)
    while True:
        marker, code, length = struct.unpack(">BBH", file.read(4))
        if marker == 0xFF and code in _BARE_MARKERS:
            file.seek(-3 if code == 0xFF else -2, 1)
        elif marker != 0xFF or length < 2:
            return
        else:
            yield code, file.read(length - 2)


def _tiff_size(file: io.BufferedIOBase, order: str) -> tuple[int, int] | None:
    """From the tags of the first picture."""
    file.seek(2)
    big = struct.unpack(f"{order}H", file.read(2)) == (43,)
    file.seek(8 if big else 4)
    file.seek(*struct.unpack(order + ("Q" if big else "I"), file.read(8 if big else 4)))
    (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    tags = {}
    for _ in range(min(count, 4096)):
        entry = file.read(20 if big else 12)
        tag, kind = struct.unpack_from(f"{order}HH", entry)
        (tags[tag],) = struct.unpack_from(order + {3: "H", 4: "I", 16: "Q"}.get(kind, "B"), entry, 12 if big else 8)
    return (tags[257], tags[256]) if {256, 257} <= set(tags) else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    def number(at: int, bits: int, shift: int = 0) -> int:
        return int.from_bytes(head[at : at + 4], "little") >> shift & (1 << bits) - 1

    if head[12:16] == b"VP8X":
        return number(27, 24) + 1, number(24, 24) + 1
    if head[12:16] == b"VP8L":
        return number(21, 14, 14) + 1, number(21, 14) + 1
    return (number(28, 14), number(26, 14)) if head[12:16] == b"VP8 " else None


def _decode(data: UInt8[Pixels, " n"], path: str | os.PathLike[str]) -> UInt8[Pixels, "H W 3"]:
    head = data[:4096].tobytes()
    image: Any = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    # Most PNG files have 8 bits.
    if image is not None and head.startswith(_DEEP) and (not head.startswith(b"\x89PNG") or head[24:25] == b"\x10"):
        image = _in_eight_bits(image, cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH), head, path)
    if image is not None:
        return image  # type: ignore[no-any-return]
    if kind := foreign_picture(Path(path), head):
        raise InputError(
            f"cannot decode image {path}: OpenCV cannot read pictures of this kind ({kind}). Convert it to JPEG or PNG"
        )
    raise InputError(f"cannot decode image {path}: it is damaged or not a JPEG, PNG, BMP, WebP or TIFF file")


def _in_eight_bits(decoded: Any, deep: Any, head: bytes, path: str | os.PathLike[str]) -> Any:
    """A picture in 8 bits; None if its values are floating-point, whose range is unknown.

    Args:
        decoded: OpenCV's own conversion, which takes 16-bit values as using all 16
        deep: the values as they are in the file
    """
    if (match := _NETPBM.match(head)) and (deep.dtype != np.uint8 or head[1:2] in b"56"):  # it scales text of 8 bits
        return np.rint(deep * (255 / max(int(match[3]), 1))).clip(0, 255).astype(np.uint8)
    if deep.dtype != np.uint16:
        return decoded if deep.dtype == np.uint8 else None
    most = int(deep.max())
    if most >= 1 << _DEPTHS[-2] or int(decoded.max()) > (most >> 8) + 1:  # OpenCV knew the depth
        return decoded
    return eight_bits(deep, path)


def eight_bits(deep: Any, path: object) -> Any:
    """uint16 values in 8 bits, by the fewest of 8, 10, 12, 14 and 16 bits that hold the largest one, which is logged.

    Args:
        path: for the message
    """
    most = int(deep.max())
    bits = next(bits for bits in _DEPTHS if most < 1 << bits)
    if most and bits < _DEPTHS[-1] and bits not in _reported:
        _reported.add(bits)
        _log.warning(
            "%s: 16-bit values up to %d, so it is read as %d bits, like all others of this range", path, most, bits
        )
    return (deep >> (bits - 8)).astype(np.uint8)


#: depths that a warning has named
_reported: set[int] = set()


def is_picture(path: Path) -> bool:
    """Whether a file counts as a picture: by its suffix, or because OpenCV recognizes its first bytes."""
    return path.suffix.lower() in IMAGE_SUFFIXES or bool(cv2.haveImageReader(os.fspath(path)))


def foreign_picture(path: Path, head: bytes) -> str | None:
    """The name of the format if a file, by its first bytes or its suffix, is a picture that OpenCV cannot read."""
    marks = (name for mark, name in _FOREIGN.items() if isinstance(mark, bytes) and mark in head[:32])
    return next(marks, None) or _FOREIGN.get(path.suffix.lower())


def check_image(image: Any) -> UInt8[Pixels, "H W 3"]:
    """Return a uint8 BGR image [H, W, 3] unchanged; raise :class:`InputError` for anything else."""
    if not isinstance(image, np.ndarray):
        hint = "; cv2.imread returns None for a file that it cannot read" if image is None else ""
        raise InputError(f"expected a NumPy image uint8 BGR [H, W, 3], got {type(image).__name__}{hint}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"expected an image uint8 BGR [H, W, 3], got {image.dtype} {list(image.shape)}; "
            "convert gray or RGBA images with cv2.cvtColor, and floats in 0..1 with (image * 255).astype('uint8')"
        )
    return image


def resize_image(image: UInt8[Pixels, "H W 3"], size: Size, dtype: str = "uint8") -> Shaped[Array, "h w 3"]:
    """Resize BGR [H, W, 3] to [h, w, 3], whatever its shape.

    Args:
        size: h and w, or both in one
        dtype: "uint8" rounds to gray levels; "float32" (0..255) keeps the fractions, as the original does
    """
    source = image if dtype == "uint8" else image.astype(np.float32)
    height, width = both_sides(size)
    return cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR)


def fit_image(image: UInt8[Pixels, "H W 3"], config: YolactConfig, dtype: str = "uint8") -> Shaped[Array, "h w 3"]:
    """An image in the network's input: resized as ``config.fit`` says, [h, w, 3].

    Padding has the color of :func:`padding_color`.

    Args:
        dtype: as of :func:`resize_image`
    """
    where = place(image.shape[0], image.shape[1], config)
    if not where.is_padded:
        return resize_image(image, config.input_shape, dtype)
    color = padding_color(config, dtype)
    if where.canvas_height * where.canvas_width > _MOST_CANVAS:
        return _sampled(image, where, config.input_shape, color, dtype)
    source = image if dtype == "uint8" else image.astype(np.float32)
    bottom = where.canvas_height - where.height - where.top
    right = where.canvas_width - where.width - where.left
    canvas = cv2.copyMakeBorder(source, where.top, bottom, where.left, right, cv2.BORDER_CONSTANT, value=color)
    return cv2.resize(canvas, config.input_shape[::-1], interpolation=cv2.INTER_LINEAR)


def padding_color(config: YolactConfig, dtype: str) -> tuple[float, float, float]:
    """``config.padding_color`` in an image of ``dtype``."""
    blue, green, red = config.padding_color
    return (round(blue), round(green), round(red)) if dtype == "uint8" else (blue, green, red)


def _sampled(
    image: UInt8[Pixels, "H W 3"],
    where: Placement,
    shape: tuple[int, int],
    color: tuple[float, float, float],
    dtype: str,
) -> Shaped[Array, "h w 3"]:
    """:func:`fit_image` without the canvas, which an extremely long picture would make larger than memory."""
    rows, row_share = _taps(shape[0], where.canvas_height)
    columns, column_share = _taps(shape[1], where.canvas_width)
    rows, columns = rows - where.top, columns - where.left
    inside_rows, inside_columns = (rows >= 0) & (rows < where.height), (columns >= 0) & (columns < where.width)
    values = image[rows.clip(0, where.height - 1)][:, columns.clip(0, where.width - 1)].astype(np.float32)
    values[~(inside_rows[:, None] & inside_columns)] = color
    across = values[:, 0::2] + (values[:, 1::2] - values[:, 0::2]) * column_share[:, None]
    mixed = across[0::2] + (across[1::2] - across[0::2]) * row_share[:, None, None]
    return np.rint(mixed).astype(np.uint8) if dtype == "uint8" else np.asarray(mixed)


def _taps(target: int, source: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The two source pixels of each target pixel, one after the other, and the weight of the second."""
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(position).astype(np.intp)
    pairs = np.stack([first, first + 1], axis=1).reshape(-1).clip(0, source - 1)
    return pairs, (position - first).astype(np.float32)


def normalize(images: Shaped[Array, "N h w 3"], config: YolactConfig) -> Float32[Floats, "N 3 h w"]:
    """BGR [N, h, w, 3] in 0..255 to the trunk's input: float32 RGB [N, 3, h, w]."""
    mean = np.array(config.pixel_mean, dtype=np.float32)
    std = np.array(config.pixel_std, dtype=np.float32)
    scaled = (images.astype(np.float32) - mean) / std
    return np.ascontiguousarray(scaled[..., ::-1].transpose(0, 3, 1, 2))
