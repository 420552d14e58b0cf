"""The first run on a machine with an NVIDIA GPU: all that can be learned there in ten minutes, in one folder.

    python -m yolact_deploy.benchmarks.gpu.first_run --weights yolact_resnet50_54_800000.pth

Run it in a checkout of this project, whose golden files it uses. In this order, each step in a process of its own with
a limit of time:

- ``nvidia-smi``: driver, clocks and the PCIe link
- :mod:`yolact_deploy.benchmarks.gpu_check`: kernels, frame path, and every way to run the network, in ``gpu.json``
- ``compute-sanitizer``: the kernels on the golden files, for accesses outside buffers and for races
- ``ncu``: what limits each kernel, in ``ncu.csv``

``first_run.json`` says what became of each step; what it printed is beside it. A tool that is not installed is skipped.
Exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import write_json
from yolact_deploy.benchmarks.command import command_parser, run_command
from yolact_deploy.console import print_table
from yolact_deploy.errors import InputError, OutputError
from yolact_deploy.machine.environment import environment
from yolact_deploy.machine.nvidia import require_gpu

_GPU_CHECK = "yolact_deploy.benchmarks.gpu_check"
_SMI = "name,driver_version,clocks.sm,clocks.mem,pcie.link.gen.max,pcie.link.gen.current,pcie.link.width.current"
_KERNELS = "regex:prior_best|select_entries|merge_entries|mask_assembly|paste_bits|paste_windows|resize"
#: kernel launches that ncu profiles
_LAUNCHES = 24
#: seconds for all steps, and the most that a tool besides gpu_check may take
BUDGET = 600.0
_TOOL_LIMIT = 60.0


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        tool: its program, skipped if it is not installed
        limit: seconds
        arguments: after the program
    """

    name: str
    tool: str
    limit: float
    arguments: tuple[str, ...]


def steps(args: argparse.Namespace) -> Iterator[Step]:
    """The steps in order; gpu_check has what the others leave of the budget."""
    folder, python = Path(args.folder), sys.executable
    common = ("--config", args.config, "--device", str(args.device), "--golden", str(args.golden))
    yield Step("nvidia-smi", "nvidia-smi", 20.0, (f"--query-gpu={_SMI}", "--format=csv"))
    weights = () if args.weights is None else ("--weights", str(args.weights))
    quick = ("--quick",) if args.quick else ()
    budget = max(args.budget - 3 * _TOOL_LIMIT - 30, 60.0)
    whole = ("-m", _GPU_CHECK, *common, *weights, *quick, "--budget", f"{budget:g}", "-o", str(folder / "gpu.json"))
    yield Step("gpu_check", python, budget + 30, whole)

    def part(name: str) -> tuple[str, ...]:
        return ("-m", _GPU_CHECK, *common, "--work", str(folder), "--part", name, "--results", str(folder / "parts"))

    for tool in ("memcheck", "racecheck"):
        options = ("--tool", tool, "--error-exitcode", "9", python, *part("kernels against the original"))
        yield Step(f"compute-sanitizer {tool}", "compute-sanitizer", _TOOL_LIMIT, options)
    profile = ("--clock-control", "none", "--set", "basic", "-k", _KERNELS, "-c", str(_LAUNCHES), "--csv")
    target = ("--log-file", str(folder / "ncu.csv"), python, *part("kernels, batch 1"))
    yield Step("ncu", "ncu", _TOOL_LIMIT, (*profile, *target))


def run_step(step: Step, folder: Path) -> dict[str, Any]:
    """Run a step, with what it prints in a file named after it; JSON-ready facts about its end."""
    program = shutil.which(step.tool)
    if program is None:
        return {"status": "skipped", "detail": f"{step.tool} is not installed", "seconds": 0.0}
    start = time.monotonic()
    log = folder / f"{step.name.replace(' ', '_')}.txt"
    with log.open("wb") as file:
        try:
            done = subprocess.run(
                [program, *step.arguments],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=step.limit, check=False,
            )  # fmt: skip
            status = "passed" if done.returncode == 0 else "failed"
            detail = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            status, detail = "failed", f"stopped after {step.limit:.0f} s"
    text = log.read_text(encoding="utf-8", errors="replace").split()
    last = " ".join(text)[-300:] if status == "failed" else ""
    detail = f"{detail}: {last}" if last else detail
    return {"status": status, "detail": detail, "seconds": round(time.monotonic() - start, 1), "log": log.name}


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.weights is not None and not args.weights.is_file():
        raise InputError(f"no such checkpoint: {args.weights}")
    require_gpu(args.device)
    folder = Path(args.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}. Choose another --folder") from error
    result: dict[str, Any] = {"environment": environment(), "steps": []}
    for step in steps(args):
        if not args.quiet:
            print(f"{step.name} ...", file=sys.stderr, flush=True)
        result["steps"].append({**asdict(step), "name": step.name, **run_step(step, folder)})
        write_json(folder / "first_run.json", result)  # what is done stays, whatever happens next
    return result


def problems(result: dict[str, Any]) -> list[str]:
    """The failed steps, one sentence each."""
    return [f"{step['name']}: {step['detail']}" for step in result["steps"] if step["status"] == "failed"]


def _print(result: dict[str, Any]) -> None:
    rows = [(step["name"], step["status"], f"{step['seconds']:.1f}", step["detail"]) for step in result["steps"]]
    print_table(("step", "status", "s", "result"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu.first_run", __doc__)
    parser.add_argument("--folder", default="first_run", metavar="DIR", help="for all results (default: first_run)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint of the network to run")
    parser.add_argument(
        "--config", default="yolact_resnet50", metavar="NAME|FILE", help="sizes for the kernels and the frame path"
    )
    parser.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default 0)")
    parser.add_argument(
        "--golden", type=Path, default=Path("tests/golden"), metavar="DIR", help="golden files (default: tests/golden)"
    )
    parser.add_argument("--quick", action="store_true", help="kernels at batch 1 only, fewer calls")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="S", help=f"seconds for everything (default {BUDGET:g})"
    )
    return run_command(parser, argv, _measure, show=_print, problems=problems)


if __name__ == "__main__":
    sys.exit(main())
