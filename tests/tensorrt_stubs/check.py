"""Runs our code over doubles of one TensorRT in this process, and writes what it found as JSON.

    python -m tensorrt_stubs.check VERSION RESULT.json [--source MODULE=FILE ...]

``--source`` takes the text of one of our modules from elsewhere, so that a test can show what a mistake in it does.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorrt_stubs import bindings, doubles
from tensorrt_stubs.sites import Sites, WatchingFinder

PACKAGE = Path(__file__).resolve().parents[2] / "yolact_deploy"

#: modules that use TensorRT; of plugins, those that name it
WATCHED = (
    "export.tensorrt",
    "export.tensorrt_build",
    "runtime.tensorrt_api",
    "runtime.tensorrt",
)


def watched() -> list[str]:
    """Names of the modules whose use of TensorRT is checked."""
    plugins = [
        f"runtime.plugins.{path.stem}"
        for path in sorted((PACKAGE / "runtime" / "plugins").glob("*.py"))
        if path.stem != "__init__" and re.search(r"\btrt\b", path.read_text(encoding="utf-8"))
    ]
    names = [name for name in WATCHED if (PACKAGE / name.replace(".", "/")).with_suffix(".py").exists()]
    return [f"yolact_deploy.{name}" for name in (*names, *plugins)]


def vocabulary(trt: ModuleType) -> set[str]:
    """Names of everything in TensorRT's module and its classes."""
    found, waiting, done = set[str](), [trt], set[int]()
    while waiting:
        holder: Any = waiting.pop()
        for name, value in vars(holder).items():
            if not name.startswith("_"):
                found.add(name)
            ours = str(getattr(value, "__module__", "")).startswith("tensorrt")
            if inspect.isclass(value) and ours and id(value) not in done:
                done.add(id(value))
                waiting.append(value)
    return found


def run(version: str, sources: dict[str, str]) -> dict[str, Any]:
    sites = Sites()
    names = watched()
    WatchingFinder(names, sites, sources).install()
    trt = bindings.load(version)
    words = vocabulary(trt)
    world = doubles.World(trt)
    errors = scenarios(version, trt, world)
    for name in names:  # what no scenario imports has sites all the same
        try:
            importlib.import_module(name)
        except Exception as error:
            errors.append(f"cannot import {name}: {error}")
    executed = sites.executed()
    return {
        "version": trt.__version__,
        "errors": errors,
        "overrides": doubles.wrong_overrides(trt, lambda cls: cls.__module__.startswith("yolact_deploy")),
        "deprecated": sorted(world.deprecated),
        "used": sorted(world.used),
        "sites": [[s.file, s.line, s.text, s in executed, s.name in words] for s in sorted(set(sites.all))],
    }


def scenarios(version: str, trt: ModuleType, world: doubles.World) -> list[str]:
    """The failures."""
    from tensorrt_stubs import scenarios

    errors = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        flavour = "rtx" if version == "rtx" else "tensorrt"
        stage = scenarios.Stage(world, trt, flavour, Path(folder), patch)
        scenarios.prepare(stage)
        for scenario in scenarios.SCENARIOS:
            try:
                scenario(stage)
            except BaseException:
                errors.append(f"{scenario.__name__}:\n{traceback.format_exc(limit=-6)}")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("version", choices=bindings.VERSIONS)
    parser.add_argument("result", type=Path)
    parser.add_argument("--source", action="append", default=[], metavar="MODULE=FILE")
    args = parser.parse_args()
    pairs = [text.partition("=") for text in args.source]
    sources = {module: Path(file).read_text(encoding="utf-8") for module, _, file in pairs}
    args.result.write_text(json.dumps(run(args.version, sources)), encoding="utf-8")


if __name__ == "__main__":
    main()
