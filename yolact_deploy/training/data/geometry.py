"""Which part of an image is shown, at which size, mirrored or not: one value moves image, boxes and points alike.

Expanding, cropping, mirroring and resizing together are one map along each axis, so they are done as one.

Legend: H x W the image, h x w the view, n boxes. Pixel i of an axis covers i to i + 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.priors import place_in

Floats = NDArray[np.float32]
Pixels = NDArray[Any]


@dataclass(frozen=True)
class View:
    """The window ``left, top, right, bottom`` (whole pixels, possibly beyond the image), shown as h x w."""

    left: int
    top: int
    right: int
    bottom: int
    height: int
    width: int
    mirrored: bool = False

    @classmethod
    def whole(cls, height: int, width: int, out_height: int = 0, out_width: int = 0) -> View:
        """All of an image, by default at its own size."""
        return cls(0, 0, width, height, out_height or height, out_width or width)

    def fitted(self, shape: tuple[int, int], fit: str) -> View:
        """The same window shown as ``shape`` (h, w), grown to its ratio where ``fit`` keeps the ratio of pictures.

        What the larger window holds of the image is shown as well, rather than padding.
        """
        height, width = self.bottom - self.top, self.right - self.left
        where = place_in(height, width, shape, fit)
        left = where.canvas_width - width - where.left if self.mirrored else where.left
        x, y = self.left - left, self.top - where.top
        return View(x, y, x + where.canvas_width, y + where.canvas_height, *shape, self.mirrored)

    @property
    def scale(self) -> tuple[float, float]:
        """Shown pixels per pixel of the image, along x and y."""
        return self.width / (self.right - self.left), self.height / (self.bottom - self.top)

    @property
    def area_scale(self) -> float:
        x, y = self.scale
        return x * y

    def points(self, xy: Floats) -> Floats:
        """Points [..., 2] of the image in shown pixels."""
        shown = (xy - np.array((self.left, self.top), np.float32)) * np.array(self.scale, np.float32)
        if self.mirrored:
            shown[..., 0] = self.width - shown[..., 0]
        return shown

    def boxes(self, xyxy: Floats) -> Floats:
        """Boxes [n, 4] xyxy of the image in shown pixels, clipped to the window; outside it they have a side of 0."""
        corners = self.points(xyxy.reshape(-1, 2, 2))
        if self.mirrored:
            corners[..., 0] = corners[:, ::-1, 0]
        limits = np.array((self.width, self.height), np.float32)
        return corners.clip(0, limits).reshape(-1, 4)

    def holds_center(self, xyxy: Floats) -> NDArray[np.bool_]:
        """Whether the center of each box [n, 4] of the image is inside the window: bool [n]."""
        center = (xyxy[:, :2] + xyxy[:, 2:]) / 2
        inside = (center > (self.left, self.top)) & (center < (self.right, self.bottom))
        return np.asarray(inside.all(axis=1))

    def cut(self, image: Pixels) -> tuple[Pixels, View]:
        """The part of an image [H, W, ...] that is shown, and the same view of that part alone."""
        height, width = image.shape[:2]
        margin = 0 if self._within(height, width) else 1  # for the interpolation between two pixels
        x0, y0 = max(self.left - margin, 0), max(self.top - margin, 0)
        x1, y1 = min(self.right + margin, width), min(self.bottom + margin, height)
        part = image[y0 : max(y1, y0), x0 : max(x1, x0)]
        return part, self.of_part(x0, y0)

    def of_part(self, x: int, y: int) -> View:
        """The same view of a part of the image that starts at its pixel x, y."""
        return replace(self, left=self.left - x, top=self.top - y, right=self.right - x, bottom=self.bottom - y)

    def image(self, image: Pixels, fill: tuple[float, ...] = (0.0,)) -> Pixels:
        """The view of an image [H, W, ...]: [h, w, ...], bilinear without antialiasing; ``fill`` beyond the image."""
        if not self._within(*image.shape[:2]):
            return self.warp(image, (0, 0, self.width, self.height), fill)
        window = image[self.top : self.bottom, self.left : self.right]
        shown = cv2.resize(window, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return shown[:, ::-1] if self.mirrored else shown

    def warp(self, image: Pixels, window: tuple[int, int, int, int], fill: tuple[float, ...] = (0.0,)) -> Pixels:
        """The window x0, y0, x1, y1 of the view of an image [H, W, ...]; interpolates with ``fill`` beyond it."""
        x0, y0, x1, y1 = window
        if 0 in image.shape:
            return np.full((y1 - y0, x1 - x0, *image.shape[2:]), fill, image.dtype)
        back = self._back()
        back[:, 2] += back[:, :2] @ (x0, y0)
        return cv2.warpAffine(
            image,
            back,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )

    def _within(self, height: int, width: int) -> bool:
        return self.left >= 0 and self.top >= 0 and self.right <= width and self.bottom <= height

    def _back(self) -> NDArray[np.float64]:
        """The map from centers of shown pixels to those of the image, in OpenCV's convention: [2, 3]."""
        step_x, step_y = (1 / scale for scale in self.scale)
        x = self.right - 0.5 * step_x - 0.5 if self.mirrored else self.left + 0.5 * step_x - 0.5
        return np.array([[-step_x if self.mirrored else step_x, 0, x], [0, step_y, self.top + 0.5 * step_y - 0.5]])
