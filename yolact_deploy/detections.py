"""`Detections`: the objects in one image, and every form they are needed in.

Detections are a plain value of arrays: they can be pickled, copied and used after their model is closed. Masks stay in
the form that the backend produced, at prototype resolution or pasted, and are pasted on first use.

Legend: n detections, H x W the image.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import import_optional
from yolact_deploy.mask_forms import MaskCrops, MaskWindows, PackedMasks
from yolact_deploy.paste import paste_windows

if TYPE_CHECKING:
    import supervision
    import torch


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
        mask_data: the masks in the form that the backend produced, at prototype resolution or pasted
        mask_scores: float32 [n] for a YOLACT++, else None: each score times the predicted IoU of the mask with the
            object's true mask. They rank masks; ``scores`` rank boxes and decide what is detected at all
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    height: int
    width: int
    mask_data: MaskWindows | MaskCrops | PackedMasks
    mask_scores: NDArray[np.float32] | None = None

    @classmethod
    def from_normalized(
        cls,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.integer[Any]],
        masks: NDArray[Any] | MaskWindows | MaskCrops | PackedMasks,
        mask_scores: NDArray[np.float32] | None = None,
        *,
        class_names: tuple[str, ...],
        height: int,
        width: int,
    ) -> Detections:
        """From a detector's output, with boxes [n, 4] normalized to 0..1 of an image of ``height`` x ``width``.

        Args:
            masks: cropped probabilities [n, h, w] at prototype resolution, windows of them, or pasted masks
            mask_scores: float32 [n] for a YOLACT++
        """
        return cls(
            _pixel_boxes(boxes, height, width),
            scores.astype(np.float32, copy=False),
            labels.astype(np.int64),
            class_names,
            height,
            width,
            MaskWindows.from_dense(masks) if isinstance(masks, np.ndarray) else masks,
            mask_scores,
        )

    # -- as a value -------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: masks that were pasted on first use are pasted again where the copy needs them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal, masks by their pixels."""
        if not isinstance(other, Detections):
            return NotImplemented
        return (
            (self.class_names, self.height, self.width) == (other.class_names, other.height, other.width)
            and all(
                np.array_equal(getattr(self, name), getattr(other, name))
                for name in ("boxes", "scores", "labels", "mask_scores")
            )
            and np.array_equal(self.packed_masks(), other.packed_masks())
        )

    # -- as a sequence ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> Detections:
        """Some of the detections, selected by number, slice, list of numbers or boolean mask."""
        rows = np.atleast_1d(np.arange(len(self))[index])
        selection = dataclasses.replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            mask_data=self.mask_data.select(rows),
            mask_scores=None if self.mask_scores is None else self.mask_scores[rows],
        )
        if "crops" in self.__dict__:
            selection.__dict__["crops"] = self.crops.select(rows)
        return selection

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {score:.2f}" for name, score in zip(self.names[:5], self.scores[:5], strict=True))
        more = f", ... {len(self) - 5} more" if len(self) > 5 else ""
        return f"Detections({len(self)} in {self.width} x {self.height}: {best}{more})"

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

    @cached_property
    def crops(self) -> MaskCrops:
        """Binary masks, each stored only where it has pixels; computed once, on first use."""
        masks = self.mask_data
        if isinstance(masks, MaskWindows):
            return paste_windows(masks, self.height, self.width)
        return masks.unpacked() if isinstance(masks, PackedMasks) else masks

    @property
    def prototype_masks(self) -> MaskWindows | MaskCrops | PackedMasks:
        """The former name of ``mask_data``."""
        warnings.warn("Detections.prototype_masks is now mask_data", DeprecationWarning, stacklevel=2)
        return self.mask_data

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Masks at image size, bool [n, H, W]; computed at each use, so keep them if you need them twice."""
        return self.crops.full()

    def packed_masks(self) -> NDArray[np.uint8]:
        """Masks as bits, uint8 [n, H, ceil(W / 8)]; np.unpackbits(..., axis=-1, count=W) unpacks them."""
        return self.mask_data.packed() if isinstance(self.mask_data, PackedMasks) else self.crops.packed()

    def rle(self) -> list[dict[str, Any]]:
        """COCO run-length encodings, ready for pycocotools and JSON."""
        return self.crops.rle()

    def areas(self) -> NDArray[np.int64]:
        """Mask pixels of each detection, int64 [n]."""
        return self.crops.areas()

    def polygons(self) -> list[list[NDArray[np.int32]]]:
        """Outlines of each mask: per detection a list of int32 [k, 2] arrays of (x, y) pixels."""
        import cv2

        polygons = []
        for (x, y), crop in zip(self.crops.offsets, self.crops.crops, strict=True):
            outlines: Sequence[Any] = ()
            if crop.size:
                outlines, _ = cv2.findContours(crop.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            polygons.append([np.add(outline.reshape(-1, 2), (x, y)).astype(np.int32) for outline in outlines])
        return polygons

    # -- other forms ------------------------------------------------------------------------------------------------

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO results: bbox as [x, y, width, height] in pixels and the mask as RLE.

        ``score`` is the box's. Masks with scores of their own have them as ``mask_score``, by which
        `yolact_deploy.evaluation` ranks masks; for other evaluators see `of_kind` in its `coco_results`.

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
                **mask_score,
            }
            for box, score, label, rle, mask_score in zip(
                bbox, self.scores, self.labels, self.rle(), self._mask_score_items(), strict=True
            )
        ]

    def _mask_score_items(self) -> list[dict[str, float]]:
        """``{"mask_score": value}`` of each detection; empty dictionaries without mask scores."""
        if self.mask_scores is None:
            return [{} for _ in self.scores]
        return [{"mask_score": float(score)} for score in self.mask_scores]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary: image size, and per detection name, label, score, box xyxy and mask RLE.

        Masks with scores of their own have them as ``mask_score``.
        """
        boxes = self.boxes.astype(float).round(2).tolist()
        detections = [
            {"name": name, "label": int(label), "score": float(score), "box": box, "mask": rle, **mask_score}
            for name, label, score, box, rle, mask_score in zip(
                self.names, self.labels, self.scores, boxes, self.rle(), self._mask_score_items(), strict=True
            )
        ]
        return {"width": self.width, "height": self.height, "detections": detections}

    def to_supervision(self) -> supervision.Detections:
        """A ``supervision.Detections``; requires the package supervision."""
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

        Mask scores, where there are any, are ``mask_scores``.
        """
        torch = import_optional("torch", "train", "Detections.to_torch()")
        values = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores, "masks": self.masks}
        if self.mask_scores is not None:
            values["mask_scores"] = self.mask_scores
        return {key: torch.from_numpy(value) for key, value in values.items()}

    def draw(self, image: NDArray[np.uint8], *, alpha: float = 0.45, labels: bool = True) -> NDArray[np.uint8]:
        """A copy of the BGR image [H, W, 3] with masks, boxes and names drawn on it."""
        from yolact_deploy.draw import draw_detections

        return draw_detections(image, self, alpha=alpha, labels=labels)

    def _repr_png_(self) -> bytes:
        """The detections on a dark canvas, for notebooks."""
        from yolact_deploy.draw import preview_png

        return preview_png(self)

    def _repr_html_(self) -> str:
        """The same with a table of classes, scores and boxes."""
        from yolact_deploy.draw import preview_html

        return preview_html(self)


def _pixel_boxes(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Normalized boxes [n, 4] in pixels: corners sorted, clamped to 0 below and to the image's size above."""
    size = np.array([width, height], np.float32)
    corners = boxes.reshape(-1, 2, 2) * size
    pixels = np.empty_like(corners)
    np.maximum(np.minimum(corners[:, 0], corners[:, 1]), 0, out=pixels[:, 0])
    np.minimum(np.maximum(corners[:, 0], corners[:, 1]), size, out=pixels[:, 1])
    return pixels.reshape(-1, 4).astype(np.float32, copy=False)
