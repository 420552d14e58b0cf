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
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import Metadata, atomic_write
from yolact_deploy.errors import ExportError, MissingDependencyError, import_optional
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
    start = time.perf_counter()
    with atomic_write(engine_path) as temporary:
        plan = _Build(trt, chosen, onnx_path, progress).run(
            model.SerializeToString(), metadata, workspace_mib, optimization_level, target_sm
        )
        temporary.write_bytes(memoryview(plan))
    seconds = time.perf_counter() - start
    return EngineReport(Path(engine_path), chosen, trt.__version__, plan.nbytes, seconds)


class _Build:
    """One build with one TensorRT."""

    def __init__(self, trt: Any, flavour: str, source: str | os.PathLike[str], progress: Progress | None) -> None:
        self.trt = trt
        self.flavour = flavour
        self.source = source
        self.progress = progress
        self.logger = _quiet_logger(trt)
        self.interrupted = threading.Event()

    def run(
        self,
        onnx_bytes: bytes,
        metadata: Metadata,
        workspace_mib: int | None,
        optimization_level: int | None,
        target_sm: str | None,
    ) -> Any:
        trt = self.trt
        builder = trt.Builder(self.logger)
        network = builder.create_network(self._network_flags())
        # The network's weights are the parser's memory, so both it and the bytes must outlive the build.
        parser = self._parse(network, onnx_bytes)
        versions = {**metadata.versions, self.flavour: trt.__version__}
        network.name = dataclasses.replace(metadata, versions=versions).to_json()
        config = builder.create_builder_config()
        if workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        if optimization_level is not None:
            config.builder_optimization_level = optimization_level
        if target_sm is not None:
            self._target(config, target_sm)
        self._add_profile(builder, network, config, metadata)
        # The monitor must outlive the build: TensorRT keeps no reference to it.
        monitor = _make_monitor(trt, self.progress, self.interrupted)
        config.progress_monitor = monitor
        with self._interruptible():
            plan = builder.build_serialized_network(network, config)
        del parser
        if self.interrupted.is_set():
            raise KeyboardInterrupt
        if plan is None:
            raise ExportError(f"TensorRT cannot build {self.source}: {self._complaints()}")
        return plan

    def _network_flags(self) -> int:
        """Strong typing is a flag in TensorRT 10 and the only way in 11 and RTX."""
        flags = self.trt.NetworkDefinitionCreationFlag
        return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") and self.flavour != "rtx" else 0

    def _parse(self, network: Any, onnx_bytes: bytes) -> Any:
        parser = self.trt.OnnxParser(network, self.logger)
        if parser.parse(onnx_bytes):
            return parser
        errors = []
        for i in range(parser.num_errors):
            error = parser.get_error(i)
            errors.append(f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}")
        reasons = "; ".join(errors) or self._complaints()
        raise ExportError(f"TensorRT {self.trt.__version__} cannot parse {self.source}: {reasons}")

    def _target(self, config: Any, target_sm: str) -> None:
        known = self.trt.ComputeCapability.__members__
        name = f"SM{target_sm.upper().removeprefix('SM').replace('.', '')}"
        if name not in known:
            raise ExportError(f"unknown compute capability {target_sm!r}; known are {', '.join(known)}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(known[name], 0)

    def _add_profile(self, builder: Any, network: Any, config: Any, metadata: Metadata) -> None:
        images = network.get_input(0)
        shape = tuple(images.shape)
        if shape[0] != -1:
            return
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, *((count, *shape[1:]) for count in metadata.batch))
        config.add_optimization_profile(profile)

    def _complaints(self) -> str:
        return "; ".join(self.logger.errors) or "no reason given; try --debug"

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C cancel the build at its next step: an exception must not travel through TensorRT."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, lambda *_: self.interrupted.set())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


def _quiet_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is only known at run time
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
