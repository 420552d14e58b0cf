from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deterministic import deterministic_state
from few import few

from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.errors import ConfigError, InputError
from yolact_deploy.mask_iou import PARAMETERS, HostMaskIouNet
from yolact_deploy.priors import make_priors

pytest.importorskip("torch")

import torch

from yolact_deploy.model import YolactModel, fuse_batch_norm
from yolact_deploy.model.deformable import DeformableConv
from yolact_deploy.model.mask_iou_net import MaskIouNet

BACKBONES = ["resnet50", "darknet53", "mobilenet_v2"]
#: of what no backbone has code of its own for
MOST = few(BACKBONES, 2)


def _small(backbone: str = "resnet50", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = YolactConfig(name="small", backbone=backbone, image_size=97, num_classes=3, fpn_channels=16, **changes)
    return YolactModel(config)


def _settled(model: Any) -> Any:
    """Give the batch normalizations statistics that are not the identity."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("yolact_base", 50_157_071),
        ("yolact_resnet50", 31_164_943),
        ("yolact_im400", 50_157_071),
        ("yolact_im700", 50_157_071),
        ("yolact_darknet53", 47_783_087),
        ("yolact_edge_mobilenetv2", 8_616_655),
        ("yolact_plus_base", 52_571_142),
        ("yolact_plus_resnet50", 33_766_460),
    ],
)
def test_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = YolactModel(get_config(name))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_default_configuration_is_yolact_base() -> None:
    with torch.device("meta"):
        model = YolactModel(YolactConfig(num_classes=80))
    assert model.config == get_config("yolact_base")


def _small_plus(**changes: Any) -> Any:
    """Some blocks of the last two stages are deformable, by offsets of a pixel or so."""
    model = _small(deformable_blocks=(0, 0, 4, 3), deformable_interval=2, mask_iou=True, **changes)
    for layer in _deformable(model).values():
        torch.nn.init.normal_(layer.conv_offset_mask.weight, 0, 0.05)
    return model


def _deformable(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DeformableConv)}


def test_which_blocks_are_deformable() -> None:
    """Of the last 4 of 6 and of all 3 those of an even number; strides stay where they were."""
    with torch.device("meta"):
        found = {name: module.stride for name, module in _deformable(_small_plus()).items()}
    assert found == {
        "backbone.layers.2.2.conv2": (1, 1),
        "backbone.layers.2.4.conv2": (1, 1),
        "backbone.layers.3.0.conv2": (2, 2),
        "backbone.layers.3.2.conv2": (1, 1),
    }


def test_only_a_resnet_has_deformable_blocks() -> None:
    with pytest.raises(
        ConfigError, match="deformable_blocks: only a ResNet with bottleneck blocks has such blocks, darknet53 has none"
    ):
        _small("darknet53", deformable_blocks=(0, 4, 6, 3))


def test_a_deformable_convolution_begins_as_half_a_plain_one() -> None:
    layer = _deformable(_small(deformable_blocks=(0, 0, 0, 3)))["backbone.layers.3.0.conv2"]
    x = torch.randn(2, 512, 9, 9)
    plain = torch.nn.functional.conv2d(x, layer.weight, None, stride=2, padding=1)
    torch.testing.assert_close(layer(x), plain / 2 + layer.bias[:, None, None])


@torch.inference_mode()
def test_a_deformable_convolution_moves_and_weights_its_taps() -> None:
    """Against loops over output pixels and taps, with offsets that leave the features."""
    torch.manual_seed(0)
    layer = DeformableConv(3, 4, stride=2).double()
    torch.nn.init.normal_(layer.conv_offset_mask.weight, 0, 0.5)
    assert layer.conv_offset_mask.bias is not None
    torch.nn.init.normal_(layer.conv_offset_mask.bias, 0, 1)
    x = torch.randn(1, 3, 7, 6).double()

    def at(row: float, column: float) -> Any:
        total = torch.zeros(3).double()
        for y in (math.floor(row), math.floor(row) + 1):
            for c in (math.floor(column), math.floor(column) + 1):
                if 0 <= y < 7 and 0 <= c < 6:
                    total += x[0, :, y, c] * (1 - abs(row - y)) * (1 - abs(column - c))
        return total

    told = layer.conv_offset_mask(x)[0]
    assert layer.bias is not None
    expected = layer.bias[:, None, None].repeat(1, 4, 3)
    for row, column, tap in itertools.product(range(4), range(3), range(9)):
        dy, dx, weight = told[2 * tap, row, column], told[2 * tap + 1, row, column], told[18 + tap, row, column]
        value = at(2 * row - 1 + tap // 3 + float(dy), 2 * column - 1 + tap % 3 + float(dx)) * weight.sigmoid()
        expected[:, row, column] = expected[:, row, column] + layer.weight[:, :, tap // 3, tap % 3] @ value
    torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize("side", [26, 138])
def test_the_mask_iou_network(side: int) -> None:
    """The network in PyTorch and in NumPy, also of masks too small for its convolutions."""
    torch.manual_seed(0)
    network = MaskIouNet(5)
    assert tuple(f"maskiou_net.{key}" for key in network.state_dict()) == PARAMETERS
    masks, labels = torch.rand(7, side, side), torch.arange(7) % 5
    with torch.inference_mode():
        told = network(masks[:, None])
    assert told.shape == (7, 5)
    assert (told >= 0).all()
    assert (told > 0).any()
    plain = HostMaskIouNet({f"maskiou_net.{key}": value.numpy() for key, value in network.state_dict().items()})
    np.testing.assert_allclose(plain(masks.numpy(), labels.numpy()), told[torch.arange(7), labels], atol=1e-6)
    assert plain(masks[:0].numpy(), labels[:0].numpy()).shape == (0,)


def test_training_outputs_of_plus_have_the_mask_iou_network() -> None:
    model = _small_plus().train()
    out = model(torch.randn(2, 3, 97, 97))
    assert out["mask_iou_net"] is model.maskiou_net
    assert out["mask_iou_net"](torch.rand(4, 1, 26, 26)).shape == (4, 3)


def test_detections_of_plus() -> None:
    model = _settled(_small_plus(nms_score_threshold=0.2))
    with torch.inference_mode():
        out = model(torch.randn(2, 3, 97, 97))
    assert list(out) == ["boxes", "masks", "scores", "labels", "keypoints", "mask_scores"]
    keys = ("masks", "scores", "labels", "mask_scores")
    for masks, scores, labels, mask_scores in zip(*(out[key] for key in keys), strict=True):
        with torch.inference_mode():
            told = model.maskiou_net(masks[:, None])[torch.arange(len(masks)), labels]
        assert len(masks) > 0
        torch.testing.assert_close(mask_scores, scores * told)
    model.prediction_layers[0].conf_layer.bias.data[::4] = 1e6  # all background
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 97, 97))["mask_scores"][0].shape == (0,)


def test_fusing_plus() -> None:
    model = _settled(_small_plus()).double()
    fused = fuse_batch_norm(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    images = torch.randn(2, 3, 97, 97).double()
    with torch.inference_mode():
        for a, b in zip(fused.heads(images), model.heads(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_frozen_stages_of_plus() -> None:
    model = _small_plus()
    model.freeze_stages(3)
    trained = {name for name, layer in _deformable(model).items() if layer.conv_offset_mask.weight.requires_grad}
    assert trained == {"backbone.layers.3.0.conv2", "backbone.layers.3.2.conv2"}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_outputs(backbone: str) -> None:
    model = _small(backbone).train()
    config = model.config
    out = model(torch.randn(2, 3, 97, 97))
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "boxes": (2, config.num_priors, 4),
        "masks": (2, config.num_priors, 32),
        "scores": (2, config.num_priors, 4),
        "prior_boxes": (config.num_priors, 4),
        "proto_masks": (2, config.prototype_size, config.prototype_size, 32),
        "semantic_masks": (2, 3, config.level_sizes[0], config.level_sizes[0]),
    }
    assert out["masks"].abs().max() <= 1
    assert out["proto_masks"].min() >= 0
    np.testing.assert_array_equal(out["prior_boxes"].numpy(), make_priors(config))


@pytest.mark.parametrize("backbone", MOST)
def test_every_trained_parameter_gets_a_gradient(backbone: str) -> None:
    model = _small(backbone).train()
    sum(value.sum() for value in model(torch.randn(2, 3, 97, 97)).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_detections() -> None:
    model = _settled(_small(nms_score_threshold=0.2))
    with torch.inference_mode():
        out = model(torch.randn(2, 3, 97, 97))
    assert list(out) == ["boxes", "masks", "scores", "labels", "keypoints"]
    for boxes, masks, scores, labels, keypoints in zip(*out.values(), strict=True):
        assert keypoints.shape == (len(boxes), 0, 3)
        n = len(boxes)
        assert 0 < n <= 100
        assert boxes.shape == (n, 4)
        assert masks.shape == (n, 26, 26)
        assert 0 <= masks.min() <= masks.max() <= 1
        assert (scores.diff() <= 0).all()
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() <= 2


def test_no_detections() -> None:
    model = _settled(_small("mobilenet_v2"))
    model.prediction_layers[0].conf_layer.bias.data[::4] = 1e6  # all background
    with torch.inference_mode():
        out = model(torch.randn(1, 3, 97, 97))
    assert [tuple(out[key][0].shape) for key in out] == [(0, 4), (0, 26, 26), (0,), (0,), (0, 0, 3)]


@pytest.mark.parametrize("size", [64, 65, 138, 143])
def test_any_input_size(size: int) -> None:
    model = YolactModel(YolactConfig(backbone="mobilenet_v2", image_size=size, num_classes=2, fpn_channels=8)).eval()
    with torch.inference_mode():
        levels = model.features(torch.randn(1, 3, size, size))
        raw = model.predict(levels)
    assert [level.shape[-1] for level in levels] == list(model.config.level_sizes)
    assert raw.loc.shape == (1, model.config.num_priors, 4)
    assert raw.proto.shape[1] == model.config.prototype_size


@pytest.mark.parametrize("shape", [(3, 97, 97), (1, 97, 97, 3), (1, 3, 96, 97), (1, 1, 97, 97)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected normalized float images \[N, 3, 97, 97\]"):
        _small("mobilenet_v2").heads(torch.zeros(shape))


def test_images_of_whole_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"torch.uint8"):
        _small("mobilenet_v2").heads(torch.zeros((1, 3, 97, 97), dtype=torch.uint8))


@pytest.mark.parametrize("backbone", MOST)
def test_fusing_keeps_the_outputs_and_the_model(backbone: str) -> None:
    model = _settled(_small(backbone)).double().train()  # double: only rounding may differ
    before = copy.deepcopy(model.state_dict())
    fused = fuse_batch_norm(model)
    assert model.training
    assert not fused.training
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    images = torch.randn(2, 3, 97, 97).double()
    with torch.inference_mode():
        for a, b in zip(fused.heads(images), model.eval().heads(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_fusing_refuses_a_lonely_normalization() -> None:
    with pytest.raises(ValueError, match="got 0 alone"):
        fuse_batch_norm(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))


@pytest.mark.slow  # exports with an open batch in tests/export trace the same
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_trunk_exports_with_an_open_batch(backbone: str) -> None:
    class Trunk(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            return tuple(self.model.heads(images))

    model = _settled(_small(backbone))
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(Trunk(model), (torch.randn(2, 3, 97, 97),), dynamic_shapes=({0: batch},))
    for number in (1, 3):
        images = torch.randn(number, 3, 97, 97)
        with torch.inference_mode():
            for a, b in zip(program.module()(images), model.heads(images), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_mobilenet_runs_with_deterministic_weights() -> None:
    model = YolactModel(get_config("yolact_edge_mobilenetv2").with_size(200)).eval()
    model.load_state_dict(deterministic_state("yolact_edge_mobilenetv2"))
    with torch.inference_mode():
        raw = model.heads(torch.randn(1, 3, 200, 200))
    assert all(torch.isfinite(value).all() for value in raw)


@pytest.mark.parametrize("backbone", MOST)
def test_frozen_batch_norm(backbone: str) -> None:
    model = _settled(_small(backbone)).train()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    images = torch.randn(2, 3, 97, 97)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.freeze_batch_norm()
    model.eval().train()  # a loop does so around each evaluation
    assert model.training
    before = copy.deepcopy(model.state_dict())
    sum(value.sum() for value in model(images).values()).backward()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        learns = name in trained and name.rpartition(".")[0] not in norms
        assert parameter.requires_grad is learns
        assert (parameter.grad is not None) is learns
    with torch.no_grad():  # the stored statistics are used
        torch.testing.assert_close(model(images)["scores"], model.eval().heads(images).logits)

    model.train().freeze_batch_norm(False)
    assert all(module.training for module in norms.values())
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model(images)
    name, norm = next(iter(norms.items()))
    assert norm.running_mean is not None
    assert not torch.equal(before[f"{name}.running_mean"], norm.running_mean)


@pytest.mark.parametrize("backbone", MOST)
def test_frozen_stages(backbone: str) -> None:
    model = _settled(_small(backbone)).train()
    model.freeze_stages(2)
    model.eval().train()
    before = copy.deepcopy(model.state_dict())
    sum(value.sum() for value in model(torch.randn(2, 3, 97, 97)).values()).backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learns
    stages = {f"backbone.layers.{stage}." for stage in range(2)}
    assert not any(name.startswith(tuple(stages)) or "backbone.conv1" in name or "_preconv" in name for name in learns)
    assert any(name.startswith("backbone.layers.3.") for name in learns)
    moved = [key for key, value in model.state_dict().items() if not torch.equal(before[key], value)]
    assert moved  # the statistics of the later stages
    assert all(key.startswith("backbone.layers.") and key.split(".")[2] not in "01" for key in moved)


def test_more_frozen_stages_than_there_are() -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="freeze_stages: resnet50 has 4 stages, got 5"):
        _small("resnet50").freeze_stages(5)


@pytest.mark.parametrize(
    ("layers", "scale", "names"),
    [
        (None, 2, [0, 2, 4, 8, 10]),
        ((), 1, [0]),
        (((16, 3),), 1, [0, 2]),
        (((16, 3), (0, 2), (8, 3), (0, 2), (8, 1)), 4, [0, 4, 8, 10]),
        (((16, 3), (8, -2), (0, 2), (8, 1)), 4, [0, 2, 6, 8]),
    ],
)
def test_other_protonets_and_heads(layers: Any, scale: int, names: list[int]) -> None:
    config = YolactConfig(
        backbone="mobilenet_v2", image_size=96, num_classes=2, fpn_channels=16, num_prototypes=5, protonet=layers,
        head_layers=3, class_existence=True,
    )  # fmt: skip
    model = YolactModel(config)
    side = scale * config.level_sizes[0]
    assert config.prototype_size == side
    raw = model.heads(torch.zeros(1, 3, 96, 96))
    assert raw.proto.shape == (1, side, side, 5)
    state = model.state_dict()
    assert [int(k.split(".")[1]) for k in state if k.startswith("proto_net.") and k.endswith("weight")] == names
    assert sum(k.startswith("prediction_layers.0.upfeature.") and k.endswith("weight") for k in state) == 3
    assert model(torch.zeros(1, 3, 96, 96))["class_existence"].shape == (1, 2)
    assert YolactConfig.from_dict(config.to_dict()) == config


def test_class_existence_is_one_more_loss() -> None:
    from yolact_deploy.training import YolactLoss

    config = YolactConfig(
        backbone="mobilenet_v2", image_size=96, num_classes=3, fpn_channels=16, class_existence=True
    )  # fmt: skip
    outputs = YolactModel(config)(torch.randn(2, 3, 96, 96))
    masks = torch.zeros(2, 96, 96, dtype=torch.uint8)
    masks[:, 10:50, 10:50] = 1
    boxes = torch.tensor([[10.0, 10, 50, 50]] * 2)
    common = {"boxes": boxes, "masks": masks, "width": 96, "height": 96}
    targets = [
        {**common, "labels": torch.tensor([2, 2])},
        {**common, "labels": torch.tensor([0, 1]), "iscrowd": [0, 1]},
    ]
    losses = YolactLoss()(outputs, targets)
    wanted = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
    logits = outputs["class_existence"]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / 2
    torch.testing.assert_close(losses["existence"], expected)


@pytest.mark.parametrize("backbone", ["resnet18", pytest.param("resnet34", marks=pytest.mark.slow)])
def test_weights_of_torchvision_fit_other_backbones(backbone: str, tmp_path: Path) -> None:
    import torchvision

    from yolact_deploy.model.initialization import initialize

    torch.manual_seed(0)
    source = getattr(torchvision.models, backbone)(weights=None)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = YolactModel(YolactConfig(backbone=backbone, image_size=96, num_classes=2, fpn_channels=16)).eval()
    initialize(model, str(tmp_path / "w.pth"))
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        c5 = model.backbone(images)[2]
        source.avgpool = source.fc = torch.nn.Identity()
        expected = source.eval()(images).view_as(c5)
    torch.testing.assert_close(c5, expected)


@pytest.mark.slow  # tests/export/test_onnx.py exports a ResNet-18
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_other_backbones_export(backbone: str, tmp_path: Path) -> None:
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    import numpy as np

    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
    from yolact_deploy.runtime.torch.torch_backend import TorchBackend

    config = YolactConfig(
        backbone=backbone, image_size=96, num_classes=2, fpn_channels=16, head_layers=2, class_existence=True,
        protonet=((16, 3), (0, 2), (0, 2), (8, 3)),
    )  # fmt: skip
    torch.manual_seed(0)
    model = YolactModel(config).eval()
    images = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3)).astype(np.float32)
    expected = TorchBackend(model).run(images)
    for precision, atol in (("fp32", 1e-4), ("fp16", 5e-2)):
        path = tmp_path / f"{precision}.onnx"
        export_onnx(model, path, ExportSpec(input_dtype="float32", precision=precision, tail="heads"))
        outputs = OnnxRuntimeBackend(path, tail="host").run(images)
        both: list[tuple[Any, Any]] = list(zip(outputs, expected, strict=True))
        for mine, other in both:
            np.testing.assert_allclose(mine, other, atol=atol * max(1, float(np.abs(other).max())))
