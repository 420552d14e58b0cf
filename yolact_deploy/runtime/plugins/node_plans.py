"""Launch plans of the kernels for a plugin's shapes, dtypes and attributes.

Legend: as in `yolact_deploy.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

from yolact_deploy.ops import DTYPE_NAMES, FAST_NMS, Attributes, Op
from yolact_deploy.runtime.cuda.layout import Layout
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan
from yolact_deploy.runtime.cuda.plans.plan_masks import mask_assembly
from yolact_deploy.runtime.cuda.plans.plan_nms import fast_nms


def plan_for(op: Op, shapes: Sequence[Sequence[int]], dtypes: Sequence[str], attributes: Attributes) -> LaunchPlan:
    """The plan of an op; its buffers have the names of the op's inputs and outputs.

    Args:
        op: one of `yolact_deploy.ops.OPS`
        shapes, dtypes: of the inputs
        attributes: all attributes, see :meth:`Op.attribute_values`

    Raises:
        ConfigError: sizes that the kernels do not support.
        ValueError: shapes or dtypes that do not fit the op.
    """
    for tensor, dtype in zip(op.inputs, dtypes, strict=True):
        if dtype not in tensor.dtypes:
            raise ValueError(f"{op.name}: expected {tensor.name} of {' or '.join(tensor.dtypes)}, got {dtype}")
    size = op.dimensions(shapes, attributes)
    if op is FAST_NMS:
        return fast_nms(
            size["N"],
            size["P"],
            size["C"],
            size["K"],
            top_k=int(attributes["top_k"]),
            max_detections=int(attributes["max_detections"]),
            score_threshold=attributes["score_threshold"],
            iou_threshold=attributes["iou_threshold"],
            cross_class=bool(attributes["cross_class"]),
            second_threshold=attributes["second_threshold"],
        )
    return mask_assembly(
        size["N"],
        size["D"],
        size["h"],
        size["w"],
        size["K"],
        padding=attributes["padding"],
        proto_dtype=dtypes[0],
        mask_dtype=DTYPE_NAMES[int(attributes["mask_dtype"])],
    )


def output_dtypes(op: Op, attributes: Attributes) -> list[str]:
    """Dtypes of the outputs, by NumPy's names."""
    chosen = DTYPE_NAMES[int(attributes.get("mask_dtype", 1))]
    return [chosen if len(output.dtypes) > 1 else output.dtypes[0] for output in op.outputs]


def workspace(plan: LaunchPlan) -> Layout:
    """The scratch buffers in one block of memory."""
    return Layout({name: ((nbytes,), "uint8") for name, nbytes in plan.scratch.items()})
