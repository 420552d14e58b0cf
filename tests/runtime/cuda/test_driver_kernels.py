"""A kernel with the real NVRTC, cuda.bindings and captured graphs. Only the GPU is simulated.

Legend: P priors, C classes, K coefficients, D detection slots.
"""

from __future__ import annotations

from typing import Any

import fake_cuda as fake
import numpy as np
import pytest
from cuda_emu import emulate

from yolact_deploy.postprocess import detect
from yolact_deploy.runtime.cuda import nvrtc
from yolact_deploy.runtime.cuda.driver import Arguments, Device
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan, Offset
from yolact_deploy.runtime.cuda.plans.plan_nms import fast_nms

pytestmark = pytest.mark.fake_cuda

P, C, K, TOP_K, D = 300, 5, 8, 50, 20
LIMITS = {"top_k": TOP_K, "max_detections": D, "score_threshold": 0.05, "iou_threshold": 0.5}


def compiled(plan: LaunchPlan) -> dict[str, bytes]:
    """Cubins of the plan's sources; the fake driver runs them in the emulator."""
    pytest.importorskip("cuda.bindings.nvrtc")
    images = {}
    for launch in plan.launches:
        if launch.source not in images:
            image = nvrtc.compile_source(launch.source, nvrtc.best_arch((8, 7)), launch.defines)
            fake.control().register(image, emulate.compile_source(launch.source, launch.defines))
            images[launch.source] = image
    return images


def test_fast_nms_through_the_driver() -> None:
    plan = fast_nms(1, P, C, K, **LIMITS)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    corner = rng.random((1, P, 2), np.float32)
    arrays: dict[str, Any] = {
        "boxes": np.concatenate([corner, corner + 0.3 * rng.random((1, P, 2), np.float32)], axis=2),
        "scores": rng.random((1, P, C), np.float32),
        "coeff": rng.random((1, P, K), np.float32),
        "num_detections": np.zeros(1, np.int32),
        "out_boxes": np.zeros((1, D, 4), np.float32),
        "out_scores": np.zeros((1, D), np.float32),
        "out_labels": np.zeros((1, D), np.int32),
        "out_coeff": np.zeros((1, D, K), np.float32),
    }
    device = Device.open()
    device.use()
    stream = device.stream()
    sizes = {name: array.nbytes for name, array in arrays.items()} | dict(plan.scratch)
    buffers = {name: device.allocate(nbytes, name) for name, nbytes in sizes.items()}
    modules = {source: device.load_module(image, source) for source, image in compiled(plan).items()}

    def value_of(argument: Any) -> Any:
        if isinstance(argument, Offset):
            return buffers[argument.buffer].pointer + argument.bytes
        return buffers[argument].pointer if isinstance(argument, str) else argument

    for name in ("boxes", "scores", "coeff"):
        stream.upload(buffers[name].pointer, arrays[name].ctypes.data, arrays[name].nbytes)
    with stream.capture() as graph:
        for launch in plan.launches:
            arguments = Arguments([value_of(argument) for argument in launch.arguments])
            function = modules[launch.source].function(launch.kernel)
            stream.launch(function, launch.grid, launch.block, launch.shared_bytes, arguments)
    graph.launch(stream)
    for name in list(arrays)[3:]:
        stream.download(arrays[name].ctypes.data, buffers[name].pointer, arrays[name].nbytes)
    stream.synchronize()

    inputs = (arrays["boxes"][0], arrays["scores"][0], arrays["coeff"][0])
    expected = detect(*inputs, **LIMITS, nms="fast", image_size=550)  # type: ignore[arg-type]
    count = int(arrays["num_detections"][0])
    assert count == len(expected.scores) == D
    np.testing.assert_array_equal(arrays["out_scores"][0], expected.scores)
    np.testing.assert_array_equal(arrays["out_boxes"][0], expected.boxes)
    np.testing.assert_array_equal(arrays["out_labels"][0], expected.labels)
    np.testing.assert_array_equal(arrays["out_coeff"][0], expected.coeff)
