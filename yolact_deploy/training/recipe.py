"""`Recipe`: everything that determines how a network is trained, as one value.

`recipes` holds those of the named configurations, one file each; `overrides` changes single values by name.

Source: YOLACT (arXiv:1904.02689), section 6, and the original's settings.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from yolact_deploy.config import Size, YolactConfig
from yolact_deploy.errors import ConfigError
from yolact_deploy.training.data.augment import Augmentation

Optimizer = Literal["sgd", "adamw"]
Precision = Literal["fp32", "bf16", "fp16"]
ClassLoss = Literal["entropy", "focal"]
FreezeBatchNorm = Literal["auto", "always", "never"]

# Fields that may change when a training is resumed, since the weights do not depend on them.
_FREE_TO_CHANGE = frozenset((
    "paper", "expected", "duration", "command", "weights",
    "patience", "eval_interval", "eval_images", "save_interval", "log_interval", "keep",
))  # fmt: skip
#: fields that must be at least 1, at least 0, positive and finite, or in 0..1
_AT_LEAST_1 = ("batch", "iterations", "save_interval", "log_interval", "keep")
#: integers of 32 bits, apart from these: a step holds its batch in memory
_MOST = {"batch": 1 << 16, "seed": (1 << 63) - 1}
_AT_LEAST_0 = (
    "weight_decay",
    "warmup_iterations",
    "clip",
    "freeze_stages",
    "eval_interval",
    "eval_images",
    "seed",
    "patience",
)
_POSITIVE = ("lr", "gamma", "warmup_lr")
_SHARES = ("momentum", "ema_decay", "balance")
#: fields that are written only where they differ from the default, so that older states can be resumed
_LATER = {"": ("balance", "class_loss", "patience"), "augmentation": ("flip", "rotate", "copy_paste", "multi_scale")}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train one network.

    The defaults are the original's for COCO. Iterations count optimizer steps from the start of the training.

    Raises:
        ConfigError: an invalid value; the message names the field.
    """

    name: str
    #: the network; the data replaces its classes
    config: YolactConfig
    paper: str = "YOLACT (arXiv:1904.02689)"
    #: the score, published or measured; else "not measured"
    expected: str = "not measured"
    duration: str = "not measured"
    command: str = ""

    #: initial weights: "imagenet" downloads torchvision's for the backbone, "imagenet-int8" is the MobileNetV2 that
    #: comes with this package; else the name of a file; "" starts from random weights
    weights: str = "imagenet"
    #: images per step, over all processes; `for_batch` changes it and all that depends on it
    batch: int = 8
    iterations: int = 800_000
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    #: momentum of SGD, or the first beta of AdamW
    momentum: float = 0.9
    weight_decay: float = 5e-4
    #: at each of these iterations the learning rate is multiplied by `gamma`
    milestones: tuple[int, ...] = (280_000, 600_000, 700_000, 750_000)
    gamma: float = 0.1
    warmup_iterations: int = 500
    warmup_lr: float = 1e-4
    #: largest norm of the gradient; 0 does not clip, as in the original
    clip: float = 0.0
    #: decay of the averaged weights to evaluate and export; 0 uses the weights themselves, as in the original
    ema_decay: float = 0.0
    #: auto: with fewer than `BATCH_NORM_IMAGES` images per device, as in the original
    freeze_batch_norm: FreezeBatchNorm = "auto"
    #: first stages of the backbone (with its stem) that are not trained; 0 trains all, as in the original
    freeze_stages: int = 0

    #: precision of the network; weights, optimizer and losses stay in FP32
    amp: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    #: the same result in every run on one machine; slower on a GPU
    deterministic: bool = False

    augmentation: Augmentation = field(default_factory=Augmentation)
    #: also train on images without objects, as background; the original leaves them out
    keep_empty: bool = False
    #: draw images with classes in a smaller share of the images than this more often; 0, as the original: all alike
    balance: float = 0.0
    #: the loss of the classes: "entropy" over the hardest negatives, as the original by default, or "focal" over all
    class_loss: ClassLoss = "entropy"
    #: end the training if the best mask AP is that old, in evaluations; 0 never does
    patience: int = 0
    seed: int = 0

    #: iterations between evaluations; 0 evaluates only at the end
    eval_interval: int = 20_000
    #: evaluate on the first so many images; 0 means all
    eval_images: int = 0
    #: iterations between saved states
    save_interval: int = 2_000
    log_interval: int = 10
    #: saved states to keep
    keep: int = 2

    def __post_init__(self) -> None:
        size, fit = self.config.image_size, self.config.fit
        if (self.augmentation.size, self.augmentation.fit) != (size, fit):
            object.__setattr__(self, "augmentation", dataclasses.replace(self.augmentation, size=size, fit=fit))
        for name, value in vars(self).items():
            most = _MOST.get(name, (1 << 31) - 1)
            _check(not isinstance(value, int) or value <= most, name, f"at most {most}", value)
            _check(name not in _AT_LEAST_1 or value >= 1, name, "1 or more", value)
            _check(name not in _AT_LEAST_0 or value >= 0, name, "0 or more", value)
            _check(name not in _POSITIVE or 0 < value < math.inf, name, "a number above 0", value)
            _check(name not in _SHARES or 0 <= value < 1, name, "0 <= value < 1", value)
        rising = list(self.milestones) == sorted(set(self.milestones))
        _check(rising and min(self.milestones, default=1) > 0, "milestones", "rising iterations", self.milestones)
        _check(max(self.milestones, default=1) < 1 << 31, "milestones", f"at most {(1 << 31) - 1}", self.milestones)

    def for_batch(self, batch: int) -> Recipe:
        """The same training with another batch: the learning rate scales with it, the iterations inversely."""
        _check(batch >= 1, "batch", "1 or more", batch)
        factor = batch / self.batch
        return dataclasses.replace(
            self,
            batch=batch,
            lr=self.lr * factor,
            iterations=max(1, int(self.iterations // factor)),
            milestones=_rising(int(step // factor) for step in self.milestones),
        )

    def for_iterations(self, iterations: int) -> Recipe:
        """A longer or shorter training: milestones in proportion, the warm-up at most a tenth of it."""
        _check(iterations >= 1, "iterations", "1 or more", iterations)
        return dataclasses.replace(
            self,
            iterations=iterations,
            milestones=_rising(step * iterations // self.iterations for step in self.milestones),
            warmup_iterations=min(self.warmup_iterations, iterations // 10),
        )

    def for_input(self, image_size: Size | None = None, *, fit: str | None = None, priors: str | None = None) -> Recipe:
        """The same training of a network with another input, see :meth:`YolactConfig.with_input`."""
        return dataclasses.replace(self, config=self.config.with_input(image_size, fit=fit, priors=priors))

    def identity(self) -> dict[str, Any]:
        """The fields that determine the weights, which must not change when a training is resumed."""
        return {key: value for key, value in self.to_json().items() if key not in _FREE_TO_CHANGE}

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, with tuples as lists."""
        values = dataclasses.asdict(self) | {"config": self.config.to_dict()}
        for part, owner in (("", self), ("augmentation", self.augmentation)):
            for item in dataclasses.fields(owner):
                if item.name in _LATER[part] and getattr(owner, item.name) == item.default:
                    del (values[part] if part else values)[item.name]
        if "fit" not in values["config"]:  # as in states of earlier versions
            values["augmentation"].pop("fit", None)
        return {key: _listed(value) for key, value in values.items()}


def _rising(steps: Any) -> tuple[int, ...]:
    return tuple(sorted({step for step in steps if step > 0}))


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"recipe, {name}: expected {expected}, got {got!r}")
