"""Protonets and heads of the original's free patterns: computed as it defines them, loaded by its own names.

`plain_net` states the original's layers in its own notation, with functions in the place of modules:
``(256, 3, {"padding": 1})`` is a convolution, ``(256, -2, {"stride": 2})`` a transposed one, ``(None, -2, {})``
bilinear upsampling, and ``("cat", [nets], {})`` nets side by side. All nets end in a ReLU, and every second name is a
layer's.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, interpolate

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import CheckpointError
from yolact_deploy.model import YolactModel
from yolact_deploy.model.checkpoint import load_model, save_checkpoint
from yolact_deploy.training.overrides import override
from yolact_deploy.training.recipes import get_recipe

C, SIDE = 16, 138
CONV: dict[str, int] = {"padding": 1}
HALF: dict[str, int] = {"stride": 2}

#: the original's notation without the last layer of the protonet, ours, and what tensors do not show
PROTONETS: dict[str, tuple[list[Any], Any, str]] = {
    "none": ([], (), ""),
    "convolutions": ([(C, 3, CONV), (8, 1, {})], ((C, 3), (8, 1)), ""),
    "transposed": ([(C, 3, CONV), (8, -2, HALF)], ((C, 3), (8, -2)), ""),
    "wide transposed": (
        [(8, -4, {"stride": 2, "padding": 1})], ((8, -4, 2),), "a stride of 2 at proto_net.0"
    ),
    "bilinear": ([(None, -2, {}), (8, 3, CONV), (None, -2, {})], ((0, 2), (8, 3), (0, 2)),
                 "upsampling by 2 at proto_net.0, upsampling by 2 at proto_net.4"),
    "concatenation": (
        [(C, 3, CONV), ("cat", [[(8, 3, CONV), (4, 1, {})], [(6, 1, {})]], {}), (None, -2, {}), (C, 3, CONV)],
        ((C, 3), ("cat", (((8, 3), (4, 1)), ((6, 1),))), (0, 2), (C, 3)),
        "upsampling by 2 at proto_net.4",
    ),
    "all in one": (
        [("cat", [[(8, -2, HALF)], [(None, -2, {}), (6, 3, CONV)], [("cat", [[], [(4, 1, {})]], {}), (None, -2, {})]],
          {})],
        (("cat", (((8, -2),), ((0, 2), (6, 3)), (("cat", ((), ((4, 1),))), (0, 2)))),),
        "upsampling by 2 at proto_net.0.nets.1.0, upsampling by 2 at the end of proto_net.0.nets.2",
    ),
}  # fmt: skip
#: the original's extra_head_net and extra_layers, ours
HEADS: dict[str, tuple[list[Any], tuple[int, int, int], Any]] = {
    "none": ([], (0, 0, 0), 0),
    "branches": ([(C, 3, CONV)], (1, 2, 0), 1),
    "other channels": ([(24, 3, CONV), (12, 1, {})], (0, 0, 1), ((24, 3), (12, 1))),
    "concatenation": (
        [("cat", [[(8, 3, CONV)], [(8, 1, {})], []], {})],
        (0, 0, 0),
        (("cat", (((8, 3),), ((8, 1),), ())),),
    ),
}


def plain_net(x: Tensor, net: list[Any], state: dict[str, Tensor], prefix: str) -> Tensor:
    for number, (width, kernel, options) in enumerate(net):
        name = f"{prefix}.{2 * number}"
        if width == "cat":
            parts = [plain_net(x, part, state, f"{name}.nets.{i}") for i, part in enumerate(kernel)]
            x = torch.cat(parts, dim=1)
        elif width is None:
            x = interpolate(x, scale_factor=-kernel, mode="bilinear", align_corners=False)
        else:
            apply = conv2d if kernel > 0 else conv_transpose2d
            x = apply(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)
        x = x.relu()
    return x


def original(protonet: Any = None, head: Any = 1, branches: tuple[int, int, int] = (0, 0, 0)) -> YolactModel:
    """A network with random weights, whose state dict has the original's names."""
    torch.manual_seed(0)
    config = YolactConfig(
        backbone="mobilenet_v2", image_size=SIDE, num_classes=2, fpn_channels=C, num_prototypes=5, protonet=protonet,
        head_layers=head, head_branches=branches,
    )  # fmt: skip
    model = YolactModel(config).eval()
    for key, value in model.state_dict().items():
        if key.endswith("bias") and not key.startswith("backbone"):
            value.normal_(0, 0.1)
    return model


def reloaded(model: YolactModel, path: Path) -> YolactModel:
    torch.save(model.state_dict(), path)
    return load_model(path, image_size=SIDE)


@pytest.mark.parametrize("name", PROTONETS)
def test_protonets_by_their_own_names(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net, pattern, unseen = PROTONETS[name]
    model = original(pattern)
    x = torch.randn(1, C, 9, 9)
    with torch.inference_mode():
        last = f"proto_net.{2 * len(net)}"
        state = model.state_dict()
        inner = plain_net(x, net, state, "proto_net")
        expected = conv2d(inner, state[f"{last}.weight"], state[f"{last}.bias"]).relu()
        torch.testing.assert_close(model.proto_net(x), expected)
    assert expected.shape == (1, 5, *(9 * model.config.prototype_scale,) * 2)
    with caplog.at_level(logging.WARNING):
        again = reloaded(model, tmp_path / "w.pth")
    assert again.config.protonet_pattern == pattern
    assert (f"assumed {unseen}." in caplog.text) if unseen else not caplog.text
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        for mine, other in zip(again.heads(images), model.heads(images), strict=True):
            assert torch.equal(mine, other)
    assert again.heads(images).proto.shape[1:3] == again.config.prototype_shape


@pytest.mark.parametrize("name", HEADS)
def test_heads_by_their_own_names(name: str, tmp_path: Path) -> None:
    net, branches, pattern = HEADS[name]
    model = original(head=pattern, branches=branches)
    again = reloaded(model, tmp_path / "w.pth")
    assert (again.config.head_layers, again.config.head_branches) == (pattern, branches)
    x, head, state = torch.randn(1, C, 9, 9), again.prediction_layers[0], again.state_dict()
    with torch.inference_mode():
        inner = plain_net(x, net, state, "prediction_layers.0.upfeature")
        for name, count, output in zip(("bbox", "conf", "mask"), branches, head(x), strict=True):
            layers = [(inner.shape[1], 3, CONV)] * count
            y = plain_net(inner, layers, state, f"prediction_layers.0.{name}_extra")
            last = f"prediction_layers.0.{name}_layer"
            y = conv2d(y, state[f"{last}.weight"], state[f"{last}.bias"], padding=1)
            y = y.permute(0, 2, 3, 1).reshape(1, 9 * 9 * 3, -1)
            torch.testing.assert_close(output, y.tanh() if name == "mask" else y)


def test_a_file_of_ours_needs_no_assumption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pattern = (("cat", (((8, 3), (0, 4)), ((8, -4),))),)
    model = original(pattern, ((8, -3, 1),), (0, 1, 0))
    save_checkpoint(model, tmp_path / "w.safetensors")
    config = load_model(tmp_path / "w.safetensors").config
    assert config == model.config
    assert (config.protonet, config.head_layers, config.head_branches) == (pattern, ((8, -3, 1),), (0, 1, 0))
    assert not caplog.text
    torch.save(model.state_dict(), tmp_path / "w.pth")
    given = load_model(tmp_path / "w.pth", config=model.config)  # the stride of 4 cannot be seen
    assert given.config.prototype_scale == 4


def test_every_free_part_is_trained_and_listed() -> None:
    from yolact_deploy.model.layer_table import layer_table
    from yolact_deploy.training import YolactLoss

    model = original((("cat", (((8, 3), (0, 2)), ((8, -4, 2),))),), ((12, 3), ("cat", (((8, 1),), ()))), (1, 1, 1))
    table = layer_table(model.config, depth=5)
    listed = [row[0].strip() for row in table.rows]
    assert {"0: Concatenation", "2: Concatenation", "bbox_extra: Sequential", "0: ConvTranspose2d"} <= set(listed)
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    masks[:, 10:50, 10:50] = 1
    target = {"boxes": torch.tensor([[10.0, 10, 50, 50]]), "labels": torch.tensor([1]), "masks": masks}
    losses = YolactLoss()(model.train()(torch.randn(1, 3, SIDE, SIDE)), [{**target, "width": SIDE, "height": SIDE}])
    sum(losses.values()).backward()
    free = {name: p for name, p in model.named_parameters() if name.startswith(("proto_net", "prediction_layers"))}
    assert len(free) == 2 * (3 + 2 + 3 + 3)
    assert [name for name, parameter in free.items() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("prediction_layers.0.upfeature.0", "cannot enlarge its input"),
        ("proto_net.0.nets.1.0", "expected|lacks|channels"),
        ("prediction_layers.0.bbox_extra.0", "lacks|unknown"),
    ],
)
def test_incomplete_patterns_are_refused(drop: str, message: str, tmp_path: Path) -> None:
    model = original((("cat", (((8, 3),), ((4, 1), (8, 1)))),), 2, (2, 0, 0))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(drop)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "w.pth", image_size=SIDE)


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("config.protonet=()", "protonet", ()),
        ("config.protonet=original", "protonet", None),
        ("config.protonet=((256,3))", "protonet", ((256, 3),)),
        ("config.protonet=(256,3),(0,2)", "protonet", ((256, 3), (0, 2))),
        ('config.protonet=[["cat", [[[8, 3]], []]]]', "protonet", (("cat", (((8, 3),), ())),)),
        ("config.protonet=('cat',((8,3),(8,1)))", "protonet", (("cat", (((8, 3),), ((8, 1),))),)),
        ("config.head_layers=3", "head_layers", 3),
        ("config.head_layers=()", "head_layers", 0),
        ("config.head_layers=((256,3),(256,3))", "head_layers", 2),
        ("config.head_layers=(128,3)", "head_layers", ((128, 3),)),
        ("config.head_branches=1,0,2", "head_branches", (1, 0, 2)),
        ("config.num_prototypes=64", "num_prototypes", 64),
    ],
)
def test_patterns_on_the_command_line(setting: str, field: str, value: Any) -> None:
    config = override(get_recipe("yolact_resnet50"), [setting]).config
    assert getattr(config, field) == value
    assert YolactConfig.from_dict(config.to_dict()) == config
