"""The two ops as TensorRT plugins in Python: IPluginV3 classes, created at run time for the installed TensorRT.

The One* interfaces are the same in TensorRT 10.3 to 11.4 and TensorRT for RTX 1.7, so one class serves all. This module
translates between TensorRT's descriptors and plain Python; the computation is in :mod:`.work`.

An engine with such a plugin can only be loaded after its creator is registered: by this package, in Python.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from yolact_deploy.ops import DOMAIN, OPS, PLUGIN_VERSION, Attribute, Op
from yolact_deploy.runtime.plugins.node_plans import output_dtypes
from yolact_deploy.runtime.plugins.work import Work

_LOG = logging.getLogger(__name__)

#: dtypes of plugin fields, by the attribute's Python type
_FIELDS = {int: (np.int32, "INT32"), float: (np.float32, "FLOAT32")}


@lru_cache
def creators(trt: Any) -> tuple[Any, ...]:
    """A creator for each op; the same objects every time, because TensorRT keeps pointers to them forever.

    Args:
        trt: TensorRT's Python module
    """
    plugin_class = _plugin_class(trt)
    creator_class = _creator_class(trt, plugin_class)
    return tuple(creator_class(op) for op in OPS)


class _OpPlugin:
    """One op in a network or an engine: the methods that TensorRT calls; :func:`_plugin_class` adds its interfaces.

    Failures are raised as exceptions; TensorRT's bindings turn them into a status before they reach its C++ code.
    """

    trt: Any  #: TensorRT's Python module
    interfaces: tuple[Any, ...]  #: TensorRT's base classes of a plugin
    dtype_names: dict[Any, str]  #: NumPy's names of TensorRT's dtypes

    def __init__(self, op: Op, attributes: dict[str, int | float]) -> None:
        for interface in self.interfaces:
            interface.__init__(self)
        self.plugin_name = op.name
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = DOMAIN
        self.num_outputs = len(op.outputs)
        self.work = Work(op, attributes)
        self.fields = [_field_data(item, self.work.attributes[item.name]) for item in op.attributes]

    # -- core

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def clone(self) -> Any:
        return type(self)(self.work.op, self.work.attributes)

    # -- build

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        dtypes = {name: dtype for dtype, name in self.dtype_names.items()}
        return [dtypes[name] for name in output_dtypes(self.work.op, self.work.attributes)]

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expr_builder: Any) -> list[Any]:
        shapes = [[inputs[i][d] for d in range(len(inputs[i]))] for i in range(len(inputs))]
        return [
            self.trt.DimsExprs([expr_builder.constant(size) if isinstance(size, int) else size for size in shape])
            for shape in self.work.op.output_shapes(shapes, self.work.attributes)
        ]

    def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
        if pos < num_inputs:
            allowed: Sequence[str] = self.work.op.inputs[pos].dtypes
        else:
            allowed = output_dtypes(self.work.op, self.work.attributes)[pos - num_inputs : pos - num_inputs + 1]
        tensor = in_out[pos].desc
        return bool(tensor.format == self.trt.TensorFormat.LINEAR and self.dtype_names.get(tensor.type) in allowed)

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        pass  # only the workspace depends on the bounds of the shapes

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        shapes = [tuple(each.max) for each in inputs]
        return self.work.workspace_bytes(shapes, [self.dtype_names[each.desc.type] for each in inputs])

    # -- run

    def set_tactic(self, tactic: int) -> None:
        pass  # there is one; TensorRT's bindings require the method even so

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        try:
            self.work.prepare(*self._described(inputs))
        except Exception as error:  # without a GPU, nothing is enqueued either
            _LOG.info("%s: kernels not loaded before the first run: %s", self.plugin_name, error)

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    def get_fields_to_serialize(self) -> Any:
        pairs = zip(self.work.op.attributes, self.fields, strict=True)
        return self.trt.PluginFieldCollection([_field(self.trt, item, data) for item, data in pairs])

    def enqueue(
        self,
        input_desc: Sequence[Any],
        output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        try:
            self.work.enqueue(*self._described(input_desc), inputs, outputs, workspace, stream)
        except Exception:
            _LOG.exception("%s::%s failed", DOMAIN, self.plugin_name)
            raise

    def _described(self, descriptors: Sequence[Any]) -> tuple[list[tuple[int, ...]], list[str]]:
        """Shapes and dtypes of ``trt.PluginTensorDesc``."""
        return [tuple(each.dims) for each in descriptors], [self.dtype_names[each.type] for each in descriptors]


def _plugin_class(trt: Any) -> Any:
    """The plugin class for one TensorRT."""
    interfaces = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    dtype_names = {trt.float32: "float32", trt.float16: "float16", trt.int32: "int32"}
    attributes = {"trt": trt, "interfaces": interfaces, "dtype_names": dtype_names}
    return type("Plugin", (_OpPlugin, *interfaces), attributes)


def _creator_class(trt: Any, plugin_class: Any) -> Any:
    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Creates plugins of one op: from a node's attributes when building, from an engine's fields when running."""

        def __init__(self, op: Op) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.op = op
            self.name = op.name
            self.plugin_version = PLUGIN_VERSION
            self.plugin_namespace = DOMAIN
            # TensorRT reads only names and types here, but keeps pointers into the arrays.
            self.examples = [_field_data(item, item.default) for item in op.attributes]
            pairs = zip(op.attributes, self.examples, strict=True)
            self.field_names = trt.PluginFieldCollection([_field(trt, item, data) for item, data in pairs])

        def create_plugin(self, name: str, field_collection: Any, phase: Any) -> Any:
            given = {field.name: np.asarray(field.data).reshape(-1)[0].item() for field in field_collection}
            known = {item.name for item in self.op.attributes}
            return plugin_class(self.op, {key: value for key, value in given.items() if key in known})

    return Creator


def _field_data(attribute: Attribute, value: int | float) -> Any:
    return np.array([value], dtype=_FIELDS[attribute.type][0])


def _field(trt: Any, attribute: Attribute, data: Any) -> Any:
    """A ``trt.PluginField``; it points into ``data``, which the caller keeps alive."""
    return trt.PluginField(attribute.name, data, getattr(trt.PluginFieldType, _FIELDS[attribute.type][1]))
