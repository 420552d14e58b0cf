"""The emulator itself: it computes like a GPU, and detects what it should detect."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from cuda_emu import emulate
from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan, Offset, float_bits

pytestmark = pytest.mark.skipif(not emulate.available(), reason="needs g++ with C++20")

SOURCE = "sample.cu"


def run(
    body: str,
    arrays: dict[str, Any],
    *,
    grid: tuple[int, int, int] = (1, 1, 1),
    block: tuple[int, int, int] = (64, 1, 1),
    shared_bytes: int = 0,
    scalars: tuple[Any, ...] = (),
    **options: Any,
) -> Any:
    """Runs ``extern "C" kernel(const T* in, scalars..., U* out)`` with the text ``body``; returns ``out``."""
    types = {"float32": "float", "int32": "int", "uint32": "unsigned", "float16": "__half", "uint16": "unsigned short"}
    parameters = [f"const {types[str(arrays['in'].dtype)]}* in"]
    parameters += [f"{types[str(value.dtype)]} s{i}" for i, value in enumerate(scalars)]
    parameters += [f"{types[str(arrays['out'].dtype)]}* out"]
    text = (
        f'#include <cuda_fp16.h>\n#include "common.cuh"\n'
        f'extern "C" __global__ void __launch_bounds__(1024) kernel({", ".join(parameters)}) {{\n'
        f"const int t = threadIdx.x;\n{body}\n}}\n"
    )
    launch = Launch(SOURCE, "kernel", grid, block, shared_bytes, ("in", *scalars, "out"))
    emulate.run_plan(LaunchPlan((launch,), {}, 0, 0), arrays, edits={SOURCE: text}, **options)
    return arrays["out"]


def ints(*values: int, size: int = 64) -> dict[str, Any]:
    data = np.array(values, np.int32) if values else np.arange(size, dtype=np.int32)
    return {"in": data, "out": np.zeros(size, np.int32)}


# -- it computes as a GPU does ----------------------------------------------------------------------------------------


def test_indices_of_grid_and_block() -> None:
    body = """
        const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        out[block * 24 + thread] = thread + 100 * block + in[0];"""
    out = run(body, ints(7, size=24 * 30), grid=(5, 3, 2), block=(4, 3, 2))
    np.testing.assert_array_equal(out.reshape(30, 24), 7 + np.arange(24) + 100 * np.arange(30)[:, None])


def test_warp_functions() -> None:
    body = """
        const int lane = t % 32;
        int sum = in[t];
        for (int stride = 16; stride > 0; stride /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, stride);
        const unsigned odd = __ballot_sync(ALL_LANES, in[t] % 2);
        const int up = __shfl_up_sync(ALL_LANES, in[t], 1), down = __shfl_down_sync(ALL_LANES, in[t], 1);
        const unsigned long long wide = __shfl_sync(ALL_LANES, (unsigned long long)in[t] << 32, 5);
        const int halves = __shfl_sync(ALL_LANES, in[t], 3, 16);
        out[t] = sum + (odd == 0xaaaaaaaau) + 10000 * (up == in[t] - (lane > 0)) +
                 20000 * (down == in[t] + (lane < 31)) +
                 40000 * (wide >> 32 == t / 32 * 32 + 5) + 80000 * (halves == t / 16 * 16 + 3) +
                 160000 * __all_sync(ALL_LANES, in[t] >= 0) + 320000 * __any_sync(ALL_LANES, in[t] == 40);"""
    for seed in range(4):
        out = run(body, ints(), seed=seed)
        sums = np.repeat(np.arange(64).reshape(2, 32).sum(axis=1), 32)
        np.testing.assert_array_equal(out, sums + 1 + 310000 + np.repeat([0, 320000], 32))


def test_a_part_of_a_warp_may_meet_alone() -> None:
    body = """
        const unsigned mask = t % 32 < 8 ? 0xffu : 0xffffff00u;
        int value = in[t];
        for (int i = 0; i < (t % 32 < 8 ? 3 : 5); ++i) value += __shfl_sync(mask, value, t % 32 < 8 ? 0 : 8);
        out[t] = value;"""
    for seed in range(4):
        out = run(body, ints(size=32), block=(32, 1, 1), seed=seed)
        np.testing.assert_array_equal(out, np.arange(32) + np.where(np.arange(32) < 8, 0, (2**5 - 1) * 8))


def test_barriers_count_votes() -> None:
    body = """
        out[t] = __syncthreads_count(in[t] % 3 == 0) + 100 * (__syncthreads_or(in[t] == 5) != 0) +
                 200 * (__syncthreads_and(in[t] < 64) != 0) + 400 * (__syncthreads_or(in[t] == 99) != 0);"""
    np.testing.assert_array_equal(run(body, ints()), 22 + 300)


def test_dynamic_shared_memory_and_atomics() -> None:
    body = """
        DYNAMIC_SHARED(int, counts);
        if (t < 8) counts[t] = 0;
        __syncthreads();
        atomicAdd(&counts[in[t] % 8], 1);
        atomicMax(&counts[7], in[t]);
        __syncthreads();
        if (t < 8) atomicAdd(&out[t], counts[t]);"""
    out = run(body, ints(), grid=(3, 1, 1), shared_bytes=32, seed=2)
    np.testing.assert_array_equal(out[:7], 24)
    assert 3 * 63 <= out[7] <= 3 * 71


def test_scalars_by_value() -> None:
    body = "out[t] = s0 + (int)s1 + (__int_as_float(s2) == 0.05f);"
    out = run(body, ints(), scalars=(np.int32(-3), np.float32(2.5), float_bits(0.05)))
    np.testing.assert_array_equal(out, 0)


def test_half_numbers_round_as_numpys() -> None:
    """All float16 numbers, and float32 numbers around every rounding boundary."""
    every = np.arange(65536, dtype=np.uint16)
    halves = every.view(np.float16)
    out = np.zeros(65536, np.float32)
    run(
        "out[t + blockIdx.x * 1024] = __half2float(in[t + blockIdx.x * 1024]);",
        {"in": halves, "out": out},
        grid=(64, 1, 1),
        block=(1024, 1, 1),
    )
    np.testing.assert_array_equal(out, halves.astype(np.float32))
    finite = halves[np.isfinite(halves)].astype(np.float32)
    middles = (np.sort(finite)[1:] + np.sort(finite)[:-1]) / 2
    values = np.concatenate([middles, np.nextafter(middles, np.float32(9e9)), np.nextafter(middles, np.float32(-9e9))])
    edges = [65519.99, 65520, 1e9, -1e9, np.inf, -np.inf, 1e-9, 2e-8, 0, -0.0]
    values = np.concatenate([values, np.array(edges, np.float32)])
    values = np.resize(values, -(-len(values) // 1024) * 1024)
    out = np.zeros(len(values), np.float16)
    run(
        "out[t + blockIdx.x * 1024] = __float2half_rn(in[t + blockIdx.x * 1024]);",
        {"in": values, "out": out},
        grid=(len(values) // 1024, 1, 1),
        block=(1024, 1, 1),
    )
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out.view(np.uint16), values.astype(np.float16).view(np.uint16))


def test_bits() -> None:
    body = """
        const unsigned x = in[t] * 2654435761u;
        out[t] = __popc(x) == __popc(__brev(x)) && __brev(__brev(x)) == x && __brev(1u) == 0x80000000u &&
                 __ffs(8) == 4 && __ffs(0) == 0 && __clz(1) == 31 && __clz(0) == 32 &&
                 __byte_perm(x, 0, 0x0123) == (x >> 24 | (x >> 8 & 0xff00) | (x << 8 & 0xff0000) | x << 24) &&
                 __float2int_rd(-1.5f) == -2 && __float2int_rn(2.5f) == 2 &&
                 __float2int_rz(-1e30f) == (int)0x80000000;"""
    np.testing.assert_array_equal(run(body, ints()), 1)


# -- it finds what it is there to find --------------------------------------------------------------------------------

UNORDERED = """
    __shared__ int values[64];
    values[t] = in[t];
    out[t] = values[63 - t];"""


def test_a_missing_barrier_shows_in_some_order() -> None:
    right = UNORDERED.replace("out[t]", "__syncthreads(); out[t]")
    for seed in range(1, 9):
        np.testing.assert_array_equal(run(right, ints(), seed=seed), 63 - np.arange(64))
    results = {run(UNORDERED, ints(), seed=seed).tobytes() for seed in range(1, 9)}
    assert len(results) > 1


@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
@pytest.mark.parametrize("between", ["__syncthreads();", "", "__ballot_sync(ALL_LANES, 1);"])
def test_a_missing_barrier_is_a_data_race(between: str) -> None:
    """A vote is not a memory barrier."""
    body = UNORDERED.replace("out[t]", f"{between} out[t]")
    if between == "__syncthreads();":
        np.testing.assert_array_equal(run(body, ints(), mode="race"), 63 - np.arange(64))
        return
    with pytest.raises(emulate.EmulationError, match="data race"):
        run(body, ints(), mode="race")


@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
@pytest.mark.parametrize("between", ["__syncwarp();", ""])
def test_a_warp_barrier_orders_a_warp(between: str) -> None:
    body = UNORDERED.replace("63 - t", "t ^ 1").replace("out[t]", f"{between} out[t]")
    if between:
        np.testing.assert_array_equal(run(body, ints(), mode="race"), np.arange(64) ^ 1)
        return
    with pytest.raises(emulate.EmulationError, match="data race"):
        run(body, ints(), mode="race")


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "if (t < 32) __syncthreads(); out[t] = in[t];",
            "barrier divergence in block .* 32 threads wait at __syncthreads",
        ),
        ("if (t == 3) return; __syncwarp(); out[t] = in[t];", "31 in warp functions, 33 have ended"),
        ("out[t] = t % 2 ? __shfl_sync(ALL_LANES, t, 0) : __ballot_sync(ALL_LANES, 1);", "different warp functions"),
        ("out[t] = __shfl_sync(1u, in[t], 0);", "whose mask leaves it out"),
    ],
)
def test_threads_that_do_not_meet(body: str, words: str, seed: int) -> None:
    with pytest.raises(emulate.EmulationError, match=words):
        run(body, ints(), seed=seed)


def test_a_failure_leaves_the_library_usable() -> None:
    body = "if (in[0] == 1 && t < 32) __syncthreads(); out[t] = in[t];"
    with pytest.raises(emulate.EmulationError, match="barrier divergence"):
        run(body, ints(*[1] * 64))
    np.testing.assert_array_equal(run(body, ints()), np.arange(64))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("out[t + 1] = in[t];", "a write behind the buffer out"),
        ("out[t - 1] = in[t];", "a write before the buffer out"),
        ("DYNAMIC_SHARED(int, s); s[t] = in[t]; out[t] = s[t];", "a write behind the dynamic shared memory"),
    ],
)
def test_writes_outside_of_memory(body: str, words: str) -> None:
    with pytest.raises(emulate.EmulationError, match=words):
        run(body, ints(), shared_bytes=128)


@pytest.mark.skipif(not emulate.available("address"), reason="needs AddressSanitizer")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("out[t] = in[t + 1];", "heap-buffer-overflow"),
        ("out[t] = (int)reinterpret_cast<const uint4*>(in + t % 2)->x;", "misaligned address"),
    ],
)
def test_reads_outside_of_memory_and_misaligned_ones(body: str, words: str) -> None:
    with pytest.raises(emulate.EmulationError, match=words):
        run(body, ints(), mode="address", block=(2, 1, 1) if "uint4" in body else (64, 1, 1))


def test_shared_memory_and_scratch_begin_poisoned() -> None:
    body = """
        __shared__ int s[64];
        DYNAMIC_SHARED(int, d);
        out[t] = s[t] == d[t] ? s[t] : 0;
        __syncthreads();
        s[t] = d[t] = 1;"""
    np.testing.assert_array_equal(run(body, ints(), grid=(2, 1, 1), shared_bytes=256), np.int32(0xCDCDCDCD - 2**32))
    launch = Launch("common_copy.cu", "copy", (1, 1, 1), (32, 1, 1), 0, (Offset("scratch", 4), "out"))
    text = 'extern "C" __global__ void copy(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x]; }'
    out = np.zeros(32, np.int32)
    emulate.run_plan(LaunchPlan((launch,), {"scratch": 132}, 0, 0), {"out": out}, edits={"common_copy.cu": text})
    np.testing.assert_array_equal(out, np.int32(0xCDCDCDCD - 2**32))


def test_what_cannot_be_run_is_told() -> None:
    launch = Launch(SOURCE, "missing", (1, 1, 1), (1, 1, 1), 0, ("out",))
    plan = LaunchPlan((launch,), {}, 0, 0)
    with pytest.raises(emulate.EmulationError, match="no arrays for the buffers out"):
        emulate.run_plan(plan, {})
    edits = {SOURCE: 'extern "C" __global__ void kernel(int* out) { *out = 1; }'}
    with pytest.raises(emulate.EmulationError, match="no kernel of that name"):
        emulate.run_plan(plan, {"out": np.zeros(1, np.int32)}, edits=edits)
    with pytest.raises(emulate.EmulationError, match=r"does not compile[\s\S]*nonsense"):
        run("nonsense();", ints())


def test_parameters_of_a_kernel() -> None:
    text = 'extern "C" __global__ void kernel(const int* in, int a, double b, short c, float* out) {}'
    library = emulate.load_library(emulate.compile_source(SOURCE, edits={SOURCE: text}))
    sizes = (ctypes.c_uint * 8)()
    assert library.emu_parameters(b"kernel", sizes, 8) == 5
    assert list(sizes) == [8, 4, 8, 2, 8, 0, 0, 0]
    assert library.emu_parameters(b"other", sizes, 8) == -1
