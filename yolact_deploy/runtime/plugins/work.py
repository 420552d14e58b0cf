"""What a plugin in Python does when it runs: the plan for the shapes it gets, bound to the pointers it gets.

Nothing of TensorRT is in here. After the first call with some shapes and pointers nothing is compiled, allocated or
waited for, so that the calls can be captured into a CUDA graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from yolact_deploy.ops import Attributes, Op
from yolact_deploy.runtime.cuda.launch import Plan
from yolact_deploy.runtime.plugins.plans import plan_for, workspace

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
        self._plans: dict[Any, Plan] = {}
        self._bound: OrderedDict[Any, Any] = OrderedDict()

    def plan(self, shapes: Shapes, dtypes: Sequence[str]) -> Plan:
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
        bound.enqueue(stream)

    def _bind(self, plan: Plan, inputs: Sequence[int], outputs: Sequence[int], scratch: int) -> Any:
        tensors = (*self.op.inputs, *self.op.outputs)
        pointers = {tensor.name: at for tensor, at in zip(tensors, (*inputs, *outputs), strict=True)}
        offsets, _ = workspace(plan)
        return kernel_library().bind(plan, {**pointers, **{name: scratch + offset for name, offset in offsets.items()}})


def kernel_library() -> Any:
    """Kernels of the device whose context is current, which is TensorRT's."""
    raise NotImplementedError
