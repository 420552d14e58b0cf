"""Engines of TensorRT and of TensorRT for RTX as networks on the GPU.

The header of a file is read first, so that a wrong file is rejected, with its cure, before anything is loaded. There is
one context for each batch size and each set of output addresses, up to a limit, since a captured graph keeps the state
that its context had at capture. All contexts share scratch memory that we allocate.

Legend: N images, D detection slots, h x w prototypes, S input side.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifact import sha256_file, write_bytes
from yolact_deploy.cache import cache_folder
from yolact_deploy.config import Size
from yolact_deploy.engine_file import EngineHeader, plugin_kind, read_engine_header, read_engine_metadata
from yolact_deploy.errors import ArtifactError, BackendError, OutputError
from yolact_deploy.runtime import plugins
from yolact_deploy.runtime import tensorrt_api as api
from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork, DeviceTensor
from yolact_deploy.runtime.cuda.driver import Device, Stream, calls
from yolact_deploy.runtime.cuda.jpeg import JpegDecoder

_log = logging.getLogger(__name__)

_MEBIBYTE = 1 << 20
#: most contexts for one place of the outputs, besides that of the largest batch: each has memory of its own, and none
#: can be dropped while a captured graph uses it
_MOST_CONTEXTS = 16
_INTEGERS = ("num_detections", "labels")
_HALF_ALLOWED = ("masks", "proto")


class TensorRtNetwork(DeviceNetwork):
    """One engine on one GPU.

    Args:
        path: an engine built by ``yolact-deploy build``
        device: ordinal of the GPU
        size: the input of an engine that takes a range of sizes; the usual one by default

    Raises:
        ArtifactError: not one of our engines, truncated, or built by another version of TensorRT.
        MissingDependencyError: TensorRT of the engine's kind is not installed.
        BackendError: no driver, no such GPU, too little memory, or TensorRT rejects the engine.
        InputError: a size that the engine does not take.
    """

    name = "tensorrt"
    bindable = True

    def __init__(self, path: Path, device: int = 0, *, size: Size | None = None) -> None:
        self.path = Path(path)
        self.header = read_engine_header(path)
        self.metadata = read_engine_metadata(path).at_size(size, path)
        self.device = Device.open(device)
        self.flavour = self.header.flavour
        self._trt = api.import_tensorrt(self.flavour, f"Running {path}, an engine of {self.header.kind},")
        _check_version(self.path, self.header, self._trt.__version__)
        self.precision = self.metadata.precision
        self.capturable = True
        self._addresses: tuple[int, ...] = ()
        self._contexts: dict[tuple[int, tuple[int, ...]], Any] = {}
        self._engines: list[Any] = []
        # TensorRT's objects must be destroyed before the CUDA context, even at the end of the program.
        self._destroy = weakref.finalize(self, _destroy, self._contexts, self._engines)
        with self.device:
            self._check_memory(self.header.size, "the engine")
            self._engines.append(self._load())
            self._read_tensors()
            self._allocate()
        self._kernel_file = self._find_kernel_file()
        self._kernels = self._read_kernels()

    # -- loading ----------------------------------------------------------------------------------------------------

    def _load(self) -> Any:
        if plugin_kind(self.metadata) == "v3":
            plugins.register_creators(self._trt, self.flavour)
        free, _ = self.device.memory()
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = api.load_engine(self.flavour, plan, str(self.path))
        self._weight_bytes = max(0, free - self.device.memory()[0])
        return engine

    def _check_memory(self, needed: int, what: str) -> None:
        """Raise before TensorRT runs out of memory.

        On an integrated GPU, "free" leaves out what the system would give back (caches), so only the total counts.
        """
        free, total = self.device.memory()
        free = total if self.device.integrated else free
        if needed > free:
            raise BackendError(
                f"{self.path}: {what} needs {-(-needed // _MEBIBYTE)} MiB of GPU memory, but only {free // _MEBIBYTE} "
                f"of {total // _MEBIBYTE} MiB are free on cuda:{self.device.index}: close other programs, use another "
                "GPU with device='cuda:N', or build with a smaller batch"
            )

    def _read_tensors(self) -> None:
        """Read shapes and dtypes of the engine, and check them against its metadata."""
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        expected = ("images", *self.metadata.outputs)
        if set(names) != set(expected):
            raise self._foreign(f"has tensors {', '.join(names)}, expected {', '.join(expected)}")
        self._profiles = self._read_profiles()
        self.max_batch = max(high for _, high in self._profiles)
        self._least_batch = min(low for low, _ in self._profiles)
        self.fixed_batch = self._least_batch == self.max_batch
        self._static = -1 not in tuple(engine.get_tensor_shape("images"))
        tensors = {}
        known = {name: shape for name, _, shape in self.metadata.output_shapes}
        known["images"] = [*self.metadata.config.input_shape, 3]
        for name in expected:
            _, *sides = engine.get_tensor_shape(name)
            # Those of a range of sizes are -1.
            shape = [own if side == -1 else side for side, own in zip(sides, known[name], strict=False)]
            dtype = api.numpy_dtype(trt, engine.get_tensor_dtype(name))
            self._check_tensor(name, dtype, shape)
            tensors[name] = DeviceTensor(0, (self.max_batch, *shape), dtype)
        self.input = tensors.pop("images")
        self.outputs: Mapping[str, DeviceTensor] = tensors

    def _read_profiles(self) -> list[tuple[int, int]]:
        """Smallest and largest batch of each optimization profile."""
        batch, *_ = self._engine.get_tensor_shape("images")
        if batch != -1:
            return [(batch, batch)]
        shapes = [
            self._engine.get_tensor_profile_shape("images", i) for i in range(self._engine.num_optimization_profiles)
        ]
        return [(low[0], high[0]) for low, _, high in shapes]

    def _check_tensor(self, name: str, dtype: np.dtype[Any], shape: list[int]) -> None:
        if name == "images":
            allowed: tuple[str, ...] = (self.metadata.input_dtype,)
        elif name in _INTEGERS:
            allowed = ("int32",)
        else:
            allowed = ("float32", "float16") if name in _HALF_ALLOWED else ("float32",)
        if dtype.name not in allowed or min(shape, default=1) < 1:
            raise self._foreign(f"has {name} {dtype} {shape}, expected {' or '.join(allowed)} of a fixed size")

    def _foreign(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} {what}: {_rebuild(self.path, self.flavour)}")

    def _allocate(self) -> None:
        """Allocate the input, and scratch memory shared by all contexts, which run one after another."""
        sizes = [api.scratch_bytes(self._engine, i) for i in range(len(self._profiles))]
        self._check_memory(max(sizes) + self.input.nbytes, "running the engine")
        self._scratch = self.device.allocate(max(sizes), "TensorRT scratch")
        self._input = self.device.allocate(self.input.nbytes, "network input")
        self.input = self.input._replace(pointer=self._input.pointer)

    @property
    def _engine(self) -> Any:
        return self._engines[0]

    # -- running ----------------------------------------------------------------------------------------------------

    def bind_outputs(self, pointers: Mapping[str, int]) -> None:
        self._addresses = tuple(pointers[name] for name in self.outputs)

    def enqueue(self, stream: Stream, batch: int) -> None:
        batch = self._prepared_batch(max(batch, self._least_batch))
        context = self._contexts.get((batch, self._addresses)) or self._prepare(batch, stream)
        with api.complaints(self.flavour) as heard:
            if not context.execute_async_v3(stream.handle):
                reasons = "; ".join(heard) or "no reason given"
                raise BackendError(f"TensorRT failed to run {self.path}: {reasons}")

    def _prepared_batch(self, batch: int) -> int:
        """The batch to run: this one, or the next larger one with a context when there are enough contexts."""
        prepared = [count for count, addresses in self._contexts if addresses == self._addresses]
        if batch in prepared or len(prepared) < _MOST_CONTEXTS:
            return batch
        return min((count for count in prepared if count > batch), default=self.max_batch)

    def _prepare(self, batch: int, stream: Stream) -> Any:
        """A context for this batch and the present addresses; it never changes afterwards."""
        context = api.create_context(self._trt, self.flavour, self._engine, user_memory=True, kernels=self._kernels)
        with api.complaints(self.flavour) as heard:
            fits = self._set_shapes(context, batch, stream)
            for name, address in zip(self.outputs, self._addresses, strict=True):
                fits = context.set_tensor_address(name, address) and fits
            fits = context.set_tensor_address("images", self.input.pointer) and fits
        if not fits:
            raise BackendError(f"TensorRT rejects a batch of {batch} for {self.path}: {'; '.join(heard)}")
        api.set_scratch(context, self._scratch.pointer, self._scratch.nbytes)
        self.capturable = self.capturable and api.capturable(context, stream.handle)
        self._contexts[batch, self._addresses] = context
        return context

    def _set_shapes(self, context: Any, batch: int, stream: Stream) -> bool:
        # The narrowest profile is the one best optimized for this batch.
        fitting = [i for i, (low, high) in enumerate(self._profiles) if low <= batch <= high]
        index = min(fitting, key=lambda i: self._profiles[i][1] - self._profiles[i][0])
        # Only the first context of an engine is guaranteed to begin with profile 0.
        if not api.set_profile(context, index, stream.handle):
            return False
        return self._static or bool(context.set_input_shape("images", (batch, *self.input.shape[1:])))

    # -- kernels that RTX compiles for this GPU ---------------------------------------------------------------------

    def _find_kernel_file(self) -> Path | None:
        if self.flavour != "rtx":
            return None
        where = (sha256_file(self.path), self._trt.__version__, self.device.name, str(calls.driver_version()))
        name = hashlib.sha256("\n".join(where).encode()).hexdigest()[:32]
        try:
            return cache_folder("rtx") / f"{name}.bin"
        except OutputError as error:
            _log.warning("kernels are compiled at each start: %s", error)
            return None

    def _read_kernels(self) -> bytes | None:
        with contextlib.suppress(OSError):
            return self._kernel_file.read_bytes() if self._kernel_file else None
        return None

    def keep_kernels(self) -> None:
        """Cache the kernels that RTX has compiled for this GPU, so that the next start need not compile them."""
        if self._kernel_file is None:
            return
        for context in self._contexts.values():
            compiled = api.compiled_kernels(context)
            if compiled and compiled != self._kernels:
                self._kernels = compiled
                with contextlib.suppress(OutputError):  # it is only a cache
                    write_bytes(self._kernel_file, compiled)

    # -- the rest ---------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        return {
            "version": self._trt.__version__,
            "flavour": self.header.kind,
            "engine": str(self.path),
            "plugins": plugin_kind(self.metadata),
            "tail": self.metadata.tail,
            "profiles": [list(profile) for profile in self._profiles],
            "contexts": len(self._contexts),
            "weight_bytes": self._weight_bytes,
            "scratch_bytes": self._scratch.nbytes,
        }

    def close(self) -> None:
        self._destroy()
        self._scratch.free()
        self._input.free()


class TensorRtBackend(CudaBackend):
    """An engine file as a backend; raises as :class:`TensorRtNetwork` does.

    Args:
        path: the engine
        device: ordinal of the GPU
        graphs: False uses no CUDA graphs
        size: the input of an engine that takes a range of sizes; the usual one by default
        in_place, jpeg: see :class:`~yolact_deploy.runtime.cuda.frame_pipeline.FramePipeline`
    """

    def __init__(
        self,
        path: Path,
        *,
        device: int = 0,
        size: Size | None = None,
        graphs: bool = True,
        in_place: bool | None = None,
        jpeg: JpegDecoder | None = None,
    ) -> None:
        network = TensorRtNetwork(path, device, size=size)
        super().__init__(network, network.device, graphs=graphs, in_place=in_place, jpeg=jpeg)
        # The first run loads kernels, and RTX compiles them: do it before the first image.
        try:
            count = self.max_batch if self.fixed_batch else 1
            self.frames.infer(np.zeros((count, *network.input.shape[1:]), network.input.dtype))
            network.keep_kernels()
        except BaseException:
            self.close()
            raise


def _destroy(contexts: dict[Any, Any], engines: list[Any]) -> None:
    """Destroy contexts before their engine."""
    contexts.clear()
    engines.clear()


def _check_version(path: Path, header: EngineHeader, installed: str) -> None:
    """An engine runs only on the version that built it: the first three numbers must agree."""
    if header.version.split(".")[:3] != installed.split(".")[:3]:
        raise ArtifactError(
            f"{path} was built by {header.kind} {header.version} and does not run on {installed}, which is installed: "
            f"{_rebuild(path, header.flavour)}"
        )


def _rebuild(path: Path, flavour: str) -> str:
    """The command that builds the engine again."""
    beside = path.with_suffix(".onnx")
    onnx = str(beside) if beside.exists() else "MODEL.onnx"
    return f"build it again with: yolact-deploy build {onnx} --engine {flavour} -o {path}"
