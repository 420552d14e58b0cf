"""The mask-IoU network of YOLACT++ in NumPy, for graphs whose Fast NMS and mask assembly run on the host.

Legend: n masks, h x w the prototypes, C foreground classes.

Source: YOLACT++ (arXiv:1912.06218), section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from yolact_deploy.array_types import Array, Float32, Floats, Integer

#: names of the weights and biases of the five 3x3 and the last 1x1 convolution, in checkpoints and exported files
PARAMETERS = tuple(f"maskiou_net.maskiou_net.{2 * i}.{kind}" for i in range(6) for kind in ("weight", "bias"))
#: the smallest mask from which the last 3x3 convolution computes a value
SMALLEST_SIDE = 63
_AT_ONCE = 4  # masks at a time, so that their patches fit into the processor's cache


class HostMaskIouNet:
    """Predicts the IoU of each mask with the object's true mask.

    Args:
        parameters: the tensors of :data:`PARAMETERS`
    """

    def __init__(self, parameters: Mapping[str, Array]) -> None:
        tensors = [np.asarray(parameters[name], np.float32) for name in PARAMETERS]
        # [out, in, k, k] as a matrix [k * k * in, out] for pixels with channels last.
        kernels = (weight.transpose(2, 3, 1, 0).reshape(-1, len(weight)) for weight in tensors[::2])
        self._layers = [*zip(map(np.ascontiguousarray, kernels), tensors[1::2], strict=True)]

    def __call__(self, masks: Float32[Floats, "n h w"], labels: Integer[Array, " n"]) -> Float32[Floats, " n"]:
        """Predicted IoU of masks, which are cropped probabilities, as objects of the classes ``labels``.

        Masks with sides below 63 pixels are padded with zeros on the right and at the bottom.
        """
        ious = np.zeros(len(masks), np.float32)
        for first in range(0, len(masks), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            ious[part] = np.take_along_axis(self._of_each_class(masks[part]), labels[part, None], axis=1)[:, 0]
        return ious

    def _of_each_class(self, masks: Float32[Floats, "n h w"]) -> Float32[Floats, "n C"]:
        """The IoU of each mask if it were of each class."""
        missing = [(0, max(SMALLEST_SIDE - side, 0)) for side in masks.shape[1:]]
        x = np.pad(masks.astype(np.float32, copy=False), ((0, 0), *missing))[..., None]
        *convolutions, (kernel, bias) = self._layers
        for weights, shift in convolutions:
            x = np.maximum(_patches(x) @ weights + shift, 0)
        ious: Floats = np.maximum(x.reshape(len(x), -1, x.shape[-1]) @ kernel + bias, 0).max(axis=1)
        return ious


def _patches(x: Float32[Floats, "n h w c"]) -> Float32[Floats, "n h2 w2 9*c"]:
    """The input of a 3x3 kernel of stride 2 at each position; h2 x w2 positions."""
    height, width = ((side - 3) // 2 + 1 for side in x.shape[1:3])
    taps = [x[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)]
    return np.concatenate(taps, axis=-1)
