"""Backbones of the library timm (PyTorch Image Models): ``timm:NAME`` with its maps at strides 8, 16 and 32.

timm's names of tensors follow ``backbone.body.``. Images are normalized as for all other backbones. Networks of windows
or tokens, whose maps have other shapes than those of a convolutional network, are refused.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from yolact_deploy.config import TIMM, YolactConfig, size_text
from yolact_deploy.errors import CheckpointError, ConfigError, import_optional

_STRIDES = (8, 16, 32)


class TimmBackbone(nn.Module):
    """Image [N, 3, H, W] to C3, C4, C5 at strides 8, 16 and 32, with the channels of ``out_channels``.

    Raises:
        ConfigError: no such network in timm, or one without maps of these strides and of the levels' sizes.
        MissingDependencyError: timm is not installed.
    """

    #: no stages that training could freeze one by one
    layers: tuple[nn.Module, ...] = ()

    def __init__(self, config: YolactConfig) -> None:
        super().__init__()
        self.name = config.backbone.removeprefix(TIMM)
        with torch.device("meta"):
            everything = _create(self.name)
        strides = list(everything.feature_info.reduction())
        if not set(strides) >= set(_STRIDES):
            raise ConfigError(
                f"backbone: {config.backbone} has maps of the strides {strides}, and a YOLACT requires 8, 16 and 32: "
                "choose another network of timm"
            )
        self._indices = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in _STRIDES)
        self.body = _create(self.name, out_indices=self._indices)
        self.out_channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        self.check_size(config)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3, c4, c5 = self.body(images)
        return c3, c4, c5

    def check_size(self, config: YolactConfig) -> None:
        """Refuse an input of which the maps have other sizes than the levels of the pyramid.

        Raises:
            ConfigError: the message says which input fits.
        """
        with torch.device("meta"), torch.no_grad():
            body = _create(self.name, out_indices=self._indices).eval()
            try:
                maps = body(torch.empty(1, 3, *config.input_shape))
            except Exception as error:  # whatever a network raises on an input that it cannot take
                raise self._refused(config, f"cannot take it ({' '.join(str(error).split())[:120]})") from error
        shapes = [tuple(values.shape[1:]) for values in maps]
        wanted = [(c, *shape) for c, shape in zip(self.out_channels, config.level_shapes, strict=False)]
        if shapes != wanted:
            raise self._refused(config, f"has maps of {shapes}, expected {wanted}")

    def _refused(self, config: YolactConfig, why: str) -> ConfigError:
        return ConfigError(
            f"backbone: with an input of {size_text(config.input_shape)}, {config.backbone} {why}: choose sides that "
            "are multiples of 32 (--size), or a convolutional network of timm"
        )

    def pretrained(self, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors of ``backbone.body`` with timm's own weights, downloaded, or those of a file of timm.

        Raises:
            CheckpointError: tensors of another network.
        """
        given: dict[str, Any] = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": state}}
        try:
            body = _create(self.name, out_indices=self._indices, pretrained=True, **given)
        except (RuntimeError, KeyError) as error:
            if state is None:
                raise
            raise CheckpointError(f"the weights do not fit timm's {self.name}: {_short(error)}") from error
        tensors: dict[str, Tensor] = body.state_dict()
        if state is not None:
            self._check_complete(tensors, state)
        return tensors

    def _check_complete(self, tensors: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Some classes of timm leave random what a file lacks; files with other names than theirs are held to all."""
        if not tensors.keys() & state.keys():
            return
        wanted = (key for key in tensors if not key.endswith("num_batches_tracked"))
        missing = [key for key in wanted if key not in state and key.replace("_", ".", 1) not in state]
        if missing:
            raise CheckpointError(f"the weights do not fit timm's {self.name}: they lack {', '.join(missing[:3])}")


def _create(name: str, *, pretrained: bool = False, **options: Any) -> Any:
    """timm's network, a module with ``feature_info``; without ``pretrained`` nothing is downloaded.

    Raises:
        ConfigError: it has no such network, or one without maps.
    """
    timm = import_optional("timm", extra="timm", purpose=f"the backbone {TIMM}{name}")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {TIMM}{near[0]}?" if near else "timm.list_models() names them"
        raise ConfigError(f"backbone: timm {timm.__version__} has no network {name!r}: {hint}")
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
        if pretrained:
            raise
        raise ConfigError(f"backbone: timm's {name} has no maps of features ({_short(error)})") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
