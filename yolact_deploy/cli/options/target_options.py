"""Forms of the exported model for other tools and runtimes; part of ``export``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.cli.build import say
from yolact_deploy.vocabulary import EXPORT_FORMATS

if TYPE_CHECKING:
    from yolact_deploy.export.targets.target_source import TargetSource

#: formats that are web pages; the first of their files is the page
_PAGES = {"web", "html"}


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other tools and runtimes")
    group.add_argument(
        "--format",
        dest="formats",
        action="append",
        choices=EXPORT_FORMATS,
        help="write a folder for another runtime beside the ONNX file, which is always written: STEM_openvino_model, "
        "STEM_opencv_model (OpenCV 5), STEM_ncnn_model (heads), STEM.mlpackage (Core ML, heads), STEM_tflite_model "
        "(LiteRT, heads). Each is run and compared where its runtime is. web is a page that runs the model in the "
        "browser, html the same in one file; "
        "repeatable (default onnx)",
    )
    group.add_argument(
        "--ort-web",
        type=Path,
        metavar="DIR",
        help="with --format web or html, a folder in which 'npm install --ignore-scripts onnxruntime-web' has run "
        "(default: fetched with npm once, into the cache)",
    )
    group.add_argument(
        "--inline",
        action="store_true",
        help="also write STEM_inlined.onnx, without functions, for tools that know ONNX's own operators only",
    )


def chosen_formats(args: argparse.Namespace) -> list[str]:
    """The formats besides ONNX; checked before the export, which takes longer.

    Raises:
        InputError: an option that belongs to another format.
        MissingDependencyError: what one of them needs is not installed.
        ExportError: the files of ONNX Runtime Web cannot be had.
    """
    from yolact_deploy.errors import InputError
    from yolact_deploy.export.targets.onnxruntime_web import find_onnxruntime_web
    from yolact_deploy.export.targets.registry import check_available

    names = [name for name in dict.fromkeys(args.formats or ()) if name != "onnx"]
    for name in names:
        check_available(name)
    if _PAGES & set(names):
        find_onnxruntime_web(args.ort_web)
    elif args.ort_web is not None:
        raise InputError("--ort-web is for pages: add --format web or --format html")
    return names


def write_formats(args: argparse.Namespace, names: list[str], source: TargetSource) -> list[dict[str, Any]]:
    """Write each format; returns what ``--json`` prints of them."""
    from yolact_deploy.export.targets.inlined_file import write_inlined
    from yolact_deploy.export.targets.registry import TARGETS, write_target

    facts: list[dict[str, Any]] = []
    if args.inline:
        path = write_inlined(source)
        say(args, f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB), for tools without ONNX functions")
        facts.append({"format": "inlined", "path": str(path), "bytes": path.stat().st_size, "files": [path.name]})
    for name in names:
        folder = TARGETS[name].folder(source.onnx_path)
        with args.progress.steps(f"writing {folder.name}"):
            files = write_target(name, source)
        size = sum(path.stat().st_size for path in files)
        say(args, f"wrote {folder} ({size / 1e6:.1f} MB): {', '.join(_listed(folder, files))}")
        if name in _PAGES:
            say(args, _how_to_open(files[0]))
        facts.append({"format": name, "path": str(folder), "bytes": size, "files": _listed(folder, files)})
    return facts


def _how_to_open(page: Path) -> str:
    """The next command after a page is written."""
    if page.name != "index.html":
        return f"Open {page} in a browser"
    folder = shlex.quote(str(page.parent))
    return f"See it: python -m http.server --bind 127.0.0.1 --directory {folder} 8000, then http://127.0.0.1:8000"


def _listed(folder: Path, files: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files]
