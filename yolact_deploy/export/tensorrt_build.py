"""One build with one TensorRT: from the bytes of an ONNX file to the bytes of a plan.

`yolact_deploy.export.engine` chooses TensorRT and plugins, and handles caches, locks and files.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from yolact_deploy.errors import EngineBuildError
from yolact_deploy.runtime import tensorrt_api
from yolact_deploy.vocabulary import FLAVOURS

#: called with the name of the phase, the steps done and the total
Progress = Callable[[str, int, int], None]

#: smallest, usual and largest batch
Profile = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that a build depends on besides the network.

    Attributes:
        network_name: name of the network in the engine: our metadata
        workspace_mib: limit of the scratch memory; None leaves it to TensorRT
        optimization_level: 0 (fast build) to 5 (fast engine); None leaves it to TensorRT
        targets: compute capabilities as TensorRT for RTX names them; none means portable
        profiles: batches to optimize for, in the order of their numbers in the engine; used if the batch is dynamic
        sizes: smallest, usual and largest (height, width) of the input, if it takes a range of sizes
        tf32: round the factors of FP32 products to TF32
        ahead_of_time: use the ahead-of-time implementations of plugins
        layer_details: keep the tactics and tensors of layers in the engine
        timings: :attr:`Plan.timings` of an earlier build, empty if there was none; None uses no timing cache
    """

    network_name: str
    workspace_mib: int | None = None
    optimization_level: int | None = None
    targets: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    tf32: bool = False
    ahead_of_time: bool = False
    layer_details: bool = False
    timings: bytes | None = None


@dataclass(frozen=True)
class Plan:
    """The result of a build: the bytes of the engine, and its timing cache if one was used."""

    data: bytes
    timings: bytes | None = None


@dataclass(frozen=True)
class _BuildFailure:
    step: str
    reason: str


class Build:
    """One build.

    The objects of TensorRT depend on each other's lifetimes, and the traceback of an exception keeps them alive in no
    particular order. So all of them live and die inside :meth:`_make`, which returns failures instead of raising them.
    """

    def __init__(self, trt: Any, flavour: str, plan: BuildPlan, progress: Progress | None) -> None:
        self.trt = trt
        self.flavour = flavour
        self.plan = plan
        self.progress = progress
        self.interrupted = threading.Event()

    def run(self, onnx_bytes: bytes, source: str) -> Plan:
        """Build the plan.

        Raises:
            EngineBuildError: TensorRT cannot parse or build the network; the message has its reasons.
            KeyboardInterrupt: Ctrl-C or SIGTERM.
        """
        with tensorrt_api.complaints(self.flavour) as heard, self._interruptible():
            made = self._make(onnx_bytes, heard)
        if self.interrupted.is_set():
            raise KeyboardInterrupt
        if isinstance(made, _BuildFailure):
            name = f"{FLAVOURS[self.flavour]} {self.trt.__version__}"
            raise EngineBuildError(f"{name} cannot {made.step} {source}: {made.reason}")
        return made

    def _make(self, onnx_bytes: bytes, heard: list[str]) -> Plan | _BuildFailure:
        try:
            builder = self.trt.Builder(tensorrt_api.logger(self.flavour))
        except (TypeError, RuntimeError):  # pybind11 raises these for a null pointer
            return _BuildFailure("start to build", _reasons(heard))
        flags = tensorrt_api.network_flags(self.trt, self.flavour, ahead_of_time=self.plan.ahead_of_time)
        network = builder.create_network(flags)
        parser = self.trt.OnnxParser(network, tensorrt_api.logger(self.flavour))
        config = builder.create_builder_config()
        # TensorRT keeps no reference to the monitor, nor to the parser, which owns the memory of the weights.
        monitor = _make_monitor(self.trt, self.progress, self.interrupted)
        made: Plan | _BuildFailure
        times = memory = None
        try:
            if wrong := self._parse(parser, onnx_bytes, heard):
                made = _BuildFailure("parse", wrong)
            elif not tensorrt_api.set_targets(self.trt, config, self.plan.targets):
                made = _BuildFailure(f"build for {', '.join(self.plan.targets)} from", _reasons(heard))
            else:
                network.name = self.plan.network_name
                times = self._configure(builder, network, config)
                config.progress_monitor = monitor
                memory = builder.build_serialized_network(network, config)
                if memory is None:
                    made = _BuildFailure("build", _reasons(heard))
                else:
                    made = Plan(bytes(memory), None if times is None else tensorrt_api.timing_cache(config))
        except Exception as error:  # its traceback, which refers to the objects, ends with this block
            made = _BuildFailure("build", "; ".join([f"{type(error).__name__}: {error}", *heard]))
        del memory, times, config, monitor, parser, network, builder
        return made

    def _parse(self, parser: Any, onnx_bytes: bytes, heard: list[str]) -> str:
        """Parse the network; returns what is wrong, or an empty string."""
        if parser.parse(onnx_bytes):
            return ""
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return "; ".join(_describe(error) for error in errors) or _reasons(heard)

    def _configure(self, builder: Any, network: Any, config: Any) -> Any | None:
        """Set up the builder; returns the timing cache, if there is one, since TensorRT keeps no reference to it."""
        plan = self.plan
        if plan.workspace_mib is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, plan.workspace_mib << 20)
        if plan.optimization_level is not None:
            config.builder_optimization_level = plan.optimization_level
        tensorrt_api.set_tf32(self.trt, config, plan.tf32)
        if plan.layer_details:
            tensorrt_api.set_layer_details(self.trt, config)
        _add_profiles(builder, network, config, plan)
        if plan.timings is None:
            return None
        return tensorrt_api.set_timing_cache(config, self.flavour, plan.timings)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C or SIGTERM cancel the build at its next step, since no exception may pass through TensorRT."""
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


def _add_profiles(builder: Any, network: Any, config: Any, plan: BuildPlan) -> None:
    images = network.get_input(0)
    shape = tuple(images.shape)
    if -1 not in shape:
        return
    sides = [shape[1:]] * 3 if plan.sizes is None else [(*size, *shape[3:]) for size in plan.sizes]
    for batches in plan.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, *((count, *rest) for count, rest in zip(batches, sides, strict=True)))
        config.add_optimization_profile(profile)


def _reasons(heard: list[str]) -> str:
    return "; ".join(heard) or "no reason given"


def _describe(error: Any) -> str:
    """An error of the parser with its node and the local functions around it, the outermost first."""
    inside = "".join(f" in function {name}" for name in reversed(error.local_function_stack()))
    return f"node {error.node_name()!r} ({error.node_operator()}){inside}: {error.desc()}"


def _make_monitor(trt: Any, progress: Progress | None, interrupted: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base class is only known at run time
        """Passes TensorRT's progress on, and stops the build when it is interrupted."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self._steps.pop(phase_name, 0))

        def _report(self, phase: str, done: int) -> None:
            if progress is not None:
                progress(phase, done, self._steps.get(phase, done))

    return Monitor()
