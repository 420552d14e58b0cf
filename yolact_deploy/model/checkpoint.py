"""Reads and writes weights: our safetensors files, and state dicts of the original and of YolactEdge.

Nothing here runs code from a file: pickles are read with ``weights_only=True``, and one that needs more is refused. A
state dict does not contain its input size and class names; `infer_config` takes the published ones.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact_deploy.artifact import METADATA_KEY, Metadata, write_bytes
from yolact_deploy.config import YolactConfig, get_config, list_configs
from yolact_deploy.errors import ArtifactError, CheckpointError, import_optional
from yolact_deploy.model import YolactModel

_log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

_HEAD = "prediction_layers.0"
_BACKBONE_CONFIGS = {
    "resnet101": "yolact_base",
    "resnet50": "yolact_resnet50",
    "darknet53": "yolact_darknet53",
    "mobilenet_v2": "yolact_edge_mobilenetv2",
}
# Names that the original's loader drops, and the last stage of MobileNetV2, which YolactEdge stores but never uses.
_SUPERFLUOUS = re.compile(r"backbone\.layer(?!s)|fpn\.downsample_layers\.([2-9]|\d\d)|backbone\.layers\.8\.[01]\.")
# YolactEdge splits the pyramid into two modules.
_RENAMED = (("fpn_phase_1.", "fpn."), ("fpn_phase_2.", "fpn."))


# -- files to tensors -----------------------------------------------------------------------------------------------


def read_state_dict(path: str | Path) -> tuple[StateDict, YolactConfig | None]:
    """Tensors of a weights file on the CPU, and its configuration if the file has one.

    Reads safetensors, and ``.pth`` files with a state dict, plain or under ``state_dict`` or ``model``, with or without
    ``module.`` before the names. Superfluous entries that the original's loader drops are dropped.

    Raises:
        CheckpointError: no such file, not a weights file, or one that is damaged or would run code.
    """
    path = Path(path)
    start = _first_bytes(path)
    # A safetensors file starts with a length of 8 bytes and a JSON header.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        state, config = _read_safetensors(path)
    else:
        state, config = _read_pickle(path), None
    return _clean(state), config


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a weights file: give a .pth or .safetensors file in it")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError as error:
        raise CheckpointError(f"no such weights file: {path}. Check the path and the current folder") from error
    except OSError as error:
        raise CheckpointError(
            f"cannot read weights file {path}: {error.strerror or error}. Check its permissions"
        ) from error
    if not start:
        raise CheckpointError(f"weights file {path} is empty: copy or download it again")
    return start


def _read_safetensors(path: Path) -> tuple[StateDict, YolactConfig | None]:
    safetensors = import_optional("safetensors", extra="train", purpose="reading .safetensors weights")
    try:
        with safetensors.safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (safetensors.SafetensorError, OSError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({_short(error)}): copy or download it again"
        ) from error
    if text is None:
        return state, None
    try:
        return state, Metadata.from_json(text, str(path)).config
    except ArtifactError as error:
        raise CheckpointError(f"{error}, or save the weights again") from error


def _read_pickle(path: Path) -> StateDict:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about TorchScript archives before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(_why_unreadable(path, error)) from error
    state = content
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path} holds {_describe(content)}, expected a state dict of tensors: "
            "save it with torch.save(model.state_dict(), path)"
        )
    return {str(key): value for key, value in state.items()}


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return f"{path} is a TorchScript archive, which contains code: give the state dict it was made from"
    # torch quotes the name of the function or class that the pickle refers to
    refused = re.search(r"(?:GLOBAL|Unsupported global:|class|function) ([\w.]+\.[\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return (
            f"{path} is refused: it holds more than tensors ({refused[1]}), and reading that could run code. "
            "Save it again with torch.save(model.state_dict(), path) if you trust it"
        )
    # Torch's message about such files concerns its own options; --debug shows it as the cause.
    return f"{path} is not a weights file, or it is damaged: copy or download it again"


def _short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:120]


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with {', '.join(map(str, list(content)[:4])) or 'nothing'}"
    return f"a {type(content).__name__}"


def _clean(state: StateDict) -> StateDict:
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    for old, new in _RENAMED:
        state = {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}
    return {key: value for key, value in state.items() if not _SUPERFLUOUS.match(key)}


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
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})

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
    if "backbone._preconv.0.weight" in state:
        return "darknet53"
    if "backbone.layers.1.0.conv.0.0.weight" in state:
        return "mobilenet_v2"
    blocks = len({key.split(".")[3] for key in state if re.match(r"backbone\.layers\.2\.\d+\.conv3\.weight$", key)})
    for name, expected in (("resnet50", 6), ("resnet101", 23)):
        if blocks == expected:
            return name
    raise CheckpointError(
        f"unknown backbone, with {blocks} bottleneck blocks in its third stage: "
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
    if weights.is_plus:
        return _plus_config(weights)
    config = get_config(_BACKBONE_CONFIGS[weights.backbone])
    if weights.backbone == "resnet50" and weights.num_classes == 20:
        _log.warning(
            "ResNet-50 with 20 classes: assuming yolact_resnet50_pascal. "
            "Trained on other classes? Give its configuration (--config)"
        )
        config = get_config("yolact_resnet50_pascal")
    elif weights.num_classes != config.num_classes:
        config = config.with_classes(weights.num_classes)
    config = dataclasses.replace(config, num_prototypes=weights.num_prototypes, fpn_channels=weights.fpn_channels)
    return _require_same(config, weights, "Give the configuration it was trained with (--config)")


def _plus_config(weights: _Architecture) -> YolactConfig:
    for config in map(get_config, list_configs()):
        if config.is_plus and config.backbone == weights.backbone:
            if weights.num_classes != config.num_classes:
                config = config.with_classes(weights.num_classes)
            return _require_same(config, weights, "Give the configuration it was trained with (--config)")
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
    path: str | Path, *, config: YolactConfig | str | None = None, image_size: int | None = None
) -> YolactModel:
    """A model with the weights of a file, in evaluation mode on the CPU.

    Args:
        path: a file that :func:`read_state_dict` reads.
        config: the network's configuration or the name of one; by default the file's own or, if it has none, the
            inferred one.
        image_size: another input side than the configuration's, with its priors scaled.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the configuration.
        ConfigError: an unknown name, or a configuration that cannot be built.
    """
    state, stored = read_state_dict(path)
    if isinstance(config, str):
        config = get_config(config)
    try:
        if config is not None:
            cure = "Give the configuration the weights were trained with, or omit --config to infer it"
            chosen = _require_same(config, _Architecture.of_state(state), cure)
        elif stored is not None:
            chosen = _require_same(stored, _Architecture.of_state(state), "The file is damaged: save the weights again")
        else:
            chosen = infer_config(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if image_size is not None:
        chosen = chosen.with_size(image_size)
    model = YolactModel(chosen)
    _fill(model, state, path)
    return model.eval()


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
