"""The two ops of YOLACT's tail: names, attributes, dtypes and shapes, on which all their implementations agree.

The ONNX functions, the plugins of TensorRT and their CUDA kernels are written against this module; it needs nothing and
computes nothing. What the ops compute is in :mod:`yolact_deploy.postprocess`.

A third op is of YOLACT++'s trunk: :data:`DEFORM_CONV`, ONNX's own operator under our domain.

Legend: N images, P priors, C classes, K coefficients, k = top_k, D = max_detections, h x w prototypes, L lists of Fast
NMS: one a class, or a single one across classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DOMAIN = "yolact"
DOMAIN_VERSION = 1

#: version of the TensorRT plugins; their namespace is :data:`DOMAIN`
PLUGIN_VERSION = "1"

#: values of MaskAssembly's attribute mask_dtype, numbered as in ``onnx.TensorProto``
FLOAT32, FLOAT16 = 1, 10
DTYPE_NAMES = {FLOAT32: "float32", FLOAT16: "float16"}

Attributes = Mapping[str, "int | float"]


@dataclass(frozen=True)
class Attribute:
    """An attribute of a node; ``default`` also tells its type, int or float.

    What is ``plugin_only`` is set when a graph is fitted to plugins; exported files and their functions lack it.
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

    ``shape`` has letters of the legend (the same letter is the same number throughout an op), numbers, and names of
    attributes. ``dtypes`` are NumPy's names of what is allowed.
    """

    name: str
    shape: tuple[str | int, ...]
    dtypes: tuple[str, ...] = ("float32",)


@dataclass(frozen=True)
class Op:
    """A node's type within :data:`DOMAIN`."""

    name: str
    attributes: tuple[Attribute, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def exported_attributes(self) -> list[str]:
        """Names of the attributes that an exported file has."""
        return [attribute.name for attribute in self.attributes if not attribute.plugin_only]

    def attribute_values(self, given: Attributes) -> dict[str, int | float]:
        """All attributes, with what is given in place of the defaults.

        Raises:
            ValueError: a name that the op does not have.
        """
        names = [attribute.name for attribute in self.attributes]
        if unknown := sorted(set(given) - set(names)):
            raise ValueError(f"{self.name} has no attribute {', '.join(unknown)}; it has {', '.join(names)}")
        return {item.name: item.type(given.get(item.name, item.default)) for item in self.attributes}

    def dimensions(self, input_shapes: Sequence[Sequence[Any]], attributes: Attributes) -> dict[str, Any]:
        """What each letter of the legend stands for.

        Args:
            input_shapes: one for each input; a dimension is an int or any symbol of a runtime, handed on untouched
            attributes: as of :meth:`attribute_values`

        Raises:
            ValueError: an input too many or too few, or of another rank, or two ints for one letter.
        """
        if len(input_shapes) != len(self.inputs):
            raise ValueError(f"{self.name}: expected {len(self.inputs)} inputs, got {len(input_shapes)}")
        found: dict[str, Any] = {}
        for tensor, shape in zip(self.inputs, input_shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise ValueError(f"{self.name}: expected {tensor.name} {_text(tensor.shape)}, got {_text(shape)}")
            for letter, value in zip(tensor.shape, shape, strict=True):
                expected = found.setdefault(letter, value) if isinstance(letter, str) else letter
                if isinstance(expected, int) and isinstance(value, int) and expected != value:
                    known = f" with {letter} = {expected}" if isinstance(letter, str) else ""
                    raise ValueError(
                        f"{self.name}: expected {tensor.name} {_text(tensor.shape)}{known}, got {_text(shape)}"
                    )
        if "C" in found:
            found.setdefault("L", 1 if attributes.get("cross_class") else found["C"])
        return {**attributes, **found}

    def output_shapes(self, input_shapes: Sequence[Sequence[Any]], attributes: Attributes) -> list[tuple[Any, ...]]:
        """The shapes of the outputs, for ints or symbols as :meth:`dimensions` takes them."""
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

#: slots past num_detections are 0
FAST_NMS = Op(
    "FastNMS",
    (_SCORE_THRESHOLD, _IOU_THRESHOLD, _TOP_K, _MAX_DETECTIONS, _CROSS_CLASS),
    (_BOXES, _SCORES, _COEFF),
    _DETECTIONS,
)

#: the prototypes may be half precision, and so may the masks by mask_dtype; sums are in single precision
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

#: Type of the nodes of deformable convolutions in :data:`DOMAIN`. Inputs and attributes are those of ONNX's DeformConv
#: (x, weight 3x3, offset, bias, mask; strides, pads), so that a change of the domain makes one of the other.
DEFORM_CONV = "DeformConv"
