"""The two ops of YOLACT's tail: the names, attributes, dtypes and shapes that all their implementations share.

The ONNX functions, the TensorRT plugins and their CUDA kernels follow this module. It has no dependencies and computes
nothing itself; :mod:`yolact_deploy.postprocess` defines what the ops compute.

The trunk of YOLACT++ has a third op: :data:`DEFORM_CONV`, ONNX's DeformConv with a body of our own.

Legend: N images, P priors, C classes, K coefficients, k = top_k, D = max_detections, h x w prototypes, L lists of Fast
NMS: one per class, or a single one across classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DOMAIN = "yolact"
DOMAIN_VERSION = 1

#: version of the TensorRT plugins, whose namespace is :data:`DOMAIN`
PLUGIN_VERSION = "1"

#: values of MaskAssembly's attribute mask_dtype, numbered as in ``onnx.TensorProto``
FLOAT32, FLOAT16 = 1, 10
DTYPE_NAMES = {FLOAT32: "float32", FLOAT16: "float16"}

Attributes = Mapping[str, "int | float"]


@dataclass(frozen=True)
class Attribute:
    """An attribute of a node; the type of ``default`` is its type, int or float.

    Attributes that are ``plugin_only`` are set when a graph is fitted to plugins; exported files do not have them.
    """

    name: str
    default: int | float
    plugin_only: bool = False

    @property
    def type(self) -> type[int] | type[float]:
        return type(self.default)


@dataclass(frozen=True)
class Tensor:
    """An input or an output.

    ``shape`` consists of letters of the legend (one letter is one number throughout an op), numbers, and names of
    attributes. ``dtypes`` are the NumPy names of allowed types.
    """

    name: str
    shape: tuple[str | int, ...]
    dtypes: tuple[str, ...] = ("float32",)


@dataclass(frozen=True)
class Op:
    """A type of node in :data:`DOMAIN`."""

    name: str
    attributes: tuple[Attribute, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def exported_attributes(self) -> list[str]:
        """Names of the attributes in exported files."""
        return [attribute.name for attribute in self.attributes if not attribute.plugin_only]

    def attribute_values(self, given: Attributes) -> dict[str, int | float]:
        """All attributes: the given values, and defaults for the rest.

        Raises:
            ValueError: an attribute that the op does not have.
        """
        names = [attribute.name for attribute in self.attributes]
        if unknown := sorted(set(given) - set(names)):
            raise ValueError(f"{self.name} has no attribute {', '.join(unknown)}; it has {', '.join(names)}")
        return {item.name: item.type(given.get(item.name, item.default)) for item in self.attributes}

    def dimensions(self, input_shapes: Sequence[Sequence[Any]], attributes: Attributes) -> dict[str, Any]:
        """The value of each letter of the legend.

        Args:
            input_shapes: one per input; a dimension is an int or a symbol of a runtime, which is passed on unchanged
            attributes: from :meth:`attribute_values`

        Raises:
            ValueError: wrong number of inputs, wrong rank, or two ints for one letter.
        """
        if len(input_shapes) != len(self.inputs):
            raise ValueError(f"{self.name}: expected {len(self.inputs)} inputs, got {len(input_shapes)}")
        sizes: dict[str, Any] = {}
        for tensor, shape in zip(self.inputs, input_shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise ValueError(f"{self.name}: expected {tensor.name} {_text(tensor.shape)}, got {_text(shape)}")
            for letter, value in zip(tensor.shape, shape, strict=True):
                expected = sizes.setdefault(letter, value) if isinstance(letter, str) else letter
                if isinstance(expected, int) and isinstance(value, int) and expected != value:
                    known = f" with {letter} = {expected}" if isinstance(letter, str) else ""
                    raise ValueError(
                        f"{self.name}: expected {tensor.name} {_text(tensor.shape)}{known}, got {_text(shape)}"
                    )
        if "C" in sizes:
            sizes.setdefault("L", 1 if attributes.get("cross_class") else sizes["C"])
        return {**attributes, **sizes}

    def output_shapes(self, input_shapes: Sequence[Sequence[Any]], attributes: Attributes) -> list[tuple[Any, ...]]:
        """Shapes of the outputs; arguments as for :meth:`dimensions`."""
        known = self.dimensions(input_shapes, attributes)
        return [
            tuple(known[letter] if isinstance(letter, str) else letter for letter in output.shape)
            for output in self.outputs
        ]


def _text(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


_SCORE_THRESHOLD = Attribute("score_threshold", 0.05)
_IOU_THRESHOLD = Attribute("iou_threshold", 0.5)
_TOP_K = Attribute("top_k", 200)
_MAX_DETECTIONS = Attribute("max_detections", 100)
#: detections must score above it in their own class; scores are probabilities, so the default drops none
_SECOND_THRESHOLD = Attribute("second_threshold", -1.0)
_CROSS_CLASS = Attribute("cross_class", 0)

_BOXES = Tensor("boxes", ("N", "P", 4))
_SCORES = Tensor("scores", ("N", "P", "C"))
_COEFF = Tensor("coeff", ("N", "P", "K"))
_DETECTIONS = (
    Tensor("num_detections", ("N",), ("int32",)),
    Tensor("out_boxes", ("N", "max_detections", 4)),
    Tensor("out_scores", ("N", "max_detections")),
    Tensor("out_labels", ("N", "max_detections"), ("int32",)),
    Tensor("out_coeff", ("N", "max_detections", "K")),
)

#: slots past num_detections are zero
FAST_NMS = Op(
    "FastNMS",
    (_SCORE_THRESHOLD, _IOU_THRESHOLD, _TOP_K, _MAX_DETECTIONS, _CROSS_CLASS, _SECOND_THRESHOLD),
    (_BOXES, _SCORES, _COEFF),
    _DETECTIONS,
)

#: prototypes may be in half precision, and masks too, by mask_dtype; sums are in single precision
MASK_ASSEMBLY = Op(
    "MaskAssembly",
    (Attribute("padding", 1.0), Attribute("mask_dtype", FLOAT32, plugin_only=True)),
    (
        Tensor("proto", ("N", "h", "w", "K"), ("float32", "float16")),
        Tensor("coeff", ("N", "D", "K")),
        Tensor("boxes", ("N", "D", 4)),
    ),
    (Tensor("masks", ("N", "D", "h", "w"), ("float32", "float16")),),
)

OPS = (FAST_NMS, MASK_ASSEMBLY)

ONNX_DEFORM_CONV = "DeformConv"

#: Type of deformable convolutions in :data:`DOMAIN`. Inputs and attributes are those of ONNX's DeformConv (x, weight
#: 3x3, offset, bias, mask; strides, pads), so changing type and domain converts one into the other. The name is not
#: ONNX's, because TensorRT's parser ignores domains: it would take the node for the operator, which needs a plugin.
DEFORM_CONV = "DeformConv3x3"


def operator_of(node: Any) -> str:
    """Operator that a node of a graph computes: its type, or ONNX's DeformConv for our function.

    Files of earlier versions name that function as ONNX names the operator.
    """
    ours = node.domain == DOMAIN and node.op_type == DEFORM_CONV
    return ONNX_DEFORM_CONV if ours else str(node.op_type)


def is_deform_conv(node: Any) -> bool:
    """Whether a node of a graph is our deformable convolution, in files of every version."""
    return node.domain == DOMAIN and operator_of(node) == ONNX_DEFORM_CONV
