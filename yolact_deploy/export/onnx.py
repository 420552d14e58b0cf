"""Traces a PyTorch model to one ONNX file for every runtime: images in, detections and masks out.

The graph carries the precision: the trunk (all convolutions) computes in FP32, FP16, BF16, or in INT8 between Q/DQ
nodes; normalization, softmax, box decoding, NMS and masks stay in FP32. The graph is traced in FP32 with batch
normalization folded, and lowered afterwards. Chosen layers of the trunk can stay in FP32.

Legend: N images, S input side, P priors, C classes, K coefficients, D detections, h x w prototypes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import onnx
import torch
from torch import Tensor, nn

from yolact_deploy import ops
from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ExportError
from yolact_deploy.export import functions
from yolact_deploy.export.contract import describe
from yolact_deploy.export.free_batch import TRACED_BATCH, free_batch
from yolact_deploy.export.free_sizes import free_sizes
from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.export.spec import DEFAULT_SPEC, ExportSpec
from yolact_deploy.export.tail import append_tail
from yolact_deploy.graph.half_precision import BF16_OPSET
from yolact_deploy.graph.inlined_tail import PADDING, nms_attributes
from yolact_deploy.graph.onnx_graph import copy_model
from yolact_deploy.graph.portable import use_tensors
from yolact_deploy.model import YolactModel
from yolact_deploy.model.deformable import DeformableConv
from yolact_deploy.model.fuse import fuse_batch_norm
from yolact_deploy.model.torch_ops import decode_boxes
from yolact_deploy.version import __version__


class _Pipeline(nn.Module):
    """What the file computes, in FP32: from images [N, S, S, 3] BGR in 0..255 to the outputs of ``metadata.tail``."""

    mean: Tensor
    std: Tensor
    rgb: Tensor

    def __init__(self, model: YolactModel, metadata: Metadata) -> None:
        super().__init__()
        self.metadata = metadata
        # FP16 holds every probability that either kind of half precision does.
        self.mask_dtype = torch.float32 if metadata.precision == "fp32" else torch.float16
        self.model = fuse_batch_norm(model)
        self.priors = self.model.priors.float()
        for module in self.model.modules():
            if isinstance(module, DeformableConv):
                module.sample = partial(_deform_conv_node, module)  # type: ignore[method-assign]
        self.register_buffer("mean", torch.tensor(metadata.config.pixel_mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(metadata.config.pixel_std, dtype=torch.float32))
        self.register_buffer("rgb", torch.tensor([2, 1, 0]))  # BGR to RGB

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        normalized = (images.float() - self.mean) / self.std
        # Becomes a Gather. A flip becomes a Slice with step -1, which stops OpenCV and which onnx2tf gets wrong.
        channels = normalized.permute(0, 3, 1, 2).index_select(1, self.rgb)
        loc, logits, coeff, proto = self.model.heads(channels)
        boxes = decode_boxes(loc, self.priors, clip=self.metadata.config.clip_boxes)
        scores = logits.softmax(dim=-1)[..., 1:]
        if self.metadata.tail == "heads":
            return boxes, scores, coeff, proto
        return self._tail(boxes, scores, coeff, proto)

    def _tail(self, boxes: Tensor, scores: Tensor, coeff: Tensor, proto: Tensor) -> tuple[Tensor, ...]:
        """The tail of a network that rescores masks: its mask-IoU network reads the masks."""
        nms = _node(ops.FAST_NMS, (boxes, scores, coeff), nms_attributes(self.metadata))
        counts, boxes, scores, labels, coeff = nms
        (masks,) = _node(ops.MASK_ASSEMBLY, (proto, coeff, boxes), PADDING)
        network, classes = self.model.maskiou_net, self.metadata.config.num_classes
        assert network is not None
        ious = network(masks.flatten(0, 1)[:, None]).reshape(*labels.shape, classes)
        rescored = scores * ious.gather(2, labels.long()[..., None])[..., 0]
        return counts, boxes, scores, labels, masks.to(self.mask_dtype), rescored


def heads_module(model: YolactModel, metadata: Metadata) -> nn.Module:
    """What a file that ends in heads computes, in FP32, as a module: for converters that start from PyTorch."""
    return _Pipeline(model, replace(metadata, tail="heads", precision="fp32", input_dtype="float32")).eval()


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
    result: Tensor = torch.onnx.ops.symbolic(
        f"{ops.DOMAIN}::{ops.DEFORM_CONV}",
        (x, module.weight, offset, module.bias, mask),
        attrs={"strides": list(module.stride), "pads": [1, 1, 1, 1]},
        dtype=x.dtype,
        shape=(x.shape[0], module.out_channels, *offset.shape[2:]),
        version=ops.DOMAIN_VERSION,
    )
    return result


def trace(model: YolactModel, metadata: Metadata) -> onnx.ModelProto:
    """The graph of a model in FP32, batch normalization folded; the bodies of our functions are not in it yet.

    Args:
        metadata: what the file will be; of its precision, only the dtype of the masks and the opset matter here

    Raises:
        ExportError: weights that are not finite.
    """
    appended = metadata.tail == "functions" and not metadata.config.mask_iou
    traced = replace(metadata, tail="heads" if appended else metadata.tail, sizes=None)
    network = model if metadata.sizes is None else model.at_size(metadata.config)
    pipeline = _Pipeline(network, traced).eval()
    _check_weights(pipeline.model)
    graph = _trace(pipeline, traced) if _shared is None else _shared_trace(pipeline, traced, _shared)
    if metadata.sizes is not None:
        free_sizes(graph, metadata.config, metadata.sizes)
    if appended:
        append_tail(graph, metadata)
    if metadata.precision == "bf16":
        (opset,) = (entry for entry in graph.opset_import if not entry.domain)
        opset.version = BF16_OPSET  # what the exporter emits means the same in both, but only this one knows BF16
    onnx.helper.set_model_props(graph, {METADATA_KEY: metadata.to_json()})  # how pictures are to be read
    return graph


#: traces by what they depend on, inside :func:`shared_traces`
_shared: dict[str, onnx.ModelProto] | None = None


@contextmanager
def shared_traces() -> Iterator[None]:
    """Inside, exports of the same weights and structure share one trace, which takes most of their time."""
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


def _shared_trace(pipeline: _Pipeline, metadata: Metadata, shared: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    digest = hashlib.sha256(repr((type(pipeline.model), _read_by_trace(metadata))).encode())
    for name, tensor in (*pipeline.named_parameters(), *pipeline.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.detach().cpu().numpy().tobytes())
    key = digest.hexdigest()
    if key not in shared:
        shared[key] = _trace(pipeline, metadata)
    copy: onnx.ModelProto = copy_model(shared[key])
    return copy


def _read_by_trace(metadata: Metadata) -> tuple[object, ...]:
    """What a trace depends on apart from the model's tensors."""
    low, _, high = metadata.batch
    batch = low if low == high else None  # an open one has no bounds in the graph
    if metadata.tail == "functions":
        tail = replace(metadata.config, fit="stretch"), metadata.cross_class, metadata.precision == "fp32"
        return (*tail, batch, metadata.input_dtype)
    plain = YolactConfig()
    network = replace(
        metadata.config, name=plain.name, class_names=(), category_ids=(), top_k=plain.top_k, fit=plain.fit,
        max_detections=plain.max_detections, nms_score_threshold=plain.nms_score_threshold,
        iou_threshold=plain.iou_threshold, second_threshold=plain.second_threshold,
    )  # fmt: skip
    return network, batch, metadata.input_dtype


def write_onnx(graph: onnx.ModelProto, metadata: Metadata, path: str | os.PathLike[str]) -> None:
    """Complete a graph, in place, check that it is valid ONNX, and save it."""
    _finish(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, os.fspath(path))


def export_onnx(
    model: YolactModel, path: str | os.PathLike[str], spec: ExportSpec = DEFAULT_SPEC, *, weights_sha256: str = ""
) -> Metadata:
    """Write a model as ONNX without measuring or checking anything; returns the metadata in the file.

    :func:`yolact_deploy.export.pipeline.export_model` does the rest: it keeps layers that overflow in FP32, quantizes,
    compares the file with the model, and leaves no file behind if it fails.

    Args:
        spec: any precision but INT8
        weights_sha256: of the checkpoint, for the record

    Raises:
        ExportError: weights that the precision cannot hold, or a name in ``spec.keep_fp32`` that is no layer.
    """
    metadata = spec.metadata(model.config, weights_sha256=weights_sha256, versions=tool_versions())
    if spec.precision == "int8":
        raise ExportError("INT8 requires a calibration: use yolact_deploy.export.pipeline.export_model")
    graph = trace(model, metadata)
    if spec.precision != "fp32":
        lower_trunk(graph, metadata.keep_fp32, precision=spec.precision)
    write_onnx(graph, metadata, path)
    return metadata


def tool_versions() -> dict[str, str]:
    """Versions of the packages that make a file."""
    return {name: version(name) for name in ("torch", "onnx", "onnxscript")}


def _check_weights(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ExportError(
                f"{name} has values that are not finite: the checkpoint is damaged or its training diverged"
            )


def _trace(pipeline: _Pipeline, metadata: Metadata) -> onnx.ModelProto:
    low, _, high = metadata.batch
    if low == high:
        return _traced(pipeline, metadata, low)
    graph = _traced(pipeline, metadata, TRACED_BATCH)
    if free_batch(graph):
        return graph
    # An open dimension is traced with an example of 2: 0 and 1 would be specialized.
    return _traced(pipeline, metadata, 2, {"images": {0: torch.export.Dim("batch", min=low, max=max(high, 2))}})


def _traced(
    pipeline: _Pipeline, metadata: Metadata, batch: int, dynamic: dict[str, dict[int, object]] | None = None
) -> onnx.ModelProto:
    images = torch.zeros(batch, *metadata.config.input_shape, 3, dtype=getattr(torch, metadata.input_dtype))
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            pipeline,
            (images,),
            input_names=["images"],
            output_names=list(metadata.outputs),
            opset_version=functions.OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None  # None only comes from the old exporter
    return program.model_proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's advice, which is for developers of models."""
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
    """Add the bodies of the functions and the metadata, and drop all traces of the exporting machine."""
    if metadata.tail == "functions":
        proto.functions.append(functions.fast_nms_function(cross_class=metadata.cross_class))
        proto.functions.append(functions.mask_assembly_function())
    if any(map(ops.is_deform_conv, proto.graph.node)):
        proto.functions.append(functions.deform_conv_function())
    for function in proto.functions:  # the opset of the model, in which their operators mean the same
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
    use_tensors(proto.graph.node)
    describe(proto, metadata)
