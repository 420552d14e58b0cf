"""OpenVINO on the CPU, in FP32 or BF16.

In BF16 OpenVINO keeps what follows the last convolutions (softmax, box decoding) in FP32 by itself.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ArtifactError, BackendError, import_optional
from yolact_deploy.runtime.backend import Backend, DetectionOutputs, HeadOutputs, Outputs
from yolact_deploy.runtime.onnx_graph import load_for_cpu

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend(Backend):
    """An exported ONNX file in OpenVINO's CPU plugin.

    Args:
        path: the ONNX file
        precision: "fp32" or "bf16" (native on CPUs with AVX512_BF16 or AMX)
        threads: by default as many as there are cores
        tail: as for ONNX Runtime

    Raises:
        ArtifactError: not one of our ONNX files.
        BackendError: OpenVINO is missing, or has no BF16 on this CPU.
    """

    name = "openvino"

    def __init__(self, path: Path, *, precision: str = "fp32", threads: int | None = None, tail: str = "auto") -> None:
        self._ov = import_optional("openvino", "openvino", "Running an ONNX file in OpenVINO")
        data, self.metadata, self._on_host = load_for_cpu(path, tail)
        self.precision = precision
        low, _, self.max_batch = self.metadata.batch
        self.fixed_batch = low == self.max_batch
        core = shared_core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("this CPU has no BF16 arithmetic (AVX512_BF16 or AMX): use @openvino-fp32")
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(core.read_model(data), "CPU", properties)
        except Exception as error:  # RuntimeError and its own kinds
            raise ArtifactError(f"OpenVINO refuses {path}: {str(error).strip().splitlines()[0]}") from error
        self._request = self._compiled.create_infer_request()

    def run(self, images: NDArray[Any]) -> Outputs:
        try:
            results = self._request.infer({"images": images}, share_inputs=True)
        except Exception as error:
            raise BackendError(f"OpenVINO failed: {str(error).strip().splitlines()[0]}") from error
        outputs = [np.asarray(results[i]) for i in range(len(self._compiled.outputs))]
        return HeadOutputs(*outputs) if self._on_host else DetectionOutputs(*outputs)

    @property
    def gives_heads(self) -> bool:
        return self._on_host

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "version": self._ov.__version__,
            "precision": self.precision,
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            "tail": "host" if self._on_host else "graph",
        }

    def close(self) -> None:
        del self._request, self._compiled


@lru_cache
def shared_core() -> Any:
    """One Core a process, never freed.

    The CPU plugin of each Core installs a signal stack and puts back the one before when it is freed; freed in another
    order than made, they leave the process with a stack that is gone, and the next signal kills it.
    """
    return import_optional("openvino", "openvino", "Running an ONNX file in OpenVINO").Core()
