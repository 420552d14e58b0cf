"""Our CUDA kernels on a real GPU, compared with NumPy and with the memory bandwidth.

Every kernel runs on a batch of different synthetic images (:mod:`yolact_deploy.benchmarks.scenarios.scene`). Its output
is compared before it is timed. CUDA events time many launches in a row: on the same buffers, which small tensors leave
in the caches of the GPU, as in a frame; and on sets of buffers in turn that no cache holds, for the memory's limit.

Legend: N images, P priors, C classes, K coefficients, D detection slots, h x w prototypes, H x W image, S input side.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from yolact_deploy.benchmarks.scenarios.scene import Scene, make_scene
from yolact_deploy.config import YolactConfig
from yolact_deploy.evaluation.agreement import mask_iou
from yolact_deploy.mask_forms import MaskWindows, PackedMasks
from yolact_deploy.paste import paste_windows
from yolact_deploy.postprocess import Detected, assemble_masks, detect
from yolact_deploy.preprocess import fit_image
from yolact_deploy.priors import place
from yolact_deploy.runtime.cuda.driver import Device, DeviceBuffer, Stream
from yolact_deploy.runtime.cuda.library import BoundPlan, KernelLibrary
from yolact_deploy.runtime.cuda.plans import plan_masks, plan_nms, plan_paste, plan_resize
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan

HEIGHT, WIDTH = 480, 640
#: what sets of buffers must exceed so that no cache holds them: several times the L2 cache, and some megabytes
_CACHES, _LEAST_BYTES = 3, 64 << 20
LEAST_IOU = 0.999
#: largest difference of a mask probability, by its dtype
MASK_TOLERANCE = {"float32": 1e-3, "float16": 2e-3}

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[tuple[int, ...], DTypeLike]]


@dataclass(frozen=True)
class KernelCase:
    """A plan, its inputs, the shapes and dtypes of its outputs, and a check that names what is wrong, if anything."""

    name: str
    plan: LaunchPlan
    inputs: Arrays
    outputs: Shapes
    check: Callable[[Arrays], str]


class KernelBench:
    """Runs plans on one device, on its own stream.

    Args:
        launches: runs of a plan that are timed together, as one graph
        rounds: timed graphs, of which the median counts
    """

    def __init__(self, device: Device, *, launches: int = 50, rounds: int = 7) -> None:
        device.use()
        self.device, self.launches, self.rounds = device, launches, rounds
        self.stream: Stream = device.stream()
        self.library = KernelLibrary(device)

    def run(self, case: KernelCase, *, timed: bool = True) -> tuple[dict[str, NDArray[Any]], float | None]:
        """Outputs of a case, and the milliseconds of one run of its plan in cache (None unless ``timed``)."""
        with self._bound(case) as (bound, buffers):
            results = {name: np.zeros(shape, dtype) for name, (shape, dtype) in case.outputs.items()}
            for name, array in results.items():
                self.stream.fill(buffers[name].pointer, 0, array.nbytes)
            bound.enqueue(self.stream)
            for name, array in results.items():
                self.stream.download(array.ctypes.data, buffers[name].pointer, array.nbytes)
            self.stream.synchronize()
            return results, self._time(lambda: bound.enqueue(self.stream)) if timed else None

    def time_from_memory(self, case: KernelCase) -> float:
        """Milliseconds of one run of a case whose tensors are in no cache."""
        wanted = max(_CACHES * self.device.attributes["l2_cache_bytes"], _LEAST_BYTES)
        sets = min(max(math.ceil(wanted / max(case.plan.bytes_moved, 1)), 2), self.launches)
        with contextlib.ExitStack() as stack:
            turn = itertools.cycle([stack.enter_context(self._bound(case))[0] for _ in range(sets)])
            next(turn).enqueue(self.stream)
            return self._time(lambda: next(turn).enqueue(self.stream))

    @contextlib.contextmanager
    def _bound(self, case: KernelCase) -> Iterator[tuple[BoundPlan, dict[str, DeviceBuffer]]]:
        """The plan of a case on buffers of its own, with the inputs in them."""
        sizes = {name: array.nbytes for name, array in case.inputs.items()}
        sizes |= {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (shape, dtype) in case.outputs.items()}
        buffers = {name: self.device.allocate(nbytes, "check") for name, nbytes in sizes.items()}
        bound = self.library.bind(case.plan, {name: buffer.pointer for name, buffer in buffers.items()})
        try:
            for name, array in case.inputs.items():
                held = np.ascontiguousarray(array)
                self.stream.upload(buffers[name].pointer, held.ctypes.data, held.nbytes)
                self.stream.synchronize()
            yield bound, buffers
        finally:
            self.stream.synchronize()
            bound.close()
            for buffer in buffers.values():
                buffer.free()

    def _time(self, enqueue: Callable[[], None]) -> float:
        """Milliseconds of one call: the median of several rounds of many calls replayed as one graph."""
        with self.stream.capture() as graph:
            for _ in range(self.launches):
                enqueue()
        start, end = self.device.event(), self.device.event()
        rounds = []
        for _ in range(self.rounds + 2):
            self.stream.record(start)
            graph.launch(self.stream)
            self.stream.record(end)
            end.synchronize()
            rounds.append(end.elapsed_since(start) / self.launches)
        return statistics.median(rounds[2:])  # the first two warm up

    def close(self) -> None:
        self.library.close()
        self.stream.close()


def kernel_report(bench: KernelBench, case: KernelCase, bandwidth: float | None) -> dict[str, Any]:
    """Run, check and time one case.

    Args:
        bandwidth: bytes/s of a copy, for the share of the memory limit
    """
    outputs, milliseconds = bench.run(case)
    assert milliseconds is not None
    from_memory = bench.time_from_memory(case)
    limit = 1e3 * case.plan.bytes_moved / bandwidth if bandwidth else None
    return {
        "kernel": case.name,
        "wrong": case.check(outputs),
        "microseconds": 1e3 * milliseconds,
        "microseconds_from_memory": 1e3 * from_memory,
        "bytes": case.plan.bytes_moved,
        "operations": case.plan.operations,
        "memory_limit_microseconds": 1e3 * limit if limit is not None else None,
        "times_memory_limit": from_memory / limit if limit else None,
    }


def kernel_cases(
    config: YolactConfig, batch: int, *, image_size: tuple[int, int] = (HEIGHT, WIDTH)
) -> list[KernelCase]:
    """All kernels at the sizes of a configuration, on ``batch`` different scenes."""
    scenes = [make_scene(config, seed=seed) for seed in range(batch)]
    detected = [_detected(scene, config) for scene in scenes]
    padded = _padded(detected, config)
    masks = [assemble_masks(scene.proto, one.coeff, one.boxes) for scene, one in zip(scenes, detected, strict=True)]
    return [
        _resize_case(config, batch, image_size),
        _nms_case(config, scenes, detected),
        *(_mask_case(config, scenes, padded, masks, dtype) for dtype in ("float32", "float16")),
        *(_paste_case(config, padded, masks, image_size, dtype) for dtype in ("float32", "float16")),
    ]


def _detected(scene: Scene, config: YolactConfig) -> Detected:
    return detect(
        scene.boxes,
        scene.scores,
        scene.coeff,
        score_threshold=config.nms_score_threshold,
        iou_threshold=config.iou_threshold,
        top_k=config.top_k,
        max_detections=config.max_detections,
    )


def _padded(detected: list[Detected], config: YolactConfig) -> dict[str, NDArray[Any]]:
    """Detections of all images in slots: num_detections, boxes, coeff; unused slots are zero."""
    slots = config.max_detections
    boxes = np.zeros((len(detected), slots, 4), np.float32)
    coeff = np.zeros((len(detected), slots, config.num_prototypes), np.float32)
    scores, labels = np.zeros((len(detected), slots), np.float32), np.zeros((len(detected), slots), np.int32)
    for i, one in enumerate(detected):
        boxes[i, : len(one.boxes)] = one.boxes
        coeff[i, : len(one.coeff)] = one.coeff
        scores[i, : len(one.scores)], labels[i, : len(one.labels)] = one.scores, one.labels
    counts = np.array([len(one.boxes) for one in detected], np.int32)
    return {"num_detections": counts, "boxes": boxes, "scores": scores, "labels": labels, "coeff": coeff}


def nms_shapes(count: int, slots: int, coefficients: int) -> Shapes:
    """Outputs of Fast NMS."""
    return {
        "num_detections": ((count,), np.int32),
        "out_boxes": ((count, slots, 4), np.float32),
        "out_scores": ((count, slots), np.float32),
        "out_labels": ((count, slots), np.int32),
        "out_coeff": ((count, slots, coefficients), np.float32),
    }


def paste_shapes(count: int, slots: int, words: int) -> Shapes:
    """Outputs of pasting."""
    return {
        "windows": ((count, slots, 6), np.int32),
        "words_needed": ((count,), np.int32),
        "wanted": ((count,), np.int32),
        "found_windows": ((count, slots, 6), np.int32),
        "found_boxes": ((count, slots, 4), np.float32),
        "found_scores": ((count, slots), np.float32),
        "found_labels": ((count, slots), np.int32),
        "bits": ((count, words), np.uint32),
    }


def _resize_case(config: YolactConfig, batch: int, image_size: tuple[int, int]) -> KernelCase:
    height, width = image_size
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    plan = plan_resize.resize(
        height,
        width,
        3 * width,
        config.image_size,
        count=batch,
        placement=place(height, width, config),
        color=config.padding_color,
    )
    expected = fit_image(frame, config)

    def check(outputs: Arrays) -> str:
        worst = int(np.abs(outputs["images"].astype(np.int16) - expected).max())
        return f"gray levels differ from OpenCV's by up to {worst}" if worst > 1 else ""

    return KernelCase("resize", plan, {"frame": frame}, {"images": ((batch, *config.input_shape, 3), np.uint8)}, check)


def _nms_case(config: YolactConfig, scenes: list[Scene], detected: list[Detected]) -> KernelCase:
    boxes, scores, coeff = (np.stack([getattr(s, name) for s in scenes]) for name in ("boxes", "scores", "coeff"))
    plan = plan_nms.fast_nms(
        len(scenes),
        boxes.shape[1],
        scores.shape[2],
        coeff.shape[2],
        top_k=config.top_k,
        max_detections=config.max_detections,
        score_threshold=config.nms_score_threshold,
        iou_threshold=config.iou_threshold,
    )

    def rows(labels: NDArray[Any], scores: NDArray[Any], boxes: NDArray[Any]) -> set[tuple[float, ...]]:
        return set(map(tuple, np.concatenate([labels[:, None], scores[:, None], boxes], axis=1).tolist()))

    def check(outputs: Arrays) -> str:
        for i, one in enumerate(detected):
            number = int(outputs["num_detections"][i])
            if number != len(one.boxes):
                return f"image {i}: {number} detections instead of {len(one.boxes)}"
            ours = rows(*(outputs[name][i, :number] for name in ("out_labels", "out_scores", "out_boxes")))
            theirs = rows(one.labels, one.scores, one.boxes)
            if ours != theirs:
                return f"image {i}: {len(theirs - ours)} detections differ from NumPy's"
        return ""

    shapes = nms_shapes(len(scenes), config.max_detections, coeff.shape[2])
    return KernelCase("fast_nms", plan, {"boxes": boxes, "scores": scores, "coeff": coeff}, shapes, check)


def _mask_case(
    config: YolactConfig,
    scenes: list[Scene],
    padded: dict[str, NDArray[Any]],
    masks: list[NDArray[np.float32]],
    dtype: str,
) -> KernelCase:
    slots, (h, w) = config.max_detections, config.prototype_shape
    proto = np.stack([scene.proto for scene in scenes]).astype(dtype)
    plan = plan_masks.mask_assembly(
        len(scenes), slots, h, w, config.num_prototypes, proto_dtype=dtype, mask_dtype=dtype
    )
    # Prototypes in half precision have other values: the reference uses the same ones.
    expected = masks
    if dtype != "float32":
        expected = [
            assemble_masks(proto[i].astype(np.float32), padded["coeff"][i], padded["boxes"][i])[: len(mask)]
            for i, mask in enumerate(masks)
        ]

    def check(outputs: Arrays) -> str:
        worst = max(
            float(np.abs(outputs["masks"][i, : len(mask)].astype(np.float32) - mask).max(initial=0))
            for i, mask in enumerate(expected)
        )
        return f"probabilities differ by up to {worst:g}" if not worst <= MASK_TOLERANCE[dtype] else ""

    inputs = {"proto": proto, "coeff": padded["coeff"], "boxes": padded["boxes"]}
    shapes = {"masks": ((len(scenes), slots, h, w), dtype)}
    return KernelCase(f"mask_assembly {dtype}", plan, inputs, shapes, check)


def _paste_case(
    config: YolactConfig,
    padded: dict[str, NDArray[Any]],
    masks: list[NDArray[np.float32]],
    image_size: tuple[int, int],
    dtype: str,
) -> KernelCase:
    count, slots, (h, w) = len(masks), config.max_detections, config.prototype_shape
    height, width = image_size
    where = place(height, width, config)
    words = slots * height * -(-width // 32)
    dense = np.zeros((count, slots, h, w), dtype)
    for i, mask in enumerate(masks):
        dense[i, : len(mask)] = mask
    plan = plan_paste.paste(count, slots, h, w, mask_dtype=dtype, capacity_words=words)
    inputs = {
        "masks": dense,
        **{name: padded[name] for name in ("boxes", "scores", "labels", "num_detections")},
        "placements": np.tile(np.array(where, np.int32), (count, 1)),
    }

    def check(outputs: Arrays) -> str:
        least = 1.0
        for i, mask in enumerate(masks):
            number = len(mask)
            pasted = PackedMasks(outputs["windows"][i, :number], outputs["bits"][i], height, width).unpacked()
            windows = MaskWindows.from_dense(dense[i, :number].astype(np.float32)).placed(where)
            expected = paste_windows(windows, height, width)
            least = min([least, *(mask_iou(expected, j, pasted, j) for j in range(number))])
        return f"a mask's IoU with NumPy's is {least:.4f}" if least < LEAST_IOU else ""

    return KernelCase(f"paste {dtype}", plan, inputs, paste_shapes(count, slots, words), check)
