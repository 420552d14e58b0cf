"""Checks that our kernels compile and run on this machine: Fast NMS on five boxes, one of which overlaps another."""

from __future__ import annotations

import numpy as np

from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda import nvrtc
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan
from yolact_deploy.runtime.cuda.plans.plan_nms import fast_nms

#: architecture to compile for without a GPU; every NVRTC since CUDA 11 supports it
USUAL_ARCH = "sm_86"

_BOXES = np.array(
    [[0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.4, 0.42], [0.5, 0.5, 0.9, 0.9], [0, 0, 0.1, 0.1], [0, 0, 1, 1]], np.float32
)
_SCORES = np.array([[0.9], [0.8], [0.7], [0.01], [0.02]], np.float32)
_SLOTS = 4


def compile_kernels(arch: str = USUAL_ARCH) -> None:
    """Compile the kernels of Fast NMS, or read them from the cache.

    Raises:
        MissingDependencyError, BackendError: as :func:`nvrtc.compile_source`.
    """
    for launch in _plan().launches:
        nvrtc.compile_source(launch.source, arch, launch.defines)


def run_kernels(index: int = 0) -> None:
    """Compile, load and run Fast NMS on a GPU, and check its result.

    Raises:
        MissingDependencyError, BackendError: something is missing, fails, or computes a wrong result.
    """
    from yolact_deploy.runtime.cuda.driver import Device
    from yolact_deploy.runtime.cuda.library import KernelLibrary

    plan = _plan()
    inputs = {"boxes": _BOXES, "scores": _SCORES, "coeff": np.zeros((5, 1), np.float32)}
    outputs = {"num_detections": 4, "out_boxes": 16 * _SLOTS, "out_scores": 4 * _SLOTS}
    outputs |= {"out_labels": 4 * _SLOTS, "out_coeff": 4 * _SLOTS}
    with Device.open(index) as device:
        library, stream = KernelLibrary(device), device.stream()
        sizes = {name: array.nbytes for name, array in inputs.items()} | outputs
        buffers = {name: device.allocate(size, "self-test") for name, size in sizes.items()}
        for name, array in inputs.items():
            stream.upload(buffers[name].pointer, array.ctypes.data, array.nbytes)
        bound = library.bind(plan, {name: buffer.pointer for name, buffer in buffers.items()})
        bound.enqueue(stream)
        count, scores = np.zeros(1, np.int32), np.zeros(_SLOTS, np.float32)
        stream.download(count.ctypes.data, buffers["num_detections"].pointer, count.nbytes)
        stream.download(scores.ctypes.data, buffers["out_scores"].pointer, scores.nbytes)
        stream.synchronize()
        bound.close()
        library.close()
        for buffer in buffers.values():
            buffer.free()
    expected = np.array([0.9, 0.7, 0, 0], np.float32)
    if count[0] != 2 or not np.array_equal(scores, expected):
        raise BackendError(f"the Fast NMS kernel gives {count[0]} detections {scores} instead of {expected[:2]}")


def _plan() -> LaunchPlan:
    return fast_nms(
        1, len(_BOXES), 1, 1, top_k=len(_BOXES), max_detections=_SLOTS, score_threshold=0.05, iou_threshold=0.5
    )
