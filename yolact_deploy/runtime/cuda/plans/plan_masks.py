"""Launch plan for mask assembly (kernels/mask_assembly.cu): sizes, grids and arguments.

Legend: N images, D detection slots, K coefficients, h x w prototypes.

Buffers of the kernel ``mask_assembly``: proto [N,h,w,K], coeff float32 [N,D,K], boxes float32 [N,D,4] (xyxy,
normalized) -> masks [N,D,h,w]: probabilities, 0 outside the padded boxes.
"""

from __future__ import annotations

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

SOURCE = "mask_assembly.cu"

#: keeps the prototypes of a pixel in registers, and those of a block in shared memory
MAX_COEFFICIENTS = 128
#: number of blocks that gives every multiprocessor several, even on the largest GPUs
ENOUGH_BLOCKS = 512
#: fewer detections than this do not justify reading the prototypes again
_LEAST_GROUP = 16

_NAME = "mask assembly"


def mask_assembly(
    batch: int,
    detections: int,
    height: int,
    width: int,
    coefficients: int,
    *,
    padding: float = 1.0,
    proto_dtype: str = "float32",
    mask_dtype: str = "float32",
    zero_outside: bool = True,
) -> LaunchPlan:
    """The launch that computes masks at prototype resolution.

    Only grid z and, through `detections_per_block`, grid y depend on the batch; any group size gives the same masks.
    ``bytes_moved`` and ``operations`` assume boxes that cover the whole image.

    Args:
        padding: prototype pixels added around each box
        proto_dtype, mask_dtype: "float32" or "float16"
        zero_outside: False leaves pixels outside the padded boxes unwritten, for readers that never access them

    Raises:
        ConfigError: sizes or dtypes that the kernel does not support.
    """
    limits = {"batch": (batch, 65535), "detections": (detections, 2**20), "height": (height, 2**14)}
    check_sizes(_NAME, {**limits, "width": (width, 2**14), "coefficients": (coefficients, MAX_COEFFICIENTS)})
    area, threads = height * width, block_threads(coefficients)
    proto_bytes = area * coefficients * dtype_bytes(_NAME, "proto_dtype", proto_dtype)
    mask_bytes = area * dtype_bytes(_NAME, "mask_dtype", mask_dtype)
    tiles = ceil_div(area, threads)
    group = detections_per_block(batch, detections, tiles)
    scalars = (*int32s(detections, height, width, group), float_bits(padding))
    launch = Launch(
        SOURCE, "mask_assembly", (tiles, ceil_div(detections, group), batch), (threads, 1, 1), 0,
        ("proto", "coeff", "boxes", *scalars, "masks"),
        kernel_defines(coefficients, proto_dtype, mask_dtype, zero_outside=zero_outside),
    )  # fmt: skip
    moved = proto_bytes + detections * (mask_bytes + 4 * coefficients + 16)
    return LaunchPlan((launch,), {}, batch * moved, batch * detections * area * (2 * coefficients + 3))


def kernel_defines(coefficients: int, proto_dtype: str, mask_dtype: str, *, zero_outside: bool) -> Defines:
    """Preprocessor definitions of the kernel."""
    return (
        ("THREADS", block_threads(coefficients)),
        ("COEFFICIENTS", coefficients),
        ("PROTO_HALF", int(proto_dtype == "float16")),
        ("MASK_HALF", int(mask_dtype == "float16")),
        ("ZERO_OUTSIDE", int(zero_outside)),
    )


def block_threads(coefficients: int) -> int:
    """Threads per block, one per pixel: as many as fit their prototypes into shared memory."""
    return 128 if coefficients <= 64 else 64


def detections_per_block(batch: int, detections: int, tiles: int) -> int:
    """Detections per block: fewer for a small batch, so that enough blocks run in parallel."""
    groups = min(ceil_div(ENOUGH_BLOCKS, tiles * batch), ceil_div(detections, _LEAST_GROUP))
    return ceil_div(detections, groups)
