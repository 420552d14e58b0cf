"""Checks which runtimes work on this machine; each runs a minimal model in a child process of its own.

A native library that is broken or lacks a driver can end the process that loads it, so a child process tries it and
reports the result as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.machine import nvidia
from yolact_deploy.machine.cpu import cpu_info, instructions
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.probes import PROBES, Probe, UnusableError


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    #: "runtime" runs models; "tool" is for export, training or measuring
    kind: str
    works: bool
    version: str = ""
    #: its capabilities, or why it does not work
    detail: str = ""
    #: what to do about it
    cure: str = ""


def examine(
    names: Sequence[str] | None = None, *, timeout: float = 120.0, progress: Progress = SILENT
) -> list[Finding]:
    """Check all runtimes and tools, or the named ones, two at a time.

    Args:
        timeout: seconds per check
    """
    chosen = list(PROBES) if names is None else list(names)
    with ThreadPoolExecutor(max_workers=2) as pool:
        done = pool.map(lambda name: _in_child(name, timeout), chosen)
        return list(progress.track(done, "checking", len(chosen), "checks"))


def describe_machine() -> dict[str, Any]:
    """Processor with its instruction sets, Python, and JetPack on a Jetson."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": cpu_info()[0],
        "cores": os.cpu_count(),
        "instructions": instructions(),
        "python": platform.python_version(),
        **_jetson(),
    }


def _jetson() -> dict[str, str]:
    """JetPack and power mode of a Jetson."""
    jetson = nvidia.find_jetson()
    if jetson is None:
        return {}
    mode = jetson.power_mode or "unknown"
    if mode != "unknown" and not mode.startswith("MAXN"):
        mode += " (there is a faster one: see docs/jetson.md)"
    return {"jetpack": f"{jetson.jetpack} (L4T {jetson.l4t})", "power_mode": mode}


# -- children -------------------------------------------------------------------------------------------------------


def _in_child(name: str, timeout: float) -> Finding:
    probe = PROBES[name]
    root = Path(__file__).resolve().parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from yolact_deploy.runtime.checks import _answer; "
    command = [sys.executable, "-c", f"{code}_answer({name!r})"]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Finding(name, probe.kind, False, detail=f"no answer within {timeout:.0f} s")
    except OSError as error:
        return Finding(name, probe.kind, False, detail=f"cannot start Python for the check: {error}")
    # Libraries may print before the result.
    lines = [line for line in child.stdout.splitlines() if line.startswith(_MARK)]
    if child.returncode != 0 or not lines:
        return Finding(
            name, probe.kind, False, detail=_describe_crash(child.returncode, child.stderr), cure=_install(probe)
        )
    return Finding(**json.loads(lines[-1].removeprefix(_MARK)))


_MARK = "yolact-doctor:"


def _describe_crash(code: int, stderr: str) -> str:
    last = (stderr.strip().splitlines() or ["no message"])[-1][:200]
    if code < 0:
        try:
            return f"the library crashed ({signal.Signals(-code).name}): {last}"
        except ValueError:
            pass
    return f"the check ended with code {code}: {last}"


def _answer(name: str) -> None:
    """Run one check in a child process and print the finding."""
    sys.stdout.write(f"{_MARK}{json.dumps(dataclasses.asdict(try_here(name)))}\n")
    sys.stdout.flush()


def try_here(name: str) -> Finding:
    """Check one runtime or tool in this process; a broken library may end it."""
    probe = PROBES[name]
    try:
        version, detail = probe.attempt()
    except UnusableError as error:
        return Finding(name, probe.kind, False, error.version, str(error), error.cure)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in probe.modules
        detail = f"{error.name} is not installed" if missing else f"cannot be imported: {_line(error)}"
        return Finding(name, probe.kind, False, "", detail, _install(probe))
    except Exception as error:  # every failure belongs in the report
        return Finding(name, probe.kind, False, "", f"{type(error).__name__}: {_line(error)}")
    return Finding(name, probe.kind, True, version, detail)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _install(probe: Probe) -> str:
    if probe.extra == "tensorrt" and nvidia.find_jetson() is not None:
        return "it comes with JetPack: create the virtual environment with --system-site-packages"
    return f"python -m pip install 'yolact-deploy[{probe.extra}]'"
