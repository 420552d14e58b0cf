"""What an engine consists of and how long each of its layers takes, as TensorRT itself reports it.

Layers, precisions and tactics come from TensorRT's ``EngineInspector``, times from its ``IProfiler``. An engine knows
its tactics and tensors only if it was built with ``--layer-details``; others list the names of their layers.

Times of layers are measured one launch after another, without a CUDA graph, so their sum exceeds the time of the
network in a frame.

Legend: N images.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.errors import InputError
from yolact_deploy.runtime import tensorrt_api as api
from yolact_deploy.runtime.cuda.driver import DeviceBuffer
from yolact_deploy.runtime.cuda.layout import Layout
from yolact_deploy.runtime.tensorrt import TensorRtNetwork

_WARM_UP = 3
#: TensorRT's words for the types of tensors, in the formats and types of an engine's layers
_TYPES = {
    "fp32": r"FP32|Float\b", "fp16": r"FP16|Half\b", "bf16": r"BF16|BFloat16", "fp8": r"FP8", "int8": r"INT8",
    "int32": r"INT32", "int64": r"INT64", "uint8": r"UINT8", "bool": r"BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class LayerProfile:
    """One layer of an engine.

    Attributes:
        name: TensorRT's name, which lists the fused layers
        kind: its type, empty if the engine does not say
        inputs, outputs: precisions of its tensors, such as ("int8", "fp16"), each once
        tactic: name or number of the kernel, empty if the engine does not say
        mean_ms: time of one run, None if TensorRT reports none
    """

    name: str
    kind: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tactic: str = ""
    mean_ms: float | None = None


@dataclass(frozen=True)
class EngineProfile:
    """An engine's layers, in the order in which they run.

    Attributes:
        batch: images of each run
        runs: over which times are averaged
    """

    batch: int
    runs: int
    layers: tuple[LayerProfile, ...]

    @property
    def total_ms(self) -> float:
        """Sum of the times of all layers."""
        return sum(layer.mean_ms or 0.0 for layer in self.layers)

    @property
    def detailed(self) -> bool:
        """Whether the engine knows more than the names of its layers."""
        return any(layer.kind for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total_ms": self.total_ms, "detailed": self.detailed}


def profile_engine(path: Path, *, device: int = 0, batch: int | None = None, runs: int = 30) -> EngineProfile:
    """Run an engine and time each of its layers.

    Args:
        device: ordinal of the GPU
        batch: images of each run; by default the smallest that the engine takes
        runs: timed runs

    Raises:
        InputError: a batch that the engine does not take; others as :class:`TensorRtNetwork`.
    """
    network = _ProfiledNetwork(path, device)
    try:
        return network.profile(batch, runs)
    finally:
        network.close()


class _ProfiledNetwork(TensorRtNetwork):
    def profile(self, batch: int | None, runs: int) -> EngineProfile:
        facts = api.layer_facts(self._trt, self._engine)
        batch = self._least_batch if batch is None else batch
        if not self._least_batch <= batch <= self.max_batch:
            raise InputError(f"batch: {self.path} takes {self._least_batch} to {self.max_batch} images, got {batch}")
        with self.device, self._own_outputs():
            stream = self.device.stream()
            try:
                context = self._prepare(batch, stream)
                with api.layer_times(self._trt, context) as times:
                    for run in range(_WARM_UP + runs):
                        if run == _WARM_UP:
                            times.clear()
                        self.enqueue(stream, batch)
                        stream.synchronize()
            finally:
                stream.close()
        return EngineProfile(batch, runs, tuple(_layers(facts, times, runs)))

    @contextlib.contextmanager
    def _own_outputs(self) -> Iterator[DeviceBuffer]:
        layout = Layout({name: (tensor.shape, tensor.dtype.name) for name, tensor in self.outputs.items()})
        memory = self.device.allocate(layout.nbytes, "outputs")
        try:
            self.bind_outputs(layout.pointers(memory.pointer))
            yield memory
        finally:
            memory.free()


def _layers(facts: Sequence[Any], times: Mapping[str, float], runs: int) -> Iterator[LayerProfile]:
    """The layers of the inspector with the times of the profiler, then those that only the profiler knows."""
    left = {name: total / runs for name, total in times.items()}
    for fact in facts:
        if isinstance(fact, str):
            yield LayerProfile(fact, mean_ms=left.pop(fact, None))
            continue
        name = str(fact.get("Name", ""))
        yield LayerProfile(
            name,
            str(fact.get("LayerType", "")),
            _precisions(fact.get("Inputs", ())),
            _precisions(fact.get("Outputs", ())),
            str(fact.get("TacticName") or fact.get("TacticValue") or ""),
            left.pop(name, None),
        )
    for name, mean in left.items():
        yield LayerProfile(name, mean_ms=mean)


def _precisions(tensors: Sequence[Any]) -> tuple[str, ...]:
    """The types of tensors, each once, from formats such as "Channel major FP16 format where channel % 8 == 0"."""
    found: dict[str, None] = {}
    for tensor in tensors:
        text = " ".join(str(value) for key, value in tensor.items() if "Format" in key or "Datatype" in key)
        match = next((name for name, words in _TYPES.items() if re.search(words, text, re.IGNORECASE)), text)
        found[match] = None
    return tuple(name for name in found if name)
