"""`Detections`: what a model found in one image, and the forms in which people want it.

Masks are kept at prototype resolution until somebody asks for them; then each is pasted only where it has pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.paste import MaskCrops, paste_windows
from yolact_deploy.postprocess import MaskWindows, sanitize_coordinates

if TYPE_CHECKING:
    import supervision
    import torch


#: a function like :func:`yolact_deploy.paste.paste_windows`
PasteFunction = Callable[[MaskWindows, int, int], MaskCrops]


@dataclass(frozen=True, eq=False)
class PrototypeMasks:
    """Masks before they are pasted into an image of ``height`` x ``width``."""

    windows: MaskWindows
    height: int
    width: int
    paste: PasteFunction = paste_windows

    @cached_property
    def crops(self) -> MaskCrops:
        return self.paste(self.windows, self.height, self.width)

    def select(self, index: NDArray[np.intp]) -> PrototypeMasks:
        chosen = PrototypeMasks(self.windows.select(index), self.height, self.width, self.paste)
        if "crops" in self.__dict__:
            chosen.__dict__["crops"] = self.crops.select(index)
        return chosen


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one image, best first.

    Attributes:
        boxes: float32 [n, 4], xyxy in pixels of the image, sorted and clamped to it
        scores: float32 [n]
        labels: int64 [n], 0-based class indices
        class_names: name of each class index
        height: of the image, in pixels
        width: of the image, in pixels
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    height: int
    width: int
    prototype_masks: PrototypeMasks

    @classmethod
    def from_normalized(
        cls,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.integer[Any]],
        masks: NDArray[Any] | MaskWindows,
        *,
        class_names: tuple[str, ...],
        height: int,
        width: int,
        paste: PasteFunction = paste_windows,
    ) -> Detections:
        """From a detector's output: boxes [n, 4] normalised, and masks at prototype resolution.

        Args:
            masks: cropped probabilities [n, h, w], or windows of them
        """
        windows = masks if isinstance(masks, MaskWindows) else MaskWindows.from_dense(masks)
        x1, x2 = sanitize_coordinates(boxes[:, 0], boxes[:, 2], width)
        y1, y2 = sanitize_coordinates(boxes[:, 1], boxes[:, 3], height)
        pixels = np.stack([x1, y1, x2, y2], axis=1).astype(np.float32, copy=False)
        prototypes = PrototypeMasks(windows, height, width, paste)
        return cls(
            pixels,
            scores.astype(np.float32, copy=False),
            labels.astype(np.int64),
            class_names,
            height,
            width,
            prototypes,
        )

    # -- a sequence -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> Detections:
        """Some of the detections, chosen by number, slice, list of numbers or boolean mask."""
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return Detections(
            self.boxes[chosen],
            self.scores[chosen],
            self.labels[chosen],
            self.class_names,
            self.height,
            self.width,
            self.prototype_masks.select(chosen),
        )

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        names = [
            f"{self.class_names[label]} {score:.2f}"
            for label, score in zip(self.labels[:5], self.scores[:5], strict=True)
        ]
        more = f", ... {len(self) - 5} more" if len(self) > 5 else ""
        return f"Detections({len(self)} in {self.width} x {self.height}: {', '.join(names)}{more})"

    def above(self, score: float) -> Detections:
        """Those that score above ``score``."""
        return self[self.scores > score]

    # -- boxes and masks --------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.class_names[label] for label in self.labels]

    @property
    def pixel_boxes(self) -> NDArray[np.int64]:
        """Boxes truncated to whole pixels, int64 [n, 4], as the original reports them."""
        return self.boxes.astype(np.int64)

    @property
    def crops(self) -> MaskCrops:
        """Binary masks, each kept only where it has pixels; computed once, on first use."""
        return self.prototype_masks.crops

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Masks at image size, bool [n, H, W]; made anew at each use, so keep it if you need it twice."""
        return self.crops.full()

    def packed_masks(self) -> NDArray[np.uint8]:
        """Masks as bits, uint8 [n, H, ceil(W / 8)]; np.unpackbits(..., axis=-1, count=W) gives them back."""
        return self.crops.packed()

    def rle(self) -> list[dict[str, Any]]:
        """COCO run-length encodings, ready for pycocotools and JSON."""
        return self.crops.rle()

    def areas(self) -> NDArray[np.int64]:
        """Mask pixels of each detection, int64 [n]."""
        return self.crops.areas()

    def polygons(self) -> list[list[NDArray[np.int32]]]:
        """Outlines of each mask: per detection a list of int32 [k, 2] arrays of (x, y) pixels."""
        import cv2

        outlines = []
        for (x, y), crop in zip(self.crops.offsets, self.crops.crops, strict=True):
            found: Sequence[Any] = ()
            if crop.size:
                found, _ = cv2.findContours(crop.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            outlines.append([np.add(c.reshape(-1, 2), (x, y)).astype(np.int32) for c in found])
        return outlines

    # -- other forms ------------------------------------------------------------------------------------------------

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO results: bbox as [x, y, width, height] in pixels and the mask as RLE.

        Args:
            category_ids: the dataset's id of each class index (``YolactConfig.category_ids``)
        """
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        bbox = np.concatenate([self.boxes[:, :2], sides], axis=1).astype(float).round(2).tolist()
        return [
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label]),
                "bbox": box,
                "score": float(score),
                "segmentation": rle,
            }
            for box, score, label, rle in zip(bbox, self.scores, self.labels, self.rle(), strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary: image size, and per detection name, label, score, box xyxy and mask RLE."""
        return {
            "width": self.width,
            "height": self.height,
            "detections": [
                {"name": name, "label": int(label), "score": float(score), "box": box, "mask": rle}
                for name, label, score, box, rle in zip(
                    self.names,
                    self.labels,
                    self.scores,
                    self.boxes.astype(float).round(2).tolist(),
                    self.rle(),
                    strict=True,
                )
            ],
        }

    def to_supervision(self) -> supervision.Detections:
        """A ``supervision.Detections`` (that package must be installed)."""
        from yolact_deploy.errors import import_optional

        module = import_optional("supervision", "supervision", "Detections.to_supervision()")
        return module.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names)},
        )

    def to_torch(self) -> dict[str, torch.Tensor]:
        """torchvision's detection dictionary: boxes, labels, scores, masks (bool [n, H, W]); memory is shared."""
        from yolact_deploy.errors import import_optional

        torch = import_optional("torch", "train", "Detections.to_torch()")
        values = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores, "masks": self.masks}
        return {key: torch.from_numpy(value) for key, value in values.items()}

    def draw(self, image: NDArray[np.uint8], *, alpha: float = 0.45, labels: bool = True) -> NDArray[np.uint8]:
        """A copy of the BGR image [H, W, 3] with masks, boxes and names drawn over it."""
        from yolact_deploy.draw import draw_detections

        return draw_detections(image, self, alpha=alpha, labels=labels)
