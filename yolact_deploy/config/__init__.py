"""`YolactConfig`, the complete description of a YOLACT network, and the named configurations.

A configuration is a frozen, comparable value, written as JSON into every file of this package. Training schedules are
in the training recipes.

Source: YOLACT (arXiv:1904.02689), YOLACT++ (arXiv:1912.06218), YolactEdge (arXiv:2012.12259).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from yolact_deploy.config.layer_patterns import Pattern, check_pattern, convolutions, scale_of, tuples
from yolact_deploy.errors import ConfigError
from yolact_deploy.untrusted import shown
from yolact_deploy.vocabulary import FITS, PRIOR_SIZES

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

BACKBONES = (
    "resnet50", "resnet101", "darknet53", "mobilenet_v2", "resnet18", "resnet34", "resnet152", "mobilenet_v3_large",
)  # fmt: skip
#: what the names of backbones from the library timm begin with
TIMM = "timm:"

#: fields that files have only where they differ from the default, so that earlier versions read all other files
_OPTIONAL_FIELDS = frozenset((
    "pyramid_relu", "extra_levels_from", "extra_levels_relu", "prototype_align_corners", "clip_boxes",
    "second_threshold", "fit", "prior_size", "head_layers", "head_branches", "protonet", "class_existence",
))  # fmt: skip

#: fields whose key in files differs from their name
_STORED_AS = {"nms_score_threshold": "score_threshold"}

#: integers, with their ranges and reasons
_WHOLE_NUMBERS = (
    ("num_classes", 1, 10_000, ""),
    ("num_prototypes", 1, 1024, ""),
    ("fpn_channels", 1, 4096, ""),
    ("deformable_interval", 1, 1000, ""),
    ("top_k", 1, 3840, " (TensorRT's limit)"),
    ("max_detections", 1, 3840, " (TensorRT's limit)"),
)
_EXTRA_LEVELS = ("p5", "c5")
_SWITCHES = ("pyramid_relu", "extra_levels_relu", "prototype_align_corners", "clip_boxes", "class_existence")
_LEAST_SIDE, _MOST_SIDE = 64, 4096
_LONGEST_NAME, _LARGEST = 500, 2**63 - 1
_MOST_HEAD_LAYERS, _MOST_PROTOTYPE_SCALE = 16, 8
_LARGEST_PRIOR, _MOST_PRIORS = 100_000, 100
_TIMM_NAME = re.compile(rf"{TIMM}[A-Za-z0-9_.]{{1,100}}")
_SURROGATES = re.compile("[\ud800-\udfff]")

#: the side of a square, or height and width, in pixels
Size = int | tuple[int, int]

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
    ``prior_scales``) are filled in by default. Category ids belong to the names they were given with:
    ``replace(config, class_names=...)`` takes the default ids of the new names unless it names ids as well.

    Raises:
        ConfigError: a value out of range; the message names the field.
    """

    name: str = "yolact_base"
    #: one of :data:`BACKBONES`, or ``timm:NAME`` of a network in the library timm
    backbone: str = "resnet101"
    #: the network's input in pixels: the side of a square, or (height, width)
    image_size: Size = _BASE_SIZE
    #: how a picture of another shape gets there: one of :data:`~yolact_deploy.vocabulary.FITS`
    fit: str = "stretch"
    #: foreground classes; the class head has one more channel (background, index 0)
    num_classes: int = 80
    #: one name per foreground class; for 80 classes the default is COCO's
    class_names: tuple[str, ...] = ()
    #: category id of each class in the dataset; COCO's or 1..num_classes by default
    category_ids: tuple[int, ...] = ()
    #: prior sizes in pixels per level P3..P7; scaled from yolact_base by default
    prior_scales: tuple[tuple[float, ...], ...] = ()
    #: the input whose pixels these are: a prior takes the same share of the width and of the height at any other. None
    #: is the input itself
    prior_size: Size | None = None
    aspect_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    #: True reproduces the priors of the original, which set the height to the width
    square_priors: bool = True
    num_prototypes: int = 32
    fpn_channels: int = 256
    #: ReLU after the 3x3 convolutions of P3, P4 and P5; without it in mmdetection
    pyramid_relu: bool = True
    #: what P6 is computed from: "p5", or "c5", the backbone's last stage (mmdetection)
    extra_levels_from: str = "p5"
    #: ReLU after P6 and P7 (Yolact_minimal)
    extra_levels_relu: bool = False
    #: corners instead of pixels are aligned where the protonet doubles its resolution (Yolact_minimal)
    prototype_align_corners: bool = False
    #: what the three branches of the prediction head share: a number of 3x3 convolutions with ``fpn_channels``, or a
    #: pattern of layers that keep the size (see `layer_patterns`); 1 in the original's configurations
    head_layers: int | Pattern = 1
    #: 3x3 convolutions that the branches for boxes, classes and coefficients have for themselves (the original's
    #: ``extra_layers``)
    head_branches: tuple[int, int, int] = (0, 0, 0)
    #: layers of the protonet before its last convolution: a pattern (see `layer_patterns`), which may be empty; None is
    #: the original's: three 3x3, upsampling by 2, one 3x3, all with ``fpn_channels``
    protonet: Pattern | None = None
    #: predict which classes an image has from P7, for one more loss in training (the original's option)
    class_existence: bool = False
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
    #: clip boxes to the image before NMS (mmdetection, Yolact_minimal)
    clip_boxes: bool = False
    #: drop detections that do not score above it in their own class (mmdetection); None keeps them
    second_threshold: float | None = None

    def __post_init__(self) -> None:
        fill = object.__setattr__
        for field in ("class_names", "category_ids", "prior_scales", "aspect_ratios", "deformable_blocks"):
            fill(self, field, _tupled(getattr(self, field)))
        for field in ("protonet", "head_layers", "head_branches"):
            fill(self, field, tuples(getattr(self, field)))
        fill(self, "image_size", _checked_size(self.image_size, "image_size"))
        if self.prior_size is not None:
            fill(self, "prior_size", _checked_size(self.prior_size, "prior_size"))
        self._check_numbers()
        if not self.class_names:
            names = COCO_NAMES if self.num_classes == 80 else tuple(f"class {i + 1}" for i in range(self.num_classes))
            fill(self, "class_names", names)
        if isinstance(self.category_ids, _IdsOf) and self.category_ids.names != self.class_names:
            fill(self, "category_ids", ())  # `replace(config, class_names=...)` handed on the ids of other classes
        if not self.category_ids:
            coco = self.class_names == COCO_NAMES
            fill(self, "category_ids", COCO_CATEGORY_IDS if coco else tuple(range(1, self.num_classes + 1)))
        if not self.prior_scales:
            square = isinstance(self.image_size, int) and self.prior_size is None
            scales = _rescale(_BASE_SCALES, _BASE_SIZE, self.input_shape[0]) if square else _BASE_SCALES
            fill(self, "prior_scales", scales)
            fill(self, "prior_size", None if square else self.prior_size or _BASE_SIZE)
        if self.prior_size == self.image_size:
            fill(self, "prior_size", None)
        self._check_names()
        self._check_priors()
        self._check_layers()
        if self.head_pattern == convolutions(len(self.head_pattern), self.fpn_channels):
            fill(self, "head_layers", len(self.head_pattern))  # one form for one network
        fill(self, "category_ids", _IdsOf(self.category_ids, self.class_names))

    def _check_numbers(self) -> None:
        """Before anything is computed from them."""
        for field, low, high, why in _WHOLE_NUMBERS:
            value = getattr(self, field)
            check_field(whole(value, low, high), field, f"{low} to {high}{why}", value)
        for field in (*_SWITCHES, "square_priors", "mask_iou"):
            value = getattr(self, field)
            check_field(isinstance(value, bool), field, "True or False", value)
        blocks = self.deformable_blocks
        counts = isinstance(blocks, tuple) and len(blocks) == 4 and all(whole(count, 0, 1000) for count in blocks)
        check_field(counts, "deformable_blocks", "four numbers from 0 to 1000", blocks)
        score, iou = self.nms_score_threshold, self.iou_threshold
        check_field(_real(score) and 0 <= score < 1, "nms_score_threshold", "0 <= value < 1", score)
        second = self.second_threshold
        allowed = second is None or (_real(second) and 0 <= second < 1)
        check_field(allowed, "second_threshold", "None or 0 <= value < 1", second)
        for field, words in (("extra_levels_from", _EXTRA_LEVELS), ("fit", FITS)):
            value = getattr(self, field)
            check_field(value in words, field, f"one of {', '.join(words)}", value)
        check_field(_real(iou) and 0 < iou <= 1, "iou_threshold", "0 < value <= 1", iou)

    def _check_names(self) -> None:
        known = self.backbone in BACKBONES or bool(_text(self.backbone) and _TIMM_NAME.fullmatch(self.backbone))
        check_field(known, "backbone", f"one of {', '.join(BACKBONES)}, or {TIMM}NAME", self.backbone)
        file_name = _text(self.name) and re.fullmatch(r"[^/\\]+", self.name) is not None and self.name.isprintable()
        check_field(file_name, "name", f"up to {_LONGEST_NAME} characters that a file name may have", self.name)
        names, ids = self.class_names, self.category_ids
        fits = isinstance(names, tuple) and len(names) == self.num_classes and all(map(_text, names))
        check_field(
            fits, "class_names", f"{self.num_classes} names, each a text of up to {_LONGEST_NAME} characters", names
        )
        numbers = isinstance(ids, tuple) and all(whole(number, -_LARGEST, _LARGEST) for number in ids)
        fits = numbers and len(ids) == self.num_classes
        check_field(fits, "category_ids", f"{self.num_classes} integers of 64 bits", ids)
        check_field(len(set(ids)) == len(ids), "category_ids", "distinct ids", ids)

    def _check_priors(self) -> None:
        scales, ratios = self.prior_scales, self.aspect_ratios
        levels = isinstance(scales, tuple) and all(isinstance(level, tuple) for level in scales)
        check_field(levels and len(scales) == _NUM_LEVELS, "prior_scales", "five levels", scales)
        equal = {len(level) for level in scales} == {len(scales[0]) or None}
        check_field(equal, "prior_scales", "equally many scales on each level", scales)
        sizes = all(_real(size) and 0 < size <= _LARGEST_PRIOR for level in scales for size in level)
        check_field(sizes, "prior_scales", f"sizes above 0 and up to {_LARGEST_PRIOR}", scales)
        positive = isinstance(ratios, tuple) and all(_real(ratio) and 0 < ratio <= _LARGEST_PRIOR for ratio in ratios)
        check_field(positive and bool(ratios), "aspect_ratios", "positive ratios", ratios)
        count = self.priors_per_cell
        check_field(count <= _MOST_PRIORS, "prior_scales", f"up to {_MOST_PRIORS} priors per cell", count)

    def _check_layers(self) -> None:
        layers, branches = self.head_layers, self.head_branches
        if isinstance(layers, tuple):
            check_pattern("head_layers", layers, 1)
        else:
            check_field(whole(layers, 0, _MOST_HEAD_LAYERS), "head_layers", f"0 to {_MOST_HEAD_LAYERS}", layers)
        counts = isinstance(branches, tuple) and len(branches) == 3
        counts = counts and all(whole(count, 0, _MOST_HEAD_LAYERS) for count in branches)
        check_field(counts, "head_branches", f"three numbers from 0 to {_MOST_HEAD_LAYERS}", branches)
        if self.protonet is not None:
            check_pattern("protonet", self.protonet, _MOST_PROTOTYPE_SCALE)

    # -- geometry ---------------------------------------------------------------------------------------------------

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width of the network's input, in pixels."""
        return both_sides(self.image_size)

    @property
    def prior_shape(self) -> tuple[int, int]:
        """Height and width of the input that ``prior_scales`` refer to, in pixels."""
        return both_sides(self.image_size if self.prior_size is None else self.prior_size)

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the feature maps P3..P7."""
        height, width = map(_level_sides, self.input_shape)
        return tuple(zip(height, width, strict=True))

    @property
    def prototype_shape(self) -> tuple[int, int]:
        """Height and width of the prototype masks."""
        height, width = self.level_shapes[0]
        return self.prototype_scale * height, self.prototype_scale * width

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Sides of the feature maps P3..P7 of a square input; at 550: 69, 35, 18, 9, 5.

        Raises:
            ConfigError: the input is not a square; see :attr:`level_shapes`.
        """
        return _level_sides(self._side)

    @property
    def prototype_size(self) -> int:
        """Side of the prototype masks of a square input; 138 at 550.

        Raises:
            ConfigError: the input is not a square; see :attr:`prototype_shape`.
        """
        return self.prototype_scale * self.level_sizes[0]

    @property
    def prototype_scale(self) -> int:
        """Side of the prototype masks in sides of P3; 2 in the original's configurations."""
        return scale_of(self.protonet_pattern)

    @property
    def protonet_pattern(self) -> Pattern:
        """The layers of the protonet before its last convolution."""
        if self.protonet is not None:
            return self.protonet
        return (*convolutions(3, self.fpn_channels), (0, 2), *convolutions(1, self.fpn_channels))

    @property
    def head_pattern(self) -> Pattern:
        """The layers that the branches of the prediction head share."""
        layers = self.head_layers
        return layers if isinstance(layers, tuple) else convolutions(layers, self.fpn_channels)

    @property
    def _side(self) -> int:
        size = self.image_size
        if not isinstance(size, int):
            raise ConfigError(f"image_size: expected a square, got {size[0]} x {size[1]}: use the properties in _shape")
        return size

    @property
    def priors_per_cell(self) -> int:
        return len(self.prior_scales[0]) * len(self.aspect_ratios)

    @property
    def num_priors(self) -> int:
        return self.priors_per_cell * sum(height * width for height, width in self.level_shapes)

    # -- pixels -----------------------------------------------------------------------------------------------------

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """BGR gray levels subtracted from the input image (0..255)."""
        return (0.0, 0.0, 0.0) if self.backbone == "darknet53" else _IMAGENET_MEAN_BGR

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """BGR gray levels that divide the input image after subtraction of the mean."""
        return (255.0, 255.0, 255.0) if self.backbone == "darknet53" else _IMAGENET_STD_BGR

    @property
    def padding_color(self) -> tuple[float, float, float]:
        """BGR gray levels around a picture that does not fill the input, and around expanded ones in training."""
        return _IMAGENET_MEAN_BGR

    # -- variants ---------------------------------------------------------------------------------------------------

    @property
    def is_plus(self) -> bool:
        """True for YOLACT++: deformable convolutions or a mask-IoU network."""
        return self.mask_iou or any(self.deformable_blocks)

    def with_size(self, image_size: Size, *, priors: str = "original") -> YolactConfig:
        """The same network for another input.

        Args:
            image_size: the side of a square, or (height, width)
            priors: "original" keeps the share of the width and height that a prior takes, so that between squares its
                scales grow with the side; "pixels" keeps the scales
        """
        size = _checked_size(image_size, "image_size")
        check_field(priors in PRIOR_SIZES, "priors", f"one of {', '.join(PRIOR_SIZES)}", priors)
        if priors == "pixels":
            return dataclasses.replace(self, image_size=size, prior_size=None)
        old = self.image_size
        if isinstance(old, int) and isinstance(size, int) and self.prior_size is None:
            return dataclasses.replace(self, image_size=size, prior_scales=_rescale(self.prior_scales, old, size))
        return dataclasses.replace(self, image_size=size, prior_size=self.prior_size or old)

    def with_input(
        self, image_size: Size | None = None, *, fit: str | None = None, priors: str | None = None
    ) -> YolactConfig:
        """The same network for another input, where each value is None unless it shall change.

        Raises:
            ConfigError: a value out of range, or ``priors`` without a size.
        """
        check_field(image_size is not None or priors is None, "priors", "an image_size that they are for", priors)
        config = self if image_size is None else self.with_size(image_size, priors=priors or PRIOR_SIZES[0])
        return config if fit is None else dataclasses.replace(config, fit=fit)

    def with_classes(self, class_names: tuple[str, ...] | int, category_ids: tuple[int, ...] = ()) -> YolactConfig:
        """The same network for other classes, given by name or by number."""
        names = () if isinstance(class_names, int) else tuple(class_names)
        count = class_names if isinstance(class_names, int) else len(names)
        return dataclasses.replace(self, num_classes=count, class_names=names, category_ids=tuple(category_ids))

    # -- JSON -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` reads it back."""
        return {
            _STORED_AS.get(field.name, field.name): _listed(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in _OPTIONAL_FIELDS or getattr(self, field.name) != field.default
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> YolactConfig:
        """Read the output of :meth:`to_dict`; raises :class:`ConfigError` on unknown or ill-typed fields."""
        if not isinstance(values, dict):
            raise ConfigError(f"configuration: expected a JSON object, got {type(values).__name__}")
        fields = {_STORED_AS.get(field.name, field.name): field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ConfigError(
                f"unknown configuration fields {shown(unknown)}: was the file written by a newer version? "
                "Update yolact-deploy"
            )
        try:
            return cls(**{fields[key]: value for key, value in values.items()})
        except TypeError as error:
            raise ConfigError(f"configuration: a value has the wrong type: {error}") from error


class _IdsOf(tuple[int, ...]):
    """Category ids that remember the names they belong to; equal to the plain tuple."""

    names: tuple[str, ...] = ()

    def __new__(cls, ids: Iterable[int] = (), names: tuple[str, ...] = ()) -> _IdsOf:
        value = super().__new__(cls, ids)
        value.names = names
        return value


def read_size(text: str) -> Size:
    """A size as the command line spells it: ``550``, or ``544x960`` for height and width; of any number of pixels.

    Raises:
        ConfigError: anything else.
    """
    match = re.fullmatch(r"([0-9]{1,6})(?:[xX]([0-9]{1,6}))?", text.strip())
    if match is None:
        raise ConfigError(f"size: expected a side such as 550, or height x width such as 544x960, got {shown(text)}")
    height, width = int(match[1]), int(match[2] or match[1])
    return height if height == width else (height, width)


def size_text(size: int | Sequence[int]) -> str:
    """A size as the command line spells it."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def both_sides(size: Size) -> tuple[int, int]:
    """Height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def _checked_size(value: Any, field: str) -> Size:
    """A size in its one form: a square is its side."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    fits = len(sides) == 2 and all(whole(side, _LEAST_SIDE, _MOST_SIDE) for side in sides)
    pair = "height and width from " if isinstance(value, (list, tuple)) else ""
    check_field(fits, field, f"{pair}{_LEAST_SIDE} to {_MOST_SIDE}", value)
    height, width = sides
    return height if height == width else (height, width)


def _level_sides(side: int) -> tuple[int, ...]:
    """Of P3..P7 along one axis: each level halves the one before, rounded up."""
    sides = []
    for halvings in range(1, 3 + _NUM_LEVELS):
        side = math.ceil(side / 2)
        if halvings >= 3:
            sides.append(side)
    return tuple(sides)


def check_field(ok: bool, field: str, expected: str, value: object) -> None:
    """Raise :class:`ConfigError` with the name of the field unless ``ok``."""
    if not ok:
        raise ConfigError(f"{field}: expected {expected}, got {shown(value)}")


def whole(value: object, low: int, high: int) -> bool:
    """Whether a value of unknown type is an integer from ``low`` to ``high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: Any) -> bool:
    number = value  # of unknown type after the check as well, since Real cannot be compared
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-1e300 < number < 1e300)


def _text(value: object) -> bool:
    """Whether it is a name that can be written in UTF-8."""
    return isinstance(value, str) and len(value) <= _LONGEST_NAME and not _SURROGATES.search(value)


def _tupled(value: Any) -> Any:
    """Lists as tuples, two levels deep."""
    if not isinstance(value, (list, tuple)) or isinstance(value, _IdsOf):
        return value
    return tuple(tuple(inner) if isinstance(inner, list) else inner for inner in value)


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
