"""Initial weights of a training: of a backbone trained on ImageNet, or of a whole YOLACT for other classes.

Supported files:

- state dicts of torchvision's ResNets and MobileNetV2, and the original's initial weights (resnet101_reducedfc.pth,
  resnet50-19c8e357.pth, darknet53.pth, mobilenet_v2-b0353104.pth)
- ``.npz`` files of an 8-bit MobileNetV2 with folded batch normalization, see `quantized`
- checkpoints of YOLACT, ours and the original's: tensors that fit are kept; classifying layers keep the background and
  the classes with the same names
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact_deploy import samples
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import CheckpointError, ConfigError, DownloadError, import_optional
from yolact_deploy.model import YolactModel
from yolact_deploy.model.checkpoint import SWITCHES, config_of
from yolact_deploy.model.deformable import DeformableConv
from yolact_deploy.model.mobilenet import STAGES, V3_STAGES
from yolact_deploy.model.origins.origin import StateDict
from yolact_deploy.model.quantized import read_quantized
from yolact_deploy.model.timm_backbone import TimmBackbone
from yolact_deploy.model.weights_file import Weights, read_weights
from yolact_deploy.samples.pretrained import resolve_weights

_HEAD = "prediction_layers.0"
_TIMM_BODY = "body."
_TORCHVISION = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "resnet101": "ResNet101_Weights.IMAGENET1K_V1",
    "resnet152": "ResNet152_Weights.IMAGENET1K_V1",
    "mobilenet_v2": "MobileNet_V2_Weights.IMAGENET1K_V1",
    "mobilenet_v3_large": "MobileNet_V3_Large_Weights.IMAGENET1K_V2",
}


@dataclass(frozen=True)
class InitReport:
    """The weights that a training starts from."""

    source: str
    kept: int = 0  #: tensors copied unchanged
    total: int = 0  #: tensors of the model
    reset: tuple[str, ...] = ()  #: tensors that keep their random values
    #: tensors of which the rows of some classes were copied, and which classes
    partly: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    #: the batch normalizations of the backbone were folded into its convolutions
    folded: bool = False

    def __str__(self) -> str:
        if not self.kept:
            return "random weights"
        text = f"{self.kept} of {self.total} tensors from {self.source}"
        if self.partly:
            text += f"; in {_some(self.partly)} only the rows of {_some(self.classes)}"
        return f"{text}; random: {_some(self.reset)}" if self.reset else text


def initialize(model: YolactModel, source: str) -> InitReport:
    """Fill a model with the weights that ``source`` names, as far as they fit, and report the rest.

    Args:
        source: "" or "none" keeps the random weights; "imagenet" downloads torchvision's for the backbone;
            "imagenet-int8" is the MobileNetV2 that comes with this package; else a file, or the name of published
            YOLACT weights

    Raises:
        CheckpointError: no such file, or not the weights of this backbone or of a YOLACT.
        DownloadError: no connection.
    """
    if source in ("", "none"):
        return InitReport("", total=len(model.state_dict()))
    if source == "imagenet":
        library = "timm" if isinstance(model.backbone, TimmBackbone) else "torchvision"
        return _fill_backbone(model, _download(model), f"{library}'s ImageNet weights")
    if source == "imagenet-int8":
        source = str(samples.MOBILENET_V2)
    if Path(source).suffix == ".npz":
        report = _fill_backbone(model, read_quantized(Path(source), model.config), source)
        return replace(report, folded=True)
    weights = read_weights(_existing(source))
    if f"{_HEAD}.conf_layer.weight" in weights.state:
        return _transfer(model, weights, source)
    return _fill_backbone(model, weights.state, source)


def _existing(source: str) -> Path:
    if Path(source).name == source and source == "darknet53.pth" and not Path(source).exists():
        raise CheckpointError(
            "this recipe starts from darknet53.pth, the weights of the YOLOv3 authors that the original YOLACT links "
            "to: get that file and give its path with --weights, or use --weights none"
        )
    return resolve_weights(source)


def _download(model: YolactModel) -> StateDict:
    backbone = model.config.backbone
    if isinstance(model.backbone, TimmBackbone):
        try:
            return {f"{_TIMM_BODY}{key}": value for key, value in model.backbone.pretrained().items()}
        except Exception as error:  # those of its hub, which are many
            raise _no_download("timm", backbone, error) from error
    if backbone not in _TORCHVISION:
        raise CheckpointError(
            f"torchvision has no ImageNet weights of {backbone}: give a file with --weights, or use --weights none"
        )
    models = import_optional("torchvision.models", extra="train", purpose="initial weights")
    try:
        state: StateDict = models.get_weight(_TORCHVISION[backbone]).get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # urllib's errors, or a wrong checksum
        raise _no_download("torchvision", backbone, error) from error
    return state


def _no_download(library: str, backbone: str, error: Exception) -> DownloadError:
    return DownloadError(
        f"cannot download {library}'s weights of {backbone} ({' '.join(str(error).split())[:160]}): give a file with "
        "--weights FILE, or start from random weights with --weights none"
    )


# -- backbones ------------------------------------------------------------------------------------------------------


def _fill_backbone(model: YolactModel, state: StateDict, source: str) -> InitReport:
    if isinstance(model.backbone, TimmBackbone):
        if not all(key.startswith(_TIMM_BODY) for key in state):
            state = {f"{_TIMM_BODY}{key}": value for key, value in model.backbone.pretrained(state).items()}
        names: dict[str, str | None] = {key: key for key in state}
    else:
        v3 = model.config.backbone == "mobilenet_v3_large"
        names = {key: backbone_name(key, v3=v3) for key in state}
    named = {f"backbone.{name}": state[key] for key, name in names.items() if name is not None}
    # Deformable convolutions start as plain ones: their additional tensors keep their zeros.
    zeros = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, DeformableConv)
        for part in ("bias", "conv_offset_mask.weight", "conv_offset_mask.bias")
    }
    own = {key: value for key, value in _learned(model).items() if key not in zeros}
    wanted = {key: value for key, value in own.items() if key.startswith("backbone.")}
    fitting = _fitting(named, wanted)
    missing = [key for key in wanted if key not in fitting]
    if missing:
        raise CheckpointError(
            f"{source} is not the initial weights of {model.config.backbone}: {len(missing)} of {len(wanted)} tensors "
            f"are missing or of another shape ({_some(missing)}). Give those of this backbone, or a YOLACT checkpoint"
        )
    model.load_state_dict(fitting, strict=False)
    reset = tuple(key for key in own if key not in wanted)
    return InitReport(source, len(wanted), len(wanted) + len(reset), _folded(reset))


def backbone_name(key: str, *, v3: bool = False) -> str | None:
    """Our name, within the backbone, of a tensor of torchvision or the original; None if it is not used.

    Args:
        v3: of a MobileNetV3, whose tensors have the names of a MobileNetV2

    >>> backbone_name("layer4.2.conv3.weight"), backbone_name("features.4.conv.0.0.weight"), backbone_name("fc.bias")
    ('layers.3.2.conv3.weight', 'layers.3.0.conv.0.0.weight', None)
    """
    key = key.removeprefix("backbone.")
    if match := re.match(r"layer(\d)\.(.*)", key):
        return f"layers.{int(match[1]) - 1}.{match[2]}"
    if match := re.match(r"features\.(\d+)\.(.*)", key):
        stages = V3_STAGES[1:] if v3 else [blocks for _, _, blocks, _ in STAGES]
        return _mobilenet_name(int(match[1]), match[2], stages, "0." if v3 else "")
    return key if key.startswith(("layers.", "conv1.", "bn1.", "_preconv.")) else None


def _mobilenet_name(number: int, rest: str, stages: Sequence[int], stem: str) -> str | None:
    """The name of a tensor of torchvision's block ``number``.

    Args:
        stages: blocks of each stage behind the stem
        stem: the place of the stem in its stage
    """
    if number == 0:
        return f"layers.0.{stem}{rest}"
    first = 1
    for stage, blocks in enumerate(stages, 1):
        if number < first + blocks:
            return f"layers.{stage}.{number - first}.{rest}"
        first += blocks
    return None


# -- another YOLACT -------------------------------------------------------------------------------------------------


def _transfer(model: YolactModel, weights: Weights, source: str) -> InitReport:
    """Copy the fitting tensors of another YOLACT, and the rows of classes that both have."""
    own, state = _learned(model), weights.state
    config = _config_of(weights, source)
    _check_switches(model.config, config, weights, source)
    names = () if config is None else config.class_names
    same = names == model.config.class_names
    by_class = () if same else tuple(k for k in own if k.startswith((f"{_HEAD}.conf_layer.", "semantic_seg_conv.")))
    fitting = _fitting(state, {key: value for key, value in own.items() if key not in by_class})
    if not any(key.startswith("backbone.") for key in fitting):
        raise CheckpointError(
            f"{source} has another backbone than {model.config.name} ({model.config.backbone}): none of its tensors "
            "fit. Give a checkpoint with this backbone, or another recipe"
        )
    pairs = _shared(names, model.config.class_names)
    rows = {key: _class_rows(own[key], state.get(key), model.config, len(names), pairs) for key in by_class}
    partly = {key: value for key, value in rows.items() if value is not None}
    taken = {**fitting, **partly}
    model.load_state_dict(taken, strict=False)
    reset = tuple(key for key in own if key not in taken)
    shared = ("the background", *(model.config.class_names[new] for _, new in pairs)) if partly else ()
    return InitReport(source, len(fitting), len(own), reset, tuple(partly), shared)


def _config_of(weights: Weights, source: str) -> YolactConfig | None:
    """The checkpoint's configuration; None if it is of another kind than the published ones."""
    try:
        return config_of(weights, source)
    except CheckpointError:
        if weights.origin is not None:
            raise
        return None


def _check_switches(model: YolactConfig, other: YolactConfig | None, weights: Weights, source: str) -> None:
    """Refuse weights that would fit by their shapes, but compute other values in this network.

    Raises:
        ConfigError: the message has the options of ``train`` that make the network the same.
    """
    wrong = [field for field in SWITCHES if other is not None and getattr(model, field) != getattr(other, field)]
    if wrong:
        made = f" (from {weights.origin.name})" if weights.origin else ""
        words = {True: "yes", False: "no"}
        values = [words.get(value, value) for value in (getattr(other, field) for field in wrong)]
        settings = " ".join(f"--set config.{field}={value}" for field, value in zip(wrong, values, strict=True))
        raise ConfigError(f"{source}{made} is a network that computes otherwise: add {settings}")


def _shared(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    place = {name: index for index, name in enumerate(old)}
    return [(place[name], index) for index, name in enumerate(new) if name in place]


def _class_rows(
    fresh: Tensor, old: Tensor | None, config: YolactConfig, classes: int, pairs: list[tuple[int, int]]
) -> Tensor | None:
    """``fresh`` with the rows of shared classes from ``old``; None if there are none.

    For each prior of a cell, the class head has a row for the background and each class. The semantic branch has one
    row per class.
    """
    background = int(fresh.shape[0] != config.num_classes)
    groups = config.priors_per_cell if background else 1
    taken = [(0, 0)] * background + [(a + background, b + background) for a, b in pairs]
    if old is None or not taken or old.shape[0] != groups * (classes + background) or old.shape[1:] != fresh.shape[1:]:
        return None
    rows = fresh.clone().view(groups, -1, *fresh.shape[1:])
    sources, targets = (torch.tensor(side) for side in zip(*taken, strict=True))
    rows[:, targets] = old.view(groups, -1, *old.shape[1:])[:, sources].to(rows.dtype)
    return rows.view_as(fresh)


def _learned(model: YolactModel) -> StateDict:
    """The tensors of a model without the counters of its batch normalizations."""
    return {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}


def _fitting(state: StateDict, own: StateDict) -> StateDict:
    """The tensors of ``state`` that have the name and shape of one in ``own``."""
    return {key: state[key] for key, value in own.items() if key in state and state[key].shape == value.shape}


def _folded(keys: Sequence[str]) -> tuple[str, ...]:
    """The modules of tensors, once each."""
    return tuple(dict.fromkeys(key.partition(".")[0] for key in keys))


def _some(names: Sequence[Any] | Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(map(str, listed[:6])) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
