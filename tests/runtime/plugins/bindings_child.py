"""Our plugins with NVIDIA's real bindings of one TensorRT version, over stub libraries, in a separate process.

    python bindings_child.py VERSION KIND MODEL.onnx     # prints the plugins' answers as JSON in the last line

This script does the work of TensorRT's C++: it keeps the registry, builds shape expressions, calls the plugins in the
order of a build, and with KIND "v3" runs them with the fake CUDA driver and the emulator. (KIND "aot" needs no driver.)
Expressions are functions of the batch, reported for some batches.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import fake_cuda
import numpy as np
from cuda_emu import emulate
from tensorrt_stubs import bindings

BATCHES = (1, 3, 7)

#: plugins belong to TensorRT's C++, which never frees them: with 10.3, freeing one crashes
_KEPT: list[Any] = []


class Expression:
    """Replaces ``trt.IDimensionExpr``."""

    def __init__(self, value: Callable[[int], int], constant: bool) -> None:
        self.value = value
        self.constant = constant

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant
        return self.value(1)

    def values(self) -> list[int]:
        return [self.value(batch) for batch in BATCHES]


BATCH = Expression(lambda batch: batch, constant=False)


def constant(number: int) -> Expression:
    return Expression(lambda _: number, constant=True)


class Builder:
    """Replaces ``trt.IExprBuilder``; it does not outlive its call."""

    alive = True

    def constant(self, number: int) -> Expression:
        assert self.alive, "a builder of expressions was used after its call"
        assert type(number) is int
        return constant(number)

    def operation(self, operation: Any, first: Expression, second: Expression) -> Expression:
        assert self.alive
        rules: dict[str, Callable[[int, int], int]] = {
            "SUM": lambda a, b: a + b,
            "PROD": lambda a, b: a * b,
            "SUB": lambda a, b: a - b,
            "FLOOR_DIV": lambda a, b: a // b,
            "CEIL_DIV": lambda a, b: -(-a // b),
            "MIN": min,
            "MAX": max,
        }
        rule = rules[operation.name]
        return Expression(
            lambda batch: rule(first.value(batch), second.value(batch)), first.constant and second.constant
        )


class Dims(list):  # type: ignore[type-arg]
    """Replaces ``trt.DimsExprs``."""

    def __init__(self, given: Any) -> None:
        super().__init__([None] * given if isinstance(given, int) else given)


class Registry:
    """Replaces ``trt.IPluginRegistry``; it rejects a second creator with the same name."""

    def __init__(self) -> None:
        self.creators: dict[Any, Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        if key in self.creators:
            return False
        self.creators[key] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators.get((name, version, namespace))


class Called:
    """Calls a plugin as TensorRT would: with a new expression builder that is destroyed afterwards."""

    def __enter__(self) -> Builder:
        self.builder = Builder()
        return self.builder

    def __exit__(self, *exception: object) -> None:
        self.builder.alive = False


def main(version: str, kind: str, path: str) -> None:
    trt = bindings.load(version)
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    trt.IDimensionExpr, trt.DimsExprs = Expression, Dims
    import onnx

    model = onnx.load(path)
    report = {"version": trt.__version__, **{"v3": v3, "aot": aot}[kind](trt, registry, model)}
    print(json.dumps(report), flush=True)
    os._exit(0)  # nothing is freed


def emulate_kernels() -> None:
    """Load the emulator's libraries instead of machine code."""
    from yolact_deploy.runtime.cuda import nvrtc

    def compile_source(source: str, arch: Any, defines: Any = ()) -> bytes:
        return fake_cuda.image_of(emulate.compile_source(source, defines))

    nvrtc.compile_source = compile_source


# -- descriptors ----------------------------------------------------------------------------------------------------


def names_of(trt: Any) -> dict[Any, str]:
    return {trt.float32: "float32", trt.float16: "float16", trt.int32: "int32"}


def descriptor(trt: Any, dtype: Any, shape: tuple[Any, ...], format: Any = None) -> Any:
    """A ``trt.DynamicPluginTensorDesc`` with profiles of 1, 2 and 4 images if the batch is None."""
    made = trt.DynamicPluginTensorDesc()
    made.desc.type = dtype
    made.desc.format = format if format is not None else trt.TensorFormat.LINEAR
    made.desc.dims = tuple(-1 if size is None else size for size in shape)
    for bound, batch in (("min", 1), ("opt", 2), ("max", 4)):
        setattr(made, bound, tuple(batch if size is None else size for size in shape))
    return made


def expressions(shape: tuple[Any, ...]) -> Dims:
    return Dims([BATCH if size is None else constant(size) for size in shape])


def values_of(model: Any) -> dict[str, tuple[int, tuple[Any, ...]]]:
    """ONNX dtype and shape of each value for which the file has them; None is the batch."""
    types = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
        types[value.name] = tensor.elem_type, tuple(sizes)
    return types


def fields_of(trt: Any, node: Any, creator: Any) -> tuple[Any, list[Any]]:
    """The attributes of a node that the creator names, as the parser passes them, and the arrays to keep alive."""
    kinds = {1: (np.float32, "FLOAT32"), 2: (np.int32, "INT32")}
    names = [field.name for field in creator.field_names]
    arrays, fields = [], []
    for name in names:
        attribute = next(attribute for attribute in node.attribute if attribute.name == name)
        dtype, kind = kinds[attribute.type]
        data = np.array([attribute.f if attribute.type == 1 else attribute.i], dtype)
        arrays.append(data)
        fields.append(trt.PluginField(name, data, getattr(trt.PluginFieldType, kind)))
    return trt.PluginFieldCollection(fields), arrays


# -- plugins in Python ----------------------------------------------------------------------------------------------


def v3(trt: Any, registry: Registry, model: Any) -> Any:
    from yolact_deploy.runtime import plugins

    emulate_kernels()
    flavour = "rtx" if hasattr(trt, "ComputeCapability") else "tensorrt"
    choice = plugins.prepare(model, trt, flavour, "v3")
    assert plugins.prepare(model, trt, flavour, "v3").names == choice.names  # registered once
    report = {"kind": choice.kind, "names": choice.names, "nodes": []}
    values = values_of(choice.model)
    for node in choice.model.graph.node:
        if node.domain == "yolact":
            report["nodes"].append(v3_node(trt, registry, node, values))  # type: ignore[attr-defined]
    return report


def v3_node(trt: Any, registry: Registry, node: Any, values: Any) -> Any:
    attributes = {a.name: a for a in node.attribute}
    version, namespace = (attributes[name].s.decode() for name in ("plugin_version", "plugin_namespace"))
    creator = registry.get_creator(node.op_type, version, namespace)
    collection, _alive = fields_of(trt, node, creator)
    made = creator.create_plugin(node.name, collection, trt.TensorRTPhase.BUILD)
    plugin = Trampoline(made).clone()
    _KEPT.extend([made, plugin])
    plugin = Trampoline(plugin)
    for kind in trt.PluginCapabilityType.__members__.values():
        assert plugin.get_capability_interface(kind) is plugin.plugin
    dtypes = {name: dtype for dtype, name in names_of(trt).items()}
    onnx_dtypes = {1: dtypes["float32"], 10: dtypes["float16"], 6: dtypes["int32"]}
    inputs = [(onnx_dtypes[values[name][0]], values[name][1]) for name in node.input]
    assert plugin.num_outputs == len(node.output)
    output_types = plugin.get_output_data_types([dtype for dtype, _ in inputs])
    with Called() as builder:
        shapes = plugin.get_output_shapes([expressions(shape) for _, shape in inputs], [], builder)
    outputs = [
        (dtype, tuple(size.value(1) if size.constant else None for size in shape))
        for dtype, shape in zip(output_types, shapes, strict=True)
    ]
    both = [descriptor(trt, *each) for each in (*inputs, *outputs)]
    assert all(plugin.supports_format_combination(pos, both, len(inputs)) for pos in range(len(both)))
    assert not any(wrong_combinations(trt, plugin, inputs, outputs))
    ins, outs = both[: len(inputs)], both[len(inputs) :]
    plugin.configure_plugin(ins, outs)
    workspace = plugin.get_workspace_size(ins, outs)
    again = round_trip(trt, creator, plugin)
    assert again.work.attributes == plugin.work.attributes
    return {
        "name": node.op_type,
        "attributes": again.work.attributes,
        "output_types": [names_of(trt)[dtype] for dtype in output_types],
        "output_shapes": [[size.values() for size in shape] for shape in shapes],
        "workspace": workspace,
        "right": enqueued(trt, again, node, ins, outs),
    }


class Trampoline:
    """Calls a plugin as the C++ of the bindings does: only methods of classes that are not TensorRT's count."""

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.plugin, name)
        if callable(value):
            owner = next(cls for cls in type(self.plugin).__mro__ if name in vars(cls))
            assert owner.__module__.startswith("yolact_deploy"), f"no implementation provided for {name}()"
        return value


def wrong_combinations(trt: Any, plugin: Any, inputs: Any, outputs: Any) -> list[bool]:
    """Whether other formats or dtypes of any tensor are accepted; they must not be."""
    good = [descriptor(trt, *each) for each in (*inputs, *outputs)]
    wrong = [
        (pos, other)
        for pos, (dtype, shape) in enumerate((*inputs, *outputs))
        for other in (descriptor(trt, trt.int8, shape), descriptor(trt, dtype, shape, trt.TensorFormat.CHW32))
    ]
    return [
        plugin.supports_format_combination(pos, [*good[:pos], other, *good[pos + 1 :]], len(inputs))
        for pos, other in wrong
    ]


def round_trip(trt: Any, creator: Any, plugin: Any) -> Any:
    """The plugin that an engine would create from the serialized fields of this one."""
    collection = plugin.get_fields_to_serialize()
    copies = [(field.name, np.array(field.data), field.type) for field in collection]
    fields = trt.PluginFieldCollection([trt.PluginField(*copy) for copy in copies])
    made = creator.create_plugin(plugin.plugin_name, fields, trt.TensorRTPhase.RUNTIME)
    _KEPT.append(made)
    return made


def enqueued(trt: Any, plugin: Any, node: Any, ins: Any, outs: Any) -> int:
    """Run the plugin on the fake driver, as an execution context would; returns the number of correct images."""
    from yolact_deploy.runtime.cuda.driver import Device

    device = Device.open(0)
    device.use()
    stream = device.stream()
    attached = Trampoline(plugin).attach_to_context(None)
    _KEPT.append(attached)
    context = Trampoline(attached)
    context.set_tactic(0)
    right = 0
    for batch in (3, 1) if ins[0].desc.dims[0] == -1 else (ins[0].desc.dims[0],):
        described = [plugin_descriptor(trt, each, batch) for each in (*ins, *outs)]
        sides = described[: len(ins)], described[len(ins) :]
        arrays = arrays_for(node.op_type, sides, batch)
        buffers = [device.allocate(array.nbytes, "test") for array in arrays]
        for buffer, array in zip(buffers, arrays, strict=True):
            stream.upload(buffer.pointer, array.ctypes.data, array.nbytes)
        scratch = device.allocate(max(plugin.get_workspace_size(ins, outs), 1), "test")
        pointers = [buffer.pointer for buffer in buffers]
        context.on_shape_change(*sides)
        arguments = (*sides, pointers[: len(ins)], pointers[len(ins) :], scratch.pointer, stream.handle)
        run_and_capture(context, arguments, stream)
        for buffer, array in zip(buffers, arrays, strict=True):
            stream.download(array.ctypes.data, buffer.pointer, array.nbytes)
        stream.synchronize()
        right += check(node.op_type, plugin.work.attributes, arrays, batch)
    return right


def run_and_capture(context: Any, arguments: Any, stream: Any) -> None:
    """Enqueue, then capture into a graph: the second run compiles, allocates and waits for nothing."""
    control = fake_cuda.control()
    context.enqueue(*arguments)
    stream.synchronize()
    control.reset_calls()
    with stream.capture() as graph:
        context.enqueue(*arguments)
    assert graph.nodes > 0
    for call in ("cuMemAlloc", "cuMemFree", "cuModuleLoadData", "cuStreamSynchronize", "cuCtxSynchronize"):
        assert control.calls(call) == 0, call
    graph.launch(stream)
    stream.synchronize()


def plugin_descriptor(trt: Any, dynamic: Any, batch: int) -> Any:
    made = trt.PluginTensorDesc()
    made.type, made.format = dynamic.desc.type, dynamic.desc.format
    made.dims = tuple(batch if size == -1 else size for size in dynamic.desc.dims)
    return made


def arrays_for(op: str, sides: Any, batch: int) -> list[Any]:
    """Random inputs, and outputs full of garbage."""
    rng = np.random.default_rng(batch)
    shapes = [[tuple(each.dims) for each in side] for side in sides]
    if op == "FastNMS":
        corner = rng.random((*shapes[0][0][:2], 2))
        boxes = np.concatenate([corner, corner + 0.05 + 0.2 * rng.random(corner.shape)], axis=2)
        inputs = [boxes, rng.random(shapes[0][1]) ** 6, rng.standard_normal(shapes[0][2])]
    else:
        corners = np.sort(rng.random((*shapes[0][2][:2], 2, 2)), axis=2).reshape(shapes[0][2])
        inputs = [np.maximum(rng.standard_normal(shapes[0][0]), 0), rng.standard_normal(shapes[0][1]), corners]
    dtypes = [np.dtype(trt_name(each)) for side in sides for each in side]
    given = [*inputs, *(np.full(shape, 77) for shape in shapes[1])]
    return [np.ascontiguousarray(array.astype(dtype)) for array, dtype in zip(given, dtypes, strict=True)]


def trt_name(descriptor: Any) -> str:
    return {"FLOAT": "float32", "HALF": "float16", "INT32": "int32"}[descriptor.type.name]


def check(op: str, attributes: Any, arrays: list[Any], batch: int) -> int:
    from yolact_deploy import postprocess

    for image in range(batch):
        inputs, outputs = [a[image] for a in arrays[:3]], [a[image] for a in arrays[3:]]
        if op == "MaskAssembly":
            want = postprocess.assemble_masks(inputs[0].astype(np.float32), *inputs[1:])
            np.testing.assert_allclose(outputs[0], want, atol=1e-3 if outputs[0].dtype == np.float16 else 1e-6)
            continue
        options = {name: attributes[name] for name in ("score_threshold", "iou_threshold", "top_k", "max_detections")}
        options["second_threshold"] = attributes["second_threshold"]
        nms = "cross-class" if attributes["cross_class"] else "fast"
        detected = postprocess.detect(*inputs, **options, nms=nms)
        count = len(detected.scores)
        assert outputs[0] == count
        assert count > 10
        for output, expected in zip(outputs[1:], detected, strict=True):
            np.testing.assert_array_equal(output[:count], expected)
            assert not output[count:].any()
    return batch


# -- ahead of time --------------------------------------------------------------------------------------------------


def aot(trt: Any, registry: Registry, model: Any) -> Any:
    from yolact_deploy.errors import ExportError
    from yolact_deploy.runtime import plugins

    choice = plugins.prepare(model, trt, "tensorrt", "auto")
    if not hasattr(trt, "QuickPluginCreationRequest"):
        try:
            plugins.prepare(model, trt, "tensorrt", "aot")
        except ExportError as error:
            return {"kind": choice.kind, "reason": choice.reason, "refused": str(error)}
    assert choice.kind == "aot", choice.reason
    assert plugins.prepare(model, trt, "tensorrt", "aot").names == choice.names  # registered once
    # TensorRT passes launch parameters to C++; here they stay expressions.
    sys.modules["tensorrt.plugin._tensor"].SymExprImpl = lambda symbol: symbol._expr  # type: ignore[attr-defined]
    values = {name: shape for name, (_, shape) in values_of(choice.model).items()}
    types = {name: dtype for name, (dtype, _) in values_of(choice.model).items()}
    dtypes = {name: dtype for dtype, name in names_of(trt).items()}
    known = {1: dtypes["float32"], 10: dtypes["float16"], 6: dtypes["int32"]}
    tensors = {name: (known[types[name]], values[name]) for name in values if types[name] in known}
    nodes = [node for node in choice.model.graph.node if node.domain == "yolact"]
    return {"kind": choice.kind, "names": choice.names, "nodes": [aot_node(trt, registry, n, tensors) for n in nodes]}


def aot_node(trt: Any, registry: Registry, node: Any, tensors: dict[str, Any]) -> Any:
    creator = registry.get_creator(node.op_type, "1", "yolact")
    collection, _alive = fields_of(trt, node, creator)
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    plugin = creator.create_plugin(node.op_type, "yolact", collection, trt.TensorRTPhase.BUILD, request)
    inputs = [tensors[name] for name in node.input]
    output_types = plugin.get_output_data_types([dtype for dtype, _ in inputs], [len(shape) for _, shape in inputs])
    with Called() as builder:
        shapes = plugin.get_output_shapes([expressions(shape) for _, shape in inputs], [], builder)
    outputs = [
        (dtype, tuple(size.value(1) if size.constant else None for size in shape))
        for dtype, shape in zip(output_types, shapes, strict=True)
    ]
    for name, output in zip(node.output, outputs, strict=True):
        expected = tensors.setdefault(name, output)
        assert expected == output, (name, expected, output)
    both = [descriptor(trt, *each) for each in (*inputs, *outputs)]
    ins, outs = both[: len(inputs)], both[len(inputs) :]
    combination = plugin.get_supported_format_combinations(both, len(inputs))
    assert [each.type for each in combination] == [dtype for dtype, _ in (*inputs, *outputs)]
    assert {each.format for each in combination} == {trt.TensorFormat.LINEAR}
    plugin.configure_plugin(ins, outs)
    plugin.get_valid_tactics()
    plugin = plugin.clone()
    plugin.set_tactic(0)
    launch, scalars = SimpleNamespace(), Scalars()
    with Called() as builder:
        dims = [expressions(shape) for _, shape in inputs]
        plugin.get_launch_params(dims, both, len(inputs), launch, scalars, builder)
    name, ptx = plugin.get_kernel([each.desc for each in ins], [each.desc for each in outs])
    return {
        "name": node.op_type,
        "inputs": list(node.input),
        "outputs": list(node.output),
        "strict": next(a.i for a in node.attribute if a.name == "aot"),
        "output_types": [names_of(trt)[dtype] for dtype, _ in outputs],
        "output_shapes": [[size.values() for size in shape] for shape in shapes],
        "launch": {key: value.values() for key, value in vars(launch).items()},
        "scalars": [scalar.values() for scalar in scalars.values],
        "kernel": name,
        "ptx": ptx.decode(),
    }


class Scalars:
    """Replaces ``trt.ISymExprs``."""

    nbSymExprs = 0  # noqa: N815  # TensorRT's name

    def __init__(self) -> None:
        self.values: list[Expression] = []

    def __setitem__(self, index: int, value: Expression) -> None:
        assert index == len(self.values) < self.nbSymExprs
        self.values.append(value)


if __name__ == "__main__":
    main(*sys.argv[1:])
