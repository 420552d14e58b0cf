"""ncnn's files, for phones and boards: the heads of the network, converted by pnnx.

ncnn lacks operators of the tail: NMS and masks are left to the program, as for a file that ends in heads. Input in0 is
float32 [H, W, 3] BGR in 0..255, outputs out0 to out3 are boxes, scores, coeff and proto.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.errors import ExportError, InputError, import_optional
from yolact_deploy.export.targets.agreement_check import check_agreement
from yolact_deploy.export.targets.target_metadata import write_metadata
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.graph.onnx_graph import load_graph
from yolact_deploy.runtime.mobile.ncnn import open_net, run_net

_SECONDS = 600


def write(source: TargetSource, folder: Path) -> list[Path]:
    """Write model.ncnn.param, model.ncnn.bin and metadata.json; runs them in ncnn on the CPU.

    Weights are in single precision, whatever half precision the file has.

    Raises:
        InputError: a file in INT8, which pnnx cannot convert.
    """
    if source.metadata.precision == "int8":
        raise InputError("the format ncnn cannot be made from INT8: export without --int8")
    onnx = import_optional("onnx", "onnx", "Writing the format ncnn")
    ncnn = import_optional("ncnn", "ncnn", "Writing the format ncnn")
    height, width = source.metadata.config.input_shape
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        onnx.save(_float_heads(onnx, source), str(path))
        _convert(path, f"inputshape=[1,{height},{width},3]f32")
        written = [(path.with_name(name), folder / name) for name in ("model.ncnn.param", "model.ncnn.bin")]
        for made, kept in written:
            kept.write_bytes(made.read_bytes())
    with open_net(ncnn, folder / "model.ncnn.param", folder / "model.ncnn.bin") as net:
        check_agreement(source, lambda images: run_net(ncnn, net, images), target="ncnn", heads=True)
    return [*(kept for _, kept in written), write_metadata(source.metadata, folder)]


def _float_heads(onnx: Any, source: TargetSource) -> Any:
    """The graph up to its heads, in FP32, with float32 images of batch 1."""
    model = onnx.load_model_from_string(load_graph(source.onnx_path, "host", half="fp32").data)
    images = model.graph.input[0]
    images.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    batch = images.type.tensor_type.shape.dim[0]
    batch.Clear()
    batch.dim_value = 1
    del model.graph.value_info[:]
    _drop_copies(model.graph, images.name)
    _fold_channel_order(onnx, model.graph)
    return model


def _drop_copies(graph: Any, images: str) -> None:
    """Drop the cast of the images, since ncnn has no casts, and what a widened file has in place of its own casts."""
    outputs = {output.name for output in graph.output}
    for copy in list(graph.node):
        is_cast = copy.op_type == "Cast" and copy.input[0] == images
        if not (is_cast or copy.op_type == "Identity") or copy.output[0] in outputs:
            continue
        for node in graph.node:
            node.input[:] = [copy.input[0] if name == copy.output[0] else name for name in node.input]
        graph.node.remove(copy)


def _fold_channel_order(onnx: Any, graph: Any) -> None:
    """Let the first convolution read BGR: its weights take the order of the channels. ncnn reverses none."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for gather in [node for node in graph.node if node.op_type == "Gather" and node.input[1] in constants]:
        order = onnx.numpy_helper.to_array(constants[gather.input[1]])
        readers = [node for node in graph.node if gather.output[0] in node.input]
        if order.tolist() != [2, 1, 0]:
            continue
        if any(node.op_type != "Conv" for node in readers):
            raise ExportError("the format ncnn expects a convolution right after the channels are reversed")
        for conv in readers:
            weight = constants[conv.input[1]]
            values = onnx.numpy_helper.to_array(weight)[:, np.argsort(order)]
            weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
            conv.input[0] = gather.input[0]
        graph.node.remove(gather)


def _convert(path: Path, shape: str) -> None:
    """Run pnnx, which writes beside ``path``."""
    import_optional("pnnx", "ncnn", "Writing the format ncnn")
    program = next(_programs(), None)
    if program is None:
        raise ExportError("the program pnnx is not beside its Python package: pip install --force-reinstall pnnx")
    command = [str(program), path.name, "fp16=0", shape]
    done = subprocess.run(
        command, cwd=path.parent, capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace"
    )
    if done.returncode or not path.with_name("model.ncnn.bin").is_file():
        last = " ".join((done.stderr or done.stdout).split()[-40:])
        raise ExportError(f"pnnx cannot convert the file (exit code {done.returncode}): {last}")


def _programs() -> Iterator[Path]:
    """Where the wheel puts the converter."""
    pnnx = import_optional("pnnx", "ncnn", "Writing the format ncnn")
    package = Path(pnnx.__path__[0])
    for folder in (package / "bin", package, Path(sys.executable).parent):
        yield from (path for name in ("pnnx", "pnnx.exe") if (path := folder / name).is_file())
