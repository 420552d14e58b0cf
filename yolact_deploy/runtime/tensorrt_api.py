"""The Python module of TensorRT, and the only place that handles the differences between its versions.

The two flavours, "tensorrt" (10.3 of JetPack 6 to 11.4) and "rtx" (TensorRT for RTX), have nearly the same module.
Everything that differs between 10.3, 10.13, 10.16, 11.4 and RTX 1.7 is called here; ``tests/test_tensorrt_api.py``
checks this module and its callers against NVIDIA's bindings of each version.

Modules are ``Any``, since the choice is made at run time.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from yolact_deploy.errors import BackendError, ExportError, MissingDependencyError, import_optional
from yolact_deploy.machine.nvidia import has_gpu
from yolact_deploy.vocabulary import FLAVOURS

# -- the modules ----------------------------------------------------------------------------------------------------


def import_tensorrt(flavour: str, purpose: str = "Building or running an engine") -> Any:
    """The Python module of "tensorrt" or "rtx".

    Args:
        purpose: starts the error message

    Raises:
        MissingDependencyError: it is not installed.
    """
    purpose = f"{purpose} with {FLAVOURS[flavour]}"
    if flavour == "rtx":
        import_optional("tensorrt_rtx_libs", "rtx", purpose)
        return import_optional("tensorrt_rtx_bindings", "rtx", purpose)
    return import_optional("tensorrt", "tensorrt", purpose)


def available_flavour() -> str | None:
    """The flavour for "auto": TensorRT if it is installed and a GPU is here, else TensorRT for RTX, else TensorRT."""
    installed = []
    for flavour in FLAVOURS:
        try:
            import_tensorrt(flavour)
        except MissingDependencyError:
            continue
        installed += [flavour]
    # TensorRT builds for the GPU it runs on, TensorRT for RTX without any.
    return next(iter(installed if has_gpu() else installed[::-1]), None)


def version(trt: Any) -> tuple[int, ...]:
    """The version as numbers: (10, 3, 0), (11, 4, 0, 106), and for RTX (1, 7, 1, 116)."""
    return tuple(int(part) for part in trt.__version__.split(".") if part.isdigit())


# -- messages of TensorRT -------------------------------------------------------------------------------------------

_loggers: dict[str, Any] = {}
_runtimes: dict[str, Any] = {}
_making = threading.Lock()


def logger(flavour: str) -> Any:
    """The one ``trt.ILogger`` of the process: TensorRT keeps a pointer to the first one forever."""
    with _making:
        if flavour not in _loggers:
            _loggers[flavour] = _make_logger(import_tensorrt(flavour))
        return _loggers[flavour]


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is only known at run time
        """Passes errors to the listeners; TensorRT calls it from its own threads."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listeners: list[list[str]] = []
            self.lock = threading.Lock()

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                with self.lock:
                    for messages in self.listeners:
                        messages.append(msg.strip())

    return Logger()


@contextmanager
def complaints(flavour: str) -> Iterator[list[str]]:
    """A list that collects the errors that TensorRT reports inside the block, from any thread."""
    source = logger(flavour)
    errors: list[str] = []
    with source.lock:
        source.listeners.append(errors)
    try:
        yield errors
    finally:
        with source.lock:
            source.listeners[:] = [other for other in source.listeners if other is not errors]


# -- building -------------------------------------------------------------------------------------------------------


def network_flags(trt: Any, flavour: str, *, ahead_of_time: bool = False) -> int:
    """Flags of ``Builder.create_network`` for a strongly typed network.

    Strong typing is a flag in TensorRT 10 and the only mode in 11 and RTX.

    Args:
        ahead_of_time: prefer the ahead-of-time implementation of plugins that also have a Python one
    """
    flags = trt.NetworkDefinitionCreationFlag
    chosen = 1 << int(flags.STRONGLY_TYPED) if flavour == "tensorrt" and version(trt) < (11,) else 0
    if ahead_of_time and hasattr(flags, "PREFER_AOT_PYTHON_PLUGINS"):
        chosen |= 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    return chosen


def set_tf32(trt: Any, config: Any, allowed: bool) -> None:
    """Whether products of FP32 may round their factors to TF32, which TensorRT does unless it is told not to."""
    (config.set_flag if allowed else config.clear_flag)(trt.BuilderFlag.TF32)


def set_layer_details(trt: Any, config: Any) -> None:
    """Let the engine know the tactics and tensors of its layers, and not only their names."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def target_names(trt: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    """RTX's names of compute capabilities: ("SM86", "SM89") for "8.6" and "sm_89".

    Raises:
        ExportError: this RTX does not support one, or "current" is combined with others.
    """
    known = trt.ComputeCapability.__members__
    names = []
    for text in wanted:
        number = text.strip().upper().removeprefix("SM").removeprefix("_").replace(".", "")
        name = number if number == "CURRENT" else f"SM{number}"
        if name not in known:
            choices = ", ".join(name for name in known if name != "NONE")
            raise ExportError(f"--target-sm: expected one of {choices}, got {text!r}")
        names.append(name)
    names = sorted(set(names), key=names.index)
    if "CURRENT" in names and len(names) > 1:
        raise ExportError("--target-sm: CURRENT, the GPU of this machine, cannot be combined with others")
    return tuple(names)


def set_targets(trt: Any, config: Any, targets: tuple[str, ...]) -> bool:
    """Build for the compute capabilities from :func:`target_names` (RTX only); none means portable.

    Returns whether RTX accepts them all.
    """
    if not targets:
        return True
    config.num_compute_capabilities = len(targets)
    known = trt.ComputeCapability.__members__
    return all(config.set_compute_capability(known[name], index) for index, name in enumerate(targets))


def set_timing_cache(config: Any, flavour: str, data: bytes) -> Any | None:
    """Let the builder start with the timings of an earlier build and add its own.

    Returns the cache, which must outlive the builder; None without one: on RTX, which times nothing at build time, and
    if TensorRT cannot make one.

    Args:
        data: from :func:`timing_cache`; ignored if another version or GPU wrote it
    """
    if flavour == "rtx":
        return None
    for content in (data, b""):
        cache = config.create_timing_cache(content)  # None for bytes that are no timings
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def timing_cache(config: Any) -> bytes | None:
    """The timings after a build with :func:`set_timing_cache`; None if TensorRT has none."""
    cache = config.get_timing_cache()
    memory = None if cache is None else cache.serialize()
    return None if memory is None else bytes(memory)


# -- running --------------------------------------------------------------------------------------------------------


def load_engine(flavour: str, plan: Any, source: str) -> Any:
    """Deserialize a plan into a ``trt.ICudaEngine`` on the GPU whose context is current in this thread.

    Args:
        plan: bytes of the file, or a buffer such as an ``mmap``
        source: name of the file for the message

    Raises:
        BackendError: TensorRT rejects the plan (other version or GPU), or there is no driver.
    """
    trt = import_tensorrt(flavour)
    with complaints(flavour) as errors:
        runtime = _runtime(trt, flavour)
        reason = _refusal(trt, runtime, plan)
        engine = None if reason else runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reasons = "; ".join([reason] if reason else errors) or "no reason given"
        raise BackendError(
            f"{FLAVOURS[flavour]} {trt.__version__} cannot load {source} here: {reasons}. "
            f"Build it on this machine with: yolact-deploy build MODEL.onnx --engine {flavour}"
        )
    return engine


def _runtime(trt: Any, flavour: str) -> Any:
    """The one ``trt.Runtime`` of the process; all engines share it, and it must outlive them."""
    source = logger(flavour)
    with _making:
        if flavour not in _runtimes:
            try:
                _runtimes[flavour] = trt.Runtime(source)
            except (TypeError, RuntimeError) as error:  # pybind11 raises these for a null pointer
                raise BackendError(
                    f"{FLAVOURS[flavour]} {trt.__version__} cannot start: there is no NVIDIA driver, or no GPU that it "
                    "supports. Run yolact-deploy doctor for details"
                ) from error
        return _runtimes[flavour]


def _refusal(trt: Any, runtime: Any, plan: Any) -> str:
    """Why a plan does not run here, which RTX reads from its header; empty without a reason, and on TensorRT."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    validity, diagnostics = runtime.get_engine_validity(bytes(plan[: runtime.engine_header_size]))
    if validity != trt.EngineValidity.INVALID:
        return ""
    # Without a driver no reason is given; deserializing then reports it.
    known = trt.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(name.lower().replace("_", " ") for name, bit in known if int(diagnostics) & int(bit))


#: configuration and kernel cache of each RTX execution context, which must live as long as the context
_kept: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()


def create_context(
    trt: Any, flavour: str, engine: Any, *, user_memory: bool = False, kernels: bytes | None = None
) -> Any:
    """Create a ``trt.IExecutionContext`` of the engine.

    Args:
        user_memory: do not allocate scratch memory; pass :func:`scratch_bytes` to :func:`set_scratch` instead
        kernels: from :func:`compiled_kernels` after an earlier run, so that RTX does not compile them again

    Raises:
        BackendError: there is too little memory, or the engine is for another GPU.
    """
    strategies = trt.ExecutionContextAllocationStrategy
    strategy = strategies.USER_MANAGED if user_memory else strategies.STATIC
    with complaints(flavour) as errors:
        if flavour == "rtx":
            context = _create_rtx_context(trt, engine, strategy, kernels)
        else:
            context = engine.create_execution_context(strategy)
    if context is None:
        reasons = "; ".join(errors) or "no reason given"
        raise BackendError(
            f"{FLAVOURS[flavour]} {trt.__version__} cannot prepare the engine to run: {reasons}. "
            "Free some GPU memory or build the engine for this GPU"
        )
    return context


def _create_rtx_context(trt: Any, engine: Any, strategy: Any, kernels: bytes | None) -> Any:
    """Create a context; RTX compiles the kernels for this GPU that ``kernels`` does not hold."""
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    # Otherwise a captured graph would keep the generic kernels that run until the specialized ones are compiled.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the caller captures the whole frame
    cache = config.create_runtime_cache()
    if kernels:
        cache.deserialize(kernels)  # False for another version or GPU; the kernels are then compiled again
    config.set_runtime_cache(cache)
    context = engine.create_execution_context(config)
    if context is not None:
        _kept[context] = (config, cache)
    return context


def set_profile(context: Any, index: int, stream: int) -> bool:
    """Select an optimization profile of the context; returns whether TensorRT accepts it."""
    try:
        return bool(context.set_optimization_profile_async(index, stream))
    except RuntimeError:  # raised instead of returning False; the reason is in the log
        return False


def scratch_bytes(engine: Any, profile: int = 0) -> int:
    """Bytes of scratch memory that a context needs for one optimization profile."""
    return int(engine.get_device_memory_size_for_profile_v2(profile))


def set_scratch(context: Any, pointer: int, nbytes: int) -> None:
    """Set the scratch memory of a context created with ``user_memory``; it must outlive the use of the context."""
    context.set_device_memory(pointer, nbytes)


def capturable(context: Any, stream: int) -> bool:
    """Whether ``execute_async_v3`` can be captured into a CUDA graph with the current shapes."""
    return bool(context.is_stream_capturable(stream)) if hasattr(context, "is_stream_capturable") else True


def layer_facts(trt: Any, engine: Any) -> list[Any]:
    """The layers of an engine: a name each, or an object of facts if the engine was built with details."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, TypeError, KeyError) as error:
        raise BackendError(f"TensorRT {trt.__version__} describes the layers in another form: {error}") from error
    return list(layers)


@contextmanager
def layer_times(trt: Any, context: Any) -> Iterator[dict[str, float]]:
    """Milliseconds of each layer by its name, added up over the runs of the context inside the block."""
    times: dict[str, float] = {}

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the base class is only known at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name] = times.get(layer_name, 0.0) + ms

    profiler = Profiler()  # which TensorRT does not keep alive
    context.profiler = profiler
    yield times
    del profiler


def compiled_kernels(context: Any) -> bytes | None:
    """The kernels that RTX has compiled for this GPU, for a later :func:`create_context`; None on TensorRT."""
    if context not in _kept:
        return None
    memory = _kept[context][1].serialize()
    return None if memory is None else bytes(memory)


def numpy_dtype(trt: Any, data_type: Any) -> np.dtype[Any]:
    """The NumPy dtype of a ``trt.DataType``.

    Raises:
        BackendError: NumPy has none, as for bfloat16.
    """
    types = trt.DataType
    known = {
        types.FLOAT: np.float32,
        types.HALF: np.float16,
        types.INT32: np.int32,
        types.INT64: np.int64,
        types.UINT8: np.uint8,
        types.INT8: np.int8,
        types.BOOL: np.bool_,
    }
    if data_type not in known:
        raise BackendError(f"engines with {data_type} inputs or outputs are not supported: export the model again")
    return np.dtype(known[data_type])


#: what our ahead-of-time plugins need of the module ``tensorrt.plugin``
_AHEAD_OF_TIME = ("aot_impl", "KernelLaunchParams", "SymIntExprs", "SymInt32")

# -- plugins --------------------------------------------------------------------------------------------------------


def plugin_registry(trt: Any, flavour: str) -> Any:
    """The ``trt.IPluginRegistry`` of the process.

    Raises:
        BackendError: the RTX package lacks the file name that its parser loads.
    """
    if flavour == "rtx":
        _require_rtx_link()
    return trt.get_plugin_registry()


def _require_rtx_link() -> None:
    """For plugins, RTX's parser loads its library without the version in the name; if missing, the process ends."""
    folder = Path(import_optional("tensorrt_rtx_libs", "rtx", "TensorRT for RTX").__file__ or ".").parent
    link = folder / "libtensorrt_rtx.so"
    if not link.exists():
        raise BackendError(
            f"plugins on TensorRT for RTX require {link}, which its package lacks. Build with --plugin off, or create "
            f"the link: ln -s libtensorrt_rtx.so.1 {link}"
        )


def quick_plugins(trt: Any, flavour: str) -> Any | None:
    """The module ``tensorrt.plugin`` if it can build ahead of time (10.9 and later), else None; RTX has none.

    The module of 10.7 and 10.8 has plugins in Python only.
    """
    if flavour == "rtx" or version(trt) < (10, 7):  # importing what an earlier version lacks would log a warning
        return None
    try:
        quick = importlib.import_module("tensorrt.plugin")
    except ImportError:
        return None
    return quick if all(hasattr(quick, name) for name in _AHEAD_OF_TIME) else None
