"""Runs our code on doubles of one TensorRT in this process, and writes the failures as JSON.

    python -m tensorrt_stubs.check VERSION RESULT.json [--source MODULE=FILE ...] [--only SCENARIO ...]

``--source`` replaces the text of one of our modules, so that a test can show that a mistake in it is detected.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import inspect
import json
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tensorrt_stubs import bindings, doubles
from tensorrt_stubs.sites import Sites, WatchingFinder

#: Modules whose uses of TensorRT are all checked. Those of the plugins are covered by tests/runtime/plugins, with the
#: same bindings.
WATCHED = (
    "yolact_deploy.export.engine",
    "yolact_deploy.export.tensorrt_build",
    "yolact_deploy.runtime.tensorrt",
    "yolact_deploy.runtime.tensorrt_api",
)


def vocabulary(trt: ModuleType) -> set[str]:
    """Names of everything in TensorRT's module and its classes."""
    names, done = set[str](), set[int]()
    waiting: list[Any] = [trt]
    while waiting:
        holder = waiting.pop()
        for name, value in vars(holder).items():
            if not name.startswith("_"):
                names.add(name)
            ours = str(getattr(value, "__module__", "")).startswith("tensorrt")
            if inspect.isclass(value) and ours and id(value) not in done:
                done.add(id(value))
                waiting.append(value)
    return names


def run(version: str, sources: dict[str, str], only: list[str]) -> dict[str, Any]:
    gc.disable()  # classes created in functions are checked at the end
    sites = Sites()
    WatchingFinder(WATCHED, sites, sources).install()
    trt = bindings.load(version)
    words = vocabulary(trt)
    world = doubles.World(trt)
    errors = scenarios(version, trt, world, only)
    errors += [text for text in map(_import, WATCHED) if text]  # modules that no scenario imports have sites as well
    executed = sites.executed()
    return {
        "version": trt.__version__,
        "errors": errors,
        "overrides": doubles.wrong_overrides(trt, lambda cls: cls.__module__.startswith("yolact_deploy")),
        "deprecated": sorted(world.deprecated),
        "used": sorted(world.used),
        "sites": [[s.file, s.line, s.text, s in executed, s.name in words] for s in sorted(set(sites.all))],
    }


def scenarios(version: str, trt: ModuleType, world: doubles.World, only: list[str]) -> list[str]:
    """The failures."""
    from tensorrt_stubs import scenarios

    errors = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        flavour = "rtx" if version == "rtx" else "tensorrt"
        stage = scenarios.Stage(world, trt, flavour, Path(folder), patch)
        scenarios.prepare(stage)
        wanted = [scenario for scenario in scenarios.SCENARIOS if not only or scenario.__name__ in only]
        errors += [text for text in (_failure(scenario, stage) for scenario in wanted) if text]
    return errors


def _failure(scenario: Callable[[Any], None], stage: Any) -> str:
    try:
        scenario(stage)
    except BaseException:
        return f"{scenario.__name__}:\n{traceback.format_exc(limit=-6)}"
    return ""


def _import(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"cannot import {name}: {error}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("version", choices=bindings.VERSIONS)
    parser.add_argument("result", type=Path)
    parser.add_argument("--source", action="append", default=[], metavar="MODULE=FILE")
    parser.add_argument("--only", action="append", default=[], metavar="SCENARIO")
    args = parser.parse_args()
    pairs = [text.partition("=") for text in args.source]
    sources = {module: Path(file).read_text(encoding="utf-8") for module, _, file in pairs}
    args.result.write_text(json.dumps(run(args.version, sources, args.only)), encoding="utf-8")


if __name__ == "__main__":
    main()
