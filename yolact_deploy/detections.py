"""`Detections`: the objects in one image, and every form they are needed in.

Detections are a plain value of arrays: they can be pickled, copied and used after their model is closed. Masks stay in
the form that the backend produced, at prototype resolution or pasted, and are pasted on first use.

Legend: n detections, H x W the image.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import InputError, import_optional
from yolact_deploy.mask_forms import MaskCrops, MaskWindows, PackedMasks, lazy_property
from yolact_deploy.paste import paste_windows
from yolact_deploy.priors import Placement

if TYPE_CHECKING:
    import pandas
    import supervision
    import torch

_CORNERS = ("x1", "y1", "x2", "y2")


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
        track_ids: int64 [n], the same for an object in all frames of a video, from 1; -1 has no id yet. None if
            objects are not tracked
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    height: int
    width: int
    mask_data: MaskWindows | MaskCrops | PackedMasks
    mask_scores: NDArray[np.float32] | None = None
    track_ids: NDArray[np.int64] | None = None

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
        placement: Placement | None = None,
    ) -> Detections:
        """From a detector's output, with boxes [n, 4] normalized to 0..1 of the network's input.

        Args:
            masks: cropped probabilities [n, h, w] at prototype resolution, windows of them, or pasted masks
            mask_scores: float32 [n] for a YOLACT++
            height, width: of the image, in pixels
            placement: where the image lies in the network's input; by default it fills it
        """
        where = placement or Placement.whole(height, width)
        windows = MaskWindows.from_dense(masks) if isinstance(masks, np.ndarray) else masks
        if isinstance(windows, MaskWindows):
            windows = windows.placed(where)
        return cls(
            where.pixel_boxes(boxes.reshape(-1, 4).astype(np.float32, copy=False)),
            scores.astype(np.float32, copy=False),
            labels.astype(np.int64),
            class_names,
            height,
            width,
            windows,
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
                for name in ("boxes", "scores", "labels", "mask_scores", "track_ids")
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
            track_ids=None if self.track_ids is None else self.track_ids[rows],
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

    def filter(
        self,
        *,
        classes: Iterable[str | int] | None = None,
        min_score: float = 0.0,
        min_area: float = 0,
        region: Sequence[Sequence[float]] | None = None,
    ) -> Detections:
        """Those that meet all conditions.

        Args:
            classes: names or indices of the classes to keep
            min_score: least score
            min_area: least number of mask pixels
            region: corners (x, y) in pixels of a polygon in which the middle of the box must be

        Raises:
            InputError: a class that does not exist, or a region of fewer than three corners.
        """
        keep = self.scores >= min_score
        if classes is not None:
            keep &= np.isin(self.labels, [self._class_index(name) for name in classes])
        if min_area > 0:
            keep &= self.areas() >= min_area
        if region is not None:
            keep &= self._inside(region)
        return self[keep]

    def _class_index(self, name: str | int) -> int:
        if isinstance(name, str) and name in self.class_names:
            return self.class_names.index(name)
        if isinstance(name, (int, np.integer)) and 0 <= name < len(self.class_names):
            return int(name)
        known = ", ".join(self.class_names)
        raise InputError(f"classes: there is no class {name!r}. Known are {known}, or their indices from 0")

    def _inside(self, region: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
        import cv2

        corners = np.array(region, np.float32)
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
            raise InputError(f"region: expected at least three corners (x, y), got {list(corners.shape)}")
        middles = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        inside = [cv2.pointPolygonTest(corners, (float(x), float(y)), False) >= 0 for x, y in middles]
        return np.array(inside, np.bool_)

    # -- boxes and masks --------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.class_names[label] for label in self.labels]

    @property
    def pixel_boxes(self) -> NDArray[np.int64]:
        """Boxes truncated to whole pixels, int64 [n, 4], as the original reports them."""
        return self.boxes.astype(np.int64)

    @lazy_property
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

    def crop(self, image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The part of the image inside each box, as copies uint8 [h, w, 3]; at least one pixel each.

        Args:
            image: the image of the detections, uint8 BGR [H, W, 3]

        Raises:
            InputError: an image of another size.
        """
        self._check_size(image)
        return [image[window].copy() for window in self._windows()]

    def cutout(self, image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Each object alone, uint8 BGRA [h, w, 4]: the part inside its box, transparent outside its mask.

        Args:
            image: the image of the detections, uint8 BGR [H, W, 3]

        Raises:
            InputError: an image of another size.
        """
        self._check_size(image)
        cutouts = []
        for window, (x, y), mask in zip(self._windows(), self.crops.offsets, self.crops.crops, strict=True):
            alpha = np.zeros((self.height, self.width), np.uint8)
            alpha[y : y + mask.shape[0], x : x + mask.shape[1]] = mask.view(np.uint8) * 255
            cutouts.append(np.concatenate([image[window], alpha[window][..., None]], axis=2))
        return cutouts

    def _windows(self) -> list[tuple[slice, slice]]:
        size = np.array([self.width, self.height])
        first = np.minimum(np.floor(self.boxes[:, :2]), size - 1).astype(int)
        last = np.maximum(np.minimum(np.ceil(self.boxes[:, 2:]), size), first + 1).astype(int)
        return [np.s_[y1:y2, x1:x2] for (x1, y1), (x2, y2) in zip(first.tolist(), last.tolist(), strict=True)]

    def _check_size(self, image: NDArray[np.uint8]) -> None:
        from yolact_deploy.preprocess import check_image

        if check_image(image).shape[:2] != (self.height, self.width):
            raise InputError(
                f"expected the image of the detections, {self.width} x {self.height}, "
                f"got one of {image.shape[1]} x {image.shape[0]}"
            )

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

        Masks with scores of their own have them as ``mask_score``, and tracked objects their id as ``track``, which is
        null until they have one.
        """
        boxes = self.boxes.astype(float).round(2).tolist()
        detections = [
            {"name": name, "label": int(label), "score": float(score), "box": box, "mask": rle, **mask_score, **track}
            for name, label, score, box, rle, mask_score, track in zip(
                self.names,
                self.labels,
                self.scores,
                boxes,
                self.rle(),
                self._mask_score_items(),
                self._track_items(),
                strict=True,
            )
        ]
        return {"width": self.width, "height": self.height, "detections": detections}

    def _track_items(self) -> list[dict[str, int | None]]:
        """``{"track": id}`` of each detection; empty dictionaries if they are not tracked."""
        if self.track_ids is None:
            return [{} for _ in self.scores]
        return [{"track": track if track > 0 else None} for track in self.track_ids.tolist()]

    def to_records(self) -> list[dict[str, Any]]:
        """A flat dictionary a detection: name, label, score, corners of the box in pixels, mask pixels, track id."""
        boxes = self.boxes.astype(float).round(2).tolist()
        return [
            {"name": name, "label": int(label), "score": round(float(score), 6),
             **dict(zip(_CORNERS, box, strict=True)), "area": int(area), **mask_score, **track}
            for name, label, score, box, area, mask_score, track in zip(
                self.names, self.labels, self.scores, boxes, self.areas(), self._mask_score_items(),
                self._track_items(), strict=True,
            )
        ]  # fmt: skip

    def to_csv(self, **first: object) -> str:
        """CSV with a header and a row a detection, as :meth:`to_records` has them.

        Args:
            first: the same values for all rows, as the first columns
        """
        import csv
        import io

        fields = [*first, "name", "label", "score", *_CORNERS, "area"]
        fields += ["mask_score"] if self.mask_scores is not None else []
        fields += ["track"] if self.track_ids is not None else []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**first, **record} for record in self.to_records())
        return text.getvalue()

    def to_pandas(self) -> pandas.DataFrame:
        """:meth:`to_records` as a ``pandas.DataFrame``; requires the package pandas."""
        pandas = import_optional("pandas", "pandas", "Detections.to_pandas()")
        columns = ["name", "label", "score", *_CORNERS, "area"]
        return pandas.DataFrame(self.to_records(), columns=None if len(self) else columns)

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
            tracker_id=self.track_ids,
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
