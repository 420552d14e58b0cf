"""Layer table and key figures of a network, computed without running it, on torch's meta device."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolact_deploy.config import YolactConfig, size_text
from yolact_deploy.errors import import_optional
from yolact_deploy.model import RawHeads, YolactModel
from yolact_deploy.model.model_macs import count_model_macs

COLUMNS = ("layer", "output", "parameters", "multiply-adds")


class LayerTable(NamedTuple):
    """The layers of a network, for one image.

    Attributes:
        title: the network
        rows: the :data:`COLUMNS` of each layer; the first is its name, indented by its depth, and its class
        notes: the totals, one sentence each
    """

    title: str
    rows: list[tuple[str, str, str, str]]
    notes: tuple[str, ...]


def layer_table(config_or_model: YolactConfig | YolactModel, depth: int = 3) -> LayerTable:
    """The layers with output shapes, parameters and multiply-adds for one image, and the totals.

    Args:
        config_or_model: what to describe.
        depth: how many levels of nested modules to list.

    Raises:
        ConfigError: a configuration that cannot be built.
        MissingDependencyError: torchinfo is not installed.
    """
    torchinfo = import_optional("torchinfo", extra="train", purpose="the layer table")
    figures = summary_dict(config_or_model)
    model = _on_meta(config_or_model)
    height, width = model.config.input_shape
    model.forward = partial(_all_layers, model)  # type: ignore[method-assign, assignment]  # NMS needs values, not shapes
    table = torchinfo.summary(model, input_size=(1, 3, height, width), device="meta", mode="eval", verbose=0)
    levels = " ".join(map(_text, figures["level_sizes"]))
    return LayerTable(
        f"{figures['name']}: {figures['backbone']}, input {height}x{width}, classes: {figures['classes']}",
        [_layer_row(layer, layer.depth == depth) for layer in table.summary_list if layer.depth <= depth],
        (
            f"parameters {figures['parameters']:,} ({figures['trainable']:,} trainable, "
            f"{table.total_param_bytes / 1e6:.2f} MB), convolutions {figures['gmac']:.2f} GMAC",
            _macs_note(figures),
            f"priors {figures['priors']:,} on levels of {levels}, prototypes of {_text(figures['prototype_size'])}",
        ),
    )


def _layer_row(layer: Any, is_deepest: bool) -> tuple[str, str, str, str]:
    """A row of torchinfo; a dash for what a layer does not have or its parts have."""
    cells = (layer.num_params_to_str(is_deepest), layer.macs_to_str(is_deepest))
    parameters, macs = ("-" if cell == "--" else cell for cell in cells)
    return f"{'  ' * layer.depth}{layer.var_name}: {layer.class_name}", str(layer.output_size), parameters, macs


def _text(size: Any) -> str:
    return size_text(tuple(size) if isinstance(size, list) else size)


def summary_dict(config_or_model: YolactConfig | YolactModel) -> dict[str, Any]:
    """The key figures, ready for JSON: ``parameters``, ``trainable``, ``gmac``, ``priors``, ``level_sizes`` and more.

    ``gmac_semantic`` is the semantic layer's, and ``gmac_stages`` the part of ``gmac`` in the backbone's stages.
    A size is the side of a square, or a list of height and width.
    ``gmac`` counts the multiply-adds of the convolutions for one image in evaluation, in units of 10^9. ``parameters``
    include the semantic branch, which only training runs.
    """
    model = config_or_model if isinstance(config_or_model, YolactModel) else _on_meta(config_or_model)
    config, macs = model.config, count_model_macs(model.config)
    stages = sum(layer.macs for layer in macs.layers if layer.name.startswith("backbone.layers."))
    semantic = config.num_classes * config.fpn_channels * math.prod(config.level_shapes[0])
    return {
        "name": config.name,
        "backbone": config.backbone,
        "image_size": _size(*config.input_shape),
        "classes": config.num_classes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gmac": macs.gmac,
        "gmac_stages": stages / 1e9,
        "gmac_semantic": semantic / 1e9,
        "priors": config.num_priors,
        "level_sizes": [_size(*shape) for shape in config.level_shapes],
        "prototype_size": _size(*config.prototype_shape),
    }


def _all_layers(model: YolactModel, images: Tensor) -> tuple[RawHeads, Tensor]:
    """What training computes: the heads, and the semantic layer on P3."""
    levels = model.features(images)
    return model.predict(levels), model.semantic_seg_conv(levels[0])


def _macs_note(figures: dict[str, Any]) -> str:
    """Why other tools print other multiply-adds for the same network."""
    whole = figures["gmac"] + figures["gmac_semantic"]
    return (
        f"{whole:.2f} GMAC with the semantic layer, which only training runs. Each use of a layer counts, so the head "
        f"counts on all five levels; a tool that does not look into the backbone's stages "
        f"({figures['gmac_stages']:.2f} GMAC) prints about {whole - figures['gmac_stages']:.1f}"
    )


def _size(height: int, width: int) -> int | list[int]:
    """The side of a square, else height and width."""
    return height if height == width else [height, width]


def _on_meta(config_or_model: YolactConfig | YolactModel) -> YolactModel:
    """A model of the same configuration without memory or values."""
    config = config_or_model.config if isinstance(config_or_model, YolactModel) else config_or_model
    with torch.device("meta"):
        return YolactModel(config).eval()
