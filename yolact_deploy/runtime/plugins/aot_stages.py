"""A launch plan as a chain of plugins, one kernel each: what ahead-of-time plugins of TensorRT can be.

Such a plugin has one kernel, whose arguments are the inputs, then int32 scalars, then the outputs, which is the order
in which all our kernels have theirs. So each launch of a plan becomes a node, and the plan's scratch buffers become
tensors of the network, of int32 words that only our kernels understand.

The nodes have no attributes: every launch is a plugin with a name of its own. Attributes would not arrive with NumPy 2,
where the bindings of TensorRT 10.13 give the first letter of a text for all of its letters, and those up to 10.16
cannot read a number as such (NumPy 2.4).

Only the batch may change from run to run. What grows with it is found by making the plan for more images; whatever
else depends on the batch is tuning, which gives the same results for every batch, and is that of the usual batch.
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

#: so many times the usual batch: what is so many times larger there is a number of images, and not by accident
_MANY = 61


@dataclass(frozen=True)
class Extent:
    """A number of a launch: ``value``, or that many for each image."""

    value: int
    per_image: bool

    def of(self, batch: int) -> int:
        return self.value * batch if self.per_image else self.value


@dataclass(frozen=True)
class Stage:
    """One launch of an op's plan, as a plugin.

    Attributes:
        op: whose plan
        index: of the launch in the plan
        shapes: of the op's inputs without the batch, which is first in all of them
        dtypes: of the op's inputs
        attributes: all of the op's
        batch: the usual one
        arch: compute capability of the PTX, "75"
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
        """Such as "PriorBest_d3b07384": the kernel's name and a mark of everything that is built into the plugin."""
        told = [
            self.op.name,
            self.index,
            self.shapes,
            self.dtypes,
            sorted(self.attributes.items()),
            self.batch,
            self.arch,
        ]
        words = "".join(map(str.capitalize, self.launch.kernel.split("_")))
        return f"{words}_{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]}"

    @property
    def plugin_id(self) -> str:
        return f"{DOMAIN}::{self.plugin_name}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The plan's names of the tensors that it reads."""
        return self._arguments[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The plan's names of the tensors that it writes."""
        return self._arguments[2]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one image's part of a tensor."""
        return self._tensors[name][0]

    def dtype(self, name: str) -> str:
        return self._tensors[name][1]

    # -- as a launch

    @property
    def launch(self) -> Launch:
        """For the usual batch."""
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
        """Raise :class:`ExportError` where one kernel cannot serve every batch."""
        usual, many = self.launch, self._launch_of_many
        same = [(each.kernel, each.block, each.shared_bytes, each.defines, each.buffers) for each in (usual, many)]
        if same[0] != same[1]:
            raise ExportError(f"{usual.kernel} depends on the batch in more than its grid: build with --plugin off")

    def _extent(self, usual: int, many: int) -> Extent:
        if usual and many == usual * _MANY and usual % self.batch == 0:
            return Extent(usual // self.batch, per_image=True)
        return Extent(usual, per_image=False)

    @property
    def _launch_of_many(self) -> Launch:
        return self._plans[1].launches[self.index]

    @cached_property
    def _plans(self) -> tuple[LaunchPlan, LaunchPlan]:
        """For the usual batch, and for one that is far larger."""
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
        """Shape of one image's part, and dtype, of all that the plan reads and writes."""
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
        shapes: of its inputs, batch first, whatever it is
        dtypes: of its inputs
        attributes: all of the op's
        batch: the usual one, for which the launches are tuned
        arch: compute capability of the PTX, "75"

    Raises:
        ConfigError: sizes that the kernels cannot take.
        ExportError: a kernel that depends on the batch in a way that no plugin can express.
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
        raise ExportError(f"{launch.kernel}: its arguments are not inputs, int32 scalars and outputs, in this order")
    return launch.arguments[:start], tuple(map(int, scalars)), launch.arguments[stop:]  # type: ignore[return-value,arg-type]


def _named(tensors: Any, shapes: Any, dtypes: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    triples = zip(tensors, shapes, dtypes, strict=True)
    return {tensor.name: (tuple(shape), dtype) for tensor, shape, dtype in triples}
