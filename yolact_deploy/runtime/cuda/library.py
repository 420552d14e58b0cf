"""Launch plans on a device: kernels are compiled and loaded once, arguments packed once; after that, only launches."""

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
    from yolact_deploy.runtime.cuda.driver import KernelQueue

_Key = tuple[str, tuple[tuple[str, str | int], ...]]


class KernelLibrary:
    """The kernels of one device; thread-safe."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.arch = nvrtc.best_arch(device.compute_capability)
        self._modules: dict[_Key, Module] = {}
        self._functions: dict[tuple[_Key, str], Function] = {}
        self._lock = threading.Lock()

    def load(self, plan: LaunchPlan) -> None:
        """Compile and load the kernels of a plan, so that binding it later takes no time.

        Raises:
            BackendError: the kernels cannot be compiled or loaded.
        """
        for launch in plan.launches:
            self.function(launch)

    def function(self, launch: Launch) -> Function:
        """The kernel of a launch."""
        key = (launch.source, launch.defines)
        with self._lock:
            function = self._functions.get((key, launch.kernel))
            if function is None:
                if key not in self._modules:
                    image = nvrtc.compile_source(launch.source, self.arch, launch.defines)
                    self._modules[key] = self.device.load_module(image, launch.source)
                function = self._functions[key, launch.kernel] = self._modules[key].function(launch.kernel)
            return function

    def bind(self, plan: LaunchPlan, pointers: Mapping[str, int], label: str = "scratch") -> BoundPlan:
        """Bind a plan to its buffers.

        Args:
            pointers: device address of each buffer of the plan; missing scratch buffers are allocated
            label: label under which these are accounted

        Raises:
            BackendError: the kernels cannot be compiled or loaded, or there is too little memory.
        """
        missing = [name for name in plan.buffers if name not in pointers]
        if missing:
            raise ValueError(f"expected pointers for {', '.join(plan.buffers)}; missing: {', '.join(missing)}")
        return BoundPlan(self, plan, pointers, label)

    def close(self) -> None:
        """Unload the kernels; bound plans must not be used afterwards."""
        with self._lock:
            self._functions.clear()
            for module in self._modules.values():
                module.close()
            self._modules.clear()


class BoundPlan:
    """A plan whose arguments are packed; see :meth:`KernelLibrary.bind`."""

    def __init__(self, library: KernelLibrary, plan: LaunchPlan, pointers: Mapping[str, int], label: str) -> None:
        self.plan = plan
        functions = [library.function(launch) for launch in plan.launches]  # may fail, so before memory is allocated
        self._owned: list[DeviceBuffer] = []
        addresses = {**pointers, **self._allocate(library.device, pointers, label)}
        self._launches = [
            (
                function,
                launch.grid,
                launch.block,
                launch.shared_bytes,
                Arguments([_resolve(argument, addresses) for argument in launch.arguments]),
            )
            for function, launch in zip(functions, plan.launches, strict=True)
        ]

    def _allocate(self, device: Device, given: Mapping[str, int], label: str) -> dict[str, int]:
        """Allocate the scratch buffers that are not given; all of them or none."""
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

    def enqueue(self, stream: KernelQueue) -> None:
        """Put the launches on a stream, without allocating or waiting. The device must be current in this thread."""
        launch = stream.launch
        for function, grid, block, shared, arguments in self._launches:
            launch(function, grid, block, shared, arguments)

    def close(self) -> None:
        """Free the scratch memory allocated for the plan; it must not be enqueued afterwards."""
        for buffer in self._owned:
            buffer.free()
        self._owned.clear()


def _resolve(argument: Argument, pointers: Mapping[str, int]) -> int | np.generic:
    if isinstance(argument, Offset):
        return pointers[argument.buffer] + argument.bytes
    return pointers[argument] if isinstance(argument, str) else argument
