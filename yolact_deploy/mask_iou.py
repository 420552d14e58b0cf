"""The mask-IoU network of YOLACT++ in NumPy: for graphs whose Fast NMS and masks run on the host.

Legend: n masks, h x w the prototypes, C foreground classes.

Source: YOLACT++ (arXiv:1912.06218), section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: names of the weights and biases of the five 3x3 and the last 1x1 convolution, in checkpoints and exported files
PARAMETERS = tuple(f"maskiou_net.maskiou_net.{2 * i}.{kind}" for i in range(6) for kind in ("weight", "bias"))
#: of a mask of which the last 3x3 convolution still makes one value
SMALLEST_SIDE = 63
_AT_ONCE = 4  # masks whose patches fit into the processor's cache


class HostMaskIouNet:
    """How much of an object's true mask a mask is told to have in common with it.

    Args:
        parameters: the tensors of :data:`PARAMETERS`
    """

    def __init__(self, parameters: Mapping[str, NDArray[Any]]) -> None:
        tensors = [np.asarray(parameters[name], np.float32) for name in PARAMETERS]
        # [out, in, k, k] as the matrix [k * k * in, out], by which pixels with their channels last are multiplied.
        kernels = (weight.transpose(2, 3, 1, 0).reshape(-1, len(weight)) for weight in tensors[::2])
        self._layers = [*zip(map(np.ascontiguousarray, kernels), tensors[1::2], strict=True)]

    def __call__(self, masks: Floats, labels: NDArray[np.integer[Any]]) -> Floats:
        """IoU [n] of masks [n, h, w], cropped probabilities, of objects of the classes ``labels`` [n].

        Masks of less than 63 pixels a side are filled up with zeros on the right and below.
        """
        found = np.zeros(len(masks), np.float32)
        for first in range(0, len(masks), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            found[part] = np.take_along_axis(self._tell(masks[part]), labels[part, None], axis=1)[:, 0]
        return found

    def _tell(self, masks: Floats) -> Floats:
        """The IoU [n, C] of each mask [n, h, w] as each class."""
        missing = [(0, max(SMALLEST_SIDE - side, 0)) for side in masks.shape[1:]]
        x = np.pad(masks.astype(np.float32, copy=False), ((0, 0), *missing))[..., None]
        *convolutions, (kernel, bias) = self._layers
        for weights, shift in convolutions:
            x = np.maximum(_patches(x) @ weights + shift, 0)
        told: Floats = np.maximum(x.reshape(len(x), -1, x.shape[-1]) @ kernel + bias, 0).max(axis=1)
        return told


def _patches(x: Floats) -> Floats:
    """What each 3x3 kernel of stride 2 sees, [n, h', w', 9 c] of x [n, h, w, c]."""
    height, width = ((side - 3) // 2 + 1 for side in x.shape[1:3])
    taps = [x[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)]
    return np.concatenate(taps, axis=-1)
