"""`eval` on thousands of images: its memory, the cost of an interruption, and the time outside the network.

    python -m yolact_deploy.benchmarks.scenarios.eval_at_scale --engine yolact.onnx --images 5000 -o result.json

Generates images of shapes (or uses a given set) and runs the command `eval` on them in separate processes: once until
half of the images are done, then interrupted as by Ctrl-C; again, to resume; once without interruption; and once with
one network that has all cores, to see what networks with one core each save. If faster-coco-eval is installed, it
scores the detections as well. Exit code 1 if the figures differ or a process used too much memory. Needs Linux or
macOS.

"rate" has images/s of the whole evaluation with several networks and with one, that of the one network alone, and the
share of the latter that the evaluation reaches. Other work on the machine makes all of them smaller, not the share.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.benchmarks.command import command_parser, run_command, work_folder
from yolact_deploy.datasets.image_sets import open_images
from yolact_deploy.errors import BackendError, DatasetError, InputError
from yolact_deploy.machine.environment import environment
from yolact_deploy.untrusted import read_json

IMAGES = 5000
MOST_MIB = 2048
#: largest difference between pycocotools and faster-coco-eval
TOLERANCE = 1e-6

_PROGRAM = (sys.executable, "-m", "yolact_deploy")
_POLL_SECONDS = 0.02
_INTERRUPTED = 2  # exit code of the command
_FIGURES = ("ap", "ap50", "ap75", "small", "medium", "large")


@dataclass(frozen=True)
class Child:
    """One run of the command.

    Attributes:
        peak_mib: peak resident memory, at least that of this process when it started the other
        seconds: from start to end
        printed: its JSON; None if it printed none
    """

    peak_mib: float
    seconds: float
    printed: dict[str, Any] | None


class Lines:
    """Counts the whole lines of a growing file, reading each byte once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self.count = path, 0, 0

    def update(self) -> int:
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._read)
            new = file.read()
            self._read += len(new)
            self.count += new.count(b"\n")
        return self.count


def run_child(command: Sequence[str], work: Path, stop_at: tuple[Lines, int] | None = None) -> Child:
    """Run a command that prints JSON.

    Args:
        stop_at: interrupt the command when a file has this many lines

    Raises:
        BackendError: the command failed, or finished before it could be interrupted.
    """
    with open(work / "printed.json", "w+b") as printed:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=printed)
        stopped = False
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if stop_at and not stopped and stop_at[0].update() >= stop_at[1]:
                    process.send_signal(signal.SIGINT)
                    stopped = True
                time.sleep(_POLL_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        printed.seek(0)
        text = printed.read()
    if process.returncode != (_INTERRUPTED if stopped else 0):
        raise BackendError(f"eval ended with {process.returncode}: see its message above")
    if stop_at and not stopped:
        raise BackendError("eval finished before it could be interrupted: use more images")
    return Child(_peak_mib(usage), seconds, json.loads(text) if text else None)


def _peak_mib(usage: Any) -> float:
    """Peak memory in a result of :func:`resource.getrusage`."""
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes on Linux
    return float(usage.ru_maxrss * scale / 2**20)


def measure(command: Sequence[str], images: int, work: Path) -> dict[str, Any]:
    """Interrupt, resume and repeat an evaluation; a JSON-ready result.

    Args:
        command: `eval` with model and images; ``--cache`` and the like are added
        images: number of images
        work: folder for detections
    """
    try:
        import resource
    except ImportError as error:
        raise BackendError("the memory of other processes can be measured on Linux and macOS only") from error
    floor = _peak_mib(resource.getrusage(resource.RUSAGE_SELF))
    cut, whole, alone = (work / f"{name}.jsonl" for name in ("interrupted", "whole", "one_network"))
    for path in (cut, whole, alone):
        path.unlink(missing_ok=True)
    # If a shell made this process ignore Ctrl-C, the children would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    children = {"interrupted": run_child([*command, "--cache", str(cut)], work, (Lines(cut), 1 + images // 2))}
    done = Lines(cut).update() - 1
    children["resumed"] = run_child([*command, "--cache", str(cut), "--resume"], work)
    children["whole"] = run_child([*command, "--cache", str(whole)], work)
    children["one_network"] = run_child([*command, "--cache", str(alone), "--workers", "1"], work)
    if importlib.util.find_spec("faster_coco_eval"):
        faster = ["--cache", str(whole), "--resume", "--evaluator", "faster-coco-eval"]
        children["faster_coco_eval"] = run_child([*command, *faster], work)
    return {
        "images": images,
        "interrupted_after": done,
        **_compared({name: child.printed for name, child in children.items() if child.printed}),
        "same_file": _same(cut, whole) and _same(alone, whole),
        "peak_mib": {name: round(child.peak_mib, 1) for name, child in children.items()},
        "peak_mib_of_this_process": round(floor, 1),
        "seconds": {name: round(child.seconds, 2) for name, child in children.items()},
        "cache_mib": round(whole.stat().st_size / 2**20, 1),
    }


def _compared(printed: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    resumed, whole, alone = printed["resumed"], printed["whole"], printed["one_network"]
    faster = printed.get("faster_coco_eval")
    return {
        "figures": {kind: {name: whole[kind][name] for name in _FIGURES} for kind in ("box", "mask")},
        "detections": whole["detections"],
        "same_figures": all(
            resumed[key] == whole[key] == alone[key] for key in ("box", "mask", "images", "detections", "curves")
        ),
        "rate": _rates(whole["time"], alone["time"]),
        "faster_coco_eval_differs_by": _difference(whole, faster) if faster else None,
        "time_whole": whole["time"],
        "time_resumed": resumed["time"],
        "time_one_network": alone["time"],
    }


def _rates(several: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, float]:
    """Images per second of two evaluations, and of the one network without what is around it."""
    network = one["images_run"] / one["stages_s"][one["network_stage"]]
    whole, alone = (time["images_run"] / time["whole_s"] for time in (several, one))
    rates = {"several_networks": whole, "one_network": alone, "one_network_alone": network}
    return {**{name: round(rate, 3) for name, rate in rates.items()}, "share_of_network": round(whole / network, 4)}


def _same(a: Path, b: Path) -> bool:
    """Whether two files have the same lines, compared one by one."""
    with open(a, "rb") as first, open(b, "rb") as second:
        return a.stat().st_size == b.stat().st_size and all(x == y for x, y in zip(first, second, strict=True))


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The largest difference between the figures of two evaluations; infinite if one lacks a figure."""
    worst = 0.0
    for kind in ("box", "mask"):
        pairs = [(a[kind][name], b[kind][name]) for name in _FIGURES]
        pairs += [(ap, b[kind]["per_class"][name]) for name, ap in a[kind]["per_class"].items()]
        for x, y in pairs:
            if (x is None) != (y is None):
                return float("inf")
            worst = max(worst, abs((x or 0.0) - (y or 0.0)))
    return worst


def problems(result: Mapping[str, Any]) -> list[str]:
    """What is wrong with a result of :func:`measure`, one sentence each."""
    most_mib = result.get("most_mib", MOST_MIB)
    sentences = [
        f"the process {name!r} used {mib:.0f} MiB, {most_mib:.0f} are allowed"
        for name, mib in result["peak_mib"].items()
        if mib >= most_mib
    ]
    if not result["same_figures"]:
        sentences.append("the figures of the interrupted run, the whole run and the run of one network differ")
    differs = result["faster_coco_eval_differs_by"]
    if differs is not None and differs > TOLERANCE:
        sentences.append(f"faster-coco-eval differs by {differs:g}")
    return sentences


def generate(folder: Path, count: int, width: int, height: int, *, quiet: bool) -> None:
    """Images of shapes, unless the folder already has this many.

    Raises:
        BackendError: the images cannot be generated.
    """
    file = folder / "annotations" / "instances_val.json"
    if file.is_file() and len(read_json(file, "annotation file", DatasetError)["images"]) == count:
        return
    # In a separate process: imports here would count as memory of the children.
    command = [*_PROGRAM, "data", "shapes", "-o", str(folder), "--train", "0", "--val", str(count)]
    command += ["--size", f"{width}x{height}", *(["--quiet"] if quiet else [])]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise BackendError("the images could not be generated: see the message above")


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("scenarios.eval_at_scale", __doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--engine", metavar="SPEC", help="model to run: FILE[@BACKEND...]")
    model.add_argument("--weights", metavar="W", help="checkpoint to run in PyTorch")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--workers", type=int, metavar="N", help="networks at once (default: as eval chooses)")
    parser.add_argument("--images", type=int, metavar="N", help=f"number of images (generated: {IMAGES}; --coco: all)")
    parser.add_argument("--coco", metavar="DIR", help="use this COCO folder instead of generated images")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("W", "H"), help="of generated images")
    parser.add_argument("--work", metavar="DIR", help="folder for images and detections (default: a temporary one)")
    parser.add_argument("--most-mib", type=float, default=MOST_MIB, metavar="M", help=f"memory allowed ({MOST_MIB})")
    return run_command(parser, argv, _run, problems=problems)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    with work_folder(args.work) as work:
        folder, count = Path(args.coco or work / "shapes"), args.images
        if not args.coco:
            generate(folder, count or IMAGES, *args.size, quiet=args.quiet)
        count = len(open_images(coco=folder, limit=count))
        if count < 2:
            raise InputError(f"{count} image cannot be interrupted at half: use more")
        command = [*_PROGRAM, "eval", "--coco", str(folder), "--images", str(count), "--json"]
        for option in ("engine", "weights", "threads", "workers"):
            if (value := getattr(args, option)) is not None:
                command += [f"--{option}", str(value)]
        if args.quiet:
            command.append("--quiet")
        result = measure(command, count, work)
    name = Path(args.engine or args.weights).name
    return {"model": name, **result, "most_mib": args.most_mib, "environment": environment()}


if __name__ == "__main__":
    sys.exit(main())
