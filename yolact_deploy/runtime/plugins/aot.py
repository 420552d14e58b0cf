"""Ahead-of-time plugins of TensorRT 10.9 and later: our kernels as PTX inside the engine.

``tensorrt.plugin`` needs three functions per plugin, which this module provides for each stage of a chain
(:mod:`.aot_stages`): the shapes and dtypes of its outputs, the dtypes it supports, and its kernel with launch
parameters as expressions in the batch. The engine then runs without Python and C++.

TensorRT inspects the signatures of these functions, so the signatures are built here as objects.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from types import GenericAlias
from typing import Any

from yolact_deploy.errors import BackendError
from yolact_deploy.machine import nvidia
from yolact_deploy.ops import DOMAIN
from yolact_deploy.runtime.cuda import nvrtc
from yolact_deploy.runtime.plugins.aot_stages import Extent, Stage
from yolact_deploy.runtime.plugins.rewrite import TailNode, plugin_node

_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def check_compiler() -> None:
    """Raise :class:`BackendError` if NVRTC's PTX is too new for the driver, which compiles it when an engine loads.

    An older driver could run machine code, but plugins are PTX.
    """
    try:
        driver = nvidia.find_driver().cuda_version
    except BackendError:  # the engine is for another machine
        return
    if nvrtc.version() > driver:
        ours, theirs = (".".join(map(str, version)) for version in (nvrtc.version(), driver))
        raise BackendError(
            f"NVRTC {ours} compiles plugins to PTX that a driver for CUDA {theirs} cannot read: update the driver, or "
            f"python -m pip install 'nvidia-cuda-nvrtc<={theirs}.999'"
        )


def ptx(stage: Stage) -> str:
    """The kernel of a stage as PTX, compiled once per machine.

    Raises:
        BackendError: NVRTC is not installed or cannot compile it.
    """
    launch = stage.launch
    return nvrtc.compile_source(launch.source, f"compute_{stage.arch}", launch.defines).decode().rstrip("\0\n")


def nodes(tail: TailNode, chain: Sequence[Stage]) -> list[Any]:
    """The nodes of a chain, which replace the tail node."""
    values = dict(zip([tensor.name for tensor in tail.op.inputs], tail.node.input, strict=True))
    values.update(zip([tensor.name for tensor in tail.op.outputs], tail.node.output, strict=True))
    between = {name: f"{tail.node.output[0]}/{name}" for stage in chain for name in (*stage.inputs, *stage.outputs)}
    values = {**between, **values}
    return [
        plugin_node(
            f"{tail.node.name}/{stage.plugin_name}",
            stage.plugin_name,
            [values[name] for name in stage.inputs],
            [values[name] for name in stage.outputs],
            aot=1,  # makes the parser use the ahead-of-time implementation
        )
        for stage in chain
    ]


def register(trt: Any, quick: Any, stages: Iterable[Stage]) -> None:
    """Register the plugins of some stages, each once per process.

    Args:
        trt: TensorRT's Python module
        quick: its module ``plugin``
    """
    for stage in stages:
        if not hasattr(getattr(quick.op, DOMAIN, None), stage.plugin_name):
            _register(trt, quick, stage)


def _register(trt: Any, quick: Any, stage: Stage) -> None:
    dtypes = {"float32": trt.float32, "float16": trt.float16, "int32": trt.int32}
    spelled = {trt.float32: "FP32", trt.float16: "FP16", trt.int32: "INT32"}

    def describe(*inputs: Any) -> Any:
        """Descriptors of the outputs."""
        batch = inputs[0].shape_expr[0]
        return tuple(
            quick.from_shape_expr(_shape(quick, batch, stage.shape(name)), dtype=dtypes[stage.dtype(name)])
            for name in stage.outputs
        )

    def tune(*inputs_and_outputs: Any) -> Any:
        """The supported formats: dense tensors with the dtypes that they already have."""
        *inputs, outputs = inputs_and_outputs
        return [quick.AutoTuneCombination(", ".join(spelled[each.dtype] for each in (*inputs, *outputs)), "LINEAR")]

    def implement(*inputs_outputs_and_tactic: Any) -> Any:
        """The kernel's name, PTX, launch parameters and scalars."""
        batch = inputs_outputs_and_tactic[0].shape_expr[0]
        return stage.launch.kernel, ptx(stage), _launch(quick, stage, batch), _scalars(quick, stage, batch)

    tensor = quick.TensorDesc
    inputs = [(f"input{index}", tensor) for index in range(len(stage.inputs))]
    outputs = ("outputs", GenericAlias(tuple, (tensor,) * len(stage.outputs)))
    kernel = tuple[str, str, quick.KernelLaunchParams, quick.SymIntExprs]
    quick.register(stage.plugin_id)(_signed(describe, inputs, outputs[1]))
    quick.autotune(stage.plugin_id)(_signed(tune, [*inputs, outputs], list[quick.AutoTuneCombination]))
    quick.aot_impl(stage.plugin_id)(_signed(implement, [*inputs, outputs, ("tactic", int)], kernel))


def _signed(function: Callable[..., Any], parameters: list[tuple[str, Any]], returns: Any) -> Callable[..., Any]:
    """The function with the signature that TensorRT reads."""
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, _POSITIONAL, annotation=kind) for name, kind in parameters], return_annotation=returns
    )
    return function


def _shape(quick: Any, batch: Any, per_image: tuple[int, ...]) -> tuple[Any, ...]:
    """A shape of expressions.

    When TensorRT only wants dtypes, the batch is a placeholder, and then all sizes are: TensorRT 10.13 would create
    constants with an expression builder that may no longer exist.
    """
    if batch.is_fake:
        return tuple(quick.ShapeExpr() for _ in (batch, *per_image))
    return (batch, *per_image)


def _number(quick: Any, extent: Extent, batch: Any) -> Any:
    return quick.SymInt32(batch * extent.value if extent.per_image else extent.value)


def _launch(quick: Any, stage: Stage, batch: Any) -> Any:
    params = quick.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = (_number(quick, extent, batch) for extent in stage.grid)
    params.block_x, params.block_y, params.block_z = stage.launch.block
    params.shared_mem = stage.launch.shared_bytes
    return params


def _scalars(quick: Any, stage: Stage, batch: Any) -> Any:
    return quick.SymIntExprs.from_tuple([_number(quick, extent, batch) for extent in stage.scalars])
