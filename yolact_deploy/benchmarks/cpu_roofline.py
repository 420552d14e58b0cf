"""Measured limits of this CPU: the rate of matrix products by precision, and the bandwidth of copies.

    python -m yolact_deploy.benchmarks.cpu_roofline

Takes a few seconds on all cores. Each precision is tried with every installed library that supports it, and the fastest
counts, because the limit belongs to the machine, not to a library. Other work at the same time lowers the result.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.command import command_parser, run_command
from yolact_deploy.benchmarks.limits import MachineLimits
from yolact_deploy.console import print_table
from yolact_deploy.errors import BackendError, MissingDependencyError, import_optional
from yolact_deploy.machine.environment import environment
from yolact_deploy.runtime.openvino import shared_core

#: side of the matrices, large enough for the multiplications to dominate
MATRIX_SIDE = 1536
#: bytes of each of the two buffers of a copy: more than most caches hold
COPY_BYTES = 1 << 28

#: seconds and repetitions of each measurement, at least; the fastest counts
_SECONDS = 0.4
_ROUNDS = 3
_CHECKED_ROWS = 4

_Matrix = NDArray[Any]
#: computes the product, in the type of its library
_Multiply = Callable[[], Any]


@dataclass(frozen=True)
class MatrixRate:
    """The fastest library for a precision, and its rate."""

    gmac_per_s: float
    library: str


def matrix_rates(side: int = MATRIX_SIDE) -> dict[str, MatrixRate]:
    """Rate of products of square matrices on all cores, by precision: fp32, and bf16 and int8 if a library supports it.

    Raises:
        BackendError: a product is wrong.
    """
    best: dict[str, MatrixRate] = {}
    for precision, library, attempt in _ATTEMPTS:
        left, right = _matrices(side, precision)
        try:
            multiply = attempt(left, right)
        except MissingDependencyError:
            continue
        if multiply is None:
            continue
        rate = side**3 / 1e9 / _seconds(multiply)
        _check(multiply(), left, right, f"{library} in {precision}")
        if precision not in best or rate > best[precision].gmac_per_s:
            best[precision] = MatrixRate(rate, library)
    return best


def copy_bandwidth(size: int = COPY_BYTES) -> float:
    """Bytes per second, read plus written, of a copy of ``size`` bytes by all cores."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    cores = environment()["cores"]
    edges = np.linspace(0, size, cores + 1).astype(int)
    slices = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    with ThreadPoolExecutor(cores) as pool:
        # NumPy releases the GIL while it copies.
        seconds = _seconds(lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), slices)))
    if not target.all():
        raise BackendError("a copy by NumPy is wrong: the memory of this machine is unreliable")
    return 2 * size / seconds


def _seconds(call: Callable[[], object]) -> float:
    """Shortest time of a call."""
    call()
    best, rounds, end = float("inf"), 0, time.perf_counter() + _SECONDS
    while rounds < _ROUNDS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        rounds += 1
    return max(best, 1e-9)


def _matrices(side: int, precision: str) -> tuple[_Matrix, _Matrix]:
    """Two matrices [side, side]: float32 of small whole numbers, or uint8 and int8."""
    rng = np.random.default_rng(0)
    if precision == "int8":
        # 7 bits: two products fit into the 16-bit sums of older CPUs.
        return rng.integers(0, 128, (side, side), np.uint8), rng.integers(-64, 64, (side, side), np.int8)
    # bfloat16 represents these exactly, and FP32 their sums: only the product is rounded.
    left, right = rng.integers(-8, 9, (2, side, side))
    return left.astype(np.float32), right.astype(np.float32)


def _check(product: Any, left: _Matrix, right: _Matrix, what: str) -> None:
    actual = np.asarray(product.float() if hasattr(product, "float") else product)[:_CHECKED_ROWS]
    expected = left[:_CHECKED_ROWS].astype(np.float64) @ right.astype(np.float64)
    if not np.allclose(actual, expected, rtol=2**-8, atol=np.abs(expected).max() * 2**-8):
        raise BackendError(f"a product of matrices by {what} is wrong: reinstall the library")


def _numpy(left: _Matrix, right: _Matrix) -> _Multiply:
    product = np.empty_like(left)
    return lambda: np.matmul(left, right, out=product)


def _torch(precision: str) -> Callable[[_Matrix, _Matrix], _Multiply]:
    def attempt(left: _Matrix, right: _Matrix) -> _Multiply:
        torch = import_optional("torch", "train", "The rate of PyTorch")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        a, b = (torch.from_numpy(matrix).to(dtype) for matrix in (left, right))
        product = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=product)

    return attempt


def _openvino(precision: str) -> Callable[[_Matrix, _Matrix], _Multiply | None]:
    def attempt(left: _Matrix, right: _Matrix) -> _Multiply | None:
        openvino = import_optional("openvino", "openvino", "The rate of OpenVINO")
        opset = import_optional("openvino.opset13", "openvino", "The rate of OpenVINO")
        core = shared_core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return None  # it would compute in FP32
        entry = opset.parameter(left.shape, openvino.Type.f32)
        model = openvino.Model([opset.matmul(entry, opset.constant(right), False, False)], [entry])
        hint = {"fp32": "f32", "bf16": "bf16"}[precision]
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"})
        request = compiled.create_infer_request()
        return lambda: request.infer([left], share_inputs=True, share_outputs=True)[0]

    return attempt


def _onnxruntime(left: _Matrix, right: _Matrix) -> _Multiply:
    ort = import_optional("onnxruntime", "onnx", "The rate of ONNX Runtime")
    onnx = import_optional("onnx", "onnx", "The rate of ONNX Runtime")
    info, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "product",
        [info("left", kinds.UINT8, left.shape)],
        [info("product", kinds.INT32, left.shape)],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})[0]


_ATTEMPTS: tuple[tuple[str, str, Callable[[_Matrix, _Matrix], _Multiply | None]], ...] = (
    ("fp32", "numpy", _numpy),
    ("fp32", "torch", _torch("fp32")),
    ("fp32", "openvino", _openvino("fp32")),
    ("bf16", "torch", _torch("bf16")),
    ("bf16", "openvino", _openvino("bf16")),
    ("int8", "onnxruntime", _onnxruntime),
)


def cpu_limits() -> MachineLimits:
    """Measure this CPU; raises :class:`BackendError` if a product is wrong."""
    rates = matrix_rates()
    return MachineLimits(
        device="cpu",
        gmac_per_s={precision: rate.gmac_per_s for precision, rate in rates.items()},
        measured_with={precision: rate.library for precision, rate in rates.items()},
        bytes_per_s=copy_bandwidth(),
    )


def limit_rows(limits: MachineLimits) -> Iterator[tuple[str, str, str]]:
    """Rows of a table: limit, value, library."""
    for precision, rate in limits.gmac_per_s.items():
        yield f"matrix product, {precision}", f"{rate:.1f} GMAC/s", limits.measured_with[precision]
    yield (
        "copy, read and written",
        f"{limits.bytes_per_s / 1e9:.1f} GB/s",
        "numpy" if limits.device == "cpu" else "CUDA",
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(command_parser("cpu_roofline", __doc__), argv, lambda args: asdict(cpu_limits()), show=_print)


def _print(result: dict[str, Any]) -> None:
    here = environment()
    title = f"{here['cpu']}, {here['cores']} cores"
    print_table(("limit", "value", "measured with"), limit_rows(MachineLimits(**result)), title=title)


if __name__ == "__main__":
    sys.exit(main())
