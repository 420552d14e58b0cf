"""mmdetection 2.x and 3.x: other names, background last, no ReLU on P3 to P5, P6 from C5, clipped boxes.

Size, anchors and class names are not in the tensors but, as text, in the checkpoint's ``meta``. The text is parsed, not
executed.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import CheckpointError
from yolact_deploy.model.origins.origin import Origin, Rule, StateDict, renamed, reversed_level

_SIZE = 550
_SCORE_THRESHOLD = 0.05
_MEAN_RGB, _STD_RGB = (123.68, 116.78, 103.94), (58.40, 57.12, 57.38)
_MOST_TEXT = 1_000_000

_RULES: tuple[Rule, ...] = (
    (r"backbone\.layer([1-4])\.", lambda match: f"backbone.layers.{int(match[1]) - 1}."),
    (r"neck\.lateral_convs\.([012])\.conv\.", reversed_level("fpn.lat_layers")),
    (r"neck\.fpn_convs\.([012])\.conv\.", reversed_level("fpn.pred_layers")),
    (r"neck\.fpn_convs\.([34])\.conv\.", lambda match: f"fpn.downsample_layers.{int(match[1]) - 3}."),
    (r"bbox_head\.head_convs\.(\d+)\.conv\.", lambda match: f"prediction_layers.0.upfeature.{2 * int(match[1])}."),
    (r"bbox_head\.conv_cls\.", "prediction_layers.0.conf_layer."),
    (r"bbox_head\.conv_reg\.", "prediction_layers.0.bbox_layer."),
    (r"bbox_head\.conv_coeff\.", "prediction_layers.0.mask_layer."),
    (r"mask_head\.protonet\.", "proto_net."),
    (r"(?:segm_head|mask_head\.segm_branch)\.segm_conv\.", "semantic_seg_conv."),
)
_CONFIDENCE, _BOXES = "prediction_layers.0.conf_layer", "prediction_layers.0.bbox_layer"


def _convert(state: StateDict) -> StateDict:
    converted = renamed(state, _RULES)
    boxes = converted.get(f"{_BOXES}.weight")
    anchors = 0 if boxes is None or not boxes.ndim else boxes.shape[0] // 4
    for suffix in ("weight", "bias"):
        key = f"{_CONFIDENCE}.{suffix}"
        if key in converted and anchors:
            converted[key] = _background_first(converted[key], anchors)
        key = f"semantic_seg_conv.{suffix}"
        if key in converted:  # its training puts class c into channel c - 1, and class 0 into the last
            converted[key] = torch.roll(converted[key], 1, dims=0)
    return converted


def _background_first(values: Tensor, anchors: int) -> Tensor:
    """Rows of all anchors, in each the background moved from the last place to the first."""
    if not values.ndim or values.shape[0] % anchors:
        raise CheckpointError(
            f"bbox_head.conv_cls has {list(values.shape)[:1]} channels for {anchors} anchors: not the weights of a "
            "YOLACT"
        )
    return torch.roll(values.reshape(anchors, -1, *values.shape[1:]), 1, dims=1).reshape(values.shape)


# -- configuration --------------------------------------------------------------------------------------------------


def _configure(config: YolactConfig, state: StateDict, meta: Mapping[str, Any]) -> tuple[YolactConfig, str]:
    settings = _Settings.of_meta(meta)
    settings.check_supported()
    size = settings.image_size()
    scales, ratios = settings.anchors(size or _SIZE)
    test = settings.arguments("test_cfg")
    score = _number(test, "score_thr", _SCORE_THRESHOLD)
    network = dataclasses.replace(
        config,
        name=f"mmdetection_{config.backbone}",
        image_size=size or _SIZE,
        prior_scales=scales,
        aspect_ratios=ratios,
        square_priors=False,
        pyramid_relu=False,
        extra_levels_from=_extra_levels(state, settings),
        clip_boxes=True,
        nms_score_threshold=score,
        second_threshold=score,
        iou_threshold=_number(test, "iou_thr", config.iou_threshold),
        top_k=int(_number(test, "top_k", config.top_k)),
        max_detections=int(_number(test, "max_per_img", config.max_detections)),
    )
    names = _class_names(meta)
    if names is not None:
        if len(names) != config.num_classes:
            raise CheckpointError(
                f"meta names {len(names)} classes, the tensors have {config.num_classes}: the file is not of one "
                "training"
            )
        network = dataclasses.replace(network, class_names=names)
    assumed = [] if size else [f"input size {_SIZE}"]
    if not settings.calls:
        assumed.append("the anchors of its YOLACT configurations (no meta config is in the file)")
    return network, ", ".join(assumed)


def _extra_levels(state: StateDict, settings: _Settings) -> str:
    """What P6 is computed from: the tensors tell C5 by its channels, the text all others."""
    weight, head = state.get("neck.fpn_convs.3.conv.weight"), state.get("neck.lateral_convs.2.conv.weight")
    if weight is None or head is None or weight.ndim != 4 or head.ndim != 4:
        raise CheckpointError("neck.fpn_convs.3 or neck.lateral_convs.2 is missing: not the weights of a YOLACT")
    if weight.shape[1] == head.shape[1] != head.shape[0]:
        return "c5"
    stated = settings.arguments("neck").get("add_extra_convs")
    if stated == "on_output":
        return "p5"
    raise CheckpointError(
        f"P6 is computed from {stated or 'a level that neither the tensors nor a meta config name'}, which is not "
        "supported: give weights with add_extra_convs='on_input' or 'on_output' and their meta"
    )


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """2.x: ``CLASSES``; 3.x: ``dataset_meta``."""
    data = meta.get("dataset_meta")
    data = {key.lower(): value for key, value in data.items()} if isinstance(data, Mapping) else {}
    names = meta.get("CLASSES", data.get("classes"))
    if isinstance(names, str):
        return (names,)
    return tuple(map(str, names)) if isinstance(names, Sequence) else None


class _Settings:
    """The calls ``dict(...)`` and plain values in the text of a configuration."""

    def __init__(self, calls: list[tuple[str, dict[str, Any]]], values: dict[str, Any]) -> None:
        self.calls, self.values = calls, values

    @classmethod
    def of_meta(cls, meta: Mapping[str, Any]) -> _Settings:
        """From ``meta['config']`` (2.x) or ``meta['cfg']`` (3.x); empty if there is none.

        Raises:
            CheckpointError: a text that is not Python.
        """
        text = meta.get("cfg", meta.get("config"))
        if not isinstance(text, str) or not text.strip():
            return cls([], {})
        try:
            tree = ast.parse(text if len(text) <= _MOST_TEXT else "(")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise CheckpointError(
                "the configuration in meta cannot be parsed: save state_dict alone, and give --size if it is not "
                f"{_SIZE}"
            ) from error
        values = {
            target.id: _literal(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        return cls(list(_calls(tree)), values)

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of the first dictionary with this name (``neck=dict(...)``) or type (``dict(type=...)``)."""
        return next((call for key, call in self.calls if name in (key, call.get("type"))), {})

    def check_supported(self) -> None:
        """Refuse what the network here would compute otherwise."""
        backbone, pre = self.arguments("backbone"), {**self.arguments("img_norm_cfg"), **self.arguments("Normalize")}
        pre.update(self.arguments("data_preprocessor"))
        if backbone.get("style", "pytorch") != "pytorch":
            raise CheckpointError("a ResNet of style 'caffe' (stride on the 1x1 convolution) is not supported")
        if any(backbone.get("stage_with_dcn") or ()):
            raise CheckpointError("mmdetection's deformable convolutions are not supported")
        for key, expected in (("mean", _MEAN_RGB), ("std", _STD_RGB)):
            given = pre.get(key, expected)
            if not _close(given, expected):
                raise CheckpointError(f"{key} of its input is {given}, expected {list(expected)}: not supported")
        if any(call.get("keep_ratio") for _, call in self.calls if call.get("type") == "Resize"):
            raise CheckpointError("its pictures keep their shape (keep_ratio), expected a square input: not supported")
        if not pre.get("to_rgb", True) or not pre.get("bgr_to_rgb", True):
            raise CheckpointError("its input is BGR, expected RGB: not supported")

    def image_size(self) -> int | None:
        """The side of the input; None if the text does not tell it.

        Raises:
            CheckpointError: an input that is not square.
        """
        scales = [self.values.get("img_scale"), self.values.get("image_size")]
        scales += [call.get("scale", call.get("img_scale")) for _, call in self.calls if call.get("type") in _RESIZES]
        for scale in scales:
            if isinstance(scale, (tuple, list)) and len(scale) == 2 and all(isinstance(n, int) for n in scale):
                if scale[0] != scale[1]:
                    raise CheckpointError(f"its input is {scale[0]} x {scale[1]}, expected a square")
                return int(scale[0])
        size = self.values.get("img_size", self.values.get("input_size"))
        return size if isinstance(size, int) else None

    def anchors(self, size: int) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
        """Prior scales and aspect ratios for an input of this side.

        Raises:
            CheckpointError: anchors that cannot be expressed here.
        """
        anchors = self.arguments("anchor_generator") or self.arguments("AnchorGenerator")
        bases = anchors.get("base_sizes", [8, 16, 32, 64, 128])
        octave, count = anchors.get("octave_base_scale", 3), anchors.get("scales_per_octave", 1)
        ratios = anchors.get("ratios", [0.5, 1.0, 2.0])
        plain = all(_numbers(values) for values in (bases, ratios, [octave])) and count == 1 and len(bases) == 5
        if not plain or anchors.get("scales") or anchors.get("center_offset", 0):
            raise CheckpointError(f"its anchors {anchors} are not supported: expected five base sizes and one scale")
        strides = anchors.get("strides")
        sides = YolactConfig(image_size=size).level_sizes
        if strides is not None and not _close(strides, [size / side for side in sides]):
            raise CheckpointError(f"its anchors have strides {strides}, expected {[round(size / s, 2) for s in sides]}")
        return tuple((float(base) * octave,) for base in bases), tuple(1 / ratio for ratio in ratios)


_RESIZES = ("Resize", "MultiScaleFlipAug")


def _calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every ``name=dict(key=literal, ...)``, with its name ("" in lists); values that are no literals are left out."""
    names: dict[int, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg:
            names[id(node.value)] = node.arg
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[id(node.value)] = node.targets[0].id
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            values = {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
            yield names.get(id(node), ""), {key: value for key, value in values.items() if value is not _NO_LITERAL}


_NO_LITERAL = object()


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NO_LITERAL


def _numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < math.inf for v in values
    )


def _close(values: Any, expected: Sequence[float]) -> bool:
    if not isinstance(values, (list, tuple)) or len(values) != len(expected):
        return False
    pairs = zip(values, expected, strict=True)
    return all(isinstance(a, (int, float)) and abs(a - b) <= 2e-3 * abs(b) for a, b in pairs)


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


ORIGIN = Origin(
    name="mmdetection",
    markers=("bbox_head.conv_cls.weight", "bbox_head.conv_coeff.weight", "mask_head.protonet.0.weight"),
    convert=_convert,
    configure=_configure,
    unused=(("ema_", "moving averages kept as buffers"),),
)
