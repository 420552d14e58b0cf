"""Our kernels around a network, bound to the memory of a slot: resize before it; NMS, masks and paste after it.

Legend: N images, D detection slots, H x W a frame, K coefficients, h x w prototypes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from yolact_deploy.priors import place
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork
from yolact_deploy.runtime.cuda.driver import Device, DeviceBuffer
from yolact_deploy.runtime.cuda.library import BoundPlan, KernelLibrary
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan
from yolact_deploy.runtime.cuda.plans.plan_masks import mask_assembly
from yolact_deploy.runtime.cuda.plans.plan_nms import fast_nms
from yolact_deploy.runtime.cuda.plans.plan_paste import paste
from yolact_deploy.runtime.cuda.plans.plan_resize import resize
from yolact_deploy.runtime.cuda.slot import Slot
from yolact_deploy.runtime.tails import DetectSettings

#: most plans that stay bound
_LIMIT = 512


class FrameKernels:
    """Binds plans to the memory of one network and caches them; used by one thread at a time."""

    def __init__(self, device: Device, network: DeviceNetwork, outputs: Mapping[str, int]) -> None:
        """
        Args:
            outputs: address of each output of the network
        """
        self._device, self._network, self._outputs = device, network, outputs
        self._library = KernelLibrary(device)
        self._bound: OrderedDict[tuple[Any, ...], BoundPlan] = OrderedDict()
        # Shared by all slots while they take turns on one stream. Outgrown buffers stay for graphs that use them.
        self._scratch: list[tuple[str, DeviceBuffer]] = []

    def resize(
        self, index: int, count: int, stride: int, pointer: int, height: int, width: int, pitch: int
    ) -> BoundPlan:
        """From ``count`` frames to the images of the network's input from ``index`` on.

        The first frame is at ``pointer``, the others follow ``stride`` bytes apart, and their rows ``pitch`` bytes.
        """

        def plan() -> LaunchPlan:
            config, dtype = self._network.metadata.config, self._network.metadata.input_dtype
            return resize(
                height,
                width,
                pitch,
                config.image_size,
                output_dtype=dtype,
                image_index=index,
                count=count,
                stride=stride,
                placement=place(height, width, config),
                color=config.padding_color,
            )

        key = ("resize", index, count, stride, pointer, height, width, pitch)
        return self._bind(key, plan, {"frame": pointer, "images": self._network.input.pointer})

    def nms(self, slot: Slot, batch: int, settings: DetectSettings) -> BoundPlan:
        """From the network's heads to the slot's detections and their coefficients."""
        config, heads = self._network.metadata.config, self._network.outputs

        def plan() -> LaunchPlan:
            _, priors, classes = heads["scores"].shape
            return fast_nms(
                batch,
                priors,
                classes,
                heads["coeff"].shape[2],
                top_k=min(config.top_k, priors),
                max_detections=slot.detections,
                # Boxes below the user's threshold can neither suppress nor displace boxes above it.
                score_threshold=max(config.nms_score_threshold, settings.score_threshold),
                iou_threshold=config.iou_threshold,
                cross_class=settings.nms == "cross-class",
                second_threshold=-1.0 if config.second_threshold is None else config.second_threshold,
            )

        pointers = {name: self._outputs[name] for name in ("boxes", "scores", "coeff")}
        pointers |= {f"out_{name}": slot.pointers[name] for name in ("boxes", "scores", "labels", "coeff")}
        pointers["num_detections"] = slot.pointers["num_detections"]
        return self._bind((slot.index, "nms", batch, settings), plan, pointers)

    def forget(self, slot: Slot) -> None:
        """Drop plans bound to the slot's memory, which is about to change."""
        for key in [key for key in self._bound if key[0] == slot.index]:
            del self._bound[key]

    def masks(self, slot: Slot, batch: int, *, zero_outside: bool) -> BoundPlan:
        """From the network's prototypes and the slot's detections to its masks."""
        proto = self._network.outputs["proto"]
        _, h, w, k = proto.shape
        detections = slot.detections
        pointers = {**slot.pointers, "proto": self._outputs["proto"]}

        def plan() -> LaunchPlan:
            dtype = proto.dtype.name
            return mask_assembly(
                batch, detections, h, w, k, proto_dtype=dtype, mask_dtype=dtype, zero_outside=zero_outside
            )

        return self._bind((slot.index, "masks", batch, zero_outside), plan, pointers)

    def paste(self, slot: Slot, batch: int, settings: DetectSettings) -> BoundPlan:
        """From the slot's masks to packed bits at the frames' sizes, for detections above the user's threshold."""
        (_, _, h, w), dtype = slot.arrays["masks"]

        def plan() -> LaunchPlan:
            return paste(
                batch,
                slot.detections,
                h,
                w,
                mask_dtype=dtype,
                capacity_words=slot.capacity,
                score_threshold=settings.score_threshold,
                rescored="mask_scores" in slot.arrays,
            )

        return self._bind((slot.index, "paste", batch, settings), plan, slot.pointers, f"slot {slot.index}")

    def close(self) -> None:
        """Free the memory between the kernels."""
        self._bound.clear()
        self._library.close()
        for _, buffer in self._scratch:
            buffer.free()
        self._scratch.clear()

    def _bind(
        self, key: tuple[Any, ...], make: Callable[[], LaunchPlan], pointers: Mapping[str, int], owner: str = ""
    ) -> BoundPlan:
        """Args:
        owner: whose scratch buffers the plan uses; plans with the same ones run one after another
        """
        bound = self._bound.get(key)
        if bound is None:
            plan = make()
            scratch = {name: self._scratch_pointer(f"{owner} {name}", nbytes) for name, nbytes in plan.scratch.items()}
            self._bound[key] = bound = self._library.bind(plan, {**pointers, **scratch})
            if len(self._bound) > _LIMIT:
                self._bound.popitem(last=False)
        return bound

    def _scratch_pointer(self, name: str, nbytes: int) -> int:
        for held, buffer in self._scratch:
            if held == name and buffer.nbytes >= nbytes:
                return buffer.pointer
        buffer = self._device.allocate(nbytes, "scratch")
        self._scratch.append((name, buffer))
        return buffer.pointer
