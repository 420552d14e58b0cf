"""Launch plan for resizing frames to the network's input (kernels/resize.cu).

Legend: N images, H x W the frame, h x w the network's input.

Buffers of the kernel ``resize``: frame uint8 BGR [H,W,3], rows ``pitch`` bytes apart, the first of ``count`` frames
that are ``stride`` bytes apart -> images [N,h,w,3], 0..255, of which ``count`` are written.
"""

from __future__ import annotations

import numpy as np

from yolact_deploy.config import Size, both_sides, size_text
from yolact_deploy.errors import InputError
from yolact_deploy.priors import Placement
from yolact_deploy.runtime.cuda.plans.launch import (
    Argument,
    Defines,
    Launch,
    LaunchPlan,
    Offset,
    ceil_div,
    float_bits,
    int32s,
)

SOURCE = "resize.cu"

#: the part of an image that a block computes, and its rows of threads
TILE_WIDTH, TILE_HEIGHT = 64, 16
BLOCK_ROWS = 4
#: largest side for which the kernel's positions are exact
MAX_SIDE = 2**20

_OPERATIONS = 9
_BYTES = {"uint8": 1, "float32": 4}


def resize(
    height: int,
    width: int,
    pitch: int,
    size: Size,
    *,
    output_dtype: str = "uint8",
    image_index: int = 0,
    count: int = 1,
    stride: int = 0,
    placement: Placement | None = None,
    color: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> LaunchPlan:
    """The launch that computes the images of a batch from ``image_index`` on, one for each frame.

    Args:
        size: h and w, or both in one
        count: number of frames
        stride: bytes from one frame to the next
        output_dtype: "uint8" rounds to gray levels, "float32" keeps the fractions
        placement: where the frame lies on the canvas that is resized; by default it fills it
        color: BGR of the rest of the canvas; rounded for "uint8"

    Raises:
        InputError: the kernel does not support the frame.
    """
    rows, columns = both_sides(size)
    where = placement or Placement.whole(height, width)
    _check(where, pitch, (rows, columns), output_dtype)
    nbytes = 3 * rows * columns * _BYTES[output_dtype]
    levels = (float(round(level)) if output_dtype == "uint8" else level for level in color)
    scalars: tuple[Argument, ...] = int32s(height, width, pitch, rows, columns, *where[2:])
    scales = _scale(where.canvas_width, columns), _scale(where.canvas_height, rows)
    scalars = (*scalars, *map(float_bits, levels), *scales, np.int64(stride))
    launch = Launch(
        source=SOURCE,
        kernel="resize",
        grid=(ceil_div(columns, TILE_WIDTH), ceil_div(rows, TILE_HEIGHT), count),
        block=(TILE_WIDTH, BLOCK_ROWS, 1),
        shared_bytes=0,
        arguments=("frame", *scalars, Offset("images", image_index * nbytes)),
        defines=kernel_defines(output_dtype, padded=where.is_padded),
    )
    return LaunchPlan(
        launches=(launch,),
        scratch={},
        bytes_moved=count * (_bytes_read(height, width, rows, columns) + nbytes),
        operations=count * _OPERATIONS * 3 * rows * columns,
    )


def _check(where: Placement, pitch: int, shape: tuple[int, int], output_dtype: str) -> None:
    """Raise :class:`InputError` for frames that the kernel does not support."""
    height, width, canvas_height, canvas_width, *_ = where
    if not all(1 <= side <= MAX_SIDE for side in (*where[:4], *shape)):
        canvas = f" on {canvas_height} x {canvas_width}" if where.is_padded else ""
        sides = f"{height} x {width}{canvas} to {size_text(shape)}"
        raise InputError(f"resizing on the GPU supports sides of 1 to {MAX_SIDE}, got {sides}")
    if not 3 * width <= pitch < 2**31:
        raise InputError(f"frame: expected rows at least {3 * width} bytes apart ({width} pixels), got {pitch}")
    if output_dtype not in _BYTES:
        raise ValueError(f"output_dtype: expected one of {', '.join(_BYTES)}, got {output_dtype!r}")


def kernel_defines(output_dtype: str, *, padded: bool = False) -> Defines:
    """Preprocessor definitions of the kernel."""
    defines: Defines = (
        ("TILE_WIDTH", TILE_WIDTH),
        ("TILE_HEIGHT", TILE_HEIGHT),
        ("FLOAT_OUTPUT", int(output_dtype == "float32")),
    )
    return (*defines, ("PADDED", 1)) if padded else defines


def _scale(source: int, target: int) -> np.float64:
    """Pixels of the frame per pixel of the image, bit for bit as OpenCV computes it."""
    scale: np.float64 = np.float64(1 / (target / source))
    return scale


def _bytes_read(height: int, width: int, rows: int, columns: int) -> int:
    """The pixels needed: two rows and two columns per row and column of the image, each pixel once."""
    return 3 * min(height, 2 * rows) * min(width, 2 * columns)
