"""`runtime.tensorrt_api` with the TensorRT for RTX that is installed; other versions: test_tensorrt_api.py."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from yolact_deploy.errors import BackendError, ExportError, MissingDependencyError
from yolact_deploy.machine import nvidia
from yolact_deploy.runtime import tensorrt_api as api


@pytest.fixture
def no_gpu() -> None:
    try:
        nvidia.find_driver()
    except BackendError:
        return
    pytest.skip("there is a GPU")


@pytest.mark.parametrize(
    ("text", "expected"), [("10.3.0", (10, 3, 0)), ("11.4.0.106", (11, 4, 0, 106)), ("8.5.2.post1", (8, 5, 2))]
)
def test_version(text: str, expected: tuple[int, ...]) -> None:
    assert api.version(SimpleNamespace(__version__=text)) == expected


@pytest.mark.parametrize(
    ("flavour", "module", "message"),
    [
        ("tensorrt", "tensorrt", r"^Testing with TensorRT needs the Python package 'tensorrt' .*\[tensorrt\]"),
        ("rtx", "tensorrt_rtx_libs", r"^Testing with TensorRT for RTX needs the Python package .*\[rtx\]"),
        ("rtx", "tensorrt_rtx_bindings", r"^Testing with TensorRT for RTX needs the Python package .*\[rtx\]"),
    ],
)
def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, flavour: str, module: str, message: str) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=message):
        api.import_tensorrt(flavour, "Testing")


def test_each_listener_hears_errors_while_it_listens(rtx: Any) -> None:
    log, severity = api.logger("rtx"), rtx.ILogger.Severity
    assert api.logger("rtx") is log
    log.log(severity.ERROR, "before")
    with api.complaints("rtx") as outer:
        log.log(severity.ERROR, " one\n")
        with api.complaints("rtx") as inner:
            thread = threading.Thread(target=log.log, args=(severity.INTERNAL_ERROR, "two"))
            thread.start()
            thread.join()
            log.log(severity.WARNING, "not an error")
        log.log(severity.ERROR, "three")
    log.log(severity.ERROR, "after")
    assert (outer, inner) == (["one", "two", "three"], ["two"])


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((), ()),
        (("89",), ("SM89",)),
        (("8.9", "sm_86", " SM120 ", "89"), ("SM89", "SM86", "SM120")),
        (("current",), ("CURRENT",)),
    ],
)
def test_targets(rtx: Any, wanted: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert api.target_names(rtx, wanted) == expected


@pytest.mark.parametrize("wanted", [("12345",), ("",), ("none",), ("89", "banana"), ("89", "current")])
def test_wrong_targets(rtx: Any, wanted: tuple[str, ...]) -> None:
    with pytest.raises(ExportError, match=r"--target-sm: (expected one of|CURRENT)"):
        api.target_names(rtx, wanted)


@pytest.mark.usefixtures("no_gpu")
def test_an_engine_without_a_driver(rtx: Any) -> None:
    """RTX starts, and says at deserializing what is missing."""
    header = b"vtrt" + bytes(300)
    with pytest.raises(
        BackendError, match=r"TensorRT for RTX [\d.]+ cannot load m\.trt here: .*--engine rtx"
    ) as caught:
        api.load_engine("rtx", header, "m.trt")
    assert "no reason given" not in str(caught.value)


def test_the_library_link_for_plugins(rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    with pytest.raises(
        BackendError, match=rf"require {tmp_path}/libtensorrt_rtx\.so, .*--plugin off.*create the link: ln -s"
    ):
        api.plugin_registry(rtx, "rtx")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "libtensorrt_rtx.so").touch()
    assert api.plugin_registry(rtx, "rtx") is not None


@pytest.mark.parametrize("version", ["10.7.0.23", "10.8.0.43"])
def test_quick_plugins_in_python_only(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of these versions lacks the ahead-of-time part."""
    trt = SimpleNamespace(__version__=version)
    names = ("register", "impl", "autotune", "from_shape_expr", "TensorDesc", "ShapeExpr", "AutoTuneCombination", "op")
    quick = SimpleNamespace(**dict.fromkeys(names))
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", quick)
    assert api.quick_plugins(trt, "tensorrt") is None
    for name in ("aot_impl", "KernelLaunchParams", "SymInt32", "SymIntExprs"):
        setattr(quick, name, None)
    trt.__version__ = "10.9.0.34"
    assert api.quick_plugins(trt, "tensorrt") is quick


def test_rtx_has_no_quick_plugins(rtx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.quick_plugins(rtx, "rtx") is None
    assert api.quick_plugins(SimpleNamespace(__version__="10.3.0"), "tensorrt") is None
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    assert api.quick_plugins(SimpleNamespace(__version__="11.4.0.106"), "tensorrt") is None
