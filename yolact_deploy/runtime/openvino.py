"""OpenVINO on the CPU, in FP32, BF16 or INT8.

In BF16 OpenVINO itself keeps everything after the last convolutions (softmax, box decoding) in FP32. A file whose trunk
is BF16 is computed as it says, including the layers that it keeps in FP32. So is a file whose trunk is INT8, in either
form.
"""

from __future__ import annotations

import queue
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import Size
from yolact_deploy.errors import ArtifactError, BackendError, import_optional
from yolact_deploy.graph.onnx_graph import load_graph
from yolact_deploy.machine.cpu import overflows_bytes
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.tails import Outputs, numpy_tail

#: OpenVINO's word for the precision of everything that is not quantized
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoBackend(Backend):
    """An exported ONNX file in OpenVINO's CPU plugin.

    Args:
        path: the ONNX file
        precision: "fp32", or "bf16" for the whole trunk (native on CPUs with AVX512_BF16 or AMX). By default BF16 for
            a BF16 file if the CPU supports it, and FP32 otherwise. In an INT8 file it applies to what is not INT8
        threads: by default as many as there are cores
        tail: as for ONNX Runtime
        size: as for ONNX Runtime
        callers: threads that may call :meth:`run` at once, each with ``threads`` of its own

    Raises:
        ArtifactError: not one of our ONNX files.
        BackendError: OpenVINO is missing, or BF16 was asked for on a CPU without it.
        InputError: a size that the file does not take.
    """

    name = "openvino"

    def __init__(
        self,
        path: Path,
        *,
        precision: str | None = None,
        threads: int | None = None,
        tail: str = "auto",
        size: Size | None = None,
        callers: int = 1,
    ) -> None:
        self._ov = import_optional("openvino", "openvino", "Running an ONNX file in OpenVINO")
        core = shared_core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise BackendError("this CPU has no BF16 arithmetic (AVX512_BF16 or AMX): use @openvino-fp32")
        keeps_bf16 = has_bf16 and precision != "fp32"
        graph = load_graph(path, tail, half="keep" if keeps_bf16 else "fp32")
        self.metadata = graph.metadata if size is None else graph.metadata.at_size(size, path)
        self.tail = numpy_tail(self.metadata.config, heads=graph.on_host, mask_iou=graph.mask_iou)
        kept = "bf16" if keeps_bf16 and self.metadata.precision == "bf16" else "fp32"
        self.precision = "int8" if self.metadata.precision == "int8" else precision or kept
        # The hint applies to what is FP32 in the file; its BF16 is computed in BF16 in any case.
        hint = HINTS[precision or "fp32"]
        properties = {**cpu_properties(hint, threads), "PERFORMANCE_HINT": "LATENCY"}
        try:
            model = core.read_model(graph.data)
            if size is not None and graph.metadata.sizes is not None:  # faster than any size
                count, *_ = model.input(0).partial_shape
                model.reshape(self._ov.PartialShape([count, *self.metadata.config.input_shape, 3]))
            # Not one network with several streams: of INT8 files, some of its streams compute other values.
            self._compiled = [core.compile_model(model, "CPU", properties) for _ in range(callers)]
        except Exception as error:  # RuntimeError and its own kinds
            raise ArtifactError(f"OpenVINO rejects {path}: {str(error).strip().splitlines()[0]}") from error
        self.callers = callers
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for compiled in self._compiled:
            self._requests.put(compiled.create_infer_request())
        self._reopen = partial(OpenVinoBackend, path, precision=precision, tail=tail, size=size)
        self._threads = threads or usable_cores()

    def for_callers(self, most: int) -> Backend | None:
        callers = min(most, self._threads)
        return self._reopen(threads=self._threads // callers, callers=callers) if callers > 1 else None

    def run(self, images: NDArray[Any]) -> Outputs:
        request = self._requests.get()
        try:
            results = request.infer({"images": images}, share_inputs=True)
            outputs = [np.asarray(results[i]) for i in range(len(results))]
        except Exception as error:
            raise BackendError(f"OpenVINO failed: {str(error).strip().splitlines()[0]}") from error
        finally:
            self._requests.put(request)
        return self.tail.outputs(*outputs)

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "version": self._ov.__version__,
            "precision": self.precision,
            "threads": int(self._compiled[0].get_property("INFERENCE_NUM_THREADS")),
            "tail": self.tail.name,
        }

    def close(self) -> None:
        del self._requests, self._compiled


def cpu_properties(hint: str, threads: int | None) -> dict[str, Any]:
    """What OpenVINO's CPU plugin is to compute in, a value of :data:`HINTS`, with how many threads."""
    # Pinned threads of two networks, also of two processes, share the first cores while others are idle.
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "ENABLE_CPU_PINNING": False}
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    if overflows_bytes():
        properties["LP_TRANSFORMS_MODE"] = False  # keeps Q and DQ as they are, in place of kernels for bytes
    return properties


@lru_cache
def shared_core() -> Any:
    """One Core per process, never freed.

    The CPU plugin of each Core installs a signal stack and restores the previous one when it is freed. Cores freed in
    another order than they were made leave the process with a freed stack, and the next signal kills it.
    """
    purpose = "Running an ONNX file in OpenVINO"
    core = import_optional("openvino", "openvino", purpose).Core()
    frontend = import_optional("openvino.frontend.onnx", "openvino", purpose)
    core.add_extension(frontend.ConversionExtension("DeformConv", "", _deform_conv))
    return core


def _deform_conv(node: Any) -> list[Any]:
    """ONNX's DeformConv as OpenVINO's own operator, which its ONNX reader does not map."""
    from openvino import opset8

    x, weight, offset, bias, mask = (node.get_input(index) for index in range(5))
    strides, pads = (node.get_attribute(name) for name in ("strides", "pads"))
    convolved = opset8.deformable_convolution(
        x,
        offset,
        weight,
        strides=[int(stride) for stride in strides],
        pads_begin=[int(pad) for pad in pads[:2]],
        pads_end=[int(pad) for pad in pads[2:]],
        dilations=[1, 1],
        auto_pad="EXPLICIT",
        mask=mask,
        bilinear_interpolation_pad=True,  # features fade to 0 outside their borders
    )
    column = opset8.reshape(bias, opset8.constant(np.array([1, -1, 1, 1])), special_zero=False)
    return [opset8.add(convolved, column).output(0)]
