"""The limits of this CPU: that they are found and told, not how high they are."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from yolact_deploy.benchmarks import cpu_roofline
from yolact_deploy.benchmarks.cpu_roofline import copy_bandwidth, main, matrix_rates
from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.openvino import shared_core

SIDE = 64


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_roofline, "_SECONDS", 0.0)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_each_precision_has_a_rate() -> None:
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    rates = matrix_rates(SIDE)
    assert list(rates) == ["fp32", "bf16", "int8"]
    assert all(rate.gmac_per_s > 0 for rate in rates.values())
    assert rates["int8"].library == "onnxruntime"


def test_numpy_alone_gives_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "torch", "openvino", "onnxruntime")
    (found,) = matrix_rates(SIDE).items()
    assert found[0] == "fp32"
    assert found[1].library == "numpy"


def test_openvino_gives_bf16_only_where_it_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    hide(monkeypatch, "torch", "onnxruntime")
    native = "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert ("bf16" in matrix_rates(SIDE)) == native


def test_the_fastest_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(left: Any, right: Any) -> Any:
        return lambda: np.matmul(left, right)

    monkeypatch.setattr(cpu_roofline, "_ATTEMPTS", [("fp32", name, product) for name in ("a", "b", "c")])
    times = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(cpu_roofline, "_seconds", lambda call: next(times))
    (rate,) = matrix_rates(SIDE).values()
    assert rate.library == "b"
    assert rate.gmac_per_s == pytest.approx(SIDE**3 / 1e9)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_wrong_product_is_an_error(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(left: Any, right: Any) -> Any:
        product = np.matmul(left.astype(np.float32), right.astype(np.float32))
        product[0, 0] += np.abs(product).max() / 50
        return lambda: product

    monkeypatch.setattr(cpu_roofline, "_ATTEMPTS", [(precision, "numpy", wrong)])
    with pytest.raises(BackendError, match=f"by numpy in {precision} is wrong"):
        matrix_rates(SIDE)


def test_the_copy_has_a_bandwidth() -> None:
    assert copy_bandwidth(100_003) > 0  # not a multiple of the cores


def test_a_copy_that_leaves_bytes_out_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "copyto", lambda target, source: None)
    with pytest.raises(BackendError, match="a copy by NumPy is wrong"):
        copy_bandwidth(1000)


def test_the_command_prints_the_limits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hide(monkeypatch, "torch", "openvino", "onnxruntime")
    monkeypatch.setattr(cpu_roofline.matrix_rates, "__defaults__", (SIDE,))
    monkeypatch.setattr(cpu_roofline.copy_bandwidth, "__defaults__", (4096,))
    assert main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device"] == "cpu"
    assert told["measured_with"] == {"fp32": "numpy"}
    assert told["bytes_per_s"] > 0
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "matrix product, fp32" in out
    assert "GMAC/s" in out
    assert "GB/s" in out
    assert "cores" in out


def test_the_command_tells_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise BackendError("it is broken")

    monkeypatch.setattr(cpu_roofline, "cpu_limits", broken)
    assert main([]) == 2
    assert capsys.readouterr().err == "cpu_roofline: error: it is broken\n"
