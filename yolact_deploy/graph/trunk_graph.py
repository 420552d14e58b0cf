"""Assigns each node of the trunk of an exported graph to a layer, under names that other graphs share.

The trunk is everything from the first weights to the raw heads: the part that an export computes in reduced precision.
A layer is a set of weights, named as the module that holds them (``backbone.layers.0.0.conv1``), together with all that
follows up to the next weights: its activation, the addition of a shortcut, the resizing of its output. Layer names
survive a change of precision and the insertion of Q/DQ nodes; node names and tensor names do not.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from yolact_deploy.errors import ExportError
from yolact_deploy.ops import is_deform_conv, operator_of

#: operators with weights, which are their second input
WEIGHTED = ("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul")
#: operators that change how values are stored
CONVERTING = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")
#: operators that only move values
MOVING = ("Transpose", "Reshape", "Concat", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split")
#: operators that may stand between the last weights and the raw heads
_ENDING = ("Relu", "LeakyRelu", "Clip", "Tanh", "Sigmoid", "Transpose", "Reshape", "Concat", *CONVERTING)
#: operators whose later inputs are sizes, axes and the like
_ONE_DATA_INPUT = (
    "Reshape", "Resize", "Slice", "Squeeze", "Unsqueeze", "Split", "ReduceMean", "ReduceMax", "ReduceSum", "Expand",
    "Tile", "Gather", *CONVERTING,
)  # fmt: skip
#: the value that fills is another data input, behind the widths
_PADDING = "Pad"
#: the mask-IoU network of YOLACT++, which has weights and follows the masks
_TAIL_MODULE = "maskiou_net."
#: the block of a layer: a residual block, a prediction head, protonet, the whole FPN; a layer of the backbone outside
#: residual blocks is its own block
_BLOCK = re.compile(r"(?:backbone\.layers\.\d+\.\d+|prediction_layers\.\d+|backbone\..+|[^.]+)(?=\.|$)")
_WEIGHT_NAME = re.compile(r"(?:model\.)?(?P<layer>.+?)(?:\.weight(?:_\w+)?)?")


@dataclass(frozen=True)
class TrunkNode:
    """One node of the trunk.

    Attributes:
        index: index of the node in the graph
        name: name of the layer, with ``#2`` and so on if weights are used again, and ``/Relu`` for what follows them
        layer: name of the layer
        op_type: ONNX operator, also of our deformable convolution
        output: name of its first output
    """

    index: int
    name: str
    layer: str
    op_type: str
    output: str

    @property
    def computes(self) -> bool:
        """Whether its outputs have values that its inputs do not have."""
        return self.op_type not in CONVERTING and self.op_type not in MOVING


def data_inputs(node: Any) -> Iterator[tuple[int, str]]:
    """Slot and name of the inputs that carry values, including constants but not sizes and axes."""
    if node.op_type == _PADDING:
        return ((slot, name) for slot, name in enumerate(node.input) if name and slot in (0, 2))
    slots = list(node.input)[: 1 if node.op_type in _ONE_DATA_INPUT else None]
    return ((slot, name) for slot, name in enumerate(slots) if name)


def trunk_nodes(graph: Any) -> list[TrunkNode]:
    """The nodes of the trunk of a ``GraphProto``, in the order in which they run."""
    producers = {output: node for node in graph.node for output in node.output}
    constants = {initializer.name for initializer in graph.initializer}
    layers = {i: layer for i, node in enumerate(graph.node) if (layer := _layer(node, producers, constants))}
    feeding = _feeding(graph, layers)
    owners: dict[str, tuple[int, str, str]] = {}  # of a tensor: index and layer of its last weights, name of that use
    uses: Counter[str] = Counter()
    nodes = []
    for index, node in enumerate(graph.node):
        if index in layers:
            name = _numbered(layers[index], uses)
            owner = (index, layers[index], name)
        else:
            sources = [owners.get(name) for _, name in data_inputs(node) if name not in constants]
            known = list(filter(None, sources))
            ends = node.op_type in _ENDING and not node.domain and None not in sources
            if not known or not (ends or feeding.intersection(node.output)):
                continue
            owner = max(known)
            name = _numbered(f"{owner[2]}/{node.op_type}", uses)
        owners.update(dict.fromkeys(node.output, owner))
        nodes.append(TrunkNode(index, name, owner[1], operator_of(node), node.output[0]))
    return nodes


def _numbered(name: str, uses: Counter[str]) -> str:
    uses[name] += 1
    return name if uses[name] == 1 else f"{name}#{uses[name]}"


def layer_names(nodes: Iterable[TrunkNode]) -> list[str]:
    """The layers in the order in which they first run."""
    return list(dict.fromkeys(node.layer for node in nodes))


def layer_blocks(layers: Iterable[str]) -> dict[str, list[str]]:
    """The blocks of layers, each with its layers; :func:`select_layers` accepts the name of a block for its layers.

    >>> layer_blocks(["backbone.conv1", "backbone.layers.0.0.conv1", "backbone.layers.0.0.conv2", "proto_net.0"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'backbone.conv1': ['backbone.conv1'],
     'backbone.layers.0.0': ['backbone.layers.0.0.conv1', 'backbone.layers.0.0.conv2'],
     'proto_net': ['proto_net.0']}
    """
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        match = _BLOCK.match(layer)
        blocks.setdefault(match[0] if match else layer, []).append(layer)
    return blocks


def select_layers(names: Sequence[str], layers: Sequence[str]) -> set[str]:
    """The layers that ``names`` stand for; a name is a layer, or a module that holds layers (``proto_net``).

    Raises:
        ExportError: a name that is neither.
    """
    chosen = set()
    for name in names:
        meant = {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
        if not meant:
            near = difflib.get_close_matches(name, layers, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the first of its layers is {next(iter(layers), 'none')}"
            raise ExportError(f"no layer of this network is named {name!r}: {hint}")
        chosen |= meant
    return chosen


def _layer(node: Any, producers: dict[str, Any], constants: set[str]) -> str | None:
    """Name of the layer whose weights the node applies; None if it has none."""
    foreign = node.domain and not is_deform_conv(node)
    if operator_of(node) not in WEIGHTED or foreign or len(node.input) < 2:
        return None
    name = node.input[1]
    while name not in constants:
        producer = producers.get(name)
        if producer is None or producer.op_type not in (*CONVERTING, "Transpose"):
            return None
        name = producer.input[0]
    match = _WEIGHT_NAME.fullmatch(name)
    layer = match["layer"] if match else name
    return None if layer.startswith(_TAIL_MODULE) else layer


def _feeding(graph: Any, layers: dict[int, str]) -> set[str]:
    """Tensors whose values reach an operator with weights later on."""
    feeding: set[str] = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if index in layers or feeding.intersection(node.output):
            feeding.update(name for _, name in data_inputs(node))
    return feeding
