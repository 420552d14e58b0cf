"""`YolactConfig`, the complete description of a YOLACT network, and the named configurations.

A configuration is a frozen, comparable value, written as JSON into every file of this package. Training schedules are
in the training recipes.

Source: YOLACT (arXiv:1904.02689), YOLACT++ (arXiv:1912.06218), YolactEdge (arXiv:2012.12259).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any

from yolact_deploy.errors import ConfigError

# Names and category ids in the order of the network outputs.
COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip

_UNUSED_COCO_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
COCO_CATEGORY_IDS: tuple[int, ...] = tuple(i for i in range(1, 91) if i not in _UNUSED_COCO_IDS)

PASCAL_NAMES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

BACKBONES = ("resnet50", "resnet101", "darknet53", "mobilenet_v2")

#: fields whose key in files differs from their name
_STORED_AS = {"nms_score_threshold": "score_threshold"}

_BASE_SIZE = 550
_BASE_SCALES = ((24.0,), (48.0,), (96.0,), (192.0,), (384.0,))
_NUM_LEVELS = 5

# Mean and standard deviation of the training images, BGR, in gray levels.
_IMAGENET_MEAN_BGR = (103.94, 116.78, 123.68)
_IMAGENET_STD_BGR = (57.38, 57.12, 58.40)


def _rescale(scales: tuple[tuple[float, ...], ...], old: int, new: int) -> tuple[tuple[float, ...], ...]:
    """Prior scales for another input size; integers are truncated to integers, as in yolact_im400 and _im700."""
    if new == old:
        return scales
    whole = all(float(s).is_integer() for level in scales for s in level)
    return tuple(tuple(float(int(s / old * new)) if whole else s / old * new for s in level) for level in scales)


@dataclass(frozen=True, kw_only=True)
class YolactConfig:
    """One YOLACT network.

    ``YolactConfig()`` is yolact_base. Fields that depend on others (``class_names``, ``category_ids``,
    ``prior_scales``) are filled in by default.

    Raises:
        ConfigError: a value out of range; the message names the field.
    """

    name: str = "yolact_base"
    #: one of :data:`BACKBONES`
    backbone: str = "resnet101"
    #: side S of the square network input, in pixels
    image_size: int = _BASE_SIZE
    #: foreground classes; the class head has one more channel (background, index 0)
    num_classes: int = 80
    #: one name per foreground class; for 80 classes the default is COCO's
    class_names: tuple[str, ...] = ()
    #: category id of each class in the dataset; COCO's or 1..num_classes by default
    category_ids: tuple[int, ...] = ()
    #: prior sizes in input pixels per level P3..P7; scaled from yolact_base by default
    prior_scales: tuple[tuple[float, ...], ...] = ()
    aspect_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    #: True reproduces the priors of the original, which set the height to the width
    square_priors: bool = True
    num_prototypes: int = 32
    fpn_channels: int = 256
    #: deformable convolutions (DCNv2): in how many of the last blocks of each stage, and in every how-many-th block
    deformable_blocks: tuple[int, int, int, int] = (0, 0, 0, 0)
    deformable_interval: int = 1
    #: the mask-IoU network of YOLACT++, which rescores masks
    mask_iou: bool = False
    #: NMS looks at priors whose best foreground score is above this; the threshold of `load` cuts what NMS keeps
    nms_score_threshold: float = 0.05
    #: Fast NMS drops a detection whose IoU with a better one of its class is above this
    iou_threshold: float = 0.5
    #: best detections per class that enter NMS
    top_k: int = 200
    max_detections: int = 100

    def __post_init__(self) -> None:
        fill = object.__setattr__
        if not self.class_names:
            names = COCO_NAMES if self.num_classes == 80 else tuple(f"class {i + 1}" for i in range(self.num_classes))
            fill(self, "class_names", names)
        if not self.category_ids:
            coco = self.class_names == COCO_NAMES
            fill(self, "category_ids", COCO_CATEGORY_IDS if coco else tuple(range(1, self.num_classes + 1)))
        if not self.prior_scales:
            _check(isinstance(self.image_size, int), "image_size", "an integer number of pixels", self.image_size)
            fill(self, "prior_scales", _rescale(_BASE_SCALES, _BASE_SIZE, self.image_size))
        self._validate()

    def _validate(self) -> None:
        _check(self.backbone in BACKBONES, "backbone", f"one of {', '.join(BACKBONES)}", self.backbone)
        _check(_whole(self.image_size) and 64 <= self.image_size <= 4096, "image_size", "64 to 4096", self.image_size)
        _check(
            _whole(self.num_classes) and 1 <= self.num_classes <= 10_000, "num_classes", "1 to 10000", self.num_classes
        )
        _check(
            len(self.class_names) == self.num_classes, "class_names", f"{self.num_classes} names", len(self.class_names)
        )
        ids = self.category_ids
        _check(len(ids) == self.num_classes, "category_ids", f"{self.num_classes} ids", len(ids))
        _check(len(set(ids)) == len(ids), "category_ids", "distinct ids", ids)
        self._validate_priors()
        _check(1 <= self.num_prototypes <= 1024, "num_prototypes", "1 to 1024", self.num_prototypes)
        _check(1 <= self.fpn_channels <= 4096, "fpn_channels", "1 to 4096", self.fpn_channels)
        blocks, interval = self.deformable_blocks, self.deformable_interval
        counts = len(blocks) == 4 and all(_whole(count) and count >= 0 for count in blocks)
        _check(counts, "deformable_blocks", "four numbers, 0 or more", blocks)
        _check(_whole(interval) and interval >= 1, "deformable_interval", "1 or more", interval)
        _check(0 <= self.nms_score_threshold < 1, "nms_score_threshold", "0 <= value < 1", self.nms_score_threshold)
        _check(0 < self.iou_threshold <= 1, "iou_threshold", "0 < value <= 1", self.iou_threshold)
        _check(1 <= self.top_k <= 3840, "top_k", "1 to 3840 (TensorRT's limit)", self.top_k)
        _check(1 <= self.max_detections <= 3840, "max_detections", "1 to 3840 (TensorRT's limit)", self.max_detections)

    def _validate_priors(self) -> None:
        scales, ratios = self.prior_scales, self.aspect_ratios
        _check(len(scales) == _NUM_LEVELS, "prior_scales", "five levels", len(scales))
        per_level = {len(level) for level in scales}
        _check(len(per_level) == 1 and per_level != {0}, "prior_scales", "equally many scales on each level", scales)
        _check(all(size > 0 for level in scales for size in level), "prior_scales", "positive sizes", scales)
        _check(bool(ratios) and min(ratios) > 0, "aspect_ratios", "positive ratios", ratios)

    # -- geometry ---------------------------------------------------------------------------------------------------

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Side of the feature maps P3..P7; at 550: 69, 35, 18, 9, 5."""
        side = self.image_size
        sides = []
        for halvings in range(1, 3 + _NUM_LEVELS):
            side = math.ceil(side / 2)
            if halvings >= 3:
                sides.append(side)
        return tuple(sides)

    @property
    def prototype_size(self) -> int:
        """Side of the prototype masks; 138 at 550."""
        return 2 * self.level_sizes[0]

    @property
    def priors_per_cell(self) -> int:
        return len(self.prior_scales[0]) * len(self.aspect_ratios)

    @property
    def num_priors(self) -> int:
        return self.priors_per_cell * sum(side * side for side in self.level_sizes)

    # -- pixels -----------------------------------------------------------------------------------------------------

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """BGR gray levels subtracted from the input image (0..255)."""
        return (0.0, 0.0, 0.0) if self.backbone == "darknet53" else _IMAGENET_MEAN_BGR

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """BGR gray levels that divide the input image after subtraction of the mean."""
        return (255.0, 255.0, 255.0) if self.backbone == "darknet53" else _IMAGENET_STD_BGR

    # -- variants ---------------------------------------------------------------------------------------------------

    @property
    def is_plus(self) -> bool:
        """True for YOLACT++: deformable convolutions or a mask-IoU network."""
        return self.mask_iou or any(self.deformable_blocks)

    def with_size(self, image_size: int) -> YolactConfig:
        """The same network for another input size, with scaled priors."""
        _check(_whole(image_size) and image_size > 0, "image_size", "64 to 4096", image_size)
        scales = _rescale(self.prior_scales, self.image_size, image_size)
        return dataclasses.replace(self, image_size=image_size, prior_scales=scales)

    def with_classes(self, class_names: tuple[str, ...] | int, category_ids: tuple[int, ...] = ()) -> YolactConfig:
        """The same network for other classes, given by name or by number."""
        names = () if isinstance(class_names, int) else tuple(class_names)
        count = class_names if isinstance(class_names, int) else len(names)
        return dataclasses.replace(self, num_classes=count, class_names=names, category_ids=tuple(category_ids))

    # -- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` reads it back."""
        return {_STORED_AS.get(key, key): _listed(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> YolactConfig:
        """Read the output of :meth:`to_dict`; raises :class:`ConfigError` on unknown or ill-typed fields."""
        if not isinstance(values, dict):
            raise ConfigError(f"configuration: expected a JSON object, got {type(values).__name__}")
        fields = {_STORED_AS.get(field.name, field.name): field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ConfigError(
                f"unknown configuration fields {unknown}: was the file written by a newer version? Update yolact-deploy"
            )
        try:
            return cls(**{fields[key]: _tupled(value) for key, value in values.items()})
        except TypeError as error:
            raise ConfigError(f"configuration: a value has the wrong type: {error}") from error


def _check(ok: bool, field: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"{field}: expected {expected}, got {got!r}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, (list, tuple)) else value


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value


_PLUS_SCALES = tuple(tuple(s * 2 ** (j / 3) for j in range(3)) for (s,) in _BASE_SCALES)

_CONFIGS = {
    config.name: config
    for config in (
        YolactConfig(),
        YolactConfig(name="yolact_resnet50", backbone="resnet50"),
        YolactConfig(name="yolact_im400", image_size=400),
        YolactConfig(name="yolact_im700", image_size=700),
        YolactConfig(name="yolact_darknet53", backbone="darknet53"),
        YolactConfig(
            name="yolact_resnet50_pascal",
            backbone="resnet50",
            num_classes=20,
            class_names=PASCAL_NAMES,
            prior_scales=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
            square_priors=False,
        ),
        YolactConfig(name="yolact_edge_mobilenetv2", backbone="mobilenet_v2"),
        YolactConfig(
            name="yolact_plus_base",
            prior_scales=_PLUS_SCALES,
            square_priors=False,
            deformable_blocks=(0, 4, 23, 3),
            deformable_interval=3,
            mask_iou=True,
        ),
        YolactConfig(
            name="yolact_plus_resnet50",
            backbone="resnet50",
            prior_scales=_PLUS_SCALES,
            square_priors=False,
            deformable_blocks=(0, 4, 6, 3),
            mask_iou=True,
        ),
    )
}


def list_configs() -> list[str]:
    """Names of the configurations for :func:`get_config`."""
    return list(_CONFIGS)


def get_config(name: str) -> YolactConfig:
    """The named configuration.

    >>> get_config("yolact_resnet50").num_priors
    19248

    Raises:
        ConfigError: there is no such configuration; the message suggests the nearest name.
    """
    try:
        return _CONFIGS[name]
    except KeyError:
        near = difflib.get_close_matches(name, _CONFIGS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no configuration named {name!r}: {hint}expected one of {', '.join(_CONFIGS)}") from None
