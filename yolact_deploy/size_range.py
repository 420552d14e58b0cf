"""`SizeRange`: the inputs of a file whose height and width may vary, and the one that suits a picture."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from yolact_deploy.config import Size, YolactConfig, both_sides, check_field, size_text
from yolact_deploy.vocabulary import PRIOR_SIZES

#: sides that inputs are rounded to, in pixels: the stride of the backbone, so that few inputs serve all pictures
STEP = 32

Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """Inputs of any height and width between two.

    Attributes:
        low: smallest height and width, in pixels
        high: largest height and width
        priors: what prior boxes keep at each input, see :meth:`~yolact_deploy.config.YolactConfig.with_size`
        image_size, prior_scales, prior_size: of the configuration whose prior boxes these are, fields of
            :class:`~yolact_deploy.config.YolactConfig`

    Raises:
        ConfigError: a value out of range; the message names the field.
    """

    low: Shape
    high: Shape
    priors: str
    image_size: Size
    prior_scales: tuple[tuple[float, ...], ...]
    prior_size: Size | None = None

    def __post_init__(self) -> None:
        check_field(self.priors in PRIOR_SIZES, "sizes: priors", f"one of {', '.join(PRIOR_SIZES)}", self.priors)
        for name in ("low", "high"):
            side = getattr(self, name)
            pair = isinstance(side, tuple) and len(side) == 2
            check_field(pair, f"sizes: {name}", "height and width", side)
        plain = YolactConfig(image_size=self.image_size, prior_scales=self.prior_scales, prior_size=self.prior_size)
        shapes = [self.config_at(plain, shape).input_shape for shape in (self.low, self.high)]
        rising = all(least <= most for least, most in zip(*shapes, strict=True)) and shapes[0] != shapes[1]
        check_field(rising, "sizes", "a smallest and a larger height and width", f"{self}")

    @classmethod
    def of(cls, config: YolactConfig, low: Size, high: Size, *, priors: str = PRIOR_SIZES[0]) -> SizeRange:
        """Inputs between two, with the prior boxes of a configuration."""
        return cls(
            low=both_sides(low),
            high=both_sides(high),
            priors=priors,
            image_size=config.image_size,
            prior_scales=config.prior_scales,
            prior_size=config.prior_size,
        )

    @classmethod
    def from_dict(cls, values: Any) -> SizeRange:
        """Read what :func:`dataclasses.asdict` has written.

        Raises:
            ConfigError: a value out of range.
            TypeError: fields that are missing or unknown.
        """
        check_field(isinstance(values, dict), "sizes", "an object", values)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        scales = fields.get("prior_scales")
        if isinstance(scales, tuple):
            fields["prior_scales"] = tuple(tuple(level) if isinstance(level, list) else level for level in scales)
        return cls(**fields)

    def __str__(self) -> str:
        return f"{size_text(self.low)} to {size_text(self.high)}"

    def holds(self, shape: Shape) -> bool:
        """Whether this height and width lie in the range."""
        return all(low <= side <= high for low, side, high in zip(self.low, shape, self.high, strict=True))

    def config_at(self, config: YolactConfig, shape: Shape) -> YolactConfig:
        """A configuration of this network at one input (height, width).

        Args:
            config: all other fields
        """
        trained = dataclasses.replace(
            config, image_size=self.image_size, prior_scales=self.prior_scales, prior_size=self.prior_size
        )
        return trained.with_size(shape, priors=self.priors)

    def shape_for(self, height: int, width: int, usual: Shape) -> Shape:
        """The input for a picture: of its ratio and of the area of the usual one, as nearly as the range has it.

        Sides are rounded to multiples of :data:`STEP`, or to those of the usual and the outermost inputs.
        """
        least = max(low / side for low, side in zip(self.low, (height, width), strict=True))
        most = min(high / side for high, side in zip(self.high, (height, width), strict=True))
        scale = min(max(math.sqrt(usual[0] * usual[1] / (height * width)), least), most)
        rows, columns = (
            _nearest(side * scale, low, common, high)
            for side, low, common, high in zip((height, width), self.low, usual, self.high, strict=True)
        )
        return rows, columns


def _nearest(side: float, low: int, usual: int, high: int) -> int:
    """The allowed side next to one."""
    steps = {STEP * math.floor(side / STEP), STEP * math.ceil(side / STEP)}
    allowed = sorted({low, usual, high} | {step for step in steps if low <= step <= high})
    return min(allowed, key=lambda candidate: abs(candidate - side))


@lru_cache(maxsize=256)
def config_for_picture(config: YolactConfig, sizes: SizeRange, height: int, width: int) -> YolactConfig:
    """The configuration at the input for a picture, see :meth:`SizeRange.shape_for`.

    Args:
        config: at the usual input
    """
    return sizes.config_at(config, sizes.shape_for(height, width, config.input_shape))
