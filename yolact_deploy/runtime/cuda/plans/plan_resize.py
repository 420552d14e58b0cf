"""Launch plan for resizing frames to the network's input (kernels/resize.cu).

Legend: N images, H x W the frame, S input side.

Buffers of the kernel ``resize``: frame uint8 BGR [H,W,3], rows ``pitch`` bytes apart, the first of ``count`` frames
that are ``stride`` bytes apart -> images [N,S,S,3], 0..255, of which ``count`` are written.
"""

from __future__ import annotations

import numpy as np

from yolact_deploy.errors import InputError
from yolact_deploy.runtime.cuda.plans.launch import Argument, Defines, Launch, LaunchPlan, Offset, ceil_div, int32s

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
    size: int,
    *,
    output_dtype: str = "uint8",
    image_index: int = 0,
    count: int = 1,
    stride: int = 0,
) -> LaunchPlan:
    """The launch that computes the images of a batch from ``image_index`` on, one for each frame.

    Args:
        count: number of frames
        stride: bytes from one frame to the next
        output_dtype: "uint8" rounds to gray levels, "float32" keeps the fractions

    Raises:
        InputError: the kernel does not support the frame.
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and 1 <= size <= MAX_SIDE):
        raise InputError(f"resizing on the GPU supports sides of 1 to {MAX_SIDE}, got {height} x {width} to {size}")
    if not 3 * width <= pitch < 2**31:
        raise InputError(f"frame: expected rows at least {3 * width} bytes apart ({width} pixels), got {pitch}")
    if output_dtype not in _BYTES:
        raise ValueError(f"output_dtype: expected one of {', '.join(_BYTES)}, got {output_dtype!r}")
    nbytes = 3 * size * size * _BYTES[output_dtype]
    scalars: tuple[Argument, ...] = (*int32s(height, width, pitch, size), _scale(width, size), _scale(height, size))
    scalars = (*scalars, np.int64(stride))
    launch = Launch(
        source=SOURCE,
        kernel="resize",
        grid=(ceil_div(size, TILE_WIDTH), ceil_div(size, TILE_HEIGHT), count),
        block=(TILE_WIDTH, BLOCK_ROWS, 1),
        shared_bytes=0,
        arguments=("frame", *scalars, Offset("images", image_index * nbytes)),
        defines=kernel_defines(output_dtype),
    )
    return LaunchPlan(
        launches=(launch,),
        scratch={},
        bytes_moved=count * (_bytes_read(height, width, size) + nbytes),
        operations=count * _OPERATIONS * 3 * size * size,
    )


def kernel_defines(output_dtype: str) -> Defines:
    """Preprocessor definitions of the kernel."""
    return (
        ("TILE_WIDTH", TILE_WIDTH),
        ("TILE_HEIGHT", TILE_HEIGHT),
        ("FLOAT_OUTPUT", int(output_dtype == "float32")),
    )


def _scale(source: int, target: int) -> np.float64:
    """Pixels of the frame per pixel of the image, bit for bit as OpenCV computes it."""
    scale: np.float64 = np.float64(1 / (target / source))
    return scale


def _bytes_read(height: int, width: int, size: int) -> int:
    """The pixels needed: two rows and two columns per row and column of the image, each pixel once."""
    return 3 * min(height, 2 * size) * min(width, 2 * size)
