"""Our use of TensorRT, checked against NVIDIA's Python bindings of every supported version.

The bindings of 10.3, 10.13, 10.16 and 11.4 are downloaded and imported over stub libraries; those of TensorRT for RTX
are the installed ones. Enums, exceptions and base classes are real; whatever needs the library (builder, parser,
runtime and their results) is replaced by doubles that have exactly the members of the real class. Our builder and
runtime then do everything they can on these doubles, one process per version. Checked are the existence of each name,
the number, names and types of arguments, and the types of assigned values.

Each use of an attribute in our modules reports that it was executed, so that a branch that no version takes fails as
well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from few import few

pytest.importorskip("onnx")

from tensorrt_stubs import bindings
from tensorrt_stubs.doubles import World
from tensorrt_stubs.signatures import Parameter, accepts, parse

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "yolact_deploy"

#: first names of expressions that are unrelated to TensorRT
OURS = re.compile(r"self\.(?!_?trt\b|_engine\b)|error\.|_log\.|['\"]")

Check = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """``check(version, only=scenario, module=file)``: the report of a process for a version; cached without changes."""
    folder = tmp_path_factory.mktemp("bindings")
    reports: dict[str, dict[str, Any]] = {}

    def run(version: str, only: str = "", **sources: Path) -> dict[str, Any]:
        if version in reports and not sources:
            return reports[version]
        try:
            bindings.prepare(version)
        except bindings.UnavailableError as error:
            pytest.skip(str(error))
        result = folder / f"{version}-{len(sources)}.json"
        given = [f"--source=yolact_deploy.{module.replace('__', '.')}={file}" for module, file in sources.items()]
        given += [f"--only={only}"] if only else []
        done = subprocess.run(
            [sys.executable, "-m", "tensorrt_stubs.check", version, str(result), *given],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        if not sources:
            reports[version] = report
        return report

    return run


@pytest.mark.parametrize("version", few(bindings.VERSIONS, 0, 3, 4))
def test_everything_we_use_exists(check: Check, version: str) -> None:
    report = check(version)
    assert report["errors"] == []
    assert report["overrides"] == []
    assert report["deprecated"] == []
    number = "1.7" if version == "rtx" else version
    assert report["version"] == number or report["version"].startswith(f"{number}.")
    used = set(report["used"])
    # A sample, to make sure that the doubles are used.
    assert {"Builder.build_serialized_network", "OnnxParser.parse", "ParserError.local_function_stack"} <= used
    assert {"IOptimizationProfile.set_shape", "IBuilderConfig.progress_monitor", "INetworkDefinition.name"} <= used
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3"} <= used
    assert ("IBuilderConfig.set_compute_capability" in used) == (version == "rtx")
    assert ("IRuntimeCache.serialize" in used) == (version == "rtx")
    assert ("ITimingCache.serialize" in used) == (version != "rtx")


def test_every_use_was_executed(check: Check) -> None:
    """Executed in at least one version; a skipped version skips this test."""
    sites: dict[tuple[str, int, str], list[bool]] = {}
    for version in bindings.VERSIONS:
        for file, line, text, executed, known in check(version)["sites"]:
            seen = sites.setdefault((file, line, text), [False, False])
            seen[0] |= executed
            seen[1] |= known
    assert len(sites) > 300
    never = [
        site for site, (executed, known) in sorted(sites.items()) if not executed and may_be_tensorrt(site[2], known)
    ]
    assert never == []


def may_be_tensorrt(text: str, known: bool) -> bool:
    """Whether an expression may involve TensorRT, judging by its last name or an unknown first name."""
    return known or not OURS.match(text)


# -- it can be red --------------------------------------------------------------------------------------------------


def doctored(tmp_path: Path, module: str, old: str, new: str) -> dict[str, Path]:
    """The source of a module with a mistake."""
    text = (PACKAGE / f"{module.replace('__', '/')}.py").read_text(encoding="utf-8")
    assert text.count(old) == 1
    file = tmp_path / "doctored.py"
    file.write_text(text.replace(old, new), encoding="utf-8")
    return {module: file}


CONFIGURE = "        plan = self.plan\n        if plan.workspace_mib"


@pytest.mark.parametrize(
    "version", [pytest.param(v, marks=[] if v == "11.4" else [pytest.mark.slow]) for v in bindings.WHEELS]
)
@pytest.mark.slow
def test_a_flag_that_11_lacks(check: Check, tmp_path: Path, version: str) -> None:
    """TensorRT 11 removed ``BuilderFlag.FP16``; with a guard it would be correct everywhere."""
    flag = "config.set_flag(self.trt.BuilderFlag.FP16)"
    guard = 'if hasattr(self.trt.BuilderFlag, "FP16"):\n            '
    for before, errors in (("", version == "11.4"), (guard, False)):
        mistake = CONFIGURE.replace("if plan", f"{before}{flag}\n        if plan")
        report = check(version, "builds", **doctored(tmp_path, "export__tensorrt_build", CONFIGURE, mistake))
        assert bool(report["errors"]) == errors
        assert all("BuilderFlag' has no attribute 'FP16'" in error for error in report["errors"])


#: of the same kinds
MORE_MISTAKES = [
    ("builds", "export__tensorrt_build", "workspace_mib << 20", "workspace_mib * 1e6", "not take pool_size=64"),
    ("builds", "export__tensorrt_build", "progress_monitor = m", "monitor = m", "no 'monitor'"),
    ("builds", "export__tensorrt_build", "progress_monitor = monitor", "progress_monitor = 1", "got 1"),
    ("builds", "runtime__tensorrt_api", "config.set_timing_cache(cache, ignore_",
     "config.set_timing_cache(cache, ", "has no parameter 'mismatch'"),
    ("failing_builds", "export__tensorrt_build", "parser.num_errors", "parser.error_count", "no 'error_count'"),
    ("loads", "runtime__tensorrt_api", "profile_v2(profile)", "profile(profile)", "no 'get_device_memory_size_for"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "module", "old", "new", "message"),
    [
        ("builds", "export__tensorrt_build", "parent_phase: str | None, ", "", "phase_start: expected (phase_"),
        ("loads", "runtime__tensorrt_api", "_memory(pointer, nbytes)", "_memory(pointer)", "lacks size"),
        ("runs", "runtime__tensorrt", "execute_async_v3(stream", "execute_async_v2(stream", "no 'execute_async_v2'"),
        *(pytest.param(*mistake, marks=pytest.mark.slow) for mistake in MORE_MISTAKES),
    ],
)  # fmt: skip
def test_mistakes_are_detected(
    check: Check, tmp_path: Path, scenario: str, module: str, old: str, new: str, message: str
) -> None:
    report = check("11.4", scenario, **doctored(tmp_path, module, old, new))
    assert message in "\n".join([*report["errors"], *report["overrides"]])


@pytest.mark.slow
def test_an_unreachable_branch_is_detected(check: Check, tmp_path: Path) -> None:
    """No version would report a mistake in it either."""
    mistake = CONFIGURE.replace(
        "if plan", 'if plan.targets == ("none",):\n            config.misspelt(1)\n        if plan'
    )
    report = check("11.4", "builds", **doctored(tmp_path, "export__tensorrt_build", CONFIGURE, mistake))
    assert report["errors"] == []
    never = [text for _, _, text, executed, known in report["sites"] if not executed and may_be_tensorrt(text, known)]
    assert "config.misspelt" in never


# -- the tools of this test -----------------------------------------------------------------------------------------


def test_signatures_of_pybind11() -> None:
    doc = """build(*args, **kwargs)
Overloaded function.

1. build(self: tensorrt_bindings.tensorrt.Builder, flags: typing.SupportsInt = 0, kind: A.B = <B.C: 1>) -> int

2. build(self: x.Builder, arg0: Tuple[int, List[int]], path: str = None) -> tensorrt_bindings.tensorrt.IHostMemory
"""
    first, second = parse(doc, "build", drop_self=True)
    assert first.parameters == (Parameter("flags", "SupportsInt", True), Parameter("kind", "A.B", True))
    assert (first.returns, second.returns) == ("int", "IHostMemory")
    assert second.bind(((1, [2]),), {"path": "p"}) == {"arg0": (1, [2]), "path": "p"}
    for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"arg0": 1}), ((1,), {"file": 1}), ((), {"arg0": 1})]:
        with pytest.raises(TypeError):
            second.bind(args, kwargs)
    assert parse("A text about build() -> nothing.", "build", drop_self=True) == []


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("int", [1, True], [1.0, "1", None]),
        ("float", [1, 0.5], ["1"]),
        ("bool", [True], [1, None]),
        ("str", ["a"], [b"a", None]),
        ("typing_extensions.Buffer", [b"", memoryview(b"a"), bytearray()], ["", 1]),
        ("List[int]", [[], [1], (1, 2)], [[1.5], 1, None]),
        ("collections.abc.Sequence[str]", [["a"]], [[1]]),
        ("Tuple[int, bool]", [(1, True)], [1]),
        ("Dims", [(1, 2), [3]], [(1.5,), 1, None]),
        ("nvinfer1::Shape", [], [1]),
        ("object", [1, None], []),
        ("nvinfer1::NotShown", [1], []),
    ],
)
def test_what_fits_a_type(kind: str, good: list[Any], bad: list[Any]) -> None:
    classes = {name: type(name, (), {}) for name in ("Dims", "Shape")}

    def find(name: str) -> type | None:
        return classes.get(name.rpartition("::")[2])

    assert all(accepts(kind, value, find, isinstance) for value in good)
    assert not any(accepts(kind, value, find, isinstance) for value in bad)


class Config:
    """Replaces a class of the bindings."""

    def _get(self) -> int: ...  # type: ignore[empty-body]
    def _set(self, value: int) -> None: ...
    def run(self) -> None: ...
    def ask(self) -> None: ...

    _get.__doc__ = "(arg0: Config) -> int"
    _set.__doc__ = "(arg0: Config, arg1: int) -> None"
    run.__doc__ = "run(self: Config, other: Config, count: int = 1) -> Config\n\nDeprecated: walk."
    ask.__doc__ = "ask(self: Config) -> object"
    level = property(_get, _set)
    name = property(_get)


def test_doubles_know_what_their_class_knows() -> None:
    trt = ModuleType("trt")
    trt.Config = Config  # type: ignore[attr-defined]
    world = World(trt)
    double = world.double("Config")
    assert double.level == 1
    double.level = 5
    assert double.level == 5
    assert double.run(double, count=2).real is Config
    for wrong in (
        lambda: double.missing,
        lambda: setattr(double, "missing", 1),
        lambda: setattr(double, "name", 1),
    ):
        with pytest.raises(AttributeError):
            wrong()
    for wrong in (
        lambda: setattr(double, "level", "high"),
        lambda: double.run(),
        lambda: double.run(SimpleNamespace()),
        lambda: double.run(double, number=2),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AssertionError, match=r"must set what Config\.ask returns"):
        double.ask()
    world.answers["Config", "name"] = "text"
    with pytest.raises(AssertionError, match="expected int"):
        _ = double.name
    assert world.used >= {"Config.level", "Config.run"}
    assert world.deprecated == {"Config.run"}
