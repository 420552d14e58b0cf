"""Puts our two nodes back into files whose functions other tools have inlined.

Host tails and TensorRT plugins take the place of the nodes FastNMS and MaskAssembly. Simplifiers and converters write
the bodies in their place. Exported files therefore name the tensors around both nodes in their metadata; as long as a
tool keeps these names, the nodes can be restored in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from yolact_deploy import ops
from yolact_deploy.artifact import TAIL_KEY, Metadata
from yolact_deploy.errors import import_optional

PADDING = {"padding": 1.0}


def nms_attributes(metadata: Metadata) -> ops.Attributes:
    """Attributes of the FastNMS node of a file."""
    config = metadata.config
    return ops.FAST_NMS.attribute_values(
        {
            "score_threshold": config.nms_score_threshold,
            "iou_threshold": config.iou_threshold,
            "top_k": min(config.top_k, config.num_priors),
            "max_detections": config.top_k if metadata.cross_class else config.max_detections,
            "cross_class": int(metadata.cross_class),
            "second_threshold": -1.0 if config.second_threshold is None else config.second_threshold,
        }
    )


def tail_tensors(graph: Any) -> str | None:
    """The tensors around our two nodes as JSON, for the metadata of the file; None if the graph does not have both."""
    nodes = {node.op_type: node for node in graph.node if node.domain == ops.DOMAIN}
    chosen = [nodes.get(op.name) for op in ops.OPS]
    if None in chosen:
        return None
    return json.dumps({node.op_type: [list(node.input), list(node.output)] for node in chosen if node is not None})


def has_nodes(model: Any) -> bool:
    """Whether the graph has both nodes."""
    return tail_tensors(model.graph) is not None


def restore_tail(model: Any, metadata: Metadata) -> bool:
    """Put both nodes in the place of their inlined bodies, in place, without the bodies.

    Returns:
        Whether the graph has both nodes now. False, and nothing changed, if it ends in heads, or if a tool has renamed
        or removed the tensors that the file names.
    """
    if metadata.tail == "heads" or has_nodes(model):
        return metadata.tail != "heads"
    helper = import_optional("onnx", "onnx", "Reading an ONNX file").helper
    around = _named(model)
    graph = model.graph
    there = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    if around is None or not there.issuperset(_required(around)):
        return False
    attributes = {ops.FAST_NMS.name: nms_attributes(metadata), ops.MASK_ASSEMBLY.name: PADDING}
    made = {name for _, outputs in around.values() for name in outputs}
    nodes = [node for node in graph.node if not made.intersection(node.output)]
    for op in ops.OPS:
        inputs, outputs = around[op.name]
        place = {name: index for index, node in enumerate(nodes) for name in node.output}
        values = {name: attributes[op.name][name] for name in op.exported_attributes}
        new = helper.make_node(op.name, inputs, outputs, op.name, domain=ops.DOMAIN, **values)
        nodes.insert(1 + max(place.get(name, -1) for name in inputs), new)
    _replace(graph, _needed(nodes, {output.name for output in graph.output}))
    model.opset_import.append(helper.make_opsetid(ops.DOMAIN, ops.DOMAIN_VERSION))
    return True


def _named(model: Any) -> dict[str, tuple[list[str], list[str]]] | None:
    """Inputs and outputs of each node as the file names them; None if it does not, or wrongly."""
    text = next((entry.value for entry in model.metadata_props if entry.key == TAIL_KEY), "")
    try:
        values = json.loads(text)
        around = {op.name: (list(map(str, values[op.name][0])), list(map(str, values[op.name][1]))) for op in ops.OPS}
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    sizes = [(len(inputs), len(outputs)) for inputs, outputs in around.values()]
    return around if sizes == [(len(op.inputs), len(op.outputs)) for op in ops.OPS] else None


def _required(around: dict[str, tuple[list[str], list[str]]]) -> list[str]:
    """The tensors that must still be there: all but what the two nodes pass to each other."""
    (nms_inputs, nms_outputs), (mask_inputs, mask_outputs) = (around[op.name] for op in ops.OPS)
    return [*nms_inputs, *nms_outputs[:4], mask_inputs[0], *mask_outputs]


def _needed(nodes: Iterable[Any], wanted: set[str]) -> list[Any]:
    """The nodes that ``wanted`` depend on, in order."""
    kept = []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _replace(graph: Any, nodes: list[Any]) -> None:
    """Make these the nodes of the graph; constants that none of them reads go, too."""
    copy = type(graph)()
    copy.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(copy.node)
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        rest = type(graph)()
        rest.initializer.extend(kept)
        del graph.initializer[:]
        graph.initializer.extend(rest.initializer)
