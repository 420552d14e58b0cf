"""From a plugin's shapes, dtypes and attributes to the launch plan of its kernels.

Legend: as in `yolact_deploy.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

from yolact_deploy.ops import DTYPE_NAMES, FAST_NMS, Attributes, Op
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan
from yolact_deploy.runtime.cuda.plans.plan_masks import mask_assembly
from yolact_deploy.runtime.cuda.plans.plan_nms import fast_nms

#: of buffers inside the workspace, in bytes, as cudaMalloc aligns
ALIGNMENT = 256


def plan_for(op: Op, shapes: Sequence[Sequence[int]], dtypes: Sequence[str], attributes: Attributes) -> LaunchPlan:
    """The plan whose buffers have the names of the op's inputs and outputs.

    Args:
        op: one of `yolact_deploy.ops.OPS`
        shapes, dtypes: of the inputs
        attributes: all of them, see :meth:`Op.attribute_values`

    Raises:
        ConfigError: sizes that the kernels cannot take.
        ValueError: shapes or dtypes that are not the op's.
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
    """NumPy's names of the outputs' dtypes."""
    chosen = DTYPE_NAMES[int(attributes.get("mask_dtype", 1))]
    return [chosen if len(output.dtypes) > 1 else output.dtypes[0] for output in op.outputs]


def workspace(plan: LaunchPlan) -> tuple[dict[str, int], int]:
    """Where each scratch buffer lies in one block of memory (name -> offset), and the block's size, in bytes."""
    offsets, size = {}, 0
    for name, nbytes in plan.scratch.items():
        offsets[name] = size
        size += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, size
