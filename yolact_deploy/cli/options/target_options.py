"""Forms of the exported model for other tools and runtimes; part of ``export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.build import say
from yolact_deploy.vocabulary import EXPORT_FORMATS

if TYPE_CHECKING:
    from yolact_deploy.export.targets.target_source import TargetSource


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other tools and runtimes")
    group.add_argument(
        "--format",
        dest="formats",
        action="append",
        choices=EXPORT_FORMATS,
        help="write a folder for another runtime beside the ONNX file, which is always written: openvino is "
        "STEM_openvino_model/, ...; repeatable (default onnx)",
    )


def chosen_formats(args: argparse.Namespace) -> list[str]:
    """The formats besides ONNX; checked before the export, which takes longer.

    Raises:
        MissingDependencyError: what one of them needs is not installed.
    """
    from yolact_deploy.export.targets.registry import check_available

    names = [name for name in dict.fromkeys(args.formats or ()) if name != "onnx"]
    for name in names:
        check_available(name)
    return names


def write_formats(args: argparse.Namespace, names: list[str], source: TargetSource) -> list[dict[str, Any]]:
    """Write each format; returns what ``--json`` prints of them."""
    from yolact_deploy.export.targets.registry import TARGETS, write_target

    facts = []
    for name in names:
        files = write_target(name, source)
        folder = TARGETS[name].folder(source.onnx_path)
        size = sum(path.stat().st_size for path in files)
        say(args, f"wrote {folder} ({size / 1e6:.1f} MB): {', '.join(_listed(folder, files))}")
        facts.append({"format": name, "path": str(folder), "bytes": size, "files": _listed(folder, files)})
    return facts


def _listed(folder: Path, files: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files]
