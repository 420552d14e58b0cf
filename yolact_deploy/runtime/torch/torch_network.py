"""The network in PyTorch, in any precision: from resized images to the four outputs of heads.

`TorchBackend` and `TorchNetwork` run, and compile, a `HeadsModule`. `TorchNetwork` is the network of the CUDA frame
path: its tensors never move, so the kernels around it can use their addresses.

Only the trunk computes in half precision. Normalization before it, and softmax and box decoding after it, are in FP32,
as in exported files.

Legend: N images, S input side, P priors, C foreground classes, K mask coefficients, h x w prototypes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.model import torch_ops as ops
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork, DeviceTensor
from yolact_deploy.vocabulary import HEAD_OUTPUTS

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver import Device, Stream

_LOG = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAX_BATCH, GPU_MAX_BATCH = 16, 32
_WARM_UP_RUNS = 3
_HANDS_OUT_GRAPHS = hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph")


class Trunk(Protocol):
    """What this module requires of a model: its configuration, priors and raw heads."""

    config: YolactConfig
    priors: Tensor

    def heads(self, images: Tensor) -> Any: ...
    def eval(self) -> Any: ...
    def to(self, *args: Any, **kwargs: Any) -> Any: ...


class HeadsModule(nn.Module):
    """Images [N, S, S, 3] BGR in 0..255 to boxes [N, P, 4], scores [N, P, C], coeff [N, P, K] and proto [N, h, w, K].

    Args:
        model: put into evaluation mode, and moved to the device and precision, in place
        precision: one of :data:`DTYPES`
        device: of torch
        channels_last: memory layout of the trunk; by default only for half precision, where a GPU is faster with it
    """

    mean: Tensor
    std: Tensor
    priors: Tensor

    def __init__(
        self, model: Trunk, *, precision: str = "fp32", device: str = "cpu", channels_last: bool | None = None
    ) -> None:
        super().__init__()
        if precision not in DTYPES:
            raise InputError(f"unknown precision {precision!r} of torch: expected one of {', '.join(DTYPES)}")
        self.precision, self.dtype = precision, DTYPES[precision]
        half = self.dtype is not torch.float32
        self.channels_last = half if channels_last is None else channels_last
        self._layout = torch.channels_last if self.channels_last else torch.contiguous_format
        config = model.config
        self._clip = config.clip_boxes
        for name, values in (("mean", config.pixel_mean), ("std", config.pixel_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device=device), persistent=False)
        # Decoding stays in FP32, so the priors must not be rounded with the weights.
        self.register_buffer("priors", model.priors.float().clone().to(device), persistent=False)
        model.eval()
        # In a tuple, so that it is no submodule: a change of this module's device or dtype must not touch the model.
        self._trunk = (model.to(device=device, dtype=self.dtype, memory_format=self._layout),)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normalized = (images.float() - self.mean) / self.std
        rgb = normalized.flip(3).permute(0, 3, 1, 2).to(self.dtype)
        (trunk,) = self._trunk
        heads = trunk.heads(rgb.contiguous(memory_format=self._layout))
        loc, logits, coeff, proto = (output.float() for output in heads)
        boxes = ops.decode_boxes(loc, self.priors, clip=self._clip)
        return boxes, logits.softmax(dim=-1)[..., 1:], coeff, proto


def rescorer(model: Trunk, device: str) -> nn.Module | None:
    """A copy of the mask-IoU network of a YOLACT++, in FP32 on the device; None if the model has none."""
    network = getattr(model, "maskiou_net", None)
    return None if network is None else copy.deepcopy(network).float().eval().to(device)


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Set how a GPU multiplies: in "fp32" exactly, with the algorithms that PyTorch selects by default.

    All other precisions use TF32 in FP32 convolutions, and for each shape the algorithm that was fastest when tried.
    """
    cudnn, exact = torch.backends.cudnn, precision == "fp32"
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark or not exact,
        deterministic=cudnn.deterministic,
        allow_tf32=cudnn.allow_tf32 and not exact,
    ):
        yield


def compiled(module: nn.Module) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """``torch.compile`` for fixed shapes; CUDA graphs, which need fixed memory, are left to :class:`TorchNetwork`.

    A missing compiler shows only at the first run.
    """
    return torch.compile(module, dynamic=False)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn errors of PyTorch into :class:`BackendError` with a cure."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise BackendError(
            f"the GPU's memory is full ({_line(error)}): use a smaller batch, or close other programs"
        ) from error
    except RuntimeError as error:
        if type(error).__module__.startswith("torch._dynamo") or type(error).__module__.startswith("torch._inductor"):
            raise BackendError(
                f"torch.compile failed ({_line(error)}): it requires a C++ compiler, and on a GPU the package triton; "
                "install them, or run without compile=yes"
            ) from error
        raise BackendError(f"PyTorch failed: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class TorchNetwork(DeviceNetwork):
    """A YOLACT model in PyTorch on a GPU, with input and output tensors that never move.

    It is recorded as a CUDA graph for each batch; compiled, for each batch that is a power of two. The graph of the
    whole frame holds a copy of that graph. Prototypes stay in half precision if the trunk computes in FP16.

    Args:
        model: moved to the GPU and converted in place; fuse its batch normalization first
        device: where it runs
        precision: "fp32", "tf32", "fp16" or "bf16"
        compile: compile it; other batches are padded to the next that has a graph
        channels_last: as for :class:`HeadsModule`
        max_batch: largest batch
        input_dtype: "uint8" or "float32"

    Raises:
        BackendError: PyTorch cannot use the GPU.
    """

    name = "torch"
    fixed_batch = False

    def __init__(
        self,
        model: Trunk,
        device: Device,
        *,
        precision: str = "fp16",
        compile: bool = False,
        channels_last: bool | None = None,
        max_batch: int = GPU_MAX_BATCH,
        input_dtype: str = "uint8",
        weights_sha256: str = "",
    ) -> None:
        self.metadata = Metadata(
            config=model.config,
            precision=precision,
            tail="heads",
            input_dtype=input_dtype,
            batch=(1, 1, max_batch),
            weights_sha256=weights_sha256,
        )
        self.precision, self.max_batch = precision, max_batch
        self._device, self._place, self._compile = device, place(device.index), compile
        with translated():
            module = HeadsModule(model, precision=precision, device=self._place, channels_last=channels_last)
            self._channels_last = module.channels_last
            self._heads: Callable[[Tensor], tuple[Tensor, ...]] = compiled(module) if compile else module
            self._make_tensors()
            # Weights are converted and tensors filled on torch's stream, for which ours does not wait.
            torch.cuda.synchronize(self._place)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._records = True
        self._streams: dict[int, torch.cuda.Stream] = {}

    def _make_tensors(self) -> None:
        """The input and the outputs, at the largest batch."""
        config = self.metadata.config
        priors, k = config.num_priors, config.num_prototypes
        shapes = ((priors, 4), (priors, config.num_classes), (priors, k), (*config.prototype_shape, k))
        self._images = self._zeros((*config.input_shape, 3), getattr(torch, self.metadata.input_dtype))
        proto = torch.float16 if self.precision == "fp16" else torch.float32
        dtypes = (torch.float32, torch.float32, torch.float32, proto)
        self._results = [self._zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        self.input = _device_tensor(self._images)
        self.outputs = {name: _device_tensor(t) for name, t in zip(HEAD_OUTPUTS, self._results, strict=True)}

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros((self.max_batch, *shape), dtype=dtype, device=self._place)

    def enqueue(self, stream: Stream, batch: int) -> None:
        if not 1 <= batch <= self.max_batch:
            raise InputError(f"batch of {batch}: this network takes 1 to {self.max_batch}")
        size = self._graph_size(batch)
        if stream.capturing:
            # What PyTorch records by itself has memory of its own; in our capture others would be given its memory.
            if size not in self._graphs:
                raise BackendError("PyTorch has not recorded this batch yet")
            stream.embed(int(self._graphs[size].raw_cuda_graph()))
            return
        if self._records and size not in self._graphs:
            self._try_to_record(stream, size)
        with torch.inference_mode(), translated(), self._on(stream.handle):
            if size in self._graphs:
                self._graphs[size].replay()
            else:
                self._run(batch)

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        """Whether the graph of a frame can hold PyTorch's, which PyTorch 2.8 and later hand out."""
        return self._records and _HANDS_OUT_GRAPHS

    def _try_to_record(self, stream: Stream, batch: int) -> None:
        """Record this batch; without ``compile``, a network that cannot be recorded runs operation by operation."""
        stream.synchronize()  # the input must not be overwritten in the meantime
        try:
            with translated():
                self._graphs[batch] = self._record(batch)
        except BackendError as error:
            if self._compile:
                raise
            self._records = False
            _LOG.warning("PyTorch runs without a CUDA graph: %s", error)

    def _graph_size(self, batch: int) -> int:
        """Batch of the graph that serves ``batch``; powers of two if compiled: the compiler gives up on many shapes."""
        return min(1 << (batch - 1).bit_length(), self.max_batch) if self._compile else batch

    @torch.inference_mode()
    def _run(self, batch: int) -> None:
        """From the input tensor to the output tensors, on torch's current stream."""
        with products_in(self.precision):
            for result, output in zip(self._results, self._heads(self._images[:batch]), strict=True):
                result[:batch].copy_(output)

    def _record(self, batch: int) -> torch.cuda.CUDAGraph:
        """Run this batch, which compiles for it, then record it as a CUDA graph."""
        side = torch.cuda.Stream(self._place)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                self._run(batch)
        side.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True) if _HANDS_OUT_GRAPHS else torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # The graphs never run at once and leave nothing in their memory, so they share it. Other threads may allocate
        # in the meantime.
        with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
            self._run(batch)
        if _HANDS_OUT_GRAPHS:
            graph.instantiate()
        return graph

    def _on(self, handle: int) -> AbstractContextManager[Any]:
        """Make a CUDA stream that torch did not create torch's current stream."""
        if handle not in self._streams:
            stream = torch.cuda.ExternalStream(handle, device=self._place)  # type: ignore[no-untyped-call]
            self._streams[handle] = stream
        return torch.cuda.stream(self._streams[handle])

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "version": torch.__version__,
            "device": self._place,
            "precision": self.precision,
            "channels_last": self._channels_last,
            "compiled": self._compile,
            "cuda_graphs": sorted(self._graphs),
        }

    def close(self) -> None:
        self._graphs.clear()
        self._streams.clear()
        del self._heads, self._images, self._results


def place(index: int | None) -> str:
    """The torch name of a device: GPU ``index``, or the CPU for None.

    Raises:
        BackendError: torch cannot use the GPU, with the reason and the cure.
    """
    if index is None:
        return "cpu"
    from yolact_deploy.machine.nvidia import require_gpu

    gpu = require_gpu(index)
    if torch.version.cuda is None:
        raise BackendError(
            f"torch {torch.__version__} was built without CUDA: install torch from its CUDA index (pytorch.org)"
        )
    if not torch.cuda.is_available():
        raise BackendError(
            f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use {gpu}: update the driver, or "
            "install torch for an older CUDA"
        )
    return f"cuda:{index}"


def on_host(array: NDArray[Any]) -> Tensor:
    """A NumPy array as a tensor that shares its memory; read-only arrays are copied, or PyTorch would warn."""
    contiguous = np.ascontiguousarray(array)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


def on(device: str) -> AbstractContextManager[Any]:
    """Make the GPU of this torch name the current device; does nothing for the CPU."""
    return torch.cuda.device(device) if device.startswith("cuda") else contextlib.nullcontext()


def _device_tensor(tensor: Tensor) -> DeviceTensor:
    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return DeviceTensor(tensor.data_ptr(), tuple(tensor.shape), dtype)
