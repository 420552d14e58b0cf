"""The original's augmentation of image, boxes, masks and keypoints together.

Photometric distortion, expansion with the mean color, random crop, mirroring, resizing to the network's input, removal
of small boxes. The result has this order of steps, the computation does not: distortion works on single pixels, so only
the visible part is distorted, and the other steps are one map (see `geometry`), with which masks are drawn last.

Images stay pixel values in BGR; `batch.Normalizer` turns a whole batch into the trunk's input on the device.

Legend: H x W image, h x w the network's input, n objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from yolact_deploy.config import Size, both_sides
from yolact_deploy.datasets.instance_table import Objects
from yolact_deploy.errors import ConfigError
from yolact_deploy.training.data.geometry import View
from yolact_deploy.training.data.masks import rasterize
from yolact_deploy.training.data.mixing import turned
from yolact_deploy.vocabulary import FITS

Image = NDArray[np.uint8]
Target = dict[str, Any]

_STRIDE, _LEAST_SIDE, _MOST_SIDE = 32, 64, 4096
_CROP_TRIALS = 50
_VIEW_TRIALS = 20
_CROP_ANY = 5  # of six options one keeps the whole image


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What to vary, and by how much; the defaults are the original's.

    Source: SSD (arXiv:1512.02325), section 2.2, with the numbers of YOLACT.

    Raises:
        ConfigError: an invalid value.
    """

    size: Size = 550  #: h and w, or both in one
    fit: str = "stretch"  #: how the part that is shown gets there: as inference does it, see `YolactConfig`
    brightness: float = 32.0  #: largest change of a pixel value
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0  #: degrees
    expand: float = 4.0  #: largest side of the canvas in sides of the image; 1 never expands
    crop: bool = True
    #: candidates for the least IoU of a crop with an object; the original draws one, but does not apply it
    crop_overlaps: tuple[float, ...] = ()
    mirror: bool = True
    #: flips top to bottom and turns by 90, 180 and 270 degrees, each as likely as none; not in the original
    flip: bool = False
    rotate: bool = False
    #: share of the images that get objects of another image; not in the original
    copy_paste: float = 0.0
    #: smallest and largest factor of h and w, drawn for each batch; sides are multiples of 32. Not in the original
    multi_scale: tuple[float, float] = (1.0, 1.0)
    least_side: float = 4 / 550  #: share of h or w; objects whose box has a smaller side are dropped
    fill: tuple[float, float, float] = (103.94, 116.78, 123.68)  #: BGR color around an expanded image
    #: float32 images keep fractions and values beyond 0..255, as in the original, at four times the memory
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        _check(min(self.shape) >= 32, "size", "32 or more", self.size)
        _check(self.fit in FITS, "fit", f"one of {', '.join(FITS)}", self.fit)
        _check(self.expand >= 1, "expand", "1 or more", self.expand)
        _check(0 <= self.copy_paste <= 1, "copy_paste", "0 to 1", self.copy_paste)
        _check(self.dtype in ("uint8", "float32"), "dtype", "uint8 or float32", self.dtype)
        low, high = self.multi_scale
        _check(0.25 <= low <= high <= 4, "multi_scale", "two factors from 0.25 to 4, the lower first", (low, high))
        sides = min(self.shape) * low, max(self.shape) * high
        fits = low == high == 1 or (sides[0] >= _LEAST_SIDE and sides[1] <= _MOST_SIDE)
        _check(fits, "multi_scale", f"sides from {_LEAST_SIDE} to {_MOST_SIDE}", (low, high))
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            _check(0 <= low <= high, name, "two factors, the lower first", (low, high))

    @property
    def shape(self) -> tuple[int, int]:
        """h and w."""
        return both_sides(self.size)

    def at_step(self, seed: int, step: int) -> Augmentation:
        """What the images of one batch share: the same in every process, and for every worker."""
        if self.multi_scale == (1.0, 1.0):
            return self
        factor = np.random.default_rng([seed, step]).uniform(*self.multi_scale)
        height, width = (max(_LEAST_SIDE, round(side * factor / _STRIDE) * _STRIDE) for side in self.shape)
        return replace(self, size=height if height == width else (height, width), multi_scale=(1.0, 1.0))

    @classmethod
    def plain(cls, size: Size, dtype: str = "uint8", *, fit: str = "stretch") -> Augmentation:
        """Only resize, as for inference; no object is dropped for its size."""
        return cls(
            size=size, brightness=0, contrast=(1, 1), saturation=(1, 1), hue=0, expand=1, crop=False, mirror=False,
            least_side=0, dtype=dtype, fit=fit,
        )  # fmt: skip

    def __call__(self, image: Image, objects: Objects, rng: np.random.Generator) -> tuple[NDArray[Any], Target]:
        """One variation of an image uint8 BGR [H, W, 3], drawn from ``rng``.

        Returns:
            the image [h, w, 3], BGR pixel values of ``dtype``, and its target (see :func:`make_target`)
        """
        height, width = self.shape
        oblong = self.rotate and height != width
        quarters = int(rng.integers(4)) if oblong else 0  # first: it decides the shape of what is turned
        upright = replace(self, size=(width, height)) if quarters % 2 else self
        colors, view = Colors.draw(self, rng), upright.draw_view(objects, rng)
        shown, target = upright.show(image, colors, view), upright.target(objects, view)
        if not (self.flip or self.rotate):  # draws no number, so that trainings without them stay as they were
            return shown, target
        if self.rotate and not oblong:
            quarters = int(rng.integers(4))
        return turned(shown, target, quarters, flipped=bool(self.flip and rng.random() < 0.5))

    def show(self, image: Image, colors: Colors, view: View) -> NDArray[Any]:
        """The picture of a draw, [h, w, 3]."""
        part, local = view.cut(image)
        colored: NDArray[Any] = colors.apply(part)
        if self.dtype == "float32":
            shown = local.image(colored.astype(np.float32, copy=False), self.fill)
        else:
            shown = _to_uint8(local.image(colored, self.fill))
        return np.ascontiguousarray(shown)

    def target(self, objects: Objects, view: View) -> Target:
        """The target of a draw."""
        return make_target(objects.select(self._kept(view, objects)), view)

    def draw_view(self, objects: Objects, rng: np.random.Generator) -> View:
        """Choose expansion, crop and mirroring so that an object that is not a crowd remains, if there is one."""
        for _ in range(_VIEW_TRIALS):
            view = self._any_view(objects, rng)
            if objects.iscrowd.all() or (self._kept(view, objects) & ~objects.iscrowd).any():
                return view
        return View.whole(objects.height, objects.width).fitted(self.shape, self.fit)

    def _kept(self, view: View, objects: Objects) -> NDArray[np.bool_]:
        """Objects whose center is shown and whose box is not too small: bool [n]."""
        boxes = view.boxes(objects.boxes)
        sides, (height, width) = boxes[:, 2:] - boxes[:, :2], self.shape
        least = np.array((self.least_side * width, self.least_side * height), np.float32)
        large = np.asarray(((sides > 0) & (sides >= least)).all(axis=1))
        return np.asarray(view.holds_center(objects.boxes) & large)

    def _any_view(self, objects: Objects, rng: np.random.Generator) -> View:
        canvas = self._expanded(objects.height, objects.width, rng)
        if self.crop:
            canvas = self._cropped(canvas, objects, rng)
        mirrored = self.mirror and rng.random() < 0.5
        return replace(canvas, mirrored=bool(mirrored)).fitted(self.shape, self.fit)

    def _expanded(self, height: int, width: int, rng: np.random.Generator) -> View:
        """The whole image, or a canvas with the image at a random place."""
        if self.expand == 1 or rng.random() < 0.5:
            return View.whole(height, width)
        ratio = rng.uniform(1, self.expand)
        left, top = int(rng.uniform(0, width * (ratio - 1))), int(rng.uniform(0, height * (ratio - 1)))
        return View(-left, -top, int(width * ratio) - left, int(height * ratio) - top, height, width)

    def _cropped(self, canvas: View, objects: Objects, rng: np.random.Generator) -> View:
        """The whole canvas, or a part with the center of an object that is not a crowd, if there is one."""
        while True:
            option = int(rng.integers(_CROP_ANY + 1))
            if option == 0:
                return canvas
            least = float(rng.choice(self.crop_overlaps)) if self.crop_overlaps else 0.0
            for _ in range(_CROP_TRIALS):
                window = _draw_window(canvas, rng)
                if window is not None and _holds_an_object(window, objects, least):
                    return window


def _draw_window(canvas: View, rng: np.random.Generator) -> View | None:
    """A window of 0.3 to 1 of either side, up to twice as long as wide; None if this draw has none."""
    width, height = canvas.right - canvas.left, canvas.bottom - canvas.top
    w, h = rng.uniform(0.3 * width, width), rng.uniform(0.3 * height, height)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    if not 0.5 <= h / w <= 2:
        return None
    x, y = canvas.left + int(left), canvas.top + int(top)
    return replace(canvas, left=x, top=y, right=canvas.left + int(left + w), bottom=canvas.top + int(top + h))


def _holds_an_object(window: View, objects: Objects, least: float) -> bool:
    if objects.iscrowd.all():
        return window.left < objects.width and window.top < objects.height and window.right > 0 and window.bottom > 0
    held = window.holds_center(objects.boxes) & ~objects.iscrowd
    if not held.any() or not least:
        return bool(held.any())
    rect = np.array([window.left, window.top, window.right, window.bottom], np.float32)
    sides = np.minimum(objects.boxes[:, 2:], rect[2:]) - np.maximum(objects.boxes[:, :2], rect[:2])
    inside = sides.clip(0).prod(axis=1)
    areas = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(axis=1)
    union = areas + (rect[2:] - rect[:2]).prod() - inside
    return bool((inside[held] / union[held]).max() >= least)


# -- colors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Colors:
    """One draw of the photometric distortion: brightness, then contrast before or after saturation and hue."""

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: bool = True
    saturation: float = 1.0
    hue: float = 0.0

    @classmethod
    def draw(cls, settings: Augmentation, rng: np.random.Generator) -> Colors:
        """Draw the values; each of the four is left out half of the time."""
        used = rng.random(5) < 0.5
        return cls(
            brightness=rng.uniform(-settings.brightness, settings.brightness) * used[0],
            contrast=rng.uniform(*settings.contrast) if used[1] else 1.0,
            contrast_first=bool(used[4]),
            saturation=rng.uniform(*settings.saturation) if used[2] else 1.0,
            hue=rng.uniform(-settings.hue, settings.hue) * used[3],
        )

    def apply(self, image: Image) -> NDArray[Any]:
        """Distort an image uint8 BGR [h, w, 3]: float32 that may leave 0..255; the same array if nothing changes."""
        if self == Colors(contrast_first=self.contrast_first) or 0 in image.shape:
            return image
        first = self.contrast if self.contrast_first else 1.0
        last = 1.0 if self.contrast_first else self.contrast
        # (x + brightness) * contrast in one pass
        values = image.astype(np.float32)
        values *= first
        values += self.brightness * first
        if self.hue:
            values = self._through_hsv(values)
        elif self.saturation != 1:
            values = _saturate(values, self.saturation)
        if last != 1:
            values *= last
        return values

    def _through_hsv(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        hsv: Any = cv2.cvtColor(values, cv2.COLOR_BGR2HSV)
        if self.saturation != 1:
            hsv[..., 1] *= self.saturation
        hue = hsv[..., 0]
        hue += self.hue
        hue[hue > 360] -= 360
        hue[hue < 0] += 360
        back: Any = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return back  # type: ignore[no-any-return]


def _saturate(values: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Scale the saturation of HSV directly in BGR: each channel's distance to the largest channel, which stays."""
    channels = cv2.split(values)
    largest = cv2.max(cv2.max(channels[0], channels[1]), channels[2])
    merged: Any = cv2.merge([cv2.addWeighted(channel, factor, largest, 1 - factor, 0) for channel in channels])
    return merged  # type: ignore[no-any-return]


def _to_uint8(image: NDArray[Any]) -> Image:
    """Round and clip to 0..255, in one pass."""
    if image.dtype == np.uint8:
        return image
    levels: Any = cv2.add(image, np.zeros(4), dtype=cv2.CV_8U)
    return levels  # type: ignore[no-any-return]


# -- targets --------------------------------------------------------------------------------------------------------


def make_target(objects: Objects, view: View) -> Target:
    """The target of the objects in a view; objects with an empty mask are left out.

    Returns:
        ``boxes`` float32 [n, 4] xyxy in shown pixels, ``labels`` int64 [n] (0-based), ``masks`` uint8 [n, h, w],
        ``area`` float32 [n] in shown pixels, ``iscrowd`` bool [n] (crowds last), ``width`` and ``height``, and
        ``keypoints`` float32 [n, K, 3] if the dataset has them
    """
    masks = rasterize(objects, view)
    seen = np.asarray(masks.reshape(len(masks), view.height * view.width).any(axis=1))
    if not seen.all():
        objects, masks = objects.select(seen), masks[seen]
    target = {
        "boxes": torch.from_numpy(view.boxes(objects.boxes)),
        "labels": torch.from_numpy(objects.labels),
        "masks": torch.from_numpy(masks),
        "area": torch.from_numpy(objects.area * np.float32(view.area_scale)),
        "iscrowd": torch.from_numpy(objects.iscrowd.copy()),
        "width": view.width,
        "height": view.height,
    }
    if objects.keypoints is not None:
        target["keypoints"] = torch.from_numpy(_shown_keypoints(objects.keypoints, objects.keypoint_mirror, view))
    return target


def _shown_keypoints(keypoints: NDArray[np.float32], mirror: tuple[int, ...], view: View) -> NDArray[np.float32]:
    """Keypoints [n, K, 3] in shown pixels; those beyond the window count as not annotated.

    Args:
        mirror: which keypoint each becomes in a mirror, [K]
    """
    shown = keypoints.copy()
    shown[..., :2] = view.points(keypoints[..., :2])
    beyond = ((shown[..., :2] < 0) | (shown[..., :2] > (view.width, view.height))).any(axis=-1)
    shown[beyond | (keypoints[..., 2] == 0)] = 0
    return np.ascontiguousarray(shown[:, list(mirror)]) if view.mirrored else shown


def _check(ok: bool, field: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"augmentation, {field}: expected {expected}, got {got!r}")
