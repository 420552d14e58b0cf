"""From weights to a model and back: our safetensors files, and state dicts of the original and of YolactEdge.

A state dict does not contain its input size and class names; `infer_config` takes the published ones.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from yolact_deploy.artifact import METADATA_KEY, Metadata, read_config, write_bytes
from yolact_deploy.config import TIMM, Size, YolactConfig, get_config, list_configs
from yolact_deploy.errors import CheckpointError, import_optional
from yolact_deploy.model import YolactModel
from yolact_deploy.model.origins.origin import StateDict
from yolact_deploy.model.pattern_names import PatternReader
from yolact_deploy.model.resnet import BASIC, STAGE_BLOCKS
from yolact_deploy.model.weights_file import Weights, read_weights

_log = logging.getLogger(__name__)

_HEAD = "prediction_layers.0"
#: what neither names nor shapes of tensors show, but decides what they compute
SWITCHES = ("pyramid_relu", "extra_levels_from", "extra_levels_relu", "prototype_align_corners")
_BACKBONE_CONFIGS = {
    "resnet101": "yolact_base",
    "resnet50": "yolact_resnet50",
    "darknet53": "yolact_darknet53",
    "mobilenet_v2": "yolact_edge_mobilenetv2",
    # not published: the configuration of the nearest one
    "resnet18": "yolact_resnet50",
    "resnet34": "yolact_resnet50",
    "resnet152": "yolact_base",
    "mobilenet_v3_large": "yolact_edge_mobilenetv2",
}


#: a backbone whose tensors show that it is from timm, but not which one
_ANY_OF_TIMM = "a backbone of timm"


# -- tensors to a configuration -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Architecture:
    """The architecture that follows from names and shapes of tensors."""

    backbone: str
    num_classes: int
    priors_per_cell: int
    num_prototypes: int
    fpn_channels: int
    is_plus: bool

    @classmethod
    def of_config(cls, config: YolactConfig) -> _Architecture:
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}
        if config.backbone.startswith(TIMM):
            values["backbone"] = _ANY_OF_TIMM
        return cls(**values)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> _Architecture:
        anchors = _channels(state, f"{_HEAD}.bbox_layer.weight") // 4
        if anchors < 1:
            raise CheckpointError(f"{_HEAD}.bbox_layer.weight has fewer than 4 channels: not the weights of a YOLACT")
        return cls(
            backbone=_find_backbone(state),
            num_classes=_channels(state, f"{_HEAD}.conf_layer.weight") // anchors - 1,
            priors_per_cell=anchors,
            num_prototypes=_channels(state, f"{_HEAD}.mask_layer.weight") // anchors,
            fpn_channels=_channels(state, "fpn.lat_layers.0.weight"),
            is_plus=any("conv_offset_mask" in key or key.startswith("maskiou_net.") for key in state),
        )

    def __str__(self) -> str:
        plus = ", YOLACT++" if self.is_plus else ""
        return (
            f"{self.backbone}, {self.num_classes} classes, {self.priors_per_cell} priors per cell, "
            f"{self.num_prototypes} prototypes, {self.fpn_channels} pyramid channels{plus}"
        )


def _channels(state: Mapping[str, Tensor], key: str) -> int:
    weight = state.get(key)
    if weight is None or weight.ndim != 4:
        hint = "these look like the initial weights of a backbone, for training. " if _is_backbone(state) else ""
        raise CheckpointError(
            f"not the weights of a YOLACT, {key} is missing: {hint}"
            "Give a checkpoint of YOLACT, such as yolact_base_54_800000.pth"
        )
    return weight.shape[0]


def _is_backbone(state: Mapping[str, Tensor]) -> bool:
    return any(key in state for key in ("layer1.0.conv1.weight", "layers.0.0.conv1.weight", "features.0.0.weight"))


def _find_backbone(state: Mapping[str, Tensor]) -> str:
    if any(key.startswith("backbone.body.") for key in state):
        return _ANY_OF_TIMM
    if "backbone._preconv.0.weight" in state:
        return "darknet53"
    if "backbone.layers.1.0.conv.0.0.weight" in state:
        return "mobilenet_v2"
    if "backbone.layers.1.0.block.0.0.weight" in state:
        return "mobilenet_v3_large"
    third = [key for key in state if re.match(r"backbone\.layers\.2\.\d+\.conv[23]\.weight$", key)]
    blocks, basic = len({key.split(".")[3] for key in third}), not any(".conv3." in key for key in third)
    for name, stages in STAGE_BLOCKS.items():
        if (blocks, basic) == (stages[2], name in BASIC):
            return name
    raise CheckpointError(
        f"unknown backbone, with {blocks} {'basic' if basic else 'bottleneck'} blocks in its third stage: "
        f"this version knows {', '.join(_BACKBONE_CONFIGS)}"
    )


def infer_config(state: Mapping[str, Tensor]) -> YolactConfig:
    """The configuration that fits a state dict, from tensor names and shapes alone.

    The tensors do not determine the input size (550 is assumed), the class names or the prior sizes (those of the
    published configuration with this backbone are assumed).

    Raises:
        CheckpointError: not a YOLACT, or one that resembles no published configuration.
    """
    weights = _Architecture.of_state(state)
    cure = "Give the configuration it was trained with (--config)"
    if weights.backbone == _ANY_OF_TIMM:
        raise CheckpointError(f"the tensors are of {_ANY_OF_TIMM}, and do not show of which. {cure}")
    if weights.is_plus:
        config = _plus_config(weights)
    else:
        config = get_config(_BACKBONE_CONFIGS[weights.backbone])
        if config.backbone != weights.backbone:
            config = dataclasses.replace(config, name=f"yolact_{weights.backbone}", backbone=weights.backbone)
        if weights.backbone == "resnet50" and weights.num_classes == 20:
            _log.warning(
                "ResNet-50 with 20 classes: assuming yolact_resnet50_pascal. "
                "Trained on other classes? Give --config yolact_resnet50, or a JSON file with their class_names"
            )
            config = get_config("yolact_resnet50_pascal")
        elif weights.num_classes != config.num_classes:
            config = config.with_classes(weights.num_classes)
        config = dataclasses.replace(config, num_prototypes=weights.num_prototypes, fpn_channels=weights.fpn_channels)
    return _require_same(_with_free_parts(config, state), weights, cure)


def _with_free_parts(config: YolactConfig, state: Mapping[str, Tensor]) -> YolactConfig:
    """The configuration with the protonet and the head that the tensors show."""
    channels, trunk, net = config.fpn_channels, f"{_HEAD}.upfeature", PatternReader(state)
    last = max((int(match[1]) for key in state if (match := re.match(r"proto_net\.(\d{1,4})\.", key))), default=0)
    protonet = net.read("proto_net", channels, last, _channels_in(state, f"proto_net.{last}.weight"))
    head = PatternReader(state, keeps_size=True)
    shared = head.read(trunk, channels, None, _channels_in(state, f"{_HEAD}.bbox_layer.weight"))
    boxes, classes, masks = (
        len({key.split(".")[3] for key in state if key.startswith(f"{_HEAD}.{name}_extra.")})
        for name in ("bbox", "conf", "mask")
    )
    free = dataclasses.replace(
        config,
        head_layers=shared,
        head_branches=(boxes, classes, masks),
        protonet=None if protonet == config.protonet_pattern else protonet,
        class_existence="class_existence_fc.weight" in state,
    )
    assumed = [*(net.assumed if free.protonet is not None else ()), *head.assumed]
    if assumed:
        _log.warning(
            "tensors do not show all of this protonet or head: assumed %s. If it is otherwise, give the configuration "
            "(--config)", ", ".join(assumed),
        )  # fmt: skip
    return free


def _channels_in(state: Mapping[str, Tensor], key: str) -> int | None:
    weight = state.get(key)
    return None if weight is None or weight.ndim != 4 else weight.shape[1]


def config_of(weights: Weights, path: str | Path) -> YolactConfig:
    """The configuration of a file's network: its own, or the inferred one with what its implementation has different.

    Raises:
        CheckpointError: not a YOLACT, one that resembles no published configuration, or one that cannot be expressed.
    """
    if weights.config is not None:
        return weights.config
    config, assumed = weights.adapt(infer_config(weights.state))
    if weights.origin is not None and assumed:
        _log.warning("%s is from %s: assumed %s", path, weights.origin.name, assumed)
    return config


def _with_switches(config: YolactConfig, weights: Weights) -> YolactConfig:
    """A named configuration with the switches of the implementation that the weights are from.

    A published configuration is taken as its implementation means it; another one must have the right switches.
    """
    if weights.origin is not None:
        own, _ = weights.adapt(infer_config(weights.state))
    elif weights.config is not None:
        own = weights.config
    else:
        return config
    published = {get_config(name).with_classes(80) for name in list_configs()}
    if weights.origin is not None and config.with_classes(80) in published:
        return own
    wrong = [field for field in SWITCHES if getattr(config, field) != getattr(own, field)]
    if wrong:
        source = weights.origin.name if weights.origin else "the training that made this file"
        values = ", ".join(f'"{field}": {json.dumps(getattr(own, field))}' for field in wrong)
        raise CheckpointError(
            f"the weights are from {source} and compute other values with this configuration: add {values} to it"
        )
    return config


def _plus_config(weights: _Architecture) -> YolactConfig:
    for config in map(get_config, list_configs()):
        if config.is_plus and config.backbone == weights.backbone:
            return config if weights.num_classes == config.num_classes else config.with_classes(weights.num_classes)
    raise CheckpointError(f"YOLACT++ with the backbone {weights.backbone} is unknown: known are resnet50 and resnet101")


def _require_same(config: YolactConfig, weights: _Architecture, cure: str) -> YolactConfig:
    expected = _Architecture.of_config(config)
    if expected != weights:
        raise CheckpointError(
            f"weights and configuration differ: {config.name} is {expected}; the weights are {weights}. {cure}"
        )
    return config


# -- models ---------------------------------------------------------------------------------------------------------


def load_model(
    path: str | Path,
    *,
    config: YolactConfig | str | None = None,
    image_size: Size | None = None,
    fit: str | None = None,
    priors: str | None = None,
) -> YolactModel:
    """A model with the weights of a file, in evaluation mode on the CPU.

    Args:
        path: a file that :func:`read_state_dict` reads.
        config: the network's configuration, or what :func:`read_config` reads; by default the file's own or, if it has
            none, the inferred one. A published configuration with COCO's classes adopts another number from the weights
        image_size: another input than the configuration's: the side of a square, or (height, width)
        fit: how pictures of another shape get there, see :class:`YolactConfig`
        priors: what priors keep at ``image_size``, see :meth:`YolactConfig.with_size`

    Raises:
        CheckpointError: the file cannot be read, or does not fit the configuration.
        ConfigError: an unknown name, or a configuration that cannot be built.
    """
    weights = read_weights(path)
    try:
        tensors = _Architecture.of_state(weights.state)
        if config is not None:
            cure = "Give the configuration the weights were trained with, or omit --config to infer it"
            if isinstance(config, str):
                config = _with_own_classes(read_config(config), tensors.num_classes, weights.config)
            chosen = _with_switches(_require_same(config, tensors, cure), weights)
        elif weights.config is not None:
            chosen = _require_same(weights.config, tensors, "The file is damaged: save the weights again")
        else:
            chosen = config_of(weights, path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    with _NothingRandom():
        model = YolactModel(chosen.with_input(image_size, fit=fit, priors=priors))
    _fill(model, weights.state, path)
    return model.eval()


class _NothingRandom(TorchFunctionMode):
    """Inside, tensors that would get random numbers stay unset, which saves half of the time to build a network.

    Every tensor gets its value from the file.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _with_own_classes(config: YolactConfig, count: int, stored: YolactConfig | None) -> YolactConfig:
    """A published configuration with COCO's classes for weights with another number of classes."""
    if count == config.num_classes or config not in map(get_config, list_configs()) or config.num_classes != 80:
        return config
    if stored is not None and stored.num_classes == count:
        return config.with_classes(stored.class_names, stored.category_ids)
    _log.warning(
        "%s has %d classes, the weights have %d: named class 1 to class %d. Name them in a JSON file for --config",
        config.name, config.num_classes, count, count,
    )  # fmt: skip
    return config.with_classes(count)


def _fill(model: YolactModel, state: StateDict, path: str | Path) -> None:
    """Copy all tensors into the model after a check of names and shapes."""
    expected = model.state_dict()
    # Batch counters are not used here, and old files lack them.
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    state = {**counters, **state}
    _refuse(path, "lacks", (key for key in expected if key not in state))
    _refuse(path, "has unknown", (key for key in state if key not in expected))
    _refuse(
        path,
        "has other shapes in",
        (
            f"{key} (expected {list(value.shape)}, got {list(state[key].shape)})"
            for key, value in expected.items()
            if state[key].shape != value.shape
        ),
    )
    model.load_state_dict(state)


def _refuse(path: str | Path, what: str, names: Iterable[str]) -> None:
    bad = list(names)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(
            f"{path} {what} {len(bad)} tensors: {', '.join(bad[:3])}{more}. "
            "Give the complete weights of one YOLACT network"
        )


def save_checkpoint(model: YolactModel, path: str | Path) -> None:
    """Write a model's weights and configuration as safetensors, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    safetensors = import_optional("safetensors.torch", extra="train", purpose="writing .safetensors weights")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {METADATA_KEY: Metadata(config=model.config).to_json()}
    write_bytes(path, safetensors.save(tensors, metadata=metadata))
