"""Changes to the graphs of :mod:`yolact_deploy.export.search.trials`: half precision and INT8, as exported.

Half precision is emulated (see :func:`yolact_deploy.export.mixed_precision.lower_trunk`): operators compute in FP32,
and their inputs and outputs are rounded. An engine that fuses operators rounds less often; one that also accumulates in
half precision is worse. INT8 runs in the INT8 kernels of ONNX Runtime, from the graph that the export would write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.graph.half_precision import widen
from yolact_deploy.graph.onnx_int8 import use_unsigned, wants_unsigned
from yolact_deploy.graph.trunk_graph import trunk_nodes

if TYPE_CHECKING:
    from yolact_deploy.export.calibration import Calibration
    from yolact_deploy.export.search.trials import Change


def half_precision(precision: str) -> Change:
    """Lower to "fp16" or "bf16"."""

    def change(model: Any, kept: Sequence[str]) -> None:
        lower_trunk(model, kept, precision=precision, emulate=True)

    return change


def int8(calibration: Calibration, target: str = "symmetric", *, unsigned: bool = True, rest: str = "fp32") -> Change:
    """Quantize with the ranges of one calibration, as ONNX Runtime runs a file of form ``target`` on this machine.

    Kept layers are given by their own names, not by modules.

    Args:
        unsigned: False keeps the activations of a symmetric graph signed, as in TensorRT and OpenVINO, on every
            machine. That is slow in ONNX Runtime, and coarser: values that cannot be negative have half as many steps
        rest: precision of what is not quantized, one of :data:`~yolact_deploy.vocabulary.INT8_RESTS`
    """
    from yolact_deploy.export.quantize import quantize_trunk

    def change(model: Any, kept: Sequence[str]) -> None:
        if not any(node.op_type == "Conv" and node.layer not in kept for node in trunk_nodes(model.graph)):
            return  # only deformable convolutions are left, which INT8 does not change
        quantize_trunk(model, calibration, target=target, keep_fp32=kept)
        if rest != "fp32":
            lower_trunk(model, kept, precision=rest)
            widen(model, rest, rounding=True)
        if target == "symmetric" and unsigned and wants_unsigned():
            use_unsigned(model)

    return change
