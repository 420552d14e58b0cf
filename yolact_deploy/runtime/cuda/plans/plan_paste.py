"""Launch plan of pasting masks into images (kernels/paste.cu), and what the host makes of the result.

Legend: N images, D detection slots, h x w prototypes, H x W an image (each its own).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import BackendError, ConfigError
from yolact_deploy.mask_forms import MaskCrops, PackedMasks
from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan, ceil_div, float_bits, int32s

SOURCE = "paste.cu"

#: threads of a block of both kernels
THREADS = 256
#: with so many blocks of paste_bits every multiprocessor of the largest GPUs is full; what is over ends at once
MOST_BLOCKS = 1024
#: words that an int32 can count
MAX_WORDS = 2**30

_CELL_OPERATIONS = 20
_BYTES = {"float32": 4, "float16": 2}


def paste(
    batch: int,
    detections: int,
    mask_height: int,
    mask_width: int,
    *,
    mask_dtype: str = "float32",
    capacity_words: int,
    padding: float = 1.0,
) -> LaunchPlan:
    """The two launches that make packed masks at image size: ``paste_windows`` and ``paste_bits``.

    Buffers in: masks [N,D,h,w] of ``mask_dtype``: probabilities, read inside the padded boxes only; boxes float32
    [N,D,4] (xyxy, normalised), num_detections int32 [N], image_sizes int32 [N,2] (H, W). Buffers out:

    - windows int32 [N,D,6]: x, y, width, height, row_words, first_word of each mask's part of the image; x is a
      multiple of 8. A mask without pixels and slots past num_detections have width 0, one that found no room has width
      -1; then the other five are 0
    - words_needed int32 [N]: the capacity that would have been enough; 2^31 - 1 also stands for more
    - bits uint32 [N,capacity_words]: the rows of all masks one behind another, ``row_words`` words each; in the order
      of memory their bytes are those of np.packbits. Words that no window has are not written. May be mapped host
      memory

    Sizes of the images and numbers of detections are read on the device, so that one plan serves them all.
    ``bytes_moved`` and ``operations`` of the plan are those of bits that fill the capacity.

    Args:
        mask_dtype: "float32" or "float16"
        capacity_words: words of bits that there is room for, of each image
        padding: prototype pixels around the box that belong to it

    Raises:
        ConfigError: sizes or dtypes that the kernels cannot take.
    """
    _check(batch, detections, mask_height, mask_width, capacity_words)
    if mask_dtype not in _BYTES:
        raise ConfigError(f"mask_dtype: the CUDA kernels of paste take float32 or float16, got {mask_dtype!r}")
    defines = kernel_defines(mask_dtype)
    sizes = (*int32s(detections, mask_height, mask_width), float_bits(padding), *int32s(capacity_words))
    between = ("windows", "words_needed", "paste_offsets")
    windows = Launch(
        source=SOURCE,
        kernel="paste_windows",
        grid=(batch, 1, 1),
        block=(THREADS, 1, 1),
        shared_bytes=0,
        arguments=("boxes", "num_detections", "image_sizes", *sizes, *between),
        defines=defines,
    )
    bits = Launch(
        source=SOURCE,
        kernel="paste_bits",
        grid=(min(ceil_div(capacity_words, THREADS), ceil_div(MOST_BLOCKS, batch)), batch, 1),
        block=(THREADS, 1, 1),
        shared_bytes=0,
        arguments=("masks", "boxes", "image_sizes", "windows", "paste_offsets", *sizes, "bits"),
        defines=defines,
    )
    mask_bytes = mask_height * mask_width * _BYTES[mask_dtype]
    return LaunchPlan(
        launches=(windows, bits),
        scratch={"paste_offsets": batch * (detections + 1) * 4},
        bytes_moved=batch * (detections * (mask_bytes + 16 + 24) + capacity_words * 4),
        operations=batch * capacity_words * 32 * _CELL_OPERATIONS // 4,  # a prototype pixel is some 4 pixels wide
    )


def kernel_defines(mask_dtype: str) -> tuple[tuple[str, str | int], ...]:
    """What the kernels are compiled with."""
    return (("THREADS", THREADS), ("MASK_HALF", int(mask_dtype == "float16")))


def unpack(windows: NDArray[np.int32], bits: NDArray[np.uint32], num: int, height: int, width: int) -> MaskCrops:
    """The masks of one image, for the host.

    Args:
        windows: [D, 6], of which the first ``num`` are used
        bits: [capacity]
        height: of the image, in pixels
        width: of the image, in pixels

    Raises:
        BackendError: the bits had no room for all masks.
    """
    if (windows[:num, 2] < 0).any():
        raise BackendError(
            f"masks were left out, since {len(bits)} words are too few for them: paste again with words_needed"
        )
    return PackedMasks(windows[:num], bits, height, width).unpacked()


def _check(batch: int, detections: int, height: int, width: int, capacity_words: int) -> None:
    sizes: dict[str, tuple[Any, int]] = {
        "batch": (batch, 65535),
        "detections": (detections, 2**20),
        "mask_height": (height, 2**14),
        "mask_width": (width, 2**14),
        "capacity_words": (capacity_words, MAX_WORDS),
    }
    for name, (size, most) in sizes.items():
        if not 1 <= size <= most:
            raise ConfigError(f"{name}: the CUDA kernels of paste take 1 to {most}, got {size}")
