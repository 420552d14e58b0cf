"""Launch plans on a device: kernels compiled and loaded once, arguments packed once, then only launches."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda import nvrtc
from yolact_deploy.runtime.cuda.driver import Arguments, Device, DeviceBuffer, Function, Module
from yolact_deploy.runtime.cuda.plans.launch import Argument, Launch, LaunchPlan, Offset

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver import Stream

_Key = tuple[str, tuple[tuple[str, str | int], ...]]


class KernelLibrary:
    """The kernels of one device; several threads may bind plans at once.

    Args:
        device: where they run
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.arch = nvrtc.best_arch(device.compute_capability)
        self._modules: dict[_Key, Module] = {}
        self._functions: dict[tuple[_Key, str], Function] = {}
        self._lock = threading.Lock()

    def load(self, plan: LaunchPlan) -> None:
        """Compile and load what a plan needs, so that binding it later takes no time.

        Raises:
            BackendError: the kernels cannot be compiled or loaded here.
        """
        for launch in plan.launches:
            self.function(launch)

    def function(self, launch: Launch) -> Function:
        """The kernel of a launch."""
        key = (launch.source, launch.defines)
        with self._lock:
            found = self._functions.get((key, launch.kernel))
            if found is None:
                if key not in self._modules:
                    image = nvrtc.compile_source(launch.source, self.arch, launch.defines)
                    self._modules[key] = self.device.load_module(image, launch.source)
                found = self._functions[key, launch.kernel] = self._modules[key].function(launch.kernel)
            return found

    def bind(self, plan: LaunchPlan, pointers: Mapping[str, int], label: str = "scratch") -> BoundPlan:
        """A plan with its buffers.

        Args:
            pointers: device address of each buffer of the plan; scratch buffers that are not among them are allocated
            label: under which they are accounted for

        Raises:
            BackendError: the kernels cannot be compiled or loaded here, or there is too little memory.
        """
        missing = [name for name in plan.buffers if name not in pointers]
        if missing:
            raise ValueError(f"expected pointers of {', '.join(plan.buffers)}, without {', '.join(missing)}")
        return BoundPlan(self, plan, pointers, label)

    def close(self) -> None:
        """Unload the kernels, once nothing that was bound is used any more."""
        with self._lock:
            self._functions.clear()
            for module in self._modules.values():
                module.close()
            self._modules.clear()


class BoundPlan:
    """A plan whose arguments are packed; see :meth:`KernelLibrary.bind`."""

    def __init__(self, library: KernelLibrary, plan: LaunchPlan, pointers: Mapping[str, int], label: str) -> None:
        self.plan = plan
        functions = [library.function(launch) for launch in plan.launches]  # what may fail, before memory is taken
        self._owned: list[DeviceBuffer] = []
        held = {**pointers, **self._allocate(library.device, pointers, label)}
        self._launches = [
            (
                function,
                launch.grid,
                launch.block,
                launch.shared_bytes,
                Arguments([_resolve(argument, held) for argument in launch.arguments]),
            )
            for function, launch in zip(functions, plan.launches, strict=True)
        ]

    def _allocate(self, device: Device, given: Mapping[str, int], label: str) -> dict[str, int]:
        """Memory for the scratch buffers that are not given; all of them or none."""
        pointers = {}
        try:
            for name, nbytes in self.plan.scratch.items():
                if name not in given:
                    self._owned.append(device.allocate(nbytes, label))
                    pointers[name] = self._owned[-1].pointer
        except BackendError:
            self.close()
            raise
        return pointers

    def enqueue(self, stream: Stream) -> None:
        """Put the launches on a stream; nothing is allocated or waited for. The device is current in this thread."""
        launch = stream.launch
        for function, grid, block, shared, arguments in self._launches:
            launch(function, grid, block, shared, arguments)

    def rebind(self, name: str, pointer: int) -> None:
        """Move a buffer for the launches to come; captured graphs keep what they were captured with.

        Args:
            name: of a buffer of the plan; others are ignored, as by :meth:`KernelLibrary.bind`
        """
        for launch, (*_, arguments) in zip(self.plan.launches, self._launches, strict=True):
            for index, argument in enumerate(launch.arguments):
                if _buffer_of(argument) == name:
                    arguments.set(index, _resolve(argument, {name: pointer}))

    def close(self) -> None:
        """Free the scratch memory that was allocated for it; it must not be enqueued any more."""
        for buffer in self._owned:
            buffer.free()
        self._owned.clear()


def _buffer_of(argument: Argument) -> str | None:
    if isinstance(argument, Offset):
        return argument.buffer
    return argument if isinstance(argument, str) else None


def _resolve(argument: Argument, pointers: Mapping[str, int]) -> int | np.generic:
    if isinstance(argument, Offset):
        return pointers[argument.buffer] + argument.bytes
    return pointers[argument] if isinstance(argument, str) else argument
