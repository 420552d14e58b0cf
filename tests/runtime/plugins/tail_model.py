"""A small ONNX file like an exported one, with inputs in place of the network."""

from __future__ import annotations

from typing import Any

from yolact_deploy import ops
from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import get_config

PRIORS, CLASSES, COEFFICIENTS, SLOTS, HEIGHT, WIDTH = 300, 6, 8, 40, 20, 24
FLOAT, INT32, FLOAT16 = 1, 6, 10


def tail_model(
    *, half: bool = False, batch: tuple[int, int, int] = (1, 2, 4), cross_class: bool = False, **attributes: Any
) -> Any:
    """An ``onnx.ModelProto`` from boxes, scores, coeff and proto to the five outputs of an exported file.

    Args:
        half: prototypes and masks in half precision, with casts around MaskAssembly
        attributes: of FastNMS
    """
    import onnx
    from onnx import helper

    from yolact_deploy.export import functions

    count: Any = batch[0] if batch[0] == batch[2] else "batch"
    mask = FLOAT16 if half else FLOAT
    chosen: dict[str, Any] = ops.FAST_NMS.attribute_values(
        {"top_k": 50, "max_detections": SLOTS, "cross_class": int(cross_class), **attributes}
    )
    slots = int(chosen["max_detections"])
    shapes = {
        "boxes_in": (FLOAT, [count, PRIORS, 4]),
        "scores_in": (FLOAT, [count, PRIORS, CLASSES]),
        "coeff_in": (FLOAT, [count, PRIORS, COEFFICIENTS]),
        "proto_in": (mask, [count, HEIGHT, WIDTH, COEFFICIENTS]),
        "num_detections": (INT32, [count]),
        "boxes": (FLOAT, [count, slots, 4]),
        "scores": (FLOAT, [count, slots]),
        "labels": (INT32, [count, slots]),
        "masks": (mask, [count, slots, HEIGHT, WIDTH]),
        "kept": (FLOAT, [count, slots, COEFFICIENTS]),
        "proto_32": (FLOAT, [count, HEIGHT, WIDTH, COEFFICIENTS]),
        "masks_32": (FLOAT, [count, slots, HEIGHT, WIDTH]),
    }
    value = {name: helper.make_tensor_value_info(name, *told) for name, told in shapes.items()}
    outputs = ["num_detections", "boxes", "scores", "labels", "kept"]
    proto, masks = ("proto_32", "masks_32") if half else ("proto_in", "masks")
    nodes = [
        helper.make_node("FastNMS", ["boxes_in", "scores_in", "coeff_in"], outputs, "nms", domain=ops.DOMAIN, **chosen),
        helper.make_node("MaskAssembly", [proto, "kept", "boxes"], [masks], "masks", domain=ops.DOMAIN, padding=1.0),
    ]
    if half:
        nodes.insert(1, helper.make_node("Cast", ["proto_in"], ["proto_32"], "up", to=FLOAT))
        nodes.append(helper.make_node("Cast", ["masks_32"], ["masks"], "down", to=FLOAT16))
    names = list(value)
    graph = helper.make_graph(
        nodes, "tail", [value[name] for name in names[:4]], [value[name] for name in names[4:9]],
        value_info=[value[name] for name in (names[9:] if half else names[9:10])],
    )  # fmt: skip
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", functions.OPSET), helper.make_opsetid(ops.DOMAIN, ops.DOMAIN_VERSION)],
        functions=[functions.fast_nms_function(cross_class=cross_class), functions.mask_assembly_function()],
        ir_version=10,
    )
    metadata = Metadata(config=get_config("yolact_resnet50"), batch=batch, cross_class=cross_class)
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model
