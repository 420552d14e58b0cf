"""TensorRT plugins around our CUDA kernels, and the choice among them when an engine is built.

Three ways for FastNMS and MaskAssembly to get into an engine:

- "none": as the ONNX functions that the file carries, which TensorRT's parser inlines into its own layers;
- "aot": as ahead-of-time plugins (:mod:`.aot`), whose kernels are in the engine as PTX: it needs neither Python nor C++
  where it runs;
- "v3": as plugins in Python (:mod:`.v3`): whoever loads the engine calls :func:`register_creators` before.

A file that ends in heads has neither op; then the same kernels run on the engine's stream, see `runtime.cuda`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from yolact_deploy.errors import BackendError, ConfigError, ExportError
from yolact_deploy.graph.onnx_graph import onnx_metadata
from yolact_deploy.ops import DOMAIN
from yolact_deploy.runtime import tensorrt_api
from yolact_deploy.runtime.plugins import aot, rewrite, v3
from yolact_deploy.runtime.plugins.aot_stages import stages_of
from yolact_deploy.runtime.plugins.node_plans import plan_for
from yolact_deploy.vocabulary import FLAVOURS, PLUGIN_MODES, check_word

#: compute capability of the PTX of ahead-of-time plugins: the lowest that TensorRT supports, and so fit for all
PTX_ARCH = "75"


@dataclass(frozen=True)
class PluginChoice:
    """What to parse, and why.

    Attributes:
        model: ``onnx.ModelProto`` to give to the parser; the one that was asked about, or a changed copy
        kind: "none", "v3" or "aot"
        reason: one sentence for the user
        names: plugins that the engine will hold, as namespace::name
        keep_alive: objects that must live until the engine is built
    """

    model: Any
    kind: str
    reason: str
    names: tuple[str, ...] = ()
    keep_alive: tuple[Any, ...] = ()


def prepare(model: Any, trt: Any, flavour: str, mode: str = "auto", *, arch: str | None = None) -> PluginChoice:
    """Fit an exported model to the plugins that this TensorRT can take; the model itself is left as it is.

    Args:
        model: ``onnx.ModelProto`` of an exported file
        trt: TensorRT's Python module
        flavour: "tensorrt" or "rtx"
        mode: "off" keeps the functions; "auto" takes ahead-of-time plugins where they can be had, and else the
            functions, so that any tool can load the engine; "on" wants plugins, in Python if need be; "v3" and "aot"
            want that kind
        arch: compute capability of the PTX of ahead-of-time plugins, such as "89"; by default one that every supported
            GPU takes

    Raises:
        ExportError: the mode is unknown, or wants plugins that cannot be had.
        ConfigError: the mode wants plugins, and the kernels cannot take the model's sizes.
        BackendError: the mode wants plugins, and what they need is not installed.
    """
    check_word("plugins", mode, PLUGIN_MODES, ExportError)
    if mode == "off":
        return PluginChoice(model, "none", "No plugins were wanted.")
    if not rewrite.has_tail(model):
        if mode != "auto":
            raise ExportError(
                "there is nothing to replace by plugins: the file ends in heads. Export with --tail functions"
            )
        return PluginChoice(model, "none", "The file ends in heads: NMS and masks run beside the engine.")
    if mode == "auto":
        return _automatic(model, trt, flavour, arch)
    quick = tensorrt_api.quick_plugins(trt, flavour)
    if mode == "v3" or (mode == "on" and quick is None):
        return _python(model, trt, flavour)
    if quick is None:
        raise ExportError(
            f"{_name(trt, flavour)} has no ahead-of-time plugins: take TensorRT 10.8 or later, or --plugin on"
        )
    return _ahead_of_time(model, trt, quick, arch)


def _automatic(model: Any, trt: Any, flavour: str, arch: str | None) -> PluginChoice:
    quick = tensorrt_api.quick_plugins(trt, flavour)
    if quick is None:
        reason = f"{_name(trt, flavour)} has no ahead-of-time plugins: NMS and masks are TensorRT's own layers."
        return PluginChoice(model, "none", reason)
    try:
        return _ahead_of_time(model, trt, quick, arch)
    except (BackendError, ConfigError, ExportError) as error:
        return PluginChoice(model, "none", f"NMS and masks are TensorRT's own layers, since no plugin fits: {error}")


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
        aot.ptx(stage)  # what cannot be compiled is told here, not by TensorRT
    aot.register(trt, quick, stages)
    rewrite.replace_nodes(copy, {output: aot.nodes(tail, chain) for output, (tail, chain) in chains.items()})
    names = tuple(dict.fromkeys(stage.plugin_id for stage in stages))
    return PluginChoice(copy, "aot", "NMS and masks are our kernels, as PTX inside the engine.", names)


def _python(model: Any, trt: Any, flavour: str) -> PluginChoice:
    copy = rewrite.bare_copy(model)
    for tail in rewrite.tail_nodes(copy):
        plan_for(tail.op, tail.shapes_of(1), tail.dtypes, tail.attributes)  # what does not fit is told here
        rewrite.make_plugin_node(tail)
    names = register_creators(trt, flavour)
    reason = "NMS and masks are our kernels, called by Python: the engine can be loaded by this package only."
    return PluginChoice(copy, "v3", reason, names, v3.creators(trt))


def _name(trt: Any, flavour: str) -> str:
    return f"{FLAVOURS[flavour]} {trt.__version__}"


@lru_cache
def register_creators(trt: Any, flavour: str) -> tuple[str, ...]:
    """Register the plugins in Python, once a process, so that engines which hold them can be built and loaded.

    Gives their names, as namespace::name. An engine without them does not need this.

    Raises:
        BackendError: TensorRT does not take them.
    """
    registry = tensorrt_api.plugin_registry(trt, flavour)
    for creator in v3.creators(trt):
        if not registry.register_creator(creator, creator.plugin_namespace):
            raise BackendError(f"{_name(trt, flavour)} does not take the plugin {DOMAIN}::{creator.name}")
    return tuple(f"{DOMAIN}::{creator.name}" for creator in v3.creators(trt))
