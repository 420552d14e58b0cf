"""A CUDA driver for tests on machines without a GPU: see README.md.

env = fake_cuda.environment(devices=2)         # for subprocess.run: a process that "has" two GPUs
done = fake_cuda.run_python("...", memory=2**20)
control = fake_cuda.Control()                  # in such a process: counters, errors to inject, leaks
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
SETTINGS = ("devices", "version", "memory", "capability", "integrated", "name", "null", "order", "fail", "kernels")
FLAGS = ("-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden")


def why_not() -> str:
    """Why the fake driver cannot be used, or an empty string."""
    if sys.platform != "linux":
        return "the fake CUDA driver is for Linux"
    if shutil.which("g++") is None:
        return "the fake CUDA driver needs g++"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "cuda-python is not installed"
    return ""


def library() -> Path:
    """``libcuda.so.1``, compiled when its sources change, in a separate folder."""
    return compiled(sorted((FOLDER / "src").iterdir()), "libcuda.so.1")


def sample_kernels() -> Path:
    """A library with the kernels of sample_kernels.cpp."""
    return compiled([FOLDER / "sample_kernels.cpp"], "sample_kernels.so")


def compiled(sources: list[Path], name: str) -> Path:
    """A shared library of C++ sources (and headers), cached by their contents."""
    text = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sources:
        text.update(source.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"yolact-deploy-tests-{os.getuid()}" / f"fake_cuda-{text.hexdigest()[:16]}"
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{os.getpid()}.so"  # several test runs may compile at once
        files = [str(source) for source in sources if source.suffix == ".cpp"]
        command = ["g++", *FLAGS, f"-Wl,-soname,{name}", "-o", str(fresh), *files, "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        fresh.replace(target)
    return target


def environment(**settings: object) -> dict[str, str]:
    """The environment of a process with the fake driver.

    Args:
        settings: those of README.md, in lower case: ``devices=2`` is FAKE_CUDA_DEVICES=2
    """
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise TypeError(f"unknown settings of the fake CUDA driver: {unknown}, expected some of {SETTINGS}")
    env = {name: value for name, value in os.environ.items() if not name.startswith("FAKE_CUDA_")}
    folders = [str(library().parent), *filter(None, [env.get("LD_LIBRARY_PATH")])]
    env["LD_LIBRARY_PATH"] = ":".join(folders)
    env["PYTHONPATH"] = ":".join(
        [str(FOLDER.parent), str(FOLDER.parent.parent), *filter(None, [env.get("PYTHONPATH")])]
    )
    env["FAKE_CUDA_STRICT"] = "1"
    for name, value in settings.items():
        env[f"FAKE_CUDA_{name.upper()}"] = str(int(value)) if isinstance(value, bool) else str(value)
    return env


def run_python(code: str, *, timeout: float = 120.0, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a separate process with the fake driver; it exits with status 97 if it leaks."""
    command = [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code]
    return subprocess.run(
        command, env=environment(**settings), capture_output=True, text=True, timeout=timeout, check=False
    )


class Control:
    """The fake driver of this process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        if not hasattr(self._library, "fake_calls"):
            raise RuntimeError("this process has a real CUDA driver, or none: start it with fake_cuda.environment()")
        self._library.fake_calls.restype = ctypes.c_long
        self._library.fake_leaks.restype = ctypes.c_char_p
        self._library.fake_register_image.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p]
        self._library.cuLaunchHostFunc.argtypes = [ctypes.c_void_p] * 3
        self._callbacks: list[Any] = []
        #: what host functions raised
        self.errors: list[BaseException] = []

    def calls(self, function: str) -> int:
        """How often a function of the driver was called: ``calls("cuMemAlloc")``."""
        return int(self._library.fake_calls(function.encode()))

    def reset_calls(self) -> None:
        """Reset the counters to zero."""
        self._library.fake_reset_calls()

    def fail(self, function: str, code: int, nth: int = 1) -> None:
        """Let the ``nth`` call from now on fail with a code; ``nth=0`` cancels that."""
        self._library.fake_fail(function.encode(), ctypes.c_long(nth), code)

    def eager(self, on: bool = True) -> None:
        """Run work when it is enqueued instead of when something waits for it."""
        self._library.fake_set_eager(int(on))

    def null(self, on: bool = True) -> None:
        """Skip copies, fills, kernels and host functions."""
        self._library.fake_set_null(int(on))

    def leaks(self) -> str:
        """What is currently not freed: "2 device buffers, 1 streams"."""
        return str(self._library.fake_leaks().decode())

    def register(self, image: bytes, kernels: Path) -> None:
        """Let a module image (cubin, PTX) stand for a library of emulated kernels."""
        self._library.fake_register_image(image, len(image), str(kernels).encode())

    def allocate_in_a_context_of_its_own(self, nbytes: int) -> int:
        """Device memory of a library that does not use the primary context."""
        context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
        errors = [
            self._library.cuCtxCreate_v2(ctypes.byref(context), 0, 0),
            self._library.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(nbytes)),
            self._library.cuCtxPopCurrent_v2(None),
        ]
        if any(errors):
            raise RuntimeError(f"the fake driver failed with {errors}")
        return pointer.value

    def free(self, pointer: int) -> None:
        """Free device memory of any context."""
        if self._library.cuMemFree_v2(ctypes.c_uint64(pointer)):
            raise RuntimeError("no such memory")

    def sleep(self, stream: int, milliseconds: int) -> None:
        """Enqueue or capture work that takes some time."""
        if self._library.fake_sleep(ctypes.c_void_p(stream), milliseconds):
            raise RuntimeError("no such stream")

    def host_function(self, stream: int, function: Callable[[], object]) -> None:
        """Enqueue or capture a Python function; it may use device memory but must not call CUDA."""

        def run(_: int | None) -> None:
            try:
                function()
            except BaseException as error:  # it would be lost in the driver
                self.errors.append(error)

        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(run)
        self._callbacks.append(callback)
        error = self._library.cuLaunchHostFunc(stream, ctypes.cast(callback, ctypes.c_void_p), None)
        if error:
            raise RuntimeError(f"cuLaunchHostFunc failed with {error}")


def image_of(kernels: Path) -> bytes:
    """A module image for ``cuModuleLoadData`` that names a library of emulated kernels."""
    return b"FAKECUDA:" + str(kernels).encode()


_control: Control | None = None
_control_lock = threading.Lock()


def control() -> Control:
    """The single control of this process, which keeps host functions alive."""
    global _control
    with _control_lock:
        if _control is None:
            _control = Control()
    return _control
