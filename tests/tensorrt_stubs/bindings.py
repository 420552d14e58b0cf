"""NVIDIA's Python bindings of several TensorRT versions, without TensorRT: wheels from the package index, over stubs.

The wheels are downloaded once into ``$YOLACT_TENSORRT_BINDINGS``, else into this package's cache folder. Each process
can import one version; ``rtx`` is the TensorRT for RTX that is installed.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from yolact_deploy.cache import cache_root

#: version -> package to download
WHEELS = {
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.13": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16": "tensorrt-cu12-bindings==10.16.1.11",
    "11.4": "tensorrt-cu13-bindings==11.4.*",
}
VERSIONS = (*WHEELS, "rtx")

_LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")


class UnavailableError(Exception):
    """A version that is unavailable, and why."""


_unavailable: dict[str, str] = {}
_private: list[tempfile.TemporaryDirectory[str]] = []


def prepare(version: str) -> None:
    """Download, unpack and compile what :func:`load` needs, unless it exists already.

    Raises:
        UnavailableError: no package index, no wheel for this Python, no C compiler, or RTX is not installed.
    """
    if version in _unavailable:
        raise UnavailableError(_unavailable[version])
    try:
        _prepare(version)
    except UnavailableError as error:
        _unavailable[version] = str(error)  # trying again would take as long
        raise


def _prepare(version: str) -> None:
    if version == "rtx":
        if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
            raise UnavailableError("TensorRT for RTX is not installed")
        return
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UnavailableError("the bindings are taken from the wheels for Linux on x86-64")
    if not _bindings(version).is_dir():
        _download(version)
    _compile_stubs(version)


def load(version: str) -> Any:
    """The bindings of one version as a module, after :func:`prepare`; also known as ``tensorrt`` from then on."""
    if version == "rtx":
        _private.append(tempfile.TemporaryDirectory())
        use_private_libraries(Path(_private[-1].name))
        importlib.import_module("tensorrt_rtx_libs")
        return importlib.import_module("tensorrt_rtx_bindings")
    for library in _stubs(version):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(_bindings(version)))
    module = importlib.import_module("tensorrt_bindings")
    assert Path(module.__file__ or "").is_relative_to(_bindings(version)), "another tensorrt_bindings was found"
    sys.modules["tensorrt"] = module
    return module


def use_private_libraries(folder: Path) -> None:
    """Let ``tensorrt_rtx_libs`` be a folder of links to the installed one, plus a name that it lacks.

    RTX's parser opens its library by that name when it reads a plugin, and ends the process if the name is missing.
    This way nothing is written into site-packages.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.origin is not None
    private = folder / "tensorrt_rtx_libs"
    private.mkdir()
    for path in Path(spec.origin).parent.iterdir():
        if path.name != "__pycache__":
            (private / path.name).symlink_to(path)
    missing = private / "libtensorrt_rtx.so"
    if not missing.exists():
        missing.symlink_to("libtensorrt_rtx.so.1")
    sys.path.insert(0, str(folder))


def _folder() -> Path:
    return Path(os.environ.get("YOLACT_TENSORRT_BINDINGS") or cache_root() / "tensorrt-bindings")


def _bindings(version: str) -> Path:
    # They are extension modules, so each Python has its own.
    return _folder() / f"{version}-{sys.implementation.cache_tag}"


def _stubs(version: str) -> list[Path]:
    major = version.partition(".")[0]
    return [_folder() / f"stubs-{major}" / f"lib{name}.so.{major}" for name in _LIBRARIES]


def _download(version: str) -> None:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        command = ["download", "--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "10"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *command, "--quiet", "--dest", name, WHEELS[version]],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(temporary.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip gave no reason"]
            raise UnavailableError(f"pip cannot download {WHEELS[version]}: {lines[-1]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(temporary / "unpacked")
        _move(temporary / "unpacked", _bindings(version))


def _compile_stubs(version: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    libraries = _stubs(version)
    if all(library.exists() for library in libraries):
        return
    if compiler is None:
        raise UnavailableError("no C compiler for the stub libraries")
    with tempfile.TemporaryDirectory(dir=_folder()) as name:
        made = Path(name) / "stubs"
        made.mkdir()
        source = Path(__file__).with_name("stub.c")
        for library in libraries:
            options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(made / library.name)]
            subprocess.run([compiler, *options, str(source)], check=True)
        _move(made, libraries[0].parent)


def _move(made: Path, target: Path) -> None:
    """Rename into place, unless another process was faster."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise
