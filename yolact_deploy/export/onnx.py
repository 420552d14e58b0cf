"""A PyTorch model to one ONNX file that every runtime takes: images in, detections and masks out.

Precision lives in the graph: with "fp16" or "bf16" the trunk (everything that is convolution) computes in half
precision, with "int8" in 8-bit integers between Q/DQ nodes, while normalisation, softmax, box decoding, NMS and masks
stay in FP32. The graph is traced in FP32, batch normalisation being folded, and lowered then. Some layers of the trunk
can be kept in FP32, too.

Legend: N images, S input side, P priors, C classes, K coefficients, D detections, h x w prototypes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import onnx
import torch
from torch import Tensor, nn

from yolact_deploy import ops
from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.errors import ExportError
from yolact_deploy.export import functions
from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.graph.half_precision import BF16_OPSET
from yolact_deploy.graph.trunk_graph import layer_names, select_layers, trunk_nodes
from yolact_deploy.model import YolactModel
from yolact_deploy.model.deformable import DeformableConv
from yolact_deploy.model.fuse import fuse_batch_norm
from yolact_deploy.model.torch_ops import decode_boxes
from yolact_deploy.version import __version__
from yolact_deploy.vocabulary import EXPORT_PRECISIONS, EXPORT_TAILS, INPUT_DTYPES

MAX_BATCH = 1024


class _Pipeline(nn.Module):
    """What the file computes, in FP32: images [N, S, S, 3] BGR in 0..255 to the outputs of ``metadata.tail``."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: YolactModel, metadata: Metadata) -> None:
        super().__init__()
        self.metadata = metadata
        # Probabilities lose nothing in FP16 that they have in half precision of either kind.
        self.mask_dtype = torch.float32 if metadata.precision == "fp32" else torch.float16
        self.model = fuse_batch_norm(model)
        self.priors = self.model.priors.float()
        for module in self.model.modules():
            if isinstance(module, DeformableConv):
                module.sample = partial(_deform_conv_node, module)  # type: ignore[method-assign]
        self.register_buffer("mean", torch.tensor(metadata.config.pixel_mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(metadata.config.pixel_std, dtype=torch.float32))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        normalised = (images.float() - self.mean) / self.std
        loc, logits, coeff, proto = self.model.heads(normalised.permute(0, 3, 1, 2).flip(1))  # BGR to RGB
        boxes = decode_boxes(loc, self.priors)
        scores = logits.softmax(dim=-1)[..., 1:]
        if self.metadata.tail == "heads":
            return boxes, scores, coeff, proto
        return self._tail(boxes, scores, coeff, proto)

    def _tail(self, boxes: Tensor, scores: Tensor, coeff: Tensor, proto: Tensor) -> tuple[Tensor, ...]:
        config = self.metadata.config
        attributes = ops.FAST_NMS.attribute_values(
            {
                "score_threshold": config.nms_score_threshold,
                "iou_threshold": config.iou_threshold,
                "top_k": min(config.top_k, config.num_priors),
                "max_detections": config.top_k if self.metadata.cross_class else config.max_detections,
                "cross_class": int(self.metadata.cross_class),
            }
        )
        counts, found_boxes, found_scores, labels, found_coeff = _node(ops.FAST_NMS, (boxes, scores, coeff), attributes)
        (masks,) = _node(ops.MASK_ASSEMBLY, (proto, found_coeff, found_boxes), {"padding": 1.0})
        found = counts, found_boxes, found_scores, labels, masks.to(self.mask_dtype)
        network = self.model.maskiou_net
        if network is None:
            return found
        told = network(masks.flatten(0, 1)[:, None]).reshape(*labels.shape, config.num_classes)
        return (*found, found_scores * told.gather(2, labels.long()[..., None])[..., 0])


def _node(op: ops.Op, inputs: tuple[Tensor, ...], attributes: ops.Attributes) -> tuple[Tensor, ...]:
    """The outputs of a node of our domain, for the exporter to trace."""
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{ops.DOMAIN}::{op.name}",
        inputs,
        attrs=dict(attributes),
        dtypes=tuple(getattr(torch, output.dtypes[0]) for output in op.outputs),
        shapes=tuple(op.output_shapes([tensor.shape for tensor in inputs], attributes)),
        version=ops.DOMAIN_VERSION,
    )
    return tuple(outputs)


def _deform_conv_node(module: DeformableConv, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    """A deformable convolution as a node of our domain, in place of torchvision's operator."""
    assert module.bias is not None
    found: Tensor = torch.onnx.ops.symbolic(
        f"{ops.DOMAIN}::{ops.DEFORM_CONV}",
        (x, module.weight, offset, module.bias, mask),
        attrs={"strides": list(module.stride), "pads": [1, 1, 1, 1]},
        dtype=x.dtype,
        shape=(x.shape[0], module.out_channels, *offset.shape[2:]),
        version=ops.DOMAIN_VERSION,
    )
    return found


def export_onnx(
    model: YolactModel,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    tail: str = "functions",
    batch: tuple[int, int, int] = (1, 1, 1),
    input_dtype: str = "uint8",
    cross_class: bool = False,
    weights_sha256: str = "",
    keep_fp32: Sequence[str] = (),
    on_traced: Callable[[onnx.ModelProto, Metadata], Mapping[str, str]] | None = None,
    quantize: Callable[[onnx.ModelProto, Metadata], Metadata] | None = None,
) -> Metadata:
    """Write ``model`` to ``path`` as ONNX; gives the metadata that is in the file.

    The caller gives a temporary path where the file must appear whole or not at all.

    Args:
        precision: one of :data:`~yolact_deploy.vocabulary.EXPORT_PRECISIONS`
        tail: "functions" (detections and masks) or "heads" (boxes, scores, coeff, proto)
        batch: smallest, usual and largest batch; three equal numbers fix it
        input_dtype: "uint8", or "float32" for images resized without rounding to grey levels
        cross_class: one Fast NMS over all classes
        weights_sha256: of the checkpoint, for the record
        keep_fp32: of a lower precision, layers (``proto_net.10``) or modules that hold some (``proto_net``) to keep in
            FP32
        on_traced: sees the graph in FP32 before it is lowered, and names more layers to keep, each with the reason
        quantize: for "int8", turns the graph in FP32 to it, in place, and gives the metadata with what it did

    Raises:
        ExportError: arguments that do not fit, or weights that FP16 cannot hold.
    """
    metadata = Metadata(
        config=model.config,
        precision=precision,
        tail=tail,
        cross_class=cross_class,
        input_dtype=input_dtype,
        batch=batch,
        weights_sha256=weights_sha256,
        keep_fp32=tuple(keep_fp32),
        versions={name: version(name) for name in ("torch", "onnx", "onnxscript")},
    )
    _check_arguments(metadata)
    pipeline = _Pipeline(model, metadata).eval()
    _check_weights(pipeline.model)
    proto = _trace(pipeline, metadata)
    del pipeline  # its weights are in the graph now
    if on_traced is not None:
        metadata = _keep_more(metadata, on_traced(proto, metadata), layer_names(trunk_nodes(proto.graph)))
    if precision == "int8":
        if quantize is None:
            raise ExportError("int8 needs a calibration: give pictures with --calibration")
        metadata = quantize(proto, metadata)
    elif precision != "fp32":
        lower_trunk(proto, metadata.keep_fp32, precision=precision)
    _finish(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, os.fspath(path))
    return metadata


def _check_arguments(metadata: Metadata) -> None:
    config = metadata.config
    for name, value, known in (
        ("precision", metadata.precision, EXPORT_PRECISIONS),
        ("tail", metadata.tail, EXPORT_TAILS),
        ("input_dtype", metadata.input_dtype, INPUT_DTYPES),
    ):
        if value not in known:
            raise ExportError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if metadata.keep_fp32 and metadata.precision == "fp32":
        raise ExportError("keep_fp32: all layers are in FP32 already; give it with fp16, bf16 or int8")
    low, usual, high = metadata.batch
    if not 1 <= low <= usual <= high <= MAX_BATCH:
        raise ExportError(f"batch: expected 1 <= min <= opt <= max <= {MAX_BATCH}, got {low}:{usual}:{high}")
    entries = min(config.top_k, config.num_priors) * (1 if metadata.cross_class else config.num_classes)
    slots = config.top_k if metadata.cross_class else config.max_detections
    if slots > entries:
        raise ExportError(f"max_detections: {slots} slots for {entries} entries of NMS; lower it to {entries}")


def _keep_more(metadata: Metadata, found: Mapping[str, str], layers: Sequence[str]) -> Metadata:
    """The metadata with ``found`` kept in FP32 beside what the user named."""
    named = select_layers(metadata.keep_fp32, layers)
    more = {layer: reason for layer, reason in found.items() if layer not in named}
    return dataclasses.replace(metadata, keep_fp32=(*metadata.keep_fp32, *more), keep_reasons=more)


def _check_weights(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ExportError(
                f"{name} has values that are not finite: the checkpoint is damaged or its training diverged"
            )


def _trace(pipeline: _Pipeline, metadata: Metadata) -> onnx.ModelProto:
    low, _, high = metadata.batch
    side = metadata.config.image_size
    # A dynamic dimension is traced with an example of 2: 0 and 1 would be specialised.
    count = low if low == high else 2
    images = torch.zeros(count, side, side, 3, dtype=getattr(torch, metadata.input_dtype))
    dynamic = None if low == high else {"images": {0: torch.export.Dim("batch", min=low, max=max(high, 2))}}
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            pipeline,
            (images,),
            input_names=["images"],
            output_names=list(metadata.outputs),
            opset_version=BF16_OPSET if metadata.precision == "bf16" else functions.OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None  # None only comes from the old exporter
    return program.model_proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter's advice is for developers of models; ours is fixed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _finish(proto: onnx.ModelProto, metadata: Metadata) -> None:
    """Add the functions' bodies and the metadata, and drop what tells of the machine that exported."""
    if metadata.tail == "functions":
        proto.functions.append(functions.fast_nms_function(cross_class=metadata.cross_class))
        proto.functions.append(functions.mask_assembly_function())
    if any(node.domain == ops.DOMAIN and node.op_type == ops.DEFORM_CONV for node in proto.graph.node):
        proto.functions.append(functions.deform_conv_function())
    for function in proto.functions:  # the model's version; nothing in them has another meaning in it
        del function.opset_import[:]
        function.opset_import.extend(entry for entry in proto.opset_import if not entry.domain)
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces with the paths of the exporting machine
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.graph.name = metadata.config.name
    proto.producer_name = "yolact-deploy"
    proto.producer_version = __version__
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
