"""What a plugin in Python does when it runs: the plan for the shapes it gets, bound to the pointers it gets.

Nothing of TensorRT is in here. After the first call with some shapes and pointers nothing is compiled, allocated or
waited for, so that the calls can be captured into a CUDA graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from yolact_deploy.errors import BackendError
from yolact_deploy.ops import Attributes, Op
from yolact_deploy.runtime.cuda.driver import Arguments, Device, Function, calls
from yolact_deploy.runtime.cuda.driver.stream import Size3
from yolact_deploy.runtime.cuda.library import BoundPlan, KernelLibrary
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan
from yolact_deploy.runtime.plugins.node_plans import plan_for, workspace

Shapes = Sequence[Sequence[int]]

#: sets of pointers remembered by one plugin in one context: TensorRT moves buffers when shapes change
_REMEMBERED = 16


class Work:
    """One op with its attributes, in one execution context; used by one thread at a time.

    Attributes:
        op: which of the two
        attributes: all of the op's
    """

    def __init__(self, op: Op, attributes: Attributes) -> None:
        self.op = op
        self.attributes = op.attribute_values(attributes)
        self._plans: dict[Any, LaunchPlan] = {}
        self._bound: OrderedDict[Any, BoundPlan] = OrderedDict()
        self._streams: dict[int, ForeignStream] = {}

    def plan(self, shapes: Shapes, dtypes: Sequence[str]) -> LaunchPlan:
        """The plan for the inputs' shapes and dtypes; remembered."""
        key = (*map(tuple, shapes), *dtypes)
        if key not in self._plans:
            self._plans[key] = plan_for(self.op, shapes, dtypes, self.attributes)
        return self._plans[key]

    def workspace_bytes(self, shapes: Shapes, dtypes: Sequence[str]) -> int:
        """Scratch memory that :meth:`enqueue` needs."""
        return workspace(self.plan(shapes, dtypes))[1]

    def prepare(self, shapes: Shapes, dtypes: Sequence[str]) -> None:
        """Compile and load the kernels, so that :meth:`enqueue` need not; needs a GPU."""
        kernel_library().load(self.plan(shapes, dtypes))

    def enqueue(
        self,
        shapes: Shapes,
        dtypes: Sequence[str],
        inputs: Sequence[int],
        outputs: Sequence[int],
        scratch: int,
        stream: int,
    ) -> None:
        """Launch the kernels.

        Args:
            shapes, dtypes: of the inputs
            inputs, outputs: device pointers, in the op's order
            scratch: device pointer to :meth:`workspace_bytes`
            stream: a CUstream
        """
        plan = self.plan(shapes, dtypes)
        key = (id(plan), *inputs, *outputs, scratch)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._bind(plan, inputs, outputs, scratch)
            if len(self._bound) > _REMEMBERED:
                self._bound.popitem(last=False)
        if stream not in self._streams:
            self._streams[stream] = ForeignStream(stream)
        bound.enqueue(self._streams[stream])  # type: ignore[arg-type]  # launching is all that it asks for

    def _bind(self, plan: LaunchPlan, inputs: Sequence[int], outputs: Sequence[int], scratch: int) -> BoundPlan:
        tensors = (*self.op.inputs, *self.op.outputs)
        pointers = {tensor.name: at for tensor, at in zip(tensors, (*inputs, *outputs), strict=True)}
        offsets, size = workspace(plan)
        if size and not scratch:  # as when the question for the workspace failed at build
            raise BackendError(f"{self.op.name} needs {size} bytes of workspace, and got none: build the engine again")
        return kernel_library().bind(plan, {**pointers, **{name: scratch + offset for name, offset in offsets.items()}})


class ForeignStream:
    """A stream of TensorRT's, by its number; work on it is launched and nothing else."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self._launch = calls.start().cuLaunchKernel

    def launch(self, function: Function, grid: Size3, block: Size3, shared: int, arguments: Arguments) -> None:
        """As :meth:`Stream.launch`."""
        (error,) = self._launch(function.raw, *grid, *block, shared, self.handle, arguments.address, 0)
        if error:
            raise calls.failure("cuLaunchKernel", error, f"kernel {function.name}, grid {grid}, block {block}")


def kernel_library() -> KernelLibrary:
    """The kernels of the device whose context is current in this thread, which is the one that TensorRT uses."""
    return _library_of(int(calls.call("cuCtxGetDevice")))


@lru_cache
def _library_of(index: int) -> KernelLibrary:
    return KernelLibrary(Device.open(index))
