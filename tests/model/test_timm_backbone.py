"""Backbones of timm: maps of the right strides, refusals in words, files, initial weights, and exports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from few import few

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import CheckpointError, ConfigError, MissingDependencyError
from yolact_deploy.model import YolactModel, fuse_batch_norm
from yolact_deploy.model.checkpoint import load_model, save_checkpoint
from yolact_deploy.model.fuse import _Affine
from yolact_deploy.model.initialization import initialize
from yolact_deploy.model.model_macs import count_model_macs
from yolact_deploy.training.overrides import override
from yolact_deploy.training.recipes import get_recipe

SIDE = 128
#: squeeze and hard-swish, batch normalizations without a convolution before them, re-parameterized branches, and none
NAMES = ["mobilenetv3_small_050", "densenet121", "repvgg_a0", "convnext_atto", "regnety_002", "resnet18"]


def network(name: str, size: int = SIDE) -> YolactModel:
    """With batch normalizations whose statistics are not the identity."""
    torch.manual_seed(0)
    config = YolactConfig(name="own", backbone=f"timm:{name}", image_size=size, num_classes=2, fpn_channels=16)
    model = YolactModel(config).eval()
    normalizations = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in normalizations:
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean.normal_(0, 0.1)
        module.running_var.uniform_(0.8, 1.2)
    if name == "densenet121":  # of so many layers in a row: with any statistics, values grow beyond all numbers
        _fit(model, normalizations, size)
    return model


def _fit(model: YolactModel, normalizations: list[Any], size: int) -> None:
    """Give batch normalizations the statistics of noise."""
    for module in normalizations:
        module.momentum = 1.0
        module.train()
    with torch.no_grad():
        model.backbone(torch.randn(4, 3, size, size))
    for module in normalizations:
        module.momentum = 0.1
        module.eval()


@pytest.mark.parametrize("name", few(NAMES, 0, 2))
def test_maps_and_folding(name: str) -> None:
    model = network(name)
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        maps, expected = model.backbone(images), model.heads(images)
        fused = fuse_batch_norm(model)
        actual = fused.heads(images)
    assert [tuple(m.shape) for m in maps] == [
        (1, c, *shape) for c, shape in zip(model.backbone.out_channels, model.config.level_shapes, strict=False)
    ]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    assert sum(layer.macs for layer in count_model_macs(model).layers if layer.name.startswith("backbone.body.")) > 0


def test_a_normalization_without_a_convolution_before_it() -> None:
    """As in DenseNet."""
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(3).eval()
    for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        assert values is not None
        values.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(_Affine(norm)(x), norm(x))


def test_files_name_the_backbone(tmp_path: Path) -> None:
    model = network("mobilenetv3_small_050")
    save_checkpoint(model, tmp_path / "w.safetensors")
    again = load_model(tmp_path / "w.safetensors")
    assert again.config == model.config
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="of a backbone of timm, and do not show of which"):
        load_model(tmp_path / "w.pth")
    assert load_model(tmp_path / "w.pth", config=model.config).config == model.config


def test_weights_of_a_file_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model("mobilenetv3_small_050", pretrained=False)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = network("mobilenetv3_small_050")
    report = initialize(model, str(tmp_path / "w.pth"))
    assert report.reset == ("proto_net", "fpn", "prediction_layers", "semantic_seg_conv")
    assert torch.equal(model.state_dict()["backbone.body.conv_stem.weight"], source.conv_stem.weight)
    state = {key: value for key, value in source.state_dict().items() if key != "blocks.1.0.conv_pw.weight"}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"lack blocks\.1\.0\.conv_pw\.weight"):
        initialize(model, str(tmp_path / "part.pth"))
    torch.save({"conv_stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="do not fit timm's mobilenetv3_small_050"):
        initialize(model, str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("mobilenetv3_smal_050", SIDE, r"has no network .* did you mean timm:mobilenetv3_small_050"),
        ("vit_tiny_patch16_224", SIDE, r"maps of the strides \[16, 16, 16\].* requires 8, 16 and 32"),
        ("convnext_atto", 138, r"input of 138x138, timm:convnext_atto has maps of .* multiples of 32"),
        ("swin_tiny_patch4_window7_224", SIDE, "cannot take it .* convolutional network"),
    ],
)
def test_what_is_refused(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network(name, size)


@pytest.mark.parametrize("name", ["timm:", "timm:a/b", "timm:hf-hub:x", "timm:../x", "resnet18.a1"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match=r"backbone: expected one of .*, or timm:NAME"):
        YolactConfig(backbone=name)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"the backbone timm:resnet18 .*yolact-deploy\[timm\]"):
        network("resnet18")


def test_training_and_the_table() -> None:
    from yolact_deploy.model.layer_table import layer_table, summary_dict
    from yolact_deploy.training import YolactLoss

    recipe = override(get_recipe("yolact_resnet50"), ["config.backbone=timm:mobilenetv3_small_050"])
    assert recipe.config.backbone == "timm:mobilenetv3_small_050"
    model = network("mobilenetv3_small_050").train()
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    masks[:, 10:50, 10:50] = 1
    target = {"boxes": torch.tensor([[10.0, 10, 50, 50]]), "labels": torch.tensor([1]), "masks": masks}
    losses = YolactLoss()(model(torch.randn(1, 3, SIDE, SIDE)), [{**target, "width": SIDE, "height": SIDE}])
    sum(losses.values()).backward()
    assert [n for n, p in model.backbone.named_parameters() if p.grad is None] == []
    with pytest.raises(ConfigError, match="freeze_stages: timm:mobilenetv3_small_050 has 0 stages"):
        model.freeze_stages(1)
    assert summary_dict(model)["backbone"] == "timm:mobilenetv3_small_050"
    assert any("body: MobileNetV3Features" in row[0] for row in layer_table(model.config).rows)


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, precision) for name in NAMES[:4] for precision in ("fp16", "fp32", "bf16", "int8")],
)
@pytest.mark.slow  # tests/export/test_other_networks.py exports a network that nobody has published
def test_export(name: str, precision: str, tmp_path: Path) -> None:
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from yolact_deploy.export.pipeline import export_model
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.samples import sample_images

    one = sample_images()[:1]
    spec = ExportSpec(precision=precision, calibration=one if precision == "int8" else None)
    done = export_model(network(name), tmp_path / "m.onnx", spec, check_images=one)
    assert done.parity.failures == []
