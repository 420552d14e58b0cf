"""A network's share of its machine's limits, with limits that are given; and which ones a device gets."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from yolact_deploy.benchmarks import cpu_roofline
from yolact_deploy.benchmarks import machine_limits as limits_module
from yolact_deploy.benchmarks.cpu_roofline import MatrixRate
from yolact_deploy.benchmarks.limits import MachineLimits, roofline
from yolact_deploy.benchmarks.machine_limits import machine_limits
from yolact_deploy.errors import BackendError, InputError, MissingDependencyError
from yolact_deploy.graph.macs import LayerMacs, Macs

#: 20 GMAC and 30 million elements, and a tail that does not count
MACS = Macs(
    images=1,
    precision="fp32",
    layers=(
        LayerMacs("backbone.conv1", "backbone", "Conv", 20 * 10**9, 10 * 10**6, 5 * 10**6, 15 * 10**6),
        LayerMacs("logits", "tail", "MatMul", 10**9, 10**9, 0, 10**9),
    ),
)


def machine(gmac_per_s: float, gigabytes_per_s: float) -> MachineLimits:
    rates = {"fp32": gmac_per_s, "bf16": 4 * gmac_per_s}
    return MachineLimits("cpu", rates, dict.fromkeys(rates, "numpy"), gigabytes_per_s * 1e9)


def test_bound_by_compute() -> None:
    found = roofline(MACS, 400.0, "fp32", machine(100.0, 60.0))  # 200 ms of products, 2 ms of bytes
    assert found.bound_by == "compute"
    assert found.gmac == pytest.approx(20.0)
    assert found.bytes == 4 * 30 * 10**6
    assert found.achieved_gmac_per_s == pytest.approx(50.0)
    assert found.limit_gmac_per_s == pytest.approx(100.0)
    assert found.share == pytest.approx(0.5)


def test_bound_by_memory() -> None:
    found = roofline(MACS, 400.0, "fp32", machine(100.0, 0.6))  # 200 ms both
    assert found.bound_by == "compute"
    found = roofline(MACS, 400.0, "fp32", machine(100.0, 0.4))  # 200 ms of products, 300 ms of bytes
    assert found.bound_by == "memory"
    assert found.limit_gmac_per_s == pytest.approx(20 / 0.3)
    assert found.share == pytest.approx(0.75)


def test_the_precision_that_ran_counts() -> None:
    found = roofline(MACS, 100.0, "bf16", machine(100.0, 0.8))  # 50 ms of products, 75 ms of half as many bytes
    assert (found.precision, found.bound_by, found.bytes) == ("bf16", "memory", 2 * 30 * 10**6)
    assert found.share == pytest.approx(0.75)


def test_without_a_limit_there_is_no_share() -> None:
    found = roofline(MACS, 400.0, "fp16", machine(100.0, 60.0))
    assert found.achieved_gmac_per_s == pytest.approx(50.0)
    assert (found.limit_gmac_per_s, found.share, found.bound_by) == (None, None, None)
    assert json.loads(json.dumps(asdict(found)))["share"] is None


@pytest.mark.parametrize("network_ms", [0.0, -1.0, float("nan")])
def test_impossible_times_are_refused(network_ms: float) -> None:
    with pytest.raises(InputError, match="expected the network's time in ms to be positive"):
        roofline(MACS, network_ms, "fp32", machine(100.0, 60.0))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="unknown precision 'fp8'"):
        roofline(MACS, 400.0, "fp8", machine(100.0, 60.0))


def test_limits_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_roofline, "matrix_rates", lambda: {"fp32": MatrixRate(7.0, "torch")})
    monkeypatch.setattr(cpu_roofline, "copy_bandwidth", lambda: 3e9)
    found = machine_limits()
    assert found == MachineLimits("cpu", {"fp32": 7.0}, {"fp32": "torch"}, 3e9)
    assert json.loads(json.dumps(asdict(found)))["gmac_per_s"] == {"fp32": 7.0}


@pytest.mark.fake_cuda(memory=64 * 2**20)
def test_limits_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"fp16_operations_per_s": 8e12, "fp32_operations_per_s": 2e12}
    monkeypatch.setattr(limits_module, "gpu_matrix_rate", lambda index: rates)
    found = machine_limits("cuda:0")
    assert found.device == "cuda:0"
    assert found.gmac_per_s == {"fp16": 4000.0, "fp32": 1000.0}  # a multiply-accumulate is two operations
    assert found.measured_with == {"fp16": "torch", "fp32": "torch"}
    assert found.bytes_per_s > 0


@pytest.mark.fake_cuda(memory=64 * 2**20)
def test_a_gpu_without_torch_has_its_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(index: int) -> dict[str, float]:
        raise MissingDependencyError("no torch")

    monkeypatch.setattr(limits_module, "gpu_matrix_rate", missing)
    found = machine_limits("cuda")
    assert found.gmac_per_s == {}
    assert found.bytes_per_s > 0


@pytest.mark.fake_cuda(memory=64 * 2**20)
def test_devices_that_are_not_there() -> None:
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        machine_limits("tpu")
    with pytest.raises(BackendError, match="cuda:7"):
        machine_limits("cuda:7")
