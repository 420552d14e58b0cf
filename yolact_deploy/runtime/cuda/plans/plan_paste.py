"""Launch plan for pasting masks into images (kernels/paste.cu), and the host's side of the result.

Legend: N images, D detection slots, h x w prototypes, H x W image size (may differ per image).

Two kernels, ``paste_windows`` and ``paste_bits``. Buffers in: masks [N,D,h,w]: probabilities, read only inside the
padded boxes; boxes float32 [N,D,4] (xyxy, normalized); scores float32 [N,D], best first; labels int32 [N,D];
num_detections int32 [N]; mask_scores float32 [N,D] if there are some; placements int32
[N,6], the fields of :class:`~yolact_deploy.priors.Placement` for each image. Out:

- windows int32 [N,D,6]: x, y, width, height, row_words, first_word of each mask's part of the image; x is a multiple of
  8. The width is 0 for empty masks and slots past those wanted, and -1 for a mask that does not fit; the other five are
  0 then
- wanted int32 [N]: the number of detections above the score threshold, which are the ones to paste
- words_needed int32 [N]: the capacity that would be enough; 2^31 - 1 may also mean more
- bits uint32 [N,capacity_words]: the rows of all masks one after another, ``row_words`` words each; in memory order,
  their bytes equal np.packbits. Words outside all windows are not written
- found_windows, found_boxes, found_scores, found_labels and found_mask_scores: copies of the first ``wanted`` entries
  of each image; the others are not written

All but windows may be mapped host memory, which nothing reads on the device: then no copy is left to do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import BackendError
from yolact_deploy.mask_forms import MaskCrops, PackedMasks
from yolact_deploy.runtime.cuda.plans.launch import (
    Defines,
    Launch,
    LaunchPlan,
    ceil_div,
    check_sizes,
    dtype_bytes,
    float_bits,
    int32s,
)

SOURCE = "paste.cu"

#: threads per block of both kernels
THREADS = 256
#: blocks of paste_bits that fill every multiprocessor of the largest GPUs; surplus blocks return at once
MOST_BLOCKS = 1024
#: largest number of words, so that an int32 can count them
MAX_WORDS = 2**30

_CELL_OPERATIONS = 20
_DETECTION_BYTES = 16 + 4 + 4 + 24  # box, score, label, window
_NAME = "paste"


def paste(
    batch: int,
    detections: int,
    mask_height: int,
    mask_width: int,
    *,
    mask_dtype: str = "float32",
    capacity_words: int,
    padding: float = 1.0,
    score_threshold: float = 0.0,
    rescored: bool = False,
) -> LaunchPlan:
    """The two launches that compute packed masks at image size.

    Placements and numbers of detections are read on the device, so that one plan serves all frames. ``bytes_moved``
    and ``operations`` assume bits that fill the capacity.

    Args:
        mask_dtype: "float32" or "float16"
        capacity_words: capacity of bits per image, in words
        padding: prototype pixels added around each box
        score_threshold: only detections that score above it are pasted
        rescored: whether there are mask scores

    Raises:
        ConfigError: sizes or dtypes that the kernels do not support.
    """
    limits = {"batch": (batch, 65535), "detections": (detections, 2**20), "mask_height": (mask_height, 2**14)}
    check_sizes(_NAME, {**limits, "mask_width": (mask_width, 2**14), "capacity_words": (capacity_words, MAX_WORDS)})
    mask_bytes = mask_height * mask_width * dtype_bytes(_NAME, "mask_dtype", mask_dtype)
    defines, block = kernel_defines(mask_dtype, rescored=rescored), (THREADS, 1, 1)
    scalars = (*int32s(detections, mask_height, mask_width), float_bits(padding), *int32s(capacity_words))
    more = ("mask_scores",) if rescored else ()
    known = ("boxes", "scores", "labels", *more, "num_detections", "placements")
    found = (f"found_{name}" for name in ("windows", "boxes", "scores", "labels", *more))
    made = ("windows", "paste_offsets", "words_needed", "wanted", *found)
    arguments = (*known, *scalars, float_bits(score_threshold), *made)
    windows = Launch(SOURCE, "paste_windows", (batch, 1, 1), block, 0, arguments, defines)
    blocks = min(ceil_div(capacity_words, THREADS), ceil_div(MOST_BLOCKS, batch))
    inputs = ("masks", "boxes", "placements", "windows", "paste_offsets")
    bits = Launch(SOURCE, "paste_bits", (blocks, batch, 1), block, 0, (*inputs, *scalars, "bits"), defines)
    return LaunchPlan(
        launches=(windows, bits),
        scratch={"paste_offsets": batch * (detections + 1) * 4},
        bytes_moved=batch * (detections * (mask_bytes + 2 * _DETECTION_BYTES) + capacity_words * 4),
        operations=batch * capacity_words * 32 * _CELL_OPERATIONS // 4,  # a prototype pixel is about 4 pixels wide
    )


def kernel_defines(mask_dtype: str, *, rescored: bool = False) -> Defines:
    """Preprocessor definitions of the kernels."""
    return (("THREADS", THREADS), ("MASK_HALF", int(mask_dtype == "float16")), ("RESCORED", int(rescored)))


def unpack(windows: NDArray[np.int32], bits: NDArray[np.uint32], num: int, height: int, width: int) -> MaskCrops:
    """The masks of one image on the host.

    Args:
        windows: [D, 6], of which the first ``num`` are used
        bits: [capacity]
        height, width: of the image, in pixels

    Raises:
        BackendError: not all masks fit into the bits.
    """
    if (windows[:num, 2] < 0).any():
        raise BackendError(f"{len(bits)} words are too few for all masks: paste again with words_needed")
    return PackedMasks(windows[:num], bits, height, width).unpacked()
