"""Prior boxes of a configuration, and the SSD code of boxes relative to them.

Legend: P priors, N images. Boxes are normalized to 0..1 of the image; priors are (cx, cy, w, h), boxes xyxy.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from yolact_deploy.array_types import Array, Float, Float32, Floats
from yolact_deploy.config import YolactConfig

#: SSD encoding variances of the center and of the size
VARIANCES = (0.1, 0.2)


@lru_cache(maxsize=16)
def make_priors(config: YolactConfig) -> Float32[Floats, "P 4"]:
    """Prior boxes, float32 [P, 4] as (cx, cy, w, h), normalized; read-only, cached.

    Order: level, row, column, scale, ratio. Computed in float64 and rounded once, as the original does.
    """
    rows: list[tuple[float, float, float, float]] = []
    for side, scales in zip(config.level_sizes, config.prior_scales, strict=True):
        shapes = []
        for scale in scales:
            for ratio in config.aspect_ratios:
                root = math.sqrt(ratio)
                width = scale * root / config.image_size
                height = width if config.square_priors else scale / root / config.image_size
                shapes.append((width, height))
        for y in range(side):
            for x in range(side):
                rows.extend(((x + 0.5) / side, (y + 0.5) / side, w, h) for w, h in shapes)
    priors = np.array(rows, dtype=np.float64).astype(np.float32)
    priors.flags.writeable = False
    return priors


def decode_boxes(loc: Float[Array, "*N P 4"], priors: Float[Array, "P 4"]) -> Float32[Floats, "*N P 4"]:
    """Boxes xyxy normalized [..., P, 4] from regression [..., P, 4] and priors [P, 4] (SSD, arXiv:1512.02325)."""
    loc = np.asarray(loc, dtype=np.float32)
    center = priors[:, :2] + loc[..., :2] * np.float32(VARIANCES[0]) * priors[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):  # an absurd regression yields an infinite size and a NaN corner
        size = priors[:, 2:] * np.exp(loc[..., 2:] * np.float32(VARIANCES[1]))
        top_left = center - size / 2
        bottom_right = top_left + size
    return np.concatenate([top_left, bottom_right], axis=-1).astype(np.float32, copy=False)
