"""Everything that needs an NVIDIA GPU, in one command that takes minutes.

    python -m yolact_deploy.benchmarks.gpu_check --weights yolact_resnet50_54_800000.pth -o gpu.json

Compares our kernels with NumPy and times them; times the frame path around a network that only copies its answer, with
frames that are uploaded and read in place; exports the network, builds each engine that can be built and runs it in
each installed runtime; compares with the eager model; measures latency at batch 1, throughput at batch 1, 8 and 32, and
how close everything comes to the measured limits of the machine (copies, matrix products). What is not installed is
skipped, and the table says why. Exit code 1 if something is wrong, 2 if nothing could be tried.

Each part runs in a process of its own, so that what crashes or hangs costs its own time only, and the result is written
after each part. When the budget is used up, the rest is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import read_config, write_json
from yolact_deploy.benchmarks import machine_limits
from yolact_deploy.benchmarks.command import command_parser, run_command, work_folder
from yolact_deploy.console import print_table
from yolact_deploy.errors import InputError, MissingDependencyError, YolactDeployError
from yolact_deploy.machine.environment import environment
from yolact_deploy.machine.nvidia import require_gpu
from yolact_deploy.runtime.cuda.driver import Device

SCHEMA_VERSION = 2
_MODULE = "yolact_deploy.benchmarks.gpu_check"
KERNEL_BATCHES = (1, 8, 32)
#: seconds that a part may take, if the budget has as many
_PART_LIMIT = 180.0
#: seconds below which no further part is started
_LEAST_SECONDS = 5.0
#: title of the candidate whose detections are the reference
REFERENCE = "PyTorch eager fp32"
_LIMITS, _REFERENCE = "limits.json", "reference.pickle"

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
    """The results of checks.

    Args:
        keep: called after each check, with the object itself
    """

    def __init__(self, quiet: bool = False, keep: Callable[[GpuCheck], None] = lambda check: None) -> None:
        self.quiet = quiet
        self.checks: list[Check] = []
        self._keep = keep
        self._environment: dict[str, Any] | None = None

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
        self.add(Check(name, status, detail, time.perf_counter() - start, data))
        return data

    def add(self, check: Check) -> None:
        self.checks.append(check)
        if not self.quiet:
            line = f"{check.status:8}{check.name} ({check.seconds:.1f} s): {check.detail}"
            print(line, file=sys.stderr, flush=True)
        self._keep(self)

    def to_json(self) -> dict[str, Any]:
        self._environment = self._environment or environment()
        gpu = next((check.data for check in self.checks if check.name == "device"), {})
        return {
            "schema": SCHEMA_VERSION,
            "environment": {**self._environment, "gpu": gpu},
            "checks": [asdict(check) for check in self.checks],
        }


# -- parts, each in a process of its own ------------------------------------------------------------------------------


def parts(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[GpuCheck], None]]:
    """The parts by name, in the order in which they run: first what tells most."""
    batches = KERNEL_BATCHES[: 1 if args.quick else None]
    kernels = {f"kernels, batch {batch}": partial(_check_kernels, args, folder, batch) for batch in batches}
    first, *others = kernels
    return {
        "device": partial(_check_device, args),
        "machine limits": partial(_check_limits, args, folder),
        first: kernels[first],
        "kernels against the original": partial(_check_golden, args),
        "frame path": partial(_check_frames, args),
        **_networks(args, folder),
        **{name: kernels[name] for name in others},
    }


def _networks(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[GpuCheck], None]]:
    from yolact_deploy.benchmarks.gpu.gpu_models import Workshop, candidates

    if args.weights is None:
        return {"networks": _no_networks}
    shop = Workshop(args.weights, folder)
    return {one.title: partial(_check_network, args, folder, one) for one in candidates(shop, args.device)}


def run_parts(args: argparse.Namespace, folder: Path, check: GpuCheck) -> None:
    """All parts, as far as the budget goes."""
    (folder / _REFERENCE).unlink(missing_ok=True)  # of an earlier run
    end = time.monotonic() + args.budget
    for name in parts(args, folder):
        if [each.status for each in check.checks] == ["failed"]:  # of the device: is there a GPU at all?
            require_gpu(args.device)
        left = end - time.monotonic()
        if left < _LEAST_SECONDS:
            check.add(Check(name, "skipped", f"the budget of {args.budget:g} s is used up: raise --budget", 0.0, {}))
            continue
        run_part(args, folder, name, min(left, _PART_LIMIT), check)


def run_part(args: argparse.Namespace, folder: Path, name: str, limit: float, check: GpuCheck) -> None:
    """One part in a process of its own, at most ``limit`` seconds."""
    start, wrong = time.monotonic(), ""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        results, errors = Path(place, "results"), Path(place, "errors")
        with errors.open("wb") as file:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", _MODULE, *_arguments(args, folder), "--part", name, "--results", results],
                    stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=limit, check=False,
                )  # fmt: skip
                wrong = f"its process ended with code {done.returncode}" if done.returncode else ""
            except subprocess.TimeoutExpired:
                wrong = f"stopped after {limit:.0f} s"
        for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
            with contextlib.suppress(ValueError, TypeError):  # a line that was cut off
                check.add(Check(**json.loads(line)))
        if wrong:
            last = " ".join(errors.read_text(encoding="utf-8", errors="replace").split())[-300:]
            check.add(Check(name, "failed", f"{wrong}: {last}" if last else wrong, time.monotonic() - start, {}))


def _arguments(args: argparse.Namespace, folder: Path) -> list[str]:
    """The options of a part's process."""
    weights = [] if args.weights is None else ["--weights", str(args.weights)]
    quick = ["--quick"] if args.quick else []
    config = ["--config", args.config, "--device", str(args.device), "--golden", str(args.golden)]
    return [*weights, *config, *quick, "--work", str(folder)]


def _child(args: argparse.Namespace) -> int:
    """What the process of a part does: a line of JSON for each check."""

    def keep(check: GpuCheck) -> None:
        with open(args.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(check.checks[-1])) + "\n")

    folder = Path(args.work)
    parts(args, folder)[args.part](GpuCheck(quiet=True, keep=keep))
    return 0


# -- checks -----------------------------------------------------------------------------------------------------------


def _check_device(args: argparse.Namespace, check: GpuCheck) -> None:
    def attempt() -> Outcome:
        facts = describe_device(Device.open(args.device))
        return "", f"{facts['name']}, compute capability {facts['compute_capability']}", facts

    check.run("device", attempt)


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


def _no_networks(check: GpuCheck) -> None:
    check.add(Check("networks", "skipped", "no network was checked: give --weights FILE", 0.0, {}))


def _check_limits(args: argparse.Namespace, folder: Path, check: GpuCheck) -> None:
    from yolact_deploy.benchmarks.gpu.gpu_models import require_torch

    def bandwidth() -> Outcome:
        rates = machine_limits.gpu_copy_bandwidth(Device.open(args.device))
        return "", ", ".join(f"{name.split('_')[0]} {rate / 1e9:.1f} GB/s" for name, rate in rates.items()), rates

    def matrices() -> Outcome:
        require_torch()
        rates = machine_limits.gpu_matrix_rate(args.device)
        return "", ", ".join(f"{name.split('_')[0]} {rate / 1e12:.1f} T/s" for name, rate in rates.items()), rates

    limits = {**check.run("copy bandwidth", bandwidth), **check.run("matrix rate", matrices)}
    write_json(folder / _LIMITS, limits)


def _limits(folder: Path) -> dict[str, float]:
    """What an earlier part measured; empty if it failed."""
    path = folder / _LIMITS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _check_kernels(args: argparse.Namespace, folder: Path, batch: int, check: GpuCheck) -> None:
    from yolact_deploy.benchmarks.gpu.gpu_kernels import KernelBench, kernel_cases, kernel_report

    with contextlib.ExitStack() as stack:
        bench: KernelBench | None = None
        for case in kernel_cases(read_config(args.config), batch):

            def attempt(case: Any = case) -> Outcome:
                nonlocal bench
                if bench is None:
                    bench = stack.enter_context(contextlib.closing(KernelBench(Device.open(args.device))))
                report = kernel_report(bench, case, _limits(folder).get("device_bytes_per_s"))
                times = report["times_memory_limit"]
                share = f", {times:.2f} times the memory's limit" if times else ""
                memory = f"{report['microseconds_from_memory']:.1f} us from memory"
                return report["wrong"], f"{report['microseconds']:.1f} us in cache, {memory}{share}", report

            check.run(f"kernel {case.name}, batch {batch}", attempt)


def _check_golden(args: argparse.Namespace, check: GpuCheck) -> None:
    check.run("kernels against the original", lambda: _golden(Device.open(args.device), args.golden))


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


def _check_frames(args: argparse.Namespace, check: GpuCheck) -> None:
    from yolact_deploy.benchmarks.gpu.gpu_frames import frame_cases

    def attempt(measure: Callable[[], dict[str, Any]]) -> Outcome:
        report = measure()
        rate = report.get("images_per_s") or report["stream_images_per_s"]
        latency = f"p50 {report['p50_ms']:.3f} ms, " if "p50_ms" in report else ""
        return "", f"{latency}{rate:.0f} images/s", report

    config, calls = read_config(args.config), 50 if args.quick else 400
    for name, measure in frame_cases(Device.open(args.device), config, calls=calls):
        check.run(name, partial(attempt, measure))


def _check_network(args: argparse.Namespace, folder: Path, candidate: Any, check: GpuCheck) -> None:
    """One candidate; the first leaves its detections as the reference of the others."""
    from yolact_deploy.benchmarks.gpu.gpu_models import disagreement, measure_model, open_candidate
    from yolact_deploy.preprocess import read_image
    from yolact_deploy.samples import sample_images

    def attempt() -> Outcome:
        kept = folder / _REFERENCE
        # Written by this command into its own folder.
        reference, eager = pickle.loads(kept.read_bytes()) if kept.exists() else (None, None)  # noqa: S301
        with open_candidate(candidate) as predictor:
            report, detections = measure_model(
                predictor,
                [read_image(path) for path in sample_images()],
                reference,
                calls=50 if args.quick else 300,
                gmac=_gmac(args.weights),
                batches=candidate.batches,
            )
        if candidate.title == REFERENCE:
            kept.write_bytes(pickle.dumps((detections, report)))
        report |= _compared(report, eager or report, _limits(folder), candidate.precision)
        latency, best = report["latency"], max(t["images_per_s"] for t in report["throughput"].values())
        detail = f"p50 {latency['p50_ms']:.2f} ms, {best:.0f} images/s at best"
        detail += f", {report['times_eager']:.1f} times eager" if eager else ""
        return disagreement(report, candidate.precision), detail, report

    check.run(candidate.title, attempt)


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
    parser.add_argument("--config", default="yolact_resnet50", metavar="NAME|FILE", help="sizes for kernels and frames")
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
    parser.add_argument(
        "--budget", type=float, default=480.0, metavar="S", help="seconds after which the rest is skipped (default 480)"
    )
    for option in ("--part", "--results"):  # of the process of one part
        parser.add_argument(option, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part is not None:
        return _child(args)
    return run_command(parser, argv, _measure, show=_print, problems=problems)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.weights is not None and not args.weights.is_file():
        raise InputError(f"no such checkpoint: {args.weights}")

    def keep(check: GpuCheck) -> None:
        if args.output:
            write_json(args.output, check.to_json())

    check = GpuCheck(args.quiet, keep)
    with work_folder(args.work) as folder:
        run_parts(args, folder, check)
    return check.to_json()


def problems(result: dict[str, Any]) -> list[str]:
    """The failed checks, one sentence each."""
    return [f"{check['name']}: {check['detail']}" for check in result["checks"] if check["status"] == "failed"]


def _print(result: dict[str, Any]) -> None:
    rows = [(c["name"], c["status"], f"{c['seconds']:.1f}", c["detail"]) for c in result["checks"]]
    print_table(("check", "status", "s", "result"), rows, title=result["environment"]["gpu"].get("name", "no GPU"))


if __name__ == "__main__":
    sys.exit(main())
