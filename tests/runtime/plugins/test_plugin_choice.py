"""Which plugins are chosen when, and the messages for the user, with stand-ins for TensorRT's module."""

from __future__ import annotations

import dataclasses
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper
from tail_model import tail_model

from yolact_deploy.artifact import METADATA_KEY
from yolact_deploy.errors import BackendError, ConfigError, ExportError
from yolact_deploy.export.contract import describe
from yolact_deploy.graph.onnx_graph import onnx_metadata
from yolact_deploy.graph.portable import make_portable
from yolact_deploy.machine import nvidia
from yolact_deploy.ops import FAST_NMS, MASK_ASSEMBLY
from yolact_deploy.runtime import plugins, tensorrt_api
from yolact_deploy.runtime.cuda import nvrtc
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan
from yolact_deploy.runtime.plugins import aot, v3, work


class Registry:
    def __init__(self, takes: bool = True) -> None:
        self.takes = takes
        self.creators: list[Any] = []

    def register_creator(self, creator: Any, namespace: str) -> bool:
        assert namespace == creator.plugin_namespace == "yolact"
        self.creators.append(creator)
        return self.takes


class Module(SimpleNamespace):
    """A stand-in for TensorRT's Python module, as far as plugins in Python need it."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # as modules have
    __eq__ = object.__eq__


def make_module(**members: Any) -> Any:
    def base(name: str) -> type:
        return type(name, (), {})

    def field(name: str, data: Any, kind: str) -> Any:
        return SimpleNamespace(name=name, data=data, type=kind)

    names = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    return Module(
        **{name: base(name) for name in names},
        __version__="10.5.0",
        float32="f32", float16="f16", int32="i32",
        TensorFormat=SimpleNamespace(LINEAR="linear"),
        PluginFieldType=SimpleNamespace(INT32="INT32", FLOAT32="FLOAT32"),
        PluginField=field,
        PluginFieldCollection=list,
        DimsExprs=list,
        get_plugin_registry=Registry,
        **members,
    )  # fmt: skip


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorRT without ahead-of-time plugins."""
    module, registry = make_module(), Registry()
    module.registry = registry
    monkeypatch.setattr(tensorrt_api, "plugin_registry", lambda trt, flavour: registry)
    monkeypatch.setattr(tensorrt_api, "quick_plugins", lambda trt, flavour: None)
    return module


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, trt: Any) -> Any:
    """TensorRT with ahead-of-time plugins, whose registrations are only recorded."""
    module = SimpleNamespace(registered=[])
    monkeypatch.setattr(tensorrt_api, "quick_plugins", lambda trt, flavour: module)
    monkeypatch.setattr(aot, "ptx", lambda stage: "ptx")
    monkeypatch.setattr(aot, "register", lambda trt, quick, stages: quick.registered.extend(stages))
    return module


def heads_only() -> Any:
    model = tail_model()
    del model.graph.node[:]
    heads = dataclasses.replace(onnx_metadata(model, ""), tail="heads")
    helper.set_model_props(model, {METADATA_KEY: heads.to_json()})
    return model


def inlined(*, named: bool) -> Any:
    """A file after another tool has inlined its functions, and maybe renamed tensors."""
    model = tail_model()
    describe(model, onnx_metadata(model, ""))
    portable = make_portable(model)
    if not named:
        portable.metadata_props.pop()
    return portable


# -- modes ----------------------------------------------------------------------------------------------------------


def test_off(trt: Any) -> None:
    model = tail_model()
    choice = plugins.prepare(model, trt, "tensorrt", "off")
    assert (choice.kind, choice.names) == ("none", ())
    assert choice.model is model


def test_unknown_mode(trt: Any) -> None:
    with pytest.raises(ExportError, match="plugins: expected one of auto, on, off, v3, aot, got 'maybe'"):
        plugins.prepare(tail_model(), trt, "tensorrt", "maybe")


def test_heads(trt: Any, quick: Any) -> None:
    model = heads_only()
    choice = plugins.prepare(model, trt, "tensorrt")
    assert choice.kind == "none"
    assert choice.model is model
    assert choice.reason == "The file ends in heads: NMS and masks run beside the engine."
    for mode in ("on", "v3", "aot"):
        with pytest.raises(ExportError, match=r"ends in heads: export with --tail functions"):
            plugins.prepare(model, trt, "tensorrt", mode)


def test_inlined_files_get_their_nodes_back(trt: Any, quick: Any) -> None:
    choice = plugins.prepare(inlined(named=True), trt, "tensorrt")
    assert choice.kind == "aot"
    assert {node.domain for node in choice.model.graph.node} == {"yolact"}
    off = plugins.prepare(inlined(named=True), trt, "tensorrt", "off")
    assert off.kind == "none"


def test_inlined_files_without_plugins(trt: Any) -> None:
    model = inlined(named=True)
    choice = plugins.prepare(model, trt, "tensorrt")
    assert choice.model is model
    assert choice.reason.startswith("TensorRT 10.5.0 has no ahead-of-time plugins")


def test_inlined_files_with_other_names(trt: Any, quick: Any) -> None:
    model = inlined(named=False)
    choice = plugins.prepare(model, trt, "tensorrt")
    assert choice.model is model
    assert choice.reason == "NMS and masks are inlined in the file, as standard operators."
    with pytest.raises(ExportError, match="another tool has inlined NMS and masks"):
        plugins.prepare(model, trt, "tensorrt", "on")


def test_auto_without_ahead_of_time_plugins(trt: Any) -> None:
    model = tail_model()
    choice = plugins.prepare(model, trt, "rtx")
    assert choice.kind == "none"
    assert choice.model is model
    assert choice.reason.startswith("TensorRT for RTX 10.5.0 has no ahead-of-time plugins")
    with pytest.raises(ExportError, match=r"use TensorRT 10\.9 or later, or --plugin on"):
        plugins.prepare(model, trt, "tensorrt", "aot")
    assert trt.registry.creators == []


@pytest.mark.parametrize("mode", ["on", "v3"])
def test_in_python(trt: Any, mode: str) -> None:
    choice = plugins.prepare(tail_model(half=True), trt, "tensorrt", mode)
    assert (choice.kind, choice.names) == ("v3", ("yolact::FastNMS", "yolact::MaskAssembly"))
    assert [creator.name for creator in trt.registry.creators] == ["FastNMS", "MaskAssembly"]
    assert set(trt.registry.creators) == set(choice.keep_alive)
    assert [node.op_type for node in choice.model.graph.node] == ["FastNMS", "MaskAssembly"]
    assert not choice.model.functions
    attributes = {a.name: helper.get_attribute_value(a) for a in choice.model.graph.node[0].attribute}
    assert attributes["plugin_namespace"] == b"yolact"
    plugins.prepare(tail_model(), trt, "tensorrt", mode)
    assert len(trt.registry.creators) == 2  # once per process
    assert plugins.register_creators(trt, "tensorrt") == choice.names


@pytest.mark.parametrize("mode", ["auto", "on", "aot"])
def test_ahead_of_time(trt: Any, quick: Any, mode: str) -> None:
    model = tail_model(half=True, batch=(1, 3, 4))
    choice = plugins.prepare(model, trt, "tensorrt", mode)
    assert choice.kind == "aot"
    assert choice.names == tuple(stage.plugin_id for stage in quick.registered)
    assert [stage.batch for stage in quick.registered] == [3] * 4
    assert {stage.arch for stage in quick.registered} == {"75"}
    assert [f"yolact::{node.op_type}" for node in choice.model.graph.node] == list(choice.names)
    assert not choice.model.functions
    assert list(choice.model.graph.output) == list(model.graph.output)
    onnx.checker.check_model(choice.model)
    plugins.prepare(model, trt, "tensorrt", mode, arch="89")
    assert {stage.arch for stage in quick.registered[4:]} == {"89"}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("mode", ["v3", "aot"])
def test_mask_scores_follow_the_plugins(trt: Any, quick: Any, mode: str, half: bool) -> None:
    """The mask-IoU network of a YOLACT++ reads the masks of the plugin; its layers are left to the engine."""
    model = tail_model(half=half, batch=(2, 2, 2))
    masks = "masks_32" if half else "masks"
    model.graph.node.append(helper.make_node("ReduceMax", [masks], ["mask_scores"], "iou_net", keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("mask_scores", 1, []))
    onnx.checker.check_model(model, full_check=True)
    choice = plugins.prepare(model, trt, "tensorrt", mode)
    assert choice.kind == mode
    made = {name: node for node in choice.model.graph.node for name in node.output}
    assert [output.name for output in choice.model.graph.output] == [output.name for output in model.graph.output]
    assert f"yolact::{made[masks].op_type}" in choice.names
    assert made["mask_scores"].input[0] == masks
    given = {value.name for value in choice.model.graph.input}
    assert {name for node in choice.model.graph.node for name in node.input} <= given | set(made)
    onnx.checker.check_model(choice.model)


def test_python_although_there_is_better(trt: Any, quick: Any) -> None:
    assert plugins.prepare(tail_model(), trt, "tensorrt", "v3").kind == "v3"


def test_auto_falls_back(trt: Any, quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stage: Any) -> Any:
        raise BackendError("no compiler here: install one")

    monkeypatch.setattr(aot, "ptx", fail)
    model = tail_model()
    choice = plugins.prepare(model, trt, "tensorrt", "auto")
    assert choice.kind == "none"
    assert choice.model is model
    assert choice.reason.endswith("because no plugin fits: no compiler here: install one")
    assert quick.registered == []
    with pytest.raises(BackendError, match="no compiler here"):
        plugins.prepare(model, trt, "tensorrt", "aot")


def test_ptx_that_the_driver_cannot_read(trt: Any, quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 2))
    monkeypatch.setattr(nvidia, "find_driver", lambda: SimpleNamespace(cuda_version=(13, 1)))
    reason = r"NVRTC 13\.2 compiles plugins to PTX that a driver for CUDA 13\.1 cannot read: update the driver"
    with pytest.raises(BackendError, match=reason):
        plugins.prepare(tail_model(), trt, "tensorrt", "aot")
    assert plugins.prepare(tail_model(), trt, "tensorrt", "auto").kind == "none"
    monkeypatch.setattr(nvidia, "find_driver", lambda: SimpleNamespace(cuda_version=(13, 2)))
    assert plugins.prepare(tail_model(), trt, "tensorrt", "auto").kind == "aot"


def test_sizes_that_the_kernels_do_not_take(trt: Any, quick: Any) -> None:
    model = tail_model()
    next(a for a in model.graph.node[0].attribute if a.name == "top_k").i = 10**6
    assert "top_k" in plugins.prepare(model, trt, "tensorrt", "auto").reason
    for mode in ("v3", "aot"):
        with pytest.raises(ConfigError, match="top_k"):
            plugins.prepare(model, trt, "tensorrt", mode)


def test_a_registry_that_refuses(trt: Any) -> None:
    trt.registry.takes = False
    with pytest.raises(BackendError, match=r"TensorRT 10\.5\.0 rejects the plugin yolact::FastNMS"):
        plugins.register_creators(trt, "tensorrt")


# -- plugins in Python, where they meet the kernels -----------------------------------------------------------------


class Library:
    """Replaces the kernel library."""

    def __init__(self) -> None:
        self.loaded: list[LaunchPlan] = []
        self.bound: list[dict[str, int]] = []
        self.streams: list[int] = []

    def load(self, plan: LaunchPlan) -> None:
        self.loaded.append(plan)

    def bind(self, plan: LaunchPlan, pointers: dict[str, int]) -> Any:
        self.bound.append(pointers)
        return SimpleNamespace(enqueue=lambda stream: self.streams.append(stream.handle))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(work, "kernel_library", lambda: library)
    monkeypatch.setattr(work, "KernelQueue", lambda handle: SimpleNamespace(handle=handle))
    return library


MASKS = [(2, 20, 24, 8), (2, 40, 8), (2, 40, 4)]
NMS = [(2, 300, 4), (2, 300, 6), (2, 300, 8)]
F32 = ["float32"] * 3


def test_pointers_are_bound_once(library: Library) -> None:
    plugin = work.Work(FAST_NMS, {"top_k": 50})
    inputs, outputs = [1 << 12, 2 << 12, 3 << 12], [4 << 12, 5 << 12, 6 << 12, 7 << 12, 8 << 12]
    scratch = 1 << 20
    for stream in (5, 6, 5):
        plugin.enqueue(NMS, F32, inputs, outputs, scratch, stream)
    assert library.streams == [5, 6, 5]
    assert len(library.bound) == 1
    pointers = library.bound[0]
    assert pointers["scores"] == 2 << 12
    assert pointers["out_coeff"] == 8 << 12
    plan = plugin.plan(NMS, F32)
    size = plugin.workspace_bytes(NMS, F32)
    for name, nbytes in plan.scratch.items():
        assert scratch <= pointers[name] <= scratch + size - nbytes
        assert pointers[name] % 256 == 0
    plugin.enqueue(NMS, F32, inputs, outputs, scratch + 256, 5)  # moved
    plugin.enqueue([(1, *shape[1:]) for shape in NMS], F32, inputs, outputs, scratch, 5)
    assert len(library.bound) == 3


def test_what_was_bound_long_ago_is_forgotten(library: Library) -> None:
    plugin = work.Work(MASK_ASSEMBLY, {})
    for at in range(40):
        plugin.enqueue(MASKS, F32, [1, 2, 3], [4 + at], 0, 5)
    assert len(plugin._bound) < 20
    plugin.enqueue(MASKS, F32, [1, 2, 3], [4 + 39], 0, 5)
    assert len(library.bound) == 40


def test_a_missing_workspace(library: Library) -> None:
    with pytest.raises(BackendError, match=r"FastNMS needs \d+ bytes of workspace, got none: rebuild the engine"):
        work.Work(FAST_NMS, {"top_k": 50}).enqueue(NMS, F32, [1, 2, 3], [4, 5, 6, 7, 8], 0, 9)
    assert library.streams == []


def test_kernels_are_loaded_before_the_first_run(library: Library) -> None:
    plugin = work.Work(MASK_ASSEMBLY, {})
    plugin.prepare(MASKS, F32)
    assert library.loaded == [plugin.plan(MASKS, F32)]


def descriptors(trt: Any, shapes: Any) -> list[Any]:
    return [SimpleNamespace(dims=shape, type=trt.float32, format="linear") for shape in shapes]


def test_failures_are_logged_and_raised(
    trt: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise BackendError("no driver here")

    monkeypatch.setattr(work, "kernel_library", fail)
    creator = v3.creators(trt)[1]
    plugin = creator.create_plugin("masks", creator.field_names, "build").attach_to_context(None)
    sides = descriptors(trt, MASKS), descriptors(trt, [(2, 40, 20, 24)])
    with caplog.at_level(logging.INFO):
        plugin.on_shape_change(*sides)  # nothing is run yet
    assert "MaskAssembly: kernels not loaded before the first run: no driver here" in caplog.text
    caplog.clear()
    with pytest.raises(BackendError, match="no driver here"):
        plugin.enqueue(*sides, [1, 2, 3], [4], 0, 5)
    assert "yolact::MaskAssembly failed" in caplog.text


@pytest.mark.parametrize("index", [0, 1], ids=["FastNMS", "MaskAssembly"])
def test_every_method_that_the_bindings_call(trt: Any, index: int) -> None:
    """A missing one ends the engine; the base classes have none of them."""
    creator = v3.creators(trt)[index]
    plugin = creator.create_plugin("one", creator.field_names, "build")
    core = ["get_capability_interface", "clone"]
    building = ["get_output_data_types", "get_output_shapes", "supports_format_combination", "configure_plugin"]
    running = ["set_tactic", "on_shape_change", "attach_to_context", "get_fields_to_serialize", "enqueue"]
    for each in (plugin, plugin.clone(), plugin.attach_to_context(None)):
        assert [name for name in (*core, *building, *running) if not callable(getattr(each, name, None))] == []
        each.set_tactic(0)
    assert plugin.num_outputs == len(plugin.work.op.outputs)


def test_fields_keep_their_arrays(trt: Any) -> None:
    """TensorRT gets pointers into them."""
    creator = v3.creators(trt)[0]
    assert creator is v3.creators(trt)[0]
    plugin = creator.create_plugin("nms", creator.field_names, "build")
    fields = plugin.get_fields_to_serialize()
    assert all(any(field.data is array for array in plugin.fields) for field in fields)
    assert [(field.name, field.type, field.data.dtype, field.data.tolist()) for field in fields] == [
        ("score_threshold", "FLOAT32", np.float32, [np.float32(0.05)]),
        ("iou_threshold", "FLOAT32", np.float32, [0.5]),
        ("top_k", "INT32", np.int32, [200]),
        ("max_detections", "INT32", np.int32, [100]),
        ("cross_class", "INT32", np.int32, [0]),
        ("second_threshold", "FLOAT32", np.float32, [-1.0]),
    ]
    twin = plugin.clone()
    assert twin is not plugin
    assert twin.work is not plugin.work
    assert twin.work.attributes == plugin.work.attributes
