"""The DNN module of OpenCV 5 on the CPU: runs an exported file where OpenCV is the only runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import Size
from yolact_deploy.errors import ArtifactError, BackendError, InputError, import_optional
from yolact_deploy.graph.onnx_graph import load_graph
from yolact_deploy.graph.portable import make_portable
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.tails import Outputs, numpy_tail


class OpenCvBackend(Backend):
    """An exported ONNX file in OpenCV's DNN module, in FP32 or INT8.

    Args:
        path: the ONNX file
        threads: while the network runs; by default those of the process, as ``cv2.setNumThreads`` has set them
        tail: as for ONNX Runtime
        size: must be the input of the file

    Raises:
        ArtifactError: not one of our ONNX files, or OpenCV lacks one of its operators.
        BackendError: OpenCV is older than 5, which lacks operators.
        InputError: another size, or a file for a range of sizes.
    """

    name = "opencv"

    def __init__(self, path: Path, *, threads: int | None = None, tail: str = "auto", size: Size | None = None) -> None:
        if int(cv2.__version__.partition(".")[0]) < 5:
            raise BackendError(
                f"the backend opencv needs OpenCV 5, and {cv2.__version__} is installed: "
                "pip install 'opencv-python-headless>=5'"
            )
        graph = load_graph(path, tail, half="fp32")
        if graph.metadata.sizes is not None:
            raise InputError(f"{path} takes a range of sizes, which OpenCV does not: export it with one --size")
        self._threads = threads
        self.metadata = graph.metadata.at_size(size, path)
        self.precision = "int8" if graph.metadata.precision == "int8" else "fp32"
        self.tail = numpy_tail(self.metadata.config, heads=graph.on_host, mask_iou=graph.mask_iou)
        model = _standard_model(graph.data)
        self._outputs = [output.name for output in model.graph.output]
        try:
            self._net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
        except cv2.error as error:
            raise ArtifactError(f"OpenCV {cv2.__version__} rejects {path}: {_first_line(error)}") from error

    def run(self, images: NDArray[Any]) -> Outputs:
        results = []
        before = cv2.getNumThreads()
        try:
            if self._threads is not None:
                cv2.setNumThreads(self._threads)  # of the whole process, hence only for now
            for image in images:  # one at a time: the shapes of a net stay those of its first input
                self._net.setInput(image[None], "images")
                results.append([np.asarray(values) for values in self._net.forward(self._outputs)])
        except cv2.error as error:
            raise BackendError(f"OpenCV failed: {_first_line(error)}") from error
        finally:
            if self._threads is not None:
                cv2.setNumThreads(before)
        return self.tail.outputs(*(np.concatenate(same) for same in zip(*results, strict=True)))

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "version": cv2.__version__,
            "precision": self.precision,
            "threads": self._threads or cv2.getNumThreads(),
            "tail": self.tail.name,
        }

    def close(self) -> None:
        del self._net


def _standard_model(data: bytes) -> Any:
    """The graph in operators that OpenCV has, with the shapes of outputs, which it demands."""
    onnx = import_optional("onnx", "onnx", "Running an ONNX file in OpenCV")
    model = onnx.load_model_from_string(data)
    known = {value.name: value for value in model.graph.value_info}
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape") and output.name in known:
            output.type.CopyFrom(known[output.name].type)
    return make_portable(model)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
