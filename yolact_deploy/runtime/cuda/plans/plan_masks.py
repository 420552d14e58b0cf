"""Launch plan of mask assembly (kernels/mask_assembly.cu): sizes, grids and arguments.

Legend: N images, D detection slots, K coefficients, h x w prototypes.
"""

from __future__ import annotations

from yolact_deploy.errors import ConfigError
from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan, ceil_div, float_bits, int32s

SOURCE = "mask_assembly.cu"

#: prototypes of a pixel are to stay in registers, and those of a block in shared memory
MAX_COEFFICIENTS = 128
#: with so many blocks every multiprocessor has several, on the largest GPUs too
ENOUGH_BLOCKS = 512
#: fewer detections than this are not worth another reading of the prototypes
_LEAST_GROUP = 16

_BYTES = {"float32": 4, "float16": 2}


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
    """The one launch (kernel ``mask_assembly``) that makes masks at prototype resolution.

    Buffers in: proto [N,h,w,K] of ``proto_dtype``, coeff float32 [N,D,K], boxes float32 [N,D,4] (xyxy, normalised);
    out: masks [N,D,h,w] of ``mask_dtype``: probabilities, 0 outside the padded boxes. Of the launch only grid z and,
    through `detections_per_block`, grid y depend on the batch; any group gives the same masks.

    ``bytes_moved`` and ``operations`` of the plan are those of boxes that cover the whole image.

    Args:
        padding: prototype pixels around the box that belong to it
        proto_dtype, mask_dtype: "float32" or "float16"
        zero_outside: False leaves the pixels outside the padded boxes unwritten, for readers that never look there

    Raises:
        ConfigError: sizes or dtypes that the kernel cannot take.
    """
    _check(batch, detections, height, width, coefficients)
    proto_bytes, mask_bytes = _dtype_bytes("proto_dtype", proto_dtype), _dtype_bytes("mask_dtype", mask_dtype)
    area = height * width
    threads = block_threads(coefficients)
    tiles = ceil_div(area, threads)
    group = detections_per_block(batch, detections, tiles)
    launch = Launch(
        source=SOURCE,
        kernel="mask_assembly",
        grid=(tiles, ceil_div(detections, group), batch),
        block=(threads, 1, 1),
        shared_bytes=0,
        arguments=(
            *("proto", "coeff", "boxes"),
            *int32s(detections, height, width, group),
            *(float_bits(padding), "masks"),
        ),
        defines=kernel_defines(coefficients, proto_dtype, mask_dtype, zero_outside=zero_outside),
    )
    return LaunchPlan(
        launches=(launch,),
        scratch={},
        bytes_moved=batch
        * (area * coefficients * proto_bytes + detections * (area * mask_bytes + 4 * coefficients + 16)),
        operations=batch * detections * area * (2 * coefficients + 3),
    )


def kernel_defines(
    coefficients: int, proto_dtype: str, mask_dtype: str, *, zero_outside: bool
) -> tuple[tuple[str, str | int], ...]:
    """What the kernel is compiled with."""
    return (
        ("THREADS", block_threads(coefficients)),
        ("COEFFICIENTS", coefficients),
        ("PROTO_HALF", int(proto_dtype == "float16")),
        ("MASK_HALF", int(mask_dtype == "float16")),
        ("ZERO_OUTSIDE", int(zero_outside)),
    )


def block_threads(coefficients: int) -> int:
    """Threads of a block, one a pixel: as many as have room for their prototypes in shared memory."""
    return 128 if coefficients <= 64 else 64


def detections_per_block(batch: int, detections: int, tiles: int) -> int:
    """How many detections a block works on: fewer for a small batch, that enough blocks run side by side."""
    groups = min(ceil_div(ENOUGH_BLOCKS, tiles * batch), ceil_div(detections, _LEAST_GROUP))
    return ceil_div(detections, groups)


def _dtype_bytes(name: str, dtype: str) -> int:
    if dtype not in _BYTES:
        raise ConfigError(f"{name}: the CUDA kernel of mask assembly takes float32 or float16, got {dtype!r}")
    return _BYTES[dtype]


def _check(batch: int, detections: int, height: int, width: int, coefficients: int) -> None:
    sizes = {
        "batch": (batch, 65535),
        "detections": (detections, 2**20),
        "height": (height, 2**14),
        "width": (width, 2**14),
        "coefficients": (coefficients, MAX_COEFFICIENTS),
    }
    for name, (size, most) in sizes.items():
        if not 1 <= size <= most:
            raise ConfigError(f"{name}: the CUDA kernel of mask assembly takes 1 to {most}, got {size}")
