"""The work of a plugin in Python: the plan for the given shapes, bound to the given pointers. Independent of TensorRT.

After the first call with the same shapes and pointers, nothing is compiled, allocated or waited for, so that later
calls can be captured into a CUDA graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from yolact_deploy.errors import BackendError
from yolact_deploy.ops import Attributes, Op
from yolact_deploy.runtime.cuda.driver import Device, KernelQueue, calls
from yolact_deploy.runtime.cuda.library import BoundPlan, KernelLibrary
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan
from yolact_deploy.runtime.plugins.node_plans import plan_for, workspace

Shapes = Sequence[Sequence[int]]

#: sets of pointers remembered per plugin and context: TensorRT moves buffers when shapes change
_REMEMBERED = 16


class Work:
    """One op with all its attributes, in one execution context; used by one thread at a time."""

    def __init__(self, op: Op, attributes: Attributes) -> None:
        self.op = op
        self.attributes = op.attribute_values(attributes)
        self._plans: dict[Any, LaunchPlan] = {}
        self._bound: OrderedDict[Any, BoundPlan] = OrderedDict()
        self._streams: dict[int, KernelQueue] = {}

    def plan(self, shapes: Shapes, dtypes: Sequence[str]) -> LaunchPlan:
        """The plan for the inputs' shapes and dtypes; cached."""
        key = (*map(tuple, shapes), *dtypes)
        if key not in self._plans:
            self._plans[key] = plan_for(self.op, shapes, dtypes, self.attributes)
        return self._plans[key]

    def workspace_bytes(self, shapes: Shapes, dtypes: Sequence[str]) -> int:
        """Scratch memory that :meth:`enqueue` needs."""
        return workspace(self.plan(shapes, dtypes)).nbytes

    def prepare(self, shapes: Shapes, dtypes: Sequence[str]) -> None:
        """Compile and load the kernels ahead of :meth:`enqueue`; needs a GPU."""
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
            self._streams[stream] = KernelQueue(stream)
        bound.enqueue(self._streams[stream])

    def _bind(self, plan: LaunchPlan, inputs: Sequence[int], outputs: Sequence[int], scratch: int) -> BoundPlan:
        tensors = (*self.op.inputs, *self.op.outputs)
        pointers = {tensor.name: at for tensor, at in zip(tensors, (*inputs, *outputs), strict=True)}
        layout = workspace(plan)
        if layout.nbytes and not scratch:  # such as when computing the workspace size failed during the build
            raise BackendError(f"{self.op.name} needs {layout.nbytes} bytes of workspace, got none: rebuild the engine")
        return kernel_library().bind(plan, {**pointers, **layout.pointers(scratch)})


def kernel_library() -> KernelLibrary:
    """The kernels of the device whose context is current in this thread: the one that TensorRT uses."""
    return _library_of(int(calls.call("cuCtxGetDevice")))


@lru_cache
def _library_of(index: int) -> KernelLibrary:
    return KernelLibrary(Device.open(index))
