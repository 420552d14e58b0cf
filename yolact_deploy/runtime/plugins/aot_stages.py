"""A launch plan as a chain of plugins with one kernel each, as TensorRT's ahead-of-time plugins require.

Such a plugin has one kernel, whose arguments are the inputs, then int32 scalars, then the outputs. All our kernels use
this order. So each launch of a plan becomes a node, and the plan's scratch buffers become tensors of the network: int32
words that only our kernels interpret.

The nodes have no attributes: every launch is a plugin with a name of its own. Attributes would not arrive intact with
NumPy 2: the bindings of TensorRT 10.13 repeat the first letter of a string, and those up to 10.16 cannot read a number
(NumPy 2.4).

Only the batch may change from run to run. Comparing with the plan for a much larger batch shows what grows with it. All
else that depends on the batch is tuning: it does not affect results, and uses the usual batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from yolact_deploy.errors import ExportError
from yolact_deploy.ops import DOMAIN, Attributes, Op
from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan
from yolact_deploy.runtime.plugins.node_plans import output_dtypes, plan_for

#: factor of the larger batch; a number that is this many times larger there grows with the batch, not by accident
_MANY = 61


@dataclass(frozen=True)
class Extent:
    """A number of a launch: ``value``, or ``value`` per image."""

    value: int
    per_image: bool

    def of(self, batch: int) -> int:
        return self.value * batch if self.per_image else self.value


@dataclass(frozen=True)
class Stage:
    """One launch of an op's plan, as a plugin.

    Attributes:
        op: the op of the plan
        index: of the launch in the plan
        shapes: of the op's inputs, without the leading batch
        dtypes: of the op's inputs
        attributes: all attributes of the op
        batch: the usual batch
        arch: compute capability of the PTX, such as "75"
    """

    op: Op
    index: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    attributes: Attributes
    batch: int
    arch: str

    # -- as a plugin

    @cached_property
    def plugin_name(self) -> str:
        """Such as "PriorBest_d3b07384": the kernel's name and a hash of everything that is built into the plugin."""
        attributes = sorted(self.attributes.items())
        content = [self.op.name, self.index, self.shapes, self.dtypes, attributes, self.batch, self.arch]
        words = "".join(map(str.capitalize, self.launch.kernel.split("_")))
        return f"{words}_{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}"

    @property
    def plugin_id(self) -> str:
        return f"{DOMAIN}::{self.plugin_name}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names, in the plan, of the tensors it reads."""
        return self._arguments[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names, in the plan, of the tensors it writes."""
        return self._arguments[2]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor per image."""
        return self._tensors[name][0]

    def dtype(self, name: str) -> str:
        return self._tensors[name][1]

    # -- as a launch

    @property
    def launch(self) -> Launch:
        """The launch for the usual batch."""
        return self._plans[0].launches[self.index]

    @property
    def grid(self) -> tuple[Extent, ...]:
        """Blocks along x, y, z."""
        return tuple(map(self._extent, self.launch.grid, self._launch_of_many.grid))

    @property
    def scalars(self) -> tuple[Extent, ...]:
        """The int32 arguments between inputs and outputs."""
        return tuple(map(self._extent, self._arguments[1], _split(self._launch_of_many)[1]))

    def check(self) -> None:
        """Raise :class:`ExportError` if one kernel cannot serve every batch."""
        usual, many = self.launch, self._launch_of_many
        same = [(each.kernel, each.block, each.shared_bytes, each.defines, each.buffers) for each in (usual, many)]
        if same[0] != same[1]:
            raise ExportError(f"not only the grid of {usual.kernel} depends on the batch: build with --plugin off")

    def _extent(self, usual: int, many: int) -> Extent:
        if usual and many == usual * _MANY and usual % self.batch == 0:
            return Extent(usual // self.batch, per_image=True)
        return Extent(usual, per_image=False)

    @property
    def _launch_of_many(self) -> Launch:
        return self._plans[1].launches[self.index]

    @cached_property
    def _plans(self) -> tuple[LaunchPlan, LaunchPlan]:
        """The plans for the usual batch and for a much larger one."""
        usual, many = (
            plan_for(self.op, [(batch, *shape) for shape in self.shapes], self.dtypes, self.attributes)
            for batch in (self.batch, self.batch * _MANY)
        )
        return usual, many

    @cached_property
    def _arguments(self) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
        return _split(self.launch)

    @cached_property
    def _tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape per image and dtype of all tensors that the plan reads and writes."""
        made = self.op.output_shapes([(1, *shape) for shape in self.shapes], self.attributes)
        words = {name: ((nbytes // 4 // self.batch,), "int32") for name, nbytes in self._plans[0].scratch.items()}
        return {
            **words,
            **_named(self.op.inputs, self.shapes, self.dtypes),
            **_named(self.op.outputs, [shape[1:] for shape in made], output_dtypes(self.op, self.attributes)),
        }


def stages_of(
    op: Op,
    shapes: Iterable[tuple[int | None, ...]],
    dtypes: tuple[str, ...],
    attributes: Attributes,
    *,
    batch: int,
    arch: str,
) -> list[Stage]:
    """The chain of one node.

    Args:
        shapes: of its inputs, with any leading batch
        dtypes: of its inputs
        attributes: all attributes of the op
        batch: the usual batch, for which the launches are tuned
        arch: compute capability of the PTX, such as "75"

    Raises:
        ConfigError: sizes that the kernels do not support.
        ExportError: a kernel depends on the batch in a way that no plugin can express.
    """
    per_image = tuple(tuple(int(size) for size in shape[1:] if size is not None) for shape in shapes)
    first = Stage(op, 0, per_image, dtypes, attributes, batch, arch)
    chain = [replace(first, index=index) for index in range(len(first._plans[0].launches))]
    for stage in chain:
        stage.check()
    return chain


def _split(launch: Launch) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    """The arguments of a launch as inputs, scalars and outputs."""
    kinds = [isinstance(argument, str) for argument in launch.arguments]
    start, stop = kinds.index(False), len(kinds) - kinds[::-1].index(False)
    scalars = launch.arguments[start:stop]
    if not all(isinstance(scalar, np.int32) for scalar in scalars):
        raise ExportError(f"{launch.kernel}: expected arguments in the order inputs, int32 scalars, outputs")
    return launch.arguments[:start], tuple(map(int, scalars)), launch.arguments[stop:]  # type: ignore[return-value,arg-type]


def _named(tensors: Any, shapes: Any, dtypes: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    triples = zip(tensors, shapes, dtypes, strict=True)
    return {tensor.name: (tuple(shape), dtype) for tensor, shape, dtype in triples}
