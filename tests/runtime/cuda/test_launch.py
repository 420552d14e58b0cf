"""Launch plans as data: checks, counters, and limits that every GPU satisfies."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from yolact_deploy.errors import ConfigError
from yolact_deploy.runtime.cuda.plans import plan_masks, plan_nms
from yolact_deploy.runtime.cuda.plans.launch import (
    MAX_SHARED_BYTES,
    Launch,
    LaunchPlan,
    Offset,
    ceil_div,
    float_bits,
    int32s,
    joined,
)

COPY = Launch("copy.cu", "copy", (4, 1, 1), (64, 1, 1), 0, ("a", np.int32(3), Offset("b", 16), "a"))
NMS = {"top_k": 200, "max_detections": 100, "score_threshold": 0.05, "iou_threshold": 0.5}


def nms_plan(*sizes: int, **options: Any) -> LaunchPlan:
    return plan_nms.fast_nms(*(sizes or (1, 19248, 80, 32)), **(NMS | options))


# -- Launch and LaunchPlan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": (0, 1, 1)}, "grid"),
        ({"grid": (1, 65536, 1)}, "grid"),
        ({"block": (1025, 1, 1)}, "1 to 1024 threads"),
        ({"block": (32, 0, 1)}, "1 to 1024 threads"),
        ({"shared_bytes": MAX_SHARED_BYTES + 1}, "bytes of shared memory"),
    ],
)
def test_what_no_gpu_can_launch_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(COPY, **change)


def test_buffers_are_named_once_in_their_order() -> None:
    assert COPY.buffers == ("a", "b")
    back = dataclasses.replace(COPY, arguments=("b", "between", "c"))
    plan = LaunchPlan((COPY, back), {"between": 8}, bytes_moved=0, operations=0)
    assert plan.buffers == ("a", "b", "c")


def test_joined_plans_run_one_after_another_and_share_scratch() -> None:
    first, second = LaunchPlan((COPY,), {"x": 8, "y": 4}, 10, 1), LaunchPlan((COPY, COPY), {"x": 16}, 5, 2)
    assert joined([first, second]) == LaunchPlan((COPY,) * 3, {"x": 16, "y": 4}, 15, 3)
    assert joined([]) == LaunchPlan((), {}, 0, 0)


@pytest.mark.parametrize("value", [0.05, 0.0, -0.0, -0.5, np.inf, -np.inf, 1e-45])
def test_float_bits(value: float) -> None:
    bits = float_bits(value)
    assert bits.dtype == np.int32
    assert bits.tobytes() == np.float32(value).tobytes()


def test_numbers() -> None:
    assert [ceil_div(value, 32) for value in (1, 32, 33)] == [1, 1, 2]
    assert [value.dtype for value in int32s(1, -2)] == [np.int32] * 2
    with pytest.raises(OverflowError):
        int32s(2**31)


# -- Fast NMS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cross_class", [False, True])
def test_plan_of_fast_nms(cross_class: bool) -> None:
    plan = nms_plan(8, 19248, 80, 32, cross_class=cross_class)
    lists = 1 if cross_class else 80
    assert [launch.kernel for launch in plan.launches] == ["prior_best", "select_entries", "merge_entries"]
    assert [launch.grid for launch in plan.launches] == [(301, 8, 1), (lists, 8, 1), (8, 1, 1)]
    inputs, outputs = (
        ("scores", "boxes", "coeff"),
        ("num_detections", "out_boxes", "out_scores", "out_labels", "out_coeff"),
    )
    assert set(plan.buffers) == {*inputs, *outputs}
    assert plan.scratch["candidates"] == 8 * 602 * 4
    assert plan.scratch["entry_scores"] == plan.scratch["entry_priors"] == 8 * lists * 100 * 4
    assert ("best_scores" in plan.scratch) == cross_class
    assert len({launch.defines for launch in plan.launches}) == 1  # one compilation


def test_bytes_of_fast_nms_are_those_in_the_source() -> None:
    """6.16 MB of scores and 29 KB for the detections per image."""
    assert nms_plan().bytes_moved == 19248 * 80 * 4 + 100 * 36 * 4 + 4 + 100 * 38 * 4
    assert nms_plan(32, 19248, 80, 32).bytes_moved == 32 * nms_plan().bytes_moved
    assert nms_plan().operations == 19248 * 80 + 80 * (200 * 199 // 2) * 15


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 20, 21, 80, 81, 82, 365, 601, 1204])
def test_loads_of_prior_best_fit_the_scores(classes: int) -> None:
    """A load divides a prior's scores, so that none is misaligned, and loads in flight form equal batches."""
    defines = dict(plan_nms.kernel_defines(classes, cross_class=False))
    vector, depth = int(defines["VECTOR"]), int(defines["DEPTH"])
    assert classes % vector == 0
    assert vector == 4 or classes % (2 * vector)
    assert 1 <= depth <= plan_nms.MAX_DEPTH
    loads = classes // vector
    assert ceil_div(loads, depth) * depth - loads < ceil_div(loads, depth)


@pytest.mark.parametrize("top_k", [1, 200, 1024, 1025, plan_nms.MAX_KEPT])
@pytest.mark.parametrize("max_detections", [1, 100, 5000])
def test_shared_memory_of_fast_nms_fits_every_gpu(top_k: int, max_detections: int) -> None:
    """Static memory, which Launch does not count, is a few hundred bytes; the capacity fits one more offer."""
    for launch in nms_plan(1, 57744, 80, 32, top_k=top_k, max_detections=max_detections).launches[1:]:
        assert launch.shared_bytes + 512 <= MAX_SHARED_BYTES
        capacity = 1 << (launch.shared_bytes // 8).bit_length() - 1
        assert capacity >= min(top_k, max_detections) + plan_nms.THREADS


@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("batch", (0, 10, 2, 2), {}),
        ("batch", (65536, 10, 2, 2), {}),
        ("priors", (1, 0, 2, 2), {}),
        ("classes", (1, 10, 0, 2), {}),
        ("coefficients", (1, 10, 2, 0), {}),
        ("top_k", (1, 10, 2, 2), {"top_k": plan_nms.MAX_KEPT + 1}),
        ("max_detections", (1, 10, 2, 2), {"max_detections": 0}),
    ],
)
def test_sizes_that_fast_nms_cannot_take(name: str, sizes: tuple[int, ...], options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{name}: the CUDA kernels of Fast NMS support 1 to"):
        nms_plan(*sizes, **options)


# -- masks ------------------------------------------------------------------------------------------------------------


def test_plan_of_mask_assembly() -> None:
    plan = plan_masks.mask_assembly(4, 100, 138, 138, 32)
    (launch,) = plan.launches
    assert plan.buffers == ("proto", "coeff", "boxes", "masks")
    assert plan.scratch == {}
    assert launch.grid == (149, 1, 4)
    assert launch.block == (128, 1, 1)


def test_bytes_of_mask_assembly_are_those_in_the_source() -> None:
    """2.44 MB of prototypes and 7.62 MB of masks, half of each in float16; 128 MFLOP."""
    area = 138 * 138
    small = 100 * (32 * 4 + 16)
    assert plan_masks.mask_assembly(1, 100, 138, 138, 32).bytes_moved == area * 32 * 4 + 100 * area * 4 + small
    half = plan_masks.mask_assembly(2, 100, 138, 138, 32, proto_dtype="float16", mask_dtype="float16")
    assert half.bytes_moved == 2 * (area * 32 * 2 + 100 * area * 2 + small)
    assert half.operations == 2 * 100 * area * 67


@pytest.mark.parametrize("batch", [1, 2, 8, 32])
@pytest.mark.parametrize("detections", [1, 15, 100, 1000])
def test_every_detection_has_its_group(batch: int, detections: int) -> None:
    """A single image of a real size also gives enough blocks for the largest GPUs."""
    (launch,) = plan_masks.mask_assembly(batch, detections, 138, 138, 32).launches
    group = plan_masks.detections_per_block(batch, detections, launch.grid[0])
    assert (launch.grid[1] - 1) * group < detections <= launch.grid[1] * group
    assert launch.grid[0] * launch.grid[1] * batch >= plan_masks.ENOUGH_BLOCKS or detections < 100


@pytest.mark.parametrize("coefficients", [1, 32, 64, 65, plan_masks.MAX_COEFFICIENTS])
def test_shared_memory_of_mask_assembly_fits_every_gpu(coefficients: int) -> None:
    """The prototypes of a block, as float32 with one word of padding per pixel."""
    assert plan_masks.block_threads(coefficients) * (coefficients | 1) * 4 <= MAX_SHARED_BYTES


@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("detections", (1, 0, 8, 8, 4), {}),
        ("height", (1, 1, 0, 8, 4), {}),
        ("width", (1, 1, 8, 20000, 4), {}),
        ("coefficients", (1, 1, 8, 8, plan_masks.MAX_COEFFICIENTS + 1), {}),
        ("proto_dtype", (1, 1, 8, 8, 4), {"proto_dtype": "bfloat16"}),
        ("mask_dtype", (1, 1, 8, 8, 4), {"mask_dtype": "uint8"}),
    ],
)
def test_what_mask_assembly_cannot_take(name: str, sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{name}: the CUDA kernels of mask assembly support"):
        plan_masks.mask_assembly(*sizes, **options)
