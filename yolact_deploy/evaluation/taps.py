"""Taps: models whose inner tensors can be read.

A tap is an exported file in ONNX Runtime or OpenVINO on the CPU, whose graph gets the tensors as further outputs in
memory, or a checkpoint in PyTorch on the CPU, whose modules are hooked. A runtime cannot fuse a tensor that must be an
output, so values are those of the graph with these outputs.

Legend: N images, S input side. Names are those of :mod:`yolact_deploy.graph.trunk_graph`.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ArtifactError, BackendError, import_optional
from yolact_deploy.graph.cpu_session import open_cpu_session
from yolact_deploy.graph.half_precision import widen
from yolact_deploy.graph.onnx_graph import end_graph_at, fit_trunk, onnx_metadata, read_onnx
from yolact_deploy.graph.onnx_int8 import use_unsigned, wants_unsigned
from yolact_deploy.graph.trunk_graph import CONVERTING, TrunkNode, trunk_nodes
from yolact_deploy.loading import ModelSpec
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
from yolact_deploy.runtime.openvino import HINTS, OpenVinoBackend, cpu_properties, shared_core

#: name of the input of the first layer: normalized images
INPUT = "input"

#: images [N, S, S, 3] to tensors by name
Read = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]


class Tap(abc.ABC):
    """A model whose inner tensors can be read."""

    #: name of each tensor and its bytes in FP32 for one call, in the order in which they are computed
    sizes: dict[str, int]
    #: operator behind each tensor, to align graphs without usable names
    kinds: tuple[str, ...]

    @abc.abstractmethod
    def open(self, names: Sequence[str]) -> AbstractContextManager[Read]:
        """A function that runs the network and reads these tensors."""


class OnnxTap(Tap):
    """An exported file in ONNX Runtime or OpenVINO on the CPU.

    Tensors of a file in half precision are rounded to it; OpenVINO rounds those of BF16 files only. Tensors of an INT8
    file are read before the next layer quantizes them.

    Args:
        runtime: "onnxruntime" or "openvino"
        precision: precision that OpenVINO computes in
    """

    def __init__(self, path: Path, *, runtime: str, precision: str = "fp32", threads: int | None = None) -> None:
        model = read_onnx(path)
        metadata = onnx_metadata(model, path)
        fit_trunk(model)
        self._path, self._threads = path, threads
        self._open_session = {"onnxruntime": self._onnxruntime, "openvino": self._openvino}[runtime]
        nodes = [node for node in trunk_nodes(model.graph) if node.computes]
        if not nodes:
            raise ArtifactError(f"{path} has no layers with weights: nothing to compare in its trunk")
        self._tensors = {INPUT: _trunk_input(model.graph, nodes[0]), **{node.name: node.output for node in nodes}}
        if runtime == "onnxruntime" and metadata.half:
            widen(model, metadata.half, rounding=True)
        elif metadata.half == "bf16":
            widen(model, metadata.half, rounding=precision == "bf16")
            precision = "fp32"  # OpenVINO itself rounds nothing more
        elif metadata.half and metadata.precision == "int8":
            widen(model, metadata.half, rounding=False)
        self._precision = precision
        sizes = _tensor_bytes(model)
        if runtime == "onnxruntime" and metadata.precision == "int8" and wants_unsigned():
            use_unsigned(model)  # tensors keep their names, but shape inference no longer works
        self._model, self._all_nodes = model, list(model.graph.node)
        self.kinds = ("", *(node.op_type for node in nodes))
        self.sizes = {name: sizes[tensor] for name, tensor in self._tensors.items()}

    @contextlib.contextmanager
    def open(self, names: Sequence[str]) -> Iterator[Read]:
        tensors = list(dict.fromkeys(self._tensors[name] for name in names))
        run = self._open_session(self._marked(tensors), tensors)

        def read(images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
            values = dict(zip(tensors, run(images), strict=True))
            return {name: values[self._tensors[name]] for name in names}

        yield read

    def _marked(self, tensors: Sequence[str]) -> bytes:
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(self._all_nodes)
        end_graph_at(graph, tensors)
        data: bytes = self._model.SerializeToString()
        return data

    def _onnxruntime(self, data: bytes, tensors: Sequence[str]) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
        session = open_cpu_session(data, self._threads, f"{self._path}, changed in memory")
        return lambda images: list(session.run(list(tensors), {"images": images}))

    def _openvino(self, data: bytes, tensors: Sequence[str]) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
        core = shared_core()
        properties = cpu_properties(HINTS[self._precision], self._threads)
        try:
            request = core.compile_model(core.read_model(data), "CPU", properties).create_infer_request()
        except Exception as error:  # RuntimeError and classes of its own
            raise ArtifactError(f"OpenVINO rejects {self._path} with inner tensors as outputs: {error}") from error

        def run(images: NDArray[Any]) -> list[NDArray[Any]]:
            results = request.infer({"images": images}, share_inputs=True)
            return [np.array(results[tensor]) for tensor in tensors]

        return run


def _tensor_bytes(model: Any) -> dict[str, int]:
    """Bytes of each tensor in FP32; unknown dimensions count as 1."""
    inference = import_optional("onnx.shape_inference", "onnx", "Reading inner tensors of an ONNX file")
    graph = inference.infer_shapes(model).graph
    return {
        value.name: 4 * math.prod(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _trunk_input(graph: Any, first: TrunkNode) -> str:
    """The tensor that enters the first layer, before any conversion."""
    producers = {output: node for node in graph.node for output in node.output}
    name: str = graph.node[first.index].input[0]
    while name in producers and producers[name].op_type in CONVERTING:
        name = producers[name].input[0]
    return name


class TorchTap(Tap):
    """A checkpoint in PyTorch on the CPU; batch normalization is folded, so that layers match those of exported files.

    Only outputs of layers can be read, not those of the operations that follow them.
    """

    def __init__(self, path: Path, *, precision: str = "fp32") -> None:
        import torch
        from torch import nn

        from yolact_deploy.model.checkpoint import load_model
        from yolact_deploy.model.fuse import fuse_batch_norm
        from yolact_deploy.runtime.torch.torch_network import HeadsModule

        model = fuse_batch_norm(load_model(path))
        self._torch = torch
        self._layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))}
        self._module = HeadsModule(model, precision=precision)
        self.sizes = {}
        with self._hooked(lambda name, value: self.sizes.setdefault(name, 4 * value.numel())):
            self._run(np.zeros((1, *model.config.input_shape, 3), np.float32))
        self.kinds = ("Conv",) * len(self.sizes)

    @contextlib.contextmanager
    def open(self, names: Sequence[str]) -> Iterator[Read]:
        wanted = set(names)

        def read(images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
            values: dict[str, NDArray[Any]] = {}

            def keep(name: str, value: Any) -> None:
                if name in wanted:
                    values[name] = value.float().numpy().copy()

            with self._hooked(keep):
                self._run(images)
            return values

        yield read

    def _run(self, images: NDArray[Any]) -> None:
        with self._torch.inference_mode():
            self._module(self._torch.from_numpy(images))

    @contextlib.contextmanager
    def _hooked(self, receive: Callable[[str, Any], object]) -> Iterator[None]:
        """Call ``receive`` with the name and value of each tensor while the network runs."""
        uses: Counter[str] = Counter()

        def hook(layer: str) -> Callable[..., None]:
            def after(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
                if not uses.total():
                    receive(INPUT, inputs[0])
                uses[layer] += 1
                receive(layer + (f"#{uses[layer]}" if uses[layer] > 1 else ""), output)

            return after

        handles = [module.register_forward_hook(hook(name)) for name, module in self._layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def open_tap(spec: str, backend: Backend, *, threads: int | None = None) -> Tap:
    """A tap of the model ``FILE[@BACKEND...]`` that ``backend`` was loaded from.

    Args:
        threads: threads of ONNX Runtime or OpenVINO; by default one per core

    Raises:
        BackendError: the inner tensors of this backend cannot be read.
    """
    parsed = ModelSpec.parse(spec)
    if isinstance(backend, (OnnxRuntimeBackend, OpenVinoBackend)):
        return OnnxTap(parsed.path, runtime=backend.name, precision=backend.precision, threads=threads)
    if backend.name == "torch" and parsed.device in (None, "cpu") and not parsed.compile:
        return TorchTap(parsed.path, precision=backend.precision)
    raise BackendError(
        f"the inner tensors of {parsed} cannot be read: that needs a file or a checkpoint in ONNX Runtime, OpenVINO or "
        "PyTorch (not compiled) on the CPU"
    )
