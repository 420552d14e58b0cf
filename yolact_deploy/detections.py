"""`Detections`: what a model found in one image, and the forms in which people want it.

Masks stay as the backend gave them until somebody asks: at prototype resolution, to be pasted only where they have
pixels, or already pasted by a GPU as packed bits of each box.

Legend: n detections, H x W the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.paste import MaskCrops, paste_windows
from yolact_deploy.postprocess import MaskWindows

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

    def packed(self) -> NDArray[np.uint8]:
        """Masks as bits, uint8 [n, H, ceil(W / 8)]."""
        return self.crops.packed()


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks that are pasted already: one bit a pixel, each mask only where its box is.

    Attributes:
        windows: int32 [n, 6]: x, y, width and height of each mask's part of the image, words of one of its rows, and
            the number of its first word in ``bits``. x is a multiple of 8; a mask without pixels has width 0
        bits: uint32, rows of all masks; in the order of memory their bytes are those of np.packbits
        height: of the image, in pixels
        width: of the image, in pixels
    """

    windows: NDArray[np.int32]
    bits: NDArray[np.uint32]
    height: int
    width: int

    @cached_property
    def crops(self) -> MaskCrops:
        crops = []
        for row, (_, _, width, _, _, _) in zip(self._rows(), self.windows.tolist(), strict=True):
            crops.append(np.unpackbits(row, axis=1, count=width).view(np.bool_))
        return MaskCrops(self.height, self.width, self.windows[:, :2].astype(np.int64), tuple(crops))

    def select(self, index: NDArray[np.intp]) -> PackedMasks:
        chosen = PackedMasks(self.windows[index], self.bits, self.height, self.width)
        if "crops" in self.__dict__:
            chosen.__dict__["crops"] = self.crops.select(index)
        return chosen

    def packed(self) -> NDArray[np.uint8]:
        """Masks as bits, uint8 [n, H, ceil(W / 8)]: whole bytes are copied, none is unpacked."""
        out = np.zeros((len(self.windows), self.height, -(-self.width // 8)), dtype=np.uint8)
        for bits, row, (x, y, _, height, _, _) in zip(out, self._rows(), self.windows.tolist(), strict=True):
            bits[y : y + height, x // 8 : x // 8 + row.shape[1]] = row
        return out

    def _rows(self) -> Iterator[NDArray[np.uint8]]:
        """The bytes of each mask that hold pixels, [height, ceil(width / 8)]; memory is shared."""
        data = self.bits.view(np.uint8)
        for _, _, width, height, words, first in self.windows.tolist():
            rows = data[4 * first : 4 * (first + height * words)].reshape(height, 4 * words)
            yield rows[:, : -(-width // 8)]


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
        prototype_masks: the masks before or after they are pasted
        mask_scores: of a YOLACT++, float32 [n]: each score times the IoU that the mask is told to have with the
            object's true one. Masks are ranked by these, boxes by ``scores``, which also decide what is found at all.
            None where the network tells no such thing
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    height: int
    width: int
    prototype_masks: PrototypeMasks | PackedMasks
    mask_scores: NDArray[np.float32] | None = None

    @classmethod
    def from_normalized(
        cls,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.integer[Any]],
        masks: NDArray[Any] | MaskWindows | PackedMasks,
        mask_scores: NDArray[np.float32] | None = None,
        *,
        class_names: tuple[str, ...],
        height: int,
        width: int,
        paste: PasteFunction = paste_windows,
    ) -> Detections:
        """From a detector's output: boxes [n, 4] normalised, and masks at prototype resolution.

        Args:
            masks: cropped probabilities [n, h, w], or windows of them, or masks that are pasted already
            mask_scores: [n], of a YOLACT++
        """
        held: PrototypeMasks | PackedMasks
        if isinstance(masks, PackedMasks):
            held = masks
        else:
            windows = masks if isinstance(masks, MaskWindows) else MaskWindows.from_dense(masks)
            held = PrototypeMasks(windows, height, width, paste)
        return cls(
            _pixel_boxes(boxes, height, width),
            scores.astype(np.float32, copy=False),
            labels.astype(np.int64),
            class_names,
            height,
            width,
            held,
            mask_scores,
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
            None if self.mask_scores is None else self.mask_scores[chosen],
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
        return self.prototype_masks.packed()

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

        ``score`` is the box's. Where masks have scores of their own, they are ``mask_score``, by which
        `yolact_deploy.benchmarks` ranks masks; for other evaluators see `of_kind` in its `coco_results`.

        Args:
            category_ids: the dataset's id of each class index (``YolactConfig.category_ids``)
        """
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        bbox = np.concatenate([self.boxes[:, :2], sides], axis=1).astype(float).round(2).tolist()
        results = [
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label]),
                "bbox": box,
                "score": float(score),
                "segmentation": rle,
            }
            for box, score, label, rle in zip(bbox, self.scores, self.labels, self.rle(), strict=True)
        ]
        return self._with_mask_scores(results)

    def _with_mask_scores(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add ``mask_score`` to what was made of each detection, where there are such scores."""
        if self.mask_scores is not None:
            for one, score in zip(found, self.mask_scores, strict=True):
                one["mask_score"] = float(score)
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary: image size, and per detection name, label, score, box xyxy and mask RLE.

        Where masks have scores of their own, ``mask_score`` as well.
        """
        found = [
            {"name": name, "label": int(label), "score": float(score), "box": box, "mask": rle}
            for name, label, score, box, rle in zip(
                self.names,
                self.labels,
                self.scores,
                self.boxes.astype(float).round(2).tolist(),
                self.rle(),
                strict=True,
            )
        ]
        return {"width": self.width, "height": self.height, "detections": self._with_mask_scores(found)}

    def to_supervision(self) -> supervision.Detections:
        """A ``supervision.Detections`` (that package must be installed)."""
        from yolact_deploy.errors import import_optional

        module = import_optional("supervision", "supervision", "Detections.to_supervision()")
        data = {"class_name": np.array(self.names)}
        if self.mask_scores is not None:
            data["mask_score"] = self.mask_scores
        return module.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data=data,
        )

    def to_torch(self) -> dict[str, torch.Tensor]:
        """torchvision's detection dictionary: boxes, labels, scores, masks (bool [n, H, W]); memory is shared.

        Where masks have scores of their own, ``mask_scores`` as well.
        """
        from yolact_deploy.errors import import_optional

        torch = import_optional("torch", "train", "Detections.to_torch()")
        values = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores, "masks": self.masks}
        if self.mask_scores is not None:
            values["mask_scores"] = self.mask_scores
        return {key: torch.from_numpy(value) for key, value in values.items()}

    def draw(self, image: NDArray[np.uint8], *, alpha: float = 0.45, labels: bool = True) -> NDArray[np.uint8]:
        """A copy of the BGR image [H, W, 3] with masks, boxes and names drawn over it."""
        from yolact_deploy.draw import draw_detections

        return draw_detections(image, self, alpha=alpha, labels=labels)


def _pixel_boxes(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Normalised boxes [n, 4] in pixels: corners sorted, the lower held at 0, the upper at the image's size."""
    size = np.array([width, height], np.float32)
    corners = boxes.reshape(-1, 2, 2) * size
    pixels = np.empty_like(corners)
    np.maximum(np.minimum(corners[:, 0], corners[:, 1]), 0, out=pixels[:, 0])
    np.minimum(np.maximum(corners[:, 0], corners[:, 1]), size, out=pixels[:, 1])
    return pixels.reshape(-1, 4).astype(np.float32, copy=False)
