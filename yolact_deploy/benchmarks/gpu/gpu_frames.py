"""The frame path by itself: everything around the network, with a network that only copies its answer.

What it takes is what every network pays on top of its own time. It is measured with and without CUDA graphs and marks
of stages, and with frames that are uploaded or read in place: on a GPU that shares the CPU's memory, pinned memory may
be uncached, which makes reading it in place slower than a copy.

Legend: N images, H x W a frame.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.benchmarks.scenarios.scene import make_scene
from yolact_deploy.config import YolactConfig
from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork, DeviceTensor
from yolact_deploy.runtime.cuda.driver import Device, DeviceBuffer, Stream
from yolact_deploy.runtime.predictor import Predictor

Frames = Sequence[NDArray[np.uint8]]

#: H x W of the frames
SIZES = ((480, 640), (1080, 1920))
BATCHES = (8, 32)
#: frames in turn, more than the caches of a CPU hold at 1080 x 1920
_FRAMES = 8
_WARM_UP = 20


class ReplayNetwork(DeviceNetwork):
    """Ends in the heads of synthetic scenes, which it copies to its outputs."""

    name, precision = "replay", "fp16"
    bindable, capturable, fixed_batch = True, True, False

    def __init__(self, device: Device, config: YolactConfig, max_batch: int = 1) -> None:
        self.metadata = Metadata(config=config, tail="heads", precision="fp16", batch=(1, 1, max_batch))
        self.max_batch = max_batch
        self._held: dict[str, DeviceBuffer] = {}
        self._pointers: dict[str, int] = {}
        scenes = [make_scene(config, seed=seed) for seed in range(2)]
        outputs = {}
        device.use()
        stream = device.stream()
        for name in ("boxes", "scores", "coeff", "proto"):
            dtype = np.float16 if name == "proto" else np.float32
            array = np.stack([getattr(scenes[i % 2], name) for i in range(max_batch)]).astype(dtype)
            self._held[name] = device.allocate(array.nbytes, "replay")
            stream.upload(self._held[name].pointer, array.ctypes.data, array.nbytes)
            stream.synchronize()
            outputs[name] = DeviceTensor(0, array.shape, array.dtype)
        stream.close()
        self.outputs = outputs
        shape = (max_batch, *config.input_shape, 3)
        self._held["input"] = device.allocate(int(np.prod(shape)), "network input")
        self.input = DeviceTensor(self._held["input"].pointer, shape, np.dtype(np.uint8))

    def bind_outputs(self, pointers: Mapping[str, int]) -> None:
        self._pointers = dict(pointers)

    def enqueue(self, stream: Stream, batch: int) -> None:
        for name, tensor in self.outputs.items():
            nbytes = tensor.nbytes // self.max_batch * batch
            stream.copy(self._pointers[name], self._held[name].pointer, nbytes)

    def describe(self) -> dict[str, Any]:
        return {"tail": "heads"}

    def close(self) -> None:
        for buffer in self._held.values():
            buffer.free()


def frame_cases(
    device: Device, config: YolactConfig, *, calls: int, sizes: Sequence[tuple[int, int]] | None = None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names of the measurements, and what measures each.

    Args:
        calls: timed calls of each
        sizes: H x W of the frames, :data:`SIZES` by default
    """
    sizes = sizes or SIZES
    ways: tuple[tuple[str, dict[str, Any], bool], ...] = (
        ("uploaded", {"in_place": False}, False),
        ("read in place", {"in_place": True}, False),
        ("without graphs", {"graphs": False}, False),
        ("with times of stages", {}, True),
    )
    for height, width in sizes:
        for way, options, timed in ways:
            frames = partial(random_frames, height, width)
            yield (
                f"frames {width}x{height}, {way}",
                partial(_one_by_one, device, config, frames, calls, timed, options),
            )
    height, width = sizes[0]
    for batch in BATCHES:
        yield (
            f"frames {width}x{height}, batch {batch}",
            partial(_in_batches, device, config, partial(random_frames, height, width), calls, batch),
        )


def random_frames(height: int, width: int) -> Frames:
    """Frames of noise."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(_FRAMES)]


def _one_by_one(
    device: Device,
    config: YolactConfig,
    make_frames: Callable[[], Frames],
    calls: int,
    timed: bool,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    frames = make_frames()
    with Predictor(CudaBackend(ReplayNetwork(device, config), device, **options)) as model:
        model.stage_times = timed
        for i in range(_WARM_UP):
            detections = model(frames[i % len(frames)])
        spent, stages = [], []
        for i in range(calls):
            start = time.perf_counter()
            model(frames[i % len(frames)])
            spent.append((time.perf_counter() - start) * 1e3)
            stages.append(model.timings)
        start = time.perf_counter()
        count = sum(1 for _ in model.stream(frames[i % len(frames)] for i in range(calls)))
        streamed = count / (time.perf_counter() - start)
        return {
            "p50_ms": statistics.median(spent),
            "p90_ms": float(np.percentile(spent, 90)),
            "p99_ms": float(np.percentile(spent, 99)),
            "calls": calls,
            "stream_images_per_s": streamed,
            "detections": len(detections),
            "stages_mean_ms": {name: statistics.fmean(stage[name] for stage in stages) for name in stages[0]},
            "runtime": model.backend.describe(),
        }


def _in_batches(
    device: Device, config: YolactConfig, make_frames: Callable[[], Frames], calls: int, batch: int
) -> dict[str, Any]:
    """Images/s of batches one after another, and of one list whose batches overlap."""
    frames = make_frames()
    images = [frames[i % len(frames)] for i in range(batch)]
    rounds = max(calls // batch, 3)
    with Predictor(CudaBackend(ReplayNetwork(device, config, batch), device)) as model:
        for _ in range(4):
            model(images)
        start = time.perf_counter()
        for _ in range(rounds):
            model(images)
        serial = time.perf_counter() - start
        model(images * 4)  # in the way of batches that overlap
        start = time.perf_counter()
        model(images * rounds)
        piped = time.perf_counter() - start
        return {"serial_images_per_s": rounds * batch / serial, "images_per_s": rounds * batch / piped}
