"""Reads inner tensors of an ONNX graph: a copy of the graph gets further outputs and runs in ONNX Runtime on the CPU.

Tensors can be reduced inside the graph, to their range or their error, so that memory stays that of the network.

Legend: N images per call, h x w the network's input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ExportError, import_optional
from yolact_deploy.graph.cpu_session import open_cpu_session
from yolact_deploy.graph.onnx_graph import copy_model, end_graph_at, fit_trunk, onnx_metadata
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.preprocess import fit_image, read_image

_UINT8 = 2  # in onnx.TensorProto
#: most batches at the same time; each has the activations of the network in memory
_AT_ONCE = 4


@dataclass(frozen=True)
class GraphInput:
    """The images that a graph takes: [N, h, w, 3] BGR, uint8 or float32 in 0..255.

    Attributes:
        batch: N; 1 if the graph takes any
        config: what else is known of the network: h, w, and how a picture gets there
        dtype: "uint8" or "float32"
    """

    batch: int
    config: YolactConfig
    dtype: str

    @classmethod
    def of(cls, model: Any) -> GraphInput:
        """The input of a ``ModelProto`` that this package exported or traced.

        Raises:
            ArtifactError: it has no metadata.
        """
        tensor = model.graph.input[0].type.tensor_type
        batch = tensor.shape.dim[0].dim_value or 1
        config = onnx_metadata(model, "the graph").config
        return cls(batch, config, "uint8" if tensor.elem_type == _UINT8 else "float32")

    def read(self, pictures: Sequence[Path]) -> NDArray[Any]:
        """Pictures as the graph takes them; the last one is repeated until the batch is full.

        Raises:
            InputError: a file is not a picture.
        """
        images = [fit_image(read_image(path), self.config, self.dtype) for path in pictures]
        return np.stack(images + images[-1:] * (self.batch - len(images)))


class TensorProbe:
    """A copy of a graph's trunk that puts out chosen tensors.

    Args:
        model: ``ModelProto`` in FP32, with or without a tail; it is not changed
    """

    def __init__(self, model: Any) -> None:
        self._onnx = import_optional("onnx", "onnx", "Reading inner tensors of an ONNX file")
        self._model = copy_model(model)
        fit_trunk(self._model)
        self._outputs: list[str] = []
        self._constants: dict[tuple[int, ...], str] = {}

    @property
    def graph(self) -> Any:
        """The ``GraphProto``, before it runs."""
        return self._model.graph

    def compute(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an ONNX operator on tensors of the graph; returns the name of its result."""
        result = f"probe_{len(self.graph.node)}"
        self.graph.node.append(self._onnx.helper.make_node(operator, inputs, [result], **attributes))
        return result

    def constant(self, *values: int) -> str:
        """Add a constant int64 [len(values)]; returns its name."""
        if values not in self._constants:
            self._constants[values] = name = f"probe_constant_{len(self._constants)}"
            array = np.array(values, np.int64)
            self.graph.initializer.append(self._onnx.numpy_helper.from_array(array, name))
        return self._constants[values]

    def read(self, *tensors: str) -> None:
        """Put these tensors out, after those of earlier calls."""
        self._outputs += tensors

    def run(self, pictures: Iterable[Path]) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """Run over pictures in batches, several at the same time, each on one core; can be called once.

        That keeps the cores busier than all of them in one operator, decoding included. Results are in the order of
        the pictures, and do not depend on the number of cores.

        Yields:
            The number of pictures in the batch, and the tensors read. Rows past that number repeat the last picture.
        """
        form = GraphInput.of(self._model)
        end_graph_at(self.graph, self._outputs)
        session = open_cpu_session(self._model.SerializeToString(), 1, "the graph with more outputs", arena=False)
        del self._model  # the session has its own copy of the weights
        rest, at_once = iter(pictures), min(usable_cores(), _AT_ONCE)

        def run(call: Sequence[Path]) -> tuple[int, list[NDArray[Any]]]:
            return len(call), session.run(None, {"images": form.read(call)})

        with ThreadPoolExecutor(at_once) as pool:
            running: deque[Future[tuple[int, list[NDArray[Any]]]]] = deque()
            while call := list(islice(rest, form.batch)):
                running.append(pool.submit(run, call))
                if len(running) > at_once:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()


def not_finite(layer: str) -> ExportError:
    """The error for a layer whose values are not finite even in FP32."""
    return ExportError(
        f"{layer} has values that are not finite in FP32: the checkpoint is damaged or its training diverged"
    )
