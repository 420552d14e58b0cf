"""Everything that needs an NVIDIA GPU, in one command that takes minutes.

    python -m yolact_deploy.benchmarks.gpu_check --weights yolact_resnet50_54_800000.pth -o gpu.json

Compares our kernels with NumPy and times them; exports the network, builds each engine that can be built and runs it in
each installed runtime; compares with the eager model; measures latency at batch 1, throughput at batch 1, 8 and 32, and
how close everything comes to the measured limits of the machine (copies, matrix products). What is not installed is
skipped, and the table says why. Exit code 1 if something is wrong, 2 if nothing could be tried.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.benchmarks import machine_limits
from yolact_deploy.benchmarks.command import command_parser, run_command, work_folder
from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.console import print_table
from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError, MissingDependencyError, YolactDeployError, import_optional
from yolact_deploy.machine.environment import environment
from yolact_deploy.runtime.cuda.driver import Device

SCHEMA_VERSION = 1
KERNEL_BATCHES = (1, 8, 32)

#: what is wrong (empty: nothing), a line about the result, and its data
Outcome = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    status: str  #: "passed", "failed", "skipped"
    detail: str  #: the result in words, or why there is none
    seconds: float
    data: dict[str, Any]


class GpuCheck:
    """Runs the checks one after another and keeps their results."""

    def __init__(self, device: Device, quiet: bool = False) -> None:
        self.device = device
        self.quiet = quiet
        self.checks: list[Check] = []

    def run(self, name: str, attempt: Callable[[], Outcome]) -> dict[str, Any]:
        """Run one check and return its data.

        An exception is a result, so that one broken runtime does not end the command.
        """
        start = time.perf_counter()
        data: dict[str, Any] = {}
        try:
            wrong, detail, data = attempt()
            status, detail = ("failed", wrong) if wrong else ("passed", detail)
        except MissingDependencyError as error:
            status, detail = "skipped", str(error)
        except YolactDeployError as error:
            status, detail = "failed", str(error)
        except Exception as error:  # whatever a runtime throws
            status, detail = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        check = Check(name, status, detail, time.perf_counter() - start, data)
        self.checks.append(check)
        if not self.quiet:
            print(f"{status:8}{name} ({check.seconds:.1f} s): {detail}", file=sys.stderr, flush=True)
        return data

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA_VERSION,
            "environment": {**environment(), "gpu": describe_device(self.device)},
            "checks": [asdict(check) for check in self.checks],
        }


def describe_device(device: Device) -> dict[str, Any]:
    """JSON-ready facts about the GPU and its driver."""
    from yolact_deploy.runtime.cuda.driver.calls import driver_version, version_text

    _, total = device.memory()
    return {
        "name": device.name,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "multiprocessors": device.multiprocessors,
        "memory_gib": round(total / (1 << 30), 1),
        "integrated": device.integrated,
        "driver_cuda": version_text(driver_version()),
        "attributes": device.attributes,
    }


def run_checks(
    check: GpuCheck, *, config: YolactConfig, weights: Path | None, folder: Path, golden: Path, quick: bool
) -> None:
    """All checks, in order."""
    limits = _check_limits(check)
    _check_kernels(check, config, limits, quick)
    check.run("kernels against the original", lambda: _golden(check.device, golden))
    if weights is None:
        check.run("networks", _no_weights)
        return
    _check_networks(check, weights, folder, limits, quick)


def _no_weights() -> Outcome:
    raise MissingDependencyError("no network was checked: give --weights FILE")


def _check_limits(check: GpuCheck) -> dict[str, float]:
    def bandwidth() -> Outcome:
        rates = machine_limits.gpu_copy_bandwidth(check.device)
        return "", ", ".join(f"{name.split('_')[0]} {rate / 1e9:.1f} GB/s" for name, rate in rates.items()), rates

    def matrices() -> Outcome:
        torch = import_optional("torch", "train", "The matrix rate")
        if not torch.cuda.is_available():
            raise MissingDependencyError(f"torch {torch.__version__} cannot use this GPU: see yolact-deploy doctor")
        rates = machine_limits.gpu_matrix_rate(check.device.index)
        return "", ", ".join(f"{name.split('_')[0]} {rate / 1e12:.1f} T/s" for name, rate in rates.items()), rates

    return {**check.run("copy bandwidth", bandwidth), **check.run("matrix rate", matrices)}


def _check_kernels(check: GpuCheck, config: YolactConfig, limits: dict[str, float], quick: bool) -> None:
    from yolact_deploy.benchmarks.gpu.gpu_kernels import KernelBench, kernel_cases, kernel_report

    bench: KernelBench | None = None
    try:
        for batch in KERNEL_BATCHES[: 1 if quick else None]:
            for case in kernel_cases(config, batch):

                def attempt(case: Any = case) -> Outcome:
                    nonlocal bench
                    bench = bench or KernelBench(check.device)
                    report = kernel_report(bench, case, limits.get("device_bytes_per_s"))
                    times = report["times_memory_limit"]
                    share = f", {times:.2f} times the memory's limit" if times else ""
                    return report["wrong"], f"{report['microseconds']:.1f} us{share}", report

                check.run(f"kernel {case.name}, batch {batch}", attempt)
    finally:
        if bench is not None:
            bench.close()


def _golden(device: Device, folder: Path) -> Outcome:
    from yolact_deploy.benchmarks.gpu.gpu_golden import golden_cases
    from yolact_deploy.benchmarks.gpu.gpu_kernels import KernelBench

    if not folder.is_dir():
        raise MissingDependencyError(f"no golden files in {folder}: give their folder with --golden")
    bench = KernelBench(device)
    try:
        reasons = {case.name: case.check(bench.run(case, timed=False)[0]) for case in golden_cases(folder)}
    finally:
        bench.close()
    wrong = {name: reason for name, reason in reasons.items() if reason}
    sentence = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
    return sentence, f"{len(reasons)} cases", {"cases": len(reasons), "wrong": wrong}


def _check_networks(check: GpuCheck, weights: Path, folder: Path, limits: dict[str, float], quick: bool) -> None:
    from yolact_deploy.benchmarks.gpu.gpu_models import (
        Workshop,
        candidates,
        disagreement,
        measure_model,
        open_candidate,
    )
    from yolact_deploy.preprocess import read_image
    from yolact_deploy.samples import sample_images

    frames = [read_image(path) for path in sample_images()]
    reference: list[Detections] | None = None
    eager: dict[str, Any] = {}
    gmac = _gmac(weights)
    for candidate in candidates(Workshop(weights, folder), check.device.index):

        def attempt(candidate: Any = candidate) -> Outcome:
            nonlocal reference, eager
            with open_candidate(candidate) as predictor:
                calls = 50 if quick else 300
                report, detections = measure_model(predictor, frames, reference, calls=calls, gmac=gmac)
            if reference is None:
                reference, eager = detections, report
            report |= _compared(report, eager, limits, candidate.precision)
            latency, best = report["latency"], max(t["images_per_s"] for t in report["throughput"].values())
            detail = (
                f"p50 {latency['p50_ms']:.2f} ms, {best:.0f} images/s at best, {report['times_eager']:.1f} times eager"
            )
            return disagreement(report, candidate.precision), detail, report

        check.run(f"{candidate.name} {candidate.precision}", attempt)


def _compared(
    report: dict[str, Any], eager: dict[str, Any], limits: dict[str, float], precision: str
) -> dict[str, Any]:
    """Ratios of a model's figures to the eager model's and to the machine's limit."""
    ratios: dict[str, Any] = {"times_eager": eager["latency"]["p50_ms"] / report["latency"]["p50_ms"]}
    rate, limit = report.get("network_operations_per_s"), limits.get(f"{precision}_operations_per_s")
    if rate and limit:
        ratios["share_of_matrix_rate"] = rate / limit
    return ratios


def _gmac(weights: Path) -> float | None:
    """Multiply-adds of the network for one image, in 10^9; None without torch."""
    try:
        from yolact_deploy.model.checkpoint import load_model
        from yolact_deploy.model.layer_table import summary_dict
    except ImportError:
        return None
    return float(summary_dict(load_model(weights).config)["gmac"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu_check", __doc__)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint of the network to run")
    parser.add_argument("--config", default="yolact_resnet50", metavar="NAME", help="sizes for the kernels")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default 0)")
    parser.add_argument("--work", metavar="DIR", help="keep ONNX files and engines in this folder, to use them again")
    parser.add_argument(
        "--golden",
        type=Path,
        default=Path("tests/golden"),
        metavar="DIR",
        help="golden files of the original, in a checkout of this project (default: tests/golden)",
    )
    parser.add_argument("--quick", action="store_true", help="kernels at batch 1 only, fewer calls")
    return run_command(parser, argv, _measure, show=_print, problems=problems)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.weights is not None and not args.weights.is_file():
        raise InputError(f"no such checkpoint: {args.weights}")
    check = GpuCheck(Device.open(args.device), args.quiet)
    with work_folder(args.work) as folder:
        run_checks(
            check,
            config=get_config(args.config),
            weights=args.weights,
            folder=folder,
            golden=args.golden,
            quick=args.quick,
        )
    return check.to_json()


def problems(result: dict[str, Any]) -> list[str]:
    """The failed checks, one sentence each."""
    return [f"{check['name']}: {check['detail']}" for check in result["checks"] if check["status"] == "failed"]


def _print(result: dict[str, Any]) -> None:
    rows = [(c["name"], c["status"], f"{c['seconds']:.1f}", c["detail"]) for c in result["checks"]]
    print_table(("check", "status", "s", "result"), rows, title=result["environment"]["gpu"]["name"])


if __name__ == "__main__":
    sys.exit(main())
