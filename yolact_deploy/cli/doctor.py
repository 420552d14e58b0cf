"""Check which runtimes and tools work on this machine, and what to install for the rest.

Each one is started in a process of its own. The exit code is 2 if no runtime works.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from yolact_deploy.console import print_text

if TYPE_CHECKING:
    from yolact_deploy.runtime.checks import Finding


_LABELS = 14


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="time limit per check (default 120)"
    )


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.cli.schemas import DOCTOR
    from yolact_deploy.console import print_json
    from yolact_deploy.runtime.checks import describe_machine, examine
    from yolact_deploy.version import __version__

    machine = {"yolact_deploy": __version__, **describe_machine()}
    findings = examine(timeout=args.timeout, progress=args.progress)
    if args.json:
        checks = [dataclasses.asdict(finding) for finding in findings]
        print_json({"schema": DOCTOR, "machine": machine, "findings": checks})
    elif not args.quiet:
        _print(machine, findings)
    return 0 if any(finding.works and finding.kind == "runtime" for finding in findings) else 2


def _print(machine: dict[str, object], findings: list[Finding]) -> None:
    from yolact_deploy.console import print_table

    for key, value in machine.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print_text(f"{key.replace('_', '-'):<{_LABELS}} {shown}", indent=" " * (_LABELS + 1))
    print()
    for kind, title in (("runtime", "Runtimes"), ("tool", "Driver, builders and tools")):
        chosen = (finding for finding in findings if finding.kind == kind)
        rows = [(f.name, "yes" if f.works else "no", f.version, f.detail, _cure(f)) for f in chosen]
        print_table(["", "works", "version", "details", "what to do"], rows, title=title)


def _cure(finding: Finding) -> str:
    """What to do; the cure of the driver is shown once, in its own row."""
    from yolact_deploy.machine.nvidia import DRIVER_CURE

    return "see NVIDIA driver" if finding.cure == DRIVER_CURE and finding.name != "NVIDIA driver" else finding.cure
