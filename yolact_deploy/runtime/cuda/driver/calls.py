"""Calls of the CUDA driver: starting it, and turning its error codes into errors with a cure."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from yolact_deploy.errors import BackendError, import_optional

#: CUDA 12 introduced the present signatures for instantiating graphs and for events that other threads wait for
OLDEST_DRIVER = 12000
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CURE_FORK = (
    "this process was forked after its parent used the GPU, and CUDA does not survive a fork. Start workers with "
    "multiprocessing.get_context('spawn'), or load the model only in the worker"
)
_CURES = {
    "CUDA_ERROR_NO_DEVICE": "check with nvidia-smi that the GPU is visible; CUDA_VISIBLE_DEVICES may hide it",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver's kernel module and library differ: restart the machine after "
    "updating the driver",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "this GPU cannot use the CUDA forward-compatibility package: remove "
    "it (cuda-compat) or update the driver",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the driver is older than the CUDA that compiled the kernel: update the "
    "driver, or install an older nvidia-cuda-nvrtc",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the kernel was compiled for another GPU: compile it for this one",
    "CUDA_ERROR_INVALID_SOURCE": "the kernel's binary is damaged: delete the kernel cache",
    "CUDA_ERROR_INVALID_IMAGE": "the kernel's binary is damaged or for another GPU: delete the kernel cache",
    "CUDA_ERROR_INVALID_CONTEXT": "call Device.use() in this thread first",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel read or wrote outside its buffers; this process cannot use the GPU any "
    "more. compute-sanitizer can identify the kernel",
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel crashed; this process cannot use the GPU any more. compute-sanitizer can "
    "identify the kernel",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "a kernel ran longer than the display's watchdog allows",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "the kernel needs more registers or shared memory than this GPU has: use "
    "smaller blocks",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process holds the GPU in exclusive mode: see nvidia-smi",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory has an uncorrectable error: reset the GPU",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "the captured work contains something that cannot be captured: an "
    "allocation, a wait for the GPU, or the default stream. Run it once before capturing, so that it has allocated "
    "what it needs, or run it without a graph",
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": "an earlier call cannot be captured: an allocation, a wait for the GPU, "
    "or the default stream. Run the work once before capturing it, or run it without a graph",
    "CUDA_ERROR_STREAM_CAPTURE_UNJOINED": "work on another stream was captured, but the captured stream did not wait "
    "for it",
    "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD": "end the capture in the thread that began it",
}  # fmt: skip


class CudaError(BackendError):
    """A failed call of the CUDA driver.

    Attributes:
        call: name of the call, "cuMemAlloc"
        code: number of the error, 2
        code_name: its name, "CUDA_ERROR_OUT_OF_MEMORY"
    """

    def __init__(self, message: str, call: str = "", code: int = 0, code_name: str = "") -> None:
        super().__init__(message)
        self.call = call
        self.code = code
        self.code_name = code_name

    def during(self, doing: str) -> CudaError:
        """The same error, preceded by what the call was for."""
        return CudaError(f"{doing}: {self}", self.call, self.code, self.code_name)


#: what cuda-python raises for the codes of a newer driver: KeyError in 13.0, ValueError in other versions
_UNKNOWN_CODE = (ValueError, KeyError)

_lock = threading.Lock()
_bindings: Any = None
_forked = False


def start() -> Any:
    """The module ``cuda.bindings.driver``, after starting the driver.

    Raises:
        MissingDependencyError: cuda-python is not installed.
        BackendError: there is no driver, it is too old, or this is a forked child of a process that used it.
    """
    global _bindings
    if _forked:
        raise BackendError(f"CUDA cannot be used here: {_CURE_FORK}")
    with _lock:
        if _bindings is None:
            _bindings = _start()
            os.register_at_fork(after_in_child=_after_fork)
    return _bindings


def _after_fork() -> None:
    global _forked
    _forked = True


def forked() -> bool:
    """Whether this is a forked child of a process that started the driver; the child must not free its objects."""
    return _forked


def _start() -> Any:
    bindings: Any = import_optional("cuda.bindings.driver", extra="cuda", purpose="Using the GPU")
    try:
        (error,) = bindings.cuInit(0)
    except _UNKNOWN_CODE as reason:
        raise _unknown_code("cuInit", reason) from reason
    except RuntimeError as reason:
        # The import works without a driver; the library is loaded by the first call.
        raise BackendError(
            f"no NVIDIA driver here ({LIBRARY} cannot be loaded): use a machine with an NVIDIA GPU and its driver; in "
            "a container, start it with --gpus all (Jetson: --runtime nvidia)"
        ) from reason
    if error:
        raise failure("cuInit", error, bindings=bindings)
    version = bindings.cuDriverGetVersion()[1]
    if version < OLDEST_DRIVER:
        raise BackendError(
            f"the NVIDIA driver supports CUDA {version_text(version)}, but {version_text(OLDEST_DRIVER)} or later is "
            "required. Update the driver (on Jetson: JetPack 6 or later)"
        )
    return bindings


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def driver_version() -> int:
    """The newest CUDA that the driver supports: 12060 is CUDA 12.6."""
    return int(call("cuDriverGetVersion"))


def version_text(version: int) -> str:
    """
    >>> version_text(12060)
    '12.6'
    """
    return f"{version // 1000}.{version % 1000 // 10}"


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver and return its result (a tuple if there are several), or raise :class:`CudaError`.

    Only for setup; calls made for every frame go to the bindings directly.
    """
    bindings = start()
    try:
        error, *values = getattr(bindings, name)(*arguments)
    except _UNKNOWN_CODE as reason:
        raise _unknown_code(name, reason) from reason
    except (RuntimeError, AttributeError) as reason:
        # cuda-python has the function and the driver does not, or the other way round.
        raise CudaError(
            f"{name} cannot be called: {_one_line(reason)}. The driver supports CUDA "
            f"{version_text(bindings.cuDriverGetVersion()[1])}: update it, or install the cuda-python of its version",
            name,
        ) from reason
    if error:
        raise failure(name, error)
    return values[0] if len(values) == 1 else tuple(values)


def code_of(name: str, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """The error code of a function that returns nothing else, called directly; false if it succeeded."""
    try:
        (error,) = function(*arguments)
    except _UNKNOWN_CODE as reason:
        raise _unknown_code(name, reason) from reason
    return error


def check(name: str, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
    """Call a function that returns nothing but an error code; raise that error."""
    if error := code_of(name, function, *arguments):
        raise failure(name, error)


def _unknown_code(name: str, reason: Exception) -> Exception:
    """The error for a code that cuda-python does not know; other errors are returned unchanged."""
    known = isinstance(reason.args[0], int) if isinstance(reason, KeyError) else "CUresult" in str(reason)
    if not known:
        return reason
    text = f"{reason.args[0]} is not a valid CUresult" if isinstance(reason, KeyError) else _one_line(reason)
    return CudaError(f"{name} failed, and cuda-python does not know its code ({text}): update it", name)


def failure(name: str, error: Any, doing: str = "", *, bindings: Any = None) -> CudaError:
    """The error to raise for a code that the function ``name`` returned.

    Args:
        error: the CUresult, or its number
        doing: what the call was for, unless its name is enough
    """
    code = int(error)
    code_name, meaning = _describe(_bindings if bindings is None else bindings, code)
    message = f"{doing}: " if doing else ""
    message += f"{name} failed with {code_name}" + (f" ({meaning})" if meaning else "")
    cure = _CURE_FORK if _forked else _CURES.get(code_name, "")
    return CudaError(f"{message}. {cure[:1].upper()}{cure[1:]}" if cure else message, name, code, code_name)


def _describe(bindings: Any, code: int) -> tuple[str, str]:
    """Name and meaning of a code; cuda-python does not know all codes of a newer driver."""
    try:
        error = bindings.CUresult(code)
    except _UNKNOWN_CODE:
        return f"error {code}", ""
    texts = bindings.cuGetErrorName(error)[1], bindings.cuGetErrorString(error)[1]
    name, meaning = ("" if text is None else text.decode(errors="replace") for text in texts)
    return name or f"error {code}", meaning


@functools.cache
def blocking(name: str, version: int) -> Callable[[int], int]:
    """A driver function that takes one handle and waits, called so that the GIL is released while it waits.

    cuda-python 12 holds the GIL during every call, so that all threads would wait for the GPU.

    Args:
        version: the CUDA version that introduced the function's signature
    """
    bindings = start()
    flags = bindings.CUdriverProcAddress_flags.CU_GET_PROC_ADDRESS_DEFAULT
    address = call("cuGetProcAddress", name.encode(), version, flags)[0]
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    function: Callable[[int], int] = prototype(int(address))
    return function


def release(context: Any, name: str, handle: Any) -> None:
    """Free an object of a context from any thread, even while this thread captures a graph.

    Errors are ignored: they come from earlier work or from a destroyed context.
    """
    if _forked or _bindings is None:
        return
    relaxed = _bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    error, mode = _bindings.cuThreadExchangeStreamCaptureMode(relaxed)
    (pushed,) = _bindings.cuCtxPushCurrent(context)
    with contextlib.suppress(*_UNKNOWN_CODE):
        getattr(_bindings, name)(handle)
    if not pushed:
        _bindings.cuCtxPopCurrent()
    if not error:
        _bindings.cuThreadExchangeStreamCaptureMode(mode)
