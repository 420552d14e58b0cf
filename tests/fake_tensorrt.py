"""A small TensorRT for tests with the fake CUDA driver: the network of an engine is an ONNX file, run by ONNX Runtime.

    engine = write_engine(tmp_path / "a.trt", onnx_path)
    with installed():                    # import tensorrt returns this module's fake
        TensorRtBackend(engine)

It is as strict as TensorRT: a captured context must not change, a context that never ran cannot be captured, every
address and the scratch memory must be set, and batches must fit a profile.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import importlib.machinery
import json
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fake_cuda
import numpy as np

VERSION = (10, 13, 3, 9)
RTX_VERSION = (1, 7, 1, 116)
SCRATCH = 4096

_MARK = b"<onnx>"
#: names of the outputs of an engine, in the order of the ONNX file's
_NAMES = {
    4: ("boxes", "scores", "coeff", "proto"),
    5: ("num_detections", "boxes", "scores", "labels", "masks"),
    6: ("num_detections", "boxes", "scores", "labels", "masks", "mask_scores"),
}


class DataType(enum.Enum):
    FLOAT = "tensor(float)"
    HALF = "tensor(float16)"
    INT32 = "tensor(int32)"
    INT64 = "tensor(int64)"
    UINT8 = "tensor(uint8)"
    INT8 = "tensor(int8)"
    BOOL = "tensor(bool)"


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class IProfiler:
    def __init__(self) -> None:
        pass

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        pass

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


def write_engine(
    path: Path,
    onnx_path: Path,
    *,
    rtx: bool = False,
    version: tuple[int, ...] | None = None,
    capability: str = "",
    profiles: tuple[tuple[int, int, int], ...] = (),
    metadata: str | None = None,
    details: bool = False,
) -> Path:
    """An engine file with the metadata of the ONNX file.

    Args:
        capability: of the only GPU on which the engine runs
        profiles: batch ranges; by default the exported one
        details: whether it knows the tactics and tensors of its layers
    """
    from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx

    model = read_onnx(onnx_path)
    text = onnx_metadata(model, onnx_path).to_json() if metadata is None else metadata
    del model.metadata_props[:]  # an engine only has them as its name
    settings = f"{capability};{'details' * details};{';'.join(','.join(map(str, profile)) for profile in profiles)}"
    body = text.encode() + b"\0" + settings.encode() + _MARK + model.SerializeToString()
    numbers = version or (RTX_VERSION if rtx else VERSION)
    header = struct.pack("<IQQ4B", 0, 2, 32 + len(body), *numbers)
    path.write_bytes((b"vtrt" if rtx else b"ftrt") + header + bytes(4) + body)
    return path


class Runtime:
    def __init__(self, logger: ILogger, rtx: bool = False) -> None:
        self.logger, self._rtx = logger, rtx
        if rtx:
            self.engine_header_size = 32
            self.get_engine_validity = self._validity

    def deserialize_cuda_engine(self, plan: Any) -> Engine | None:
        data = bytes(plan)
        expected = RTX_VERSION if self._rtx else VERSION
        compiled_for = tuple(data[24:28])
        if compiled_for != expected:
            self._refuse(f"The engine was made by another version, expecting {expected} got {compiled_for}")
            return None
        capability, details, *profiles = data.partition(_MARK)[0].rpartition(b"\0")[2].decode().split(";")
        if capability not in ("", _current_capability()):
            self._refuse(f"The engine was built for compute capability {capability}, not for this device")
            return None
        shapes = [tuple(map(int, profile.split(","))) for profile in profiles if profile]
        return Engine(data.partition(_MARK)[2], shapes, self._rtx, bool(details))

    def _refuse(self, text: str) -> None:
        self.logger.log(ILogger.Severity.ERROR, text)

    def _validity(self, header: bytes) -> tuple[Any, int]:
        return EngineValidity.VALID, 0


class EngineValidity(enum.Enum):
    VALID = 0
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntFlag):
    VERSION_MISMATCH = 1


def _current_capability() -> str:
    from cuda.bindings import driver

    attributes = driver.CUdevice_attribute
    _, device = driver.cuCtxGetDevice()
    numbers = [
        driver.cuDeviceGetAttribute(attribute, device)[1]
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    ]
    return "{}.{}".format(*numbers)


class Engine:
    def __init__(self, onnx_bytes: bytes, profiles: list[Any], rtx: bool, details: bool) -> None:
        import onnx
        import onnxruntime

        nodes = onnx.load_model_from_string(onnx_bytes).graph.node
        self.layers = [(f"{node.op_type}_{index}", node.op_type) for index, node in enumerate(nodes)]
        self.details = details

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        outputs = self.session.get_outputs()
        names = _NAMES[len(outputs)]
        self.tensors = {"images": self.session.get_inputs()[0], **dict(zip(names, outputs, strict=True))}
        self._rtx = rtx
        self.contexts: list[Context] = []
        batch = self.tensors["images"].shape[0]
        self.dynamic = not isinstance(batch, int)
        self.profiles = profiles or [(1, 2, 4)] if self.dynamic else [(batch, batch, batch)]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(self.profiles)

    def run(self, addresses: dict[str, int], shape: tuple[int, ...]) -> None:
        images = _at(addresses["images"], shape, self.tensors["images"].type)
        outputs = self.session.run(None, {"images": images.copy()})
        for (name, tensor), output in zip(list(self.tensors.items())[1:], outputs, strict=True):
            _at(addresses[name], output.shape, tensor.type)[...] = output

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(side if isinstance(side, int) else -1 for side in self.tensors[name].shape)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.tensors[name].type)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(count, *self.get_tensor_shape(name)[1:]) for count in self.profiles[index]]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return int(SCRATCH * self.profiles[index][2])

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self)

    def create_runtime_config(self) -> RuntimeConfig:
        assert self._rtx
        return RuntimeConfig()

    def create_execution_context(self, how: Any) -> Context:
        if self._rtx:
            how.compiled = how.cache is None or not how.cache.data
            how.cache.data = how.cache.data or b"compiled kernels"
            how = how.strategy
        self.contexts.append(Context(self, how))
        return self.contexts[-1]


class Inspector:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        assert form is LayerInformationFormat.JSON
        tensor = {
            "Name": "x",
            "Dimensions": [1, 8],
            "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
        }
        layers: list[Any] = [name for name, _ in self._engine.layers]
        if self._engine.details:
            layers = [
                {"Name": name, "LayerType": kind, "Inputs": [tensor, tensor], "Outputs": [tensor], "TacticName": "t0"}
                for name, kind in self._engine.layers
            ]
        return json.dumps({"Layers": layers, "Bindings": list(self._engine.tensors)})


class RuntimeConfig:
    strategy: Any = None
    cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache


class RuntimeCache:
    #: everything given to a cache of this process
    given: list[bytes] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.data = b""

    def deserialize(self, data: bytes) -> bool:
        self.data = data
        RuntimeCache.given.append(data)
        return True

    def serialize(self) -> bytes:
        return self.data


class Context:
    def __init__(self, engine: Engine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine = engine
        self._scratch = 0 if strategy is ExecutionContextAllocationStrategy.USER_MANAGED else 1 << 60
        self._addresses: dict[str, int] = {}
        self._profile = -1 if len(engine.contexts) else 0
        shape = engine.get_tensor_shape("images")
        self._shape = (0, *shape[1:]) if -1 in shape else shape
        self._ran = self._captured = False
        self.profiler: IProfiler | None = None

    def _change(self) -> None:
        assert not self._captured, "TensorRT: a context must not be changed after it was captured"

    def set_device_memory(self, pointer: int, nbytes: int) -> None:
        self._change()
        assert pointer % 256 == 0
        self._scratch = nbytes

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._change()
        if not 0 <= index < len(self.engine.profiles):  # TensorRT's bindings raise, they never return False
            raise RuntimeError("Error in set optimization profile async.")
        self._profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._change()
        low, _, high = self.engine.profiles[self._profile]
        self._shape = shape
        fits = all(own in (-1, side) for own, side in zip(self.engine.get_tensor_shape(name), shape, strict=True))
        return name == "images" and low <= shape[0] <= high and fits and min(shape) > 0

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self._change()
        self._addresses[name] = pointer
        return pointer != 0 and pointer % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self._addresses) == set(self.engine.tensors)
        assert self._profile >= 0
        assert self._scratch >= SCRATCH * self._shape[0] > 0
        capturing = _is_capturing(stream)
        if capturing and not self._ran:
            return False  # it would allocate
        self._ran, self._captured = True, self._captured or capturing
        engine, addresses, shape = self.engine, dict(self._addresses), self._shape
        fake_cuda.control().host_function(stream, lambda: engine.run(addresses, shape))
        if self.profiler is not None:
            self._report(stream)
        return True

    def _report(self, stream: int) -> None:
        """As TensorRT does: a run with a profiler waits for the GPU, and then reports."""
        from cuda.bindings import driver

        assert not _is_capturing(stream)
        driver.cuStreamSynchronize(stream)
        assert self.profiler is not None
        for index, (name, _) in enumerate(self.engine.layers):
            self.profiler.report_layer_time(name, 0.001 * (index + 1))


def _is_capturing(stream: int) -> bool:
    from cuda.bindings import driver

    error, status = driver.cuStreamIsCapturing(stream)
    assert not error
    return bool(status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


_TYPES = {"float": "float32", "float16": "float16", "int32": "int32", "uint8": "uint8"}


def _at(pointer: int, shape: tuple[int, ...], kind: str) -> Any:
    dtype = np.dtype(_TYPES[kind[len("tensor(") : -1]])
    memory = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(pointer)
    return np.frombuffer(memoryview(memory), dtype).reshape(shape)


def _module(name: str, rtx: bool) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for item in (
        DataType, TensorIOMode, ExecutionContextAllocationStrategy, ILogger, EngineValidity,
        EngineInvalidityDiagnostics, LayerInformationFormat, IProfiler,
    ):  # fmt: skip
        setattr(module, item.__name__, item)
    module.__version__ = ".".join(map(str, RTX_VERSION if rtx else VERSION))  # type: ignore[attr-defined]
    module.Runtime = lambda logger: Runtime(logger, rtx)  # type: ignore[attr-defined]
    if rtx:
        strategies = types.SimpleNamespace(EAGER=1, DISABLED=0)
        module.DynamicShapesKernelSpecializationStrategy = strategies  # type: ignore[attr-defined]
        module.CudaGraphStrategy = strategies  # type: ignore[attr-defined]
    return module


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Within this block, ``import tensorrt`` and ``import tensorrt_rtx_bindings`` return the fakes."""
    from yolact_deploy.runtime import tensorrt_api

    fakes = {
        "tensorrt": _module("tensorrt", False),
        "tensorrt_rtx_bindings": _module("tensorrt_rtx_bindings", True),
        "tensorrt_rtx_libs": types.ModuleType("tensorrt_rtx_libs"),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, fakes))
        # Objects of the real modules that the process keeps forever.
        stack.enter_context(mock.patch.dict(tensorrt_api._loggers, clear=True))
        stack.enter_context(mock.patch.dict(tensorrt_api._runtimes, clear=True))
        yield
