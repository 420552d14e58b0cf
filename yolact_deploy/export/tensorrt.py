"""An exported ONNX file to a TensorRT engine; needs no torch, so it also runs on a Jetson.

The networks are strongly typed: precision is what the ONNX file says, and one path serves TensorRT 10, 11 and TensorRT
for RTX. The file's metadata becomes the network's name, so that the engine is a plain plan which any tool can load.
TensorRT for RTX builds without a GPU.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import Metadata, atomic_write
from yolact_deploy.errors import ExportError, MissingDependencyError, OutputError, import_optional
from yolact_deploy.runtime.onnx_graph import onnx_metadata, read_onnx

FLAVOURS = ("tensorrt", "rtx")

#: called with the phase's name, the steps done and the steps in all
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EngineReport:
    """What a build made."""

    path: Path
    flavour: str
    version: str
    bytes: int
    seconds: float


def import_tensorrt(flavour: str) -> Any:
    """The Python module of "tensorrt" or of "rtx"; raises :class:`MissingDependencyError`."""
    if flavour == "rtx":
        import_optional("tensorrt_rtx_libs", "rtx", "Building an engine for TensorRT for RTX")
        return import_optional("tensorrt_rtx_bindings", "rtx", "Building an engine for TensorRT for RTX")
    return import_optional("tensorrt", "tensorrt", "Building a TensorRT engine")


def available_flavour() -> str | None:
    """The flavour that "auto" means here: TensorRT where it is installed, else TensorRT for RTX, else None."""
    for flavour in FLAVOURS:
        try:
            import_tensorrt(flavour)
        except MissingDependencyError:
            continue
        return flavour
    return None


def build_engine(
    onnx_path: str | os.PathLike[str],
    engine_path: str | os.PathLike[str],
    *,
    flavour: str = "auto",
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    target_sm: str | None = None,
    progress: Progress | None = None,
) -> EngineReport:
    """Build the engine of an ONNX file exported by this package.

    Args:
        flavour: "tensorrt", "rtx" or "auto"
        workspace_mib: limit of the scratch memory; TensorRT's default is the whole device
        optimization_level: 0 (fast build) to 5 (fast engine); TensorRT's default is 3
        target_sm: compute capability to build for, such as "89" (RTX only); by default portable from 8.0 on
        progress: told of each step

    Raises:
        ArtifactError: not one of our ONNX files.
        MissingDependencyError: no TensorRT of that flavour.
        ExportError: TensorRT cannot parse or build the network; the message names the node.
        OutputError: the engine cannot be written.
    """
    if Path(engine_path).resolve() == Path(onnx_path).resolve():
        raise OutputError(f"the engine would overwrite {onnx_path}: give it another name with -o")
    model = read_onnx(onnx_path)
    metadata = onnx_metadata(model, onnx_path)
    chosen = available_flavour() if flavour == "auto" else flavour
    if chosen is None:
        raise MissingDependencyError(
            "no TensorRT is installed. For RTX cards: python -m pip install 'yolact-deploy[rtx]'; "
            "for servers: 'yolact-deploy[tensorrt]'; on a Jetson it comes with JetPack"
        )
    if target_sm is not None and chosen != "rtx":
        raise ExportError("--target-sm is for TensorRT for RTX; TensorRT builds for the GPU it runs on")
    trt = import_tensorrt(chosen)
    options = _Options(workspace_mib, optimization_level, _capability(trt, target_sm))
    start = time.perf_counter()
    with atomic_write(engine_path) as temporary:
        plan = _Build(trt, chosen, metadata, options, progress).run(model.SerializeToString(), str(onnx_path))
        temporary.write_bytes(plan)
    seconds = time.perf_counter() - start
    return EngineReport(Path(engine_path), chosen, trt.__version__, len(plan), seconds)


def _capability(trt: Any, target_sm: str | None) -> Any:
    if target_sm is None:
        return None
    known = trt.ComputeCapability.__members__
    name = f"SM{target_sm.upper().removeprefix('SM').replace('.', '')}"
    if name not in known:
        raise ExportError(f"unknown compute capability {target_sm!r}; known are {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class _Options:
    workspace_mib: int | None
    optimization_level: int | None
    capability: Any


class _Build:
    """One build with one TensorRT.

    TensorRT's objects depend on each other's lifetimes, and an exception's traceback keeps them alive in no order. So
    they all live and die inside :meth:`_make`, which raises nothing but reports what went wrong.
    """

    def __init__(
        self, trt: Any, flavour: str, metadata: Metadata, options: _Options, progress: Progress | None
    ) -> None:
        self.trt = trt
        self.flavour = flavour
        self.options = options
        self.progress = progress
        self.logger = _logger(flavour)
        self.interrupted = threading.Event()
        versions = {**metadata.versions, flavour: trt.__version__}
        self.metadata = dataclasses.replace(metadata, versions=versions)

    def run(self, onnx_bytes: bytes, source: str) -> bytes:
        """The plan; raises :class:`ExportError` with TensorRT's reasons, or KeyboardInterrupt."""
        self.logger.errors.clear()
        with self._interruptible():
            plan, step, reason = self._make(onnx_bytes)
        if self.interrupted.is_set():
            raise KeyboardInterrupt
        if plan is None:
            raise ExportError(f"TensorRT {self.trt.__version__} cannot {step} {source}: {reason}")
        return plan

    def _make(self, onnx_bytes: bytes) -> tuple[bytes | None, str, str]:
        """The plan, or None and the step that failed and why."""
        builder = self.trt.Builder(self.logger)
        network = builder.create_network(self._network_flags())
        parser = self.trt.OnnxParser(network, self.logger)
        config = builder.create_builder_config()
        # TensorRT keeps no reference to the monitor, nor to the parser whose memory the network's weights are.
        monitor = _make_monitor(self.trt, self.progress, self.interrupted)
        plan, step, reason = None, "parse", self._parse(parser, onnx_bytes)
        if not reason:
            network.name = self.metadata.to_json()
            self._configure(config)
            self._add_profile(builder, network, config)
            config.progress_monitor = monitor
            memory = builder.build_serialized_network(network, config)
            plan = None if memory is None else bytes(memory)
            step, reason = "build", self._complaints()
            del memory
        del config, monitor, parser, network, builder
        return plan, step, reason

    def _network_flags(self) -> int:
        """Strong typing is a flag in TensorRT 10 and the only way in 11 and RTX."""
        flags = self.trt.NetworkDefinitionCreationFlag
        return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") and self.flavour != "rtx" else 0

    def _parse(self, parser: Any, onnx_bytes: bytes) -> str:
        """Parse, and say what is wrong; empty when nothing is."""
        if parser.parse(onnx_bytes):
            return ""
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        told = [f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" for error in errors]
        return "; ".join(told) or self._complaints()

    def _configure(self, config: Any) -> None:
        if self.options.workspace_mib is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, self.options.workspace_mib << 20)
        if self.options.optimization_level is not None:
            config.builder_optimization_level = self.options.optimization_level
        if self.options.capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(self.options.capability, 0)

    def _add_profile(self, builder: Any, network: Any, config: Any) -> None:
        images = network.get_input(0)
        shape = tuple(images.shape)
        if shape[0] != -1:
            return
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, *((count, *shape[1:]) for count in self.metadata.batch))
        config.add_optimization_profile(profile)

    def _complaints(self) -> str:
        return "; ".join(self.logger.errors) or "no reason given"

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C or SIGTERM cancel the build at its next step: no exception may travel through TensorRT."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, lambda *_: self.interrupted.set()) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, previous, strict=True):
                signal.signal(number, handler)


@lru_cache
def _logger(flavour: str) -> Any:
    """One logger a process: TensorRT keeps a pointer to the first it was given, for good."""
    trt = import_tensorrt(flavour)

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]  # the base class is only known at run time
        """Keeps TensorRT's errors for our own message."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Logger()


def _make_monitor(trt: Any, progress: Progress | None, interrupted: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Hands TensorRT's progress on, and stops the build when it was interrupted."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.pop(phase_name, 0))

        def _tell(self, phase: str, done: int) -> None:
            if progress is not None:
                progress(phase, done, self._steps.get(phase, done))

    return Monitor()
