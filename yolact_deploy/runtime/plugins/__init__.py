"""TensorRT plugins for our CUDA kernels, and the choice between them when an engine is built.

FastNMS and MaskAssembly can get into an engine in three ways:

- "none": as the ONNX functions in the file, which TensorRT's parser inlines into its own layers;
- "aot": as ahead-of-time plugins (:mod:`.aot`), whose kernels are PTX inside the engine, so that it runs without Python
  and C++;
- "v3": as plugins in Python (:mod:`.v3`): call :func:`register_creators` before loading the engine.

A file that ends in heads has neither op; the same kernels then run on the engine's stream, see `runtime.cuda`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from yolact_deploy.errors import BackendError, ConfigError, ExportError
from yolact_deploy.graph.inlined_tail import restore_tail
from yolact_deploy.graph.onnx_graph import onnx_metadata
from yolact_deploy.ops import DOMAIN
from yolact_deploy.runtime import tensorrt_api
from yolact_deploy.runtime.plugins import aot, rewrite, v3
from yolact_deploy.runtime.plugins.aot_stages import stages_of
from yolact_deploy.runtime.plugins.node_plans import plan_for
from yolact_deploy.vocabulary import FLAVOURS, PLUGIN_MODES, check_word

#: compute capability of the PTX of ahead-of-time plugins: the lowest that TensorRT supports, which suits every GPU
PTX_ARCH = "75"


@dataclass(frozen=True)
class PluginChoice:
    """The model to parse, and why.

    Attributes:
        model: ``onnx.ModelProto`` for the parser: the original, or a modified copy
        kind: "none", "v3" or "aot"
        reason: one sentence for the user
        names: plugins in the engine, as namespace::name
        keep_alive: objects that must live until the engine is built
    """

    model: Any
    kind: str
    reason: str
    names: tuple[str, ...] = ()
    keep_alive: tuple[Any, ...] = ()


def prepare(model: Any, trt: Any, flavour: str, mode: str = "auto", *, arch: str | None = None) -> PluginChoice:
    """Fit a copy of an exported model to the plugins that this TensorRT supports.

    Args:
        model: ``onnx.ModelProto`` of an exported file; not modified
        trt: TensorRT's Python module
        flavour: "tensorrt" or "rtx"
        mode: "off" keeps the functions; "auto" uses ahead-of-time plugins if available and the functions otherwise, so
            that any tool can load the engine; "on" requires plugins, in Python if necessary; "v3" and "aot" require
            that kind
        arch: compute capability of the PTX of ahead-of-time plugins, such as "89"; by default one for every supported
            GPU

    Raises:
        ExportError: the mode is unknown, or requires plugins that are not available.
        ConfigError: the mode requires plugins, and the kernels do not support the model's sizes.
        BackendError: the mode requires plugins, and a dependency is not installed.
    """
    check_word("plugins", mode, PLUGIN_MODES, ExportError)
    if mode == "off":
        return PluginChoice(model, "none", "Plugins are off.")
    if onnx_metadata(model, "the file").sizes is not None:
        if mode != "auto":
            raise ExportError(
                "plugins are for one input size, and the file takes a range: export it with one --size, or build with "
                "--plugin off"
            )
        return PluginChoice(model, "none", "NMS and masks are TensorRT's own layers: the file takes a range of sizes.")
    if not rewrite.has_tail(model):
        return _without_nodes(model, trt, flavour, mode, arch)
    if mode == "auto":
        return _automatic(model, trt, flavour, arch)
    quick = tensorrt_api.quick_plugins(trt, flavour)
    if mode == "v3" or (mode == "on" and quick is None):
        return _python(model, trt, flavour)
    if quick is None:
        raise ExportError(
            f"{_name(trt, flavour)} has no ahead-of-time plugins: use TensorRT 10.9 or later, or --plugin on"
        )
    return _ahead_of_time(model, trt, quick, arch)


def _without_nodes(model: Any, trt: Any, flavour: str, mode: str, arch: str | None) -> PluginChoice:
    """For a file that ends in heads, or whose functions are inlined: then the nodes are restored where possible."""
    metadata = onnx_metadata(model, "the file")
    if metadata.tail == "heads":
        if mode != "auto":
            raise ExportError(
                "plugins cannot replace anything, because the file ends in heads: export with --tail functions"
            )
        return PluginChoice(model, "none", "The file ends in heads: NMS and masks run beside the engine.")
    restored = rewrite.with_shapes(model)
    if not restore_tail(restored, metadata):
        if mode != "auto":
            raise ExportError(
                "plugins cannot replace anything: another tool has inlined NMS and masks and renamed the tensors "
                "before them. Build from the file as it was exported, or with --plugin off"
            )
        return PluginChoice(model, "none", "NMS and masks are inlined in the file, as standard operators.")
    choice = prepare(restored, trt, flavour, mode, arch=arch)
    return replace(choice, model=model) if choice.kind == "none" else choice


def _automatic(model: Any, trt: Any, flavour: str, arch: str | None) -> PluginChoice:
    quick = tensorrt_api.quick_plugins(trt, flavour)
    if quick is None:
        reason = f"{_name(trt, flavour)} has no ahead-of-time plugins: NMS and masks are TensorRT's own layers."
        return PluginChoice(model, "none", reason)
    try:
        return _ahead_of_time(model, trt, quick, arch)
    except (BackendError, ConfigError, ExportError) as error:
        return PluginChoice(model, "none", f"NMS and masks are TensorRT's own layers, because no plugin fits: {error}")


def _ahead_of_time(model: Any, trt: Any, quick: Any, arch: str | None) -> PluginChoice:
    copy = rewrite.bare_copy(model)
    batch = onnx_metadata(model, "the file").batch[1]
    chains = {
        tail.node.output[0]: (tail, stages_of(*tail.problem, batch=batch, arch=arch or PTX_ARCH))
        for tail in rewrite.tail_nodes(copy)
    }
    aot.check_compiler()
    stages = [stage for _, chain in chains.values() for stage in chain]
    for stage in stages:
        aot.ptx(stage)  # so that we report compilation errors, not TensorRT
    aot.register(trt, quick, stages)
    rewrite.replace_nodes(copy, {output: aot.nodes(tail, chain) for output, (tail, chain) in chains.items()})
    names = tuple(dict.fromkeys(stage.plugin_id for stage in stages))
    return PluginChoice(copy, "aot", "NMS and masks are our kernels, as PTX inside the engine.", names)


def _python(model: Any, trt: Any, flavour: str) -> PluginChoice:
    copy = rewrite.bare_copy(model)
    for tail in rewrite.tail_nodes(copy):
        plan_for(tail.op, tail.shapes_of(1), tail.dtypes, tail.attributes)  # raises if it does not fit
        rewrite.make_plugin_node(tail)
    names = register_creators(trt, flavour)
    reason = "NMS and masks are our kernels, called from Python: only this package can load the engine."
    return PluginChoice(copy, "v3", reason, names, v3.creators(trt))


def _name(trt: Any, flavour: str) -> str:
    return f"{FLAVOURS[flavour]} {trt.__version__}"


@lru_cache
def register_creators(trt: Any, flavour: str) -> tuple[str, ...]:
    """Register the plugins in Python, once per process, so that engines with them can be built and loaded.

    Returns their names, as namespace::name. Engines without them do not need this.

    Raises:
        BackendError: TensorRT rejects them.
    """
    registry = tensorrt_api.plugin_registry(trt, flavour)
    for creator in v3.creators(trt):
        if not registry.register_creator(creator, creator.plugin_namespace):
            raise BackendError(f"{_name(trt, flavour)} rejects the plugin {DOMAIN}::{creator.name}")
    return tuple(f"{DOMAIN}::{creator.name}" for creator in v3.creators(trt))
