"""Initial weights: of torchvision's and the original's backbones, of 8-bit files, and of another YOLACT."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few_rows

pytest.importorskip("torch")
pytest.importorskip("torchvision")

import torch
import torchvision

from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.errors import CheckpointError, DownloadError
from yolact_deploy.model import YolactModel
from yolact_deploy.model.checkpoint import save_checkpoint
from yolact_deploy.model.initialization import backbone_name, initialize

DATA = Path(os.environ.get("YOLACT_DATA", Path(__file__).parents[2] / "../shared/data"))
SMALL = YolactConfig(
    name="small",
    backbone="mobilenet_v2",
    image_size=64,
    fpn_channels=8,
    num_prototypes=4,
    num_classes=3,
    class_names=("cat", "dog", "cow"),
)


def model(**changes: object) -> YolactModel:
    torch.manual_seed(0)
    return YolactModel(dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]


def without_values(backbone: str) -> YolactModel:
    with torch.device("meta"):
        return model(backbone=backbone)


def with_classes(*names: str) -> YolactModel:
    torch.manual_seed(1)
    return YolactModel(SMALL.with_classes(names))


# -- backbones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "features"),
    few_rows([("mobilenet_v2", 17), ("mobilenet_v3_large", 16), ("resnet50", 0)], 0),
)
def test_a_backbone_of_torchvision_computes_the_same(tmp_path: Path, name: str, features: int) -> None:
    torch.manual_seed(3)
    original = getattr(torchvision.models, name)(weights=None).eval()
    torch.save(original.state_dict(), tmp_path / "initial.pth")
    ours = model(backbone=name).eval()
    report = initialize(ours, str(tmp_path / "initial.pth"))
    assert report.kept == sum(1 for k in ours.backbone.state_dict() if not k.endswith("num_batches_tracked"))
    assert set(report.reset) == {"proto_net", "fpn", "prediction_layers", "semantic_seg_conv"}
    images = torch.randn(1, 3, 64, 64)
    c5 = ours.backbone(images)[-1]
    if name == "resnet50":
        x = original.maxpool(original.relu(original.bn1(original.conv1(images))))
        for stage in (original.layer1, original.layer2, original.layer3, original.layer4):
            x = stage(x)
    else:
        x = original.features[:features](images)
    assert torch.equal(c5, x)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("layer1.0.conv1.weight", "layers.0.0.conv1.weight"),
        ("bn1.running_mean", "bn1.running_mean"),
        ("_preconv.0.weight", "_preconv.0.weight"),
        ("layers.2.1.conv1.0.weight", "layers.2.1.conv1.0.weight"),
        ("features.0.0.weight", "layers.0.0.weight"),
        ("features.1.conv.0.0.weight", "layers.1.0.conv.0.0.weight"),
        ("features.17.conv.3.bias", "layers.7.0.conv.3.bias"),
        ("features.18.0.weight", None),
        ("classifier.1.weight", None),
        ("fc.weight", None),
    ],
)
def test_names(key: str, expected: str | None) -> None:
    assert backbone_name(key) == expected


def test_darknets_initial_weights_have_our_names(tmp_path: Path) -> None:
    darknet = without_values("darknet53").to_empty(device="cpu")
    wanted = {k: torch.full(v.shape, float(i)) for i, (k, v) in enumerate(darknet.backbone.state_dict().items())}
    torch.save(wanted, tmp_path / "darknet53.pth")
    initialize(darknet, str(tmp_path / "darknet53.pth"))
    loaded = darknet.backbone.state_dict()
    for key in ("_preconv.0.weight", "layers.4.3.conv2.1.running_var"):
        assert torch.equal(loaded[key], wanted[key])


def test_another_backbones_weights(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r18.pth")
    with pytest.raises(CheckpointError, match="not the initial weights of mobilenet_v2"):
        initialize(model(), str(tmp_path / "r18.pth"))


def test_no_weights() -> None:
    for source in ("", "none"):
        assert str(initialize(model(), source)) == "random weights"


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        initialize(model(), str(tmp_path / "nowhere.pth"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="the YOLOv3 authors"):
        initialize(without_values("darknet53"), "darknet53.pth")
    with pytest.raises(CheckpointError, match="torchvision has no"):
        initialize(without_values("darknet53"), "imagenet")
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"not a complete \.npz"):
        initialize(model(), str(tmp_path / "w.npz"))


def test_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(DownloadError, match=r"no route to host.*--weights FILE"):
        initialize(model(), "imagenet")


def test_the_backbone_that_comes_with_the_package() -> None:
    ours = model()
    report = initialize(ours, "imagenet-int8")
    assert report.folded
    assert set(report.reset) == {"proto_net", "fpn", "prediction_layers", "semantic_seg_conv"}
    with pytest.raises(CheckpointError, match="not the initial weights of resnet50"):
        initialize(model(backbone="resnet50"), "imagenet-int8")


# -- 8-bit ----------------------------------------------------------------------------------------------------------


def test_the_first_layer_is_made_for_our_normalization(tmp_path: Path) -> None:
    """A file whose network sees (x - 127.5) / 127.5 computes the same from images normalized as ours."""
    rng = np.random.default_rng(0)
    net = torchvision.models.mobilenet_v2(weights=None)
    arrays: dict[str, np.ndarray] = {"meta_input_mean": np.float32(127.5), "meta_input_std": np.float32(127.5)}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            count = module.out_channels
            arrays[f"{name}.weight_q"] = rng.integers(0, 256, tuple(module.weight.shape), np.uint8)
            arrays[f"{name}.zero_point"] = np.int32(128)
            arrays[f"{name}.scale"] = rng.uniform(0.001, 0.002, count).astype(np.float32)
            arrays[f"{name}.bias"] = rng.normal(size=count).astype(np.float32)
    np.savez(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]
    ours = model().eval()
    initialize(ours, str(tmp_path / "w.npz"))

    image = torch.rand(1, 3, 16, 16) * 255
    config = ours.config
    mean, std = (torch.tensor(v[::-1]).view(1, 3, 1, 1) for v in (config.pixel_mean, config.pixel_std))
    weight = (arrays["features.0.0.weight_q"].astype(np.float32) - 128) * arrays["features.0.0.scale"][
        :, None, None, None
    ]
    bias = torch.from_numpy(arrays["features.0.0.bias"])
    expected = torch.nn.functional.conv2d((image - 127.5) / 127.5, torch.from_numpy(weight), bias, stride=2)
    first: Any = ours.backbone.layers[0]
    got = first[1](torch.nn.functional.conv2d((image - mean) / std, first[0].weight, stride=2))
    assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["int8_tf", "uint8_torch"])
def test_the_real_files_fit(name: str) -> None:
    path = DATA / "weights" / f"mobilenet_v2_imagenet_{name}.npz"
    if not path.exists():
        pytest.skip("no shared data")
    ours = model().eval()
    initialize(ours, str(path))
    c5 = ours.backbone(torch.randn(1, 3, 64, 64))[-1]
    assert bool(c5.isfinite().all())
    assert 0.1 < float(c5.detach().std()) < 10


# -- another YOLACT -------------------------------------------------------------------------------------------------


def test_other_classes_keep_what_fits_and_the_shared_rows(tmp_path: Path) -> None:
    old = model()
    save_checkpoint(old, tmp_path / "old.safetensors")
    new = with_classes("horse", "dog")
    fresh = {key: value.clone() for key, value in new.state_dict().items()}
    report = initialize(new, str(tmp_path / "old.safetensors"))
    assert torch.equal(new.state_dict()["fpn.lat_layers.0.weight"], old.state_dict()["fpn.lat_layers.0.weight"])
    assert report.classes == ("the background", "dog")
    assert report.reset == ()
    assert "conf_layer.weight" in str(report)

    head = "prediction_layers.0.conf_layer.weight"
    before, after = old.state_dict()[head], new.state_dict()[head]
    anchors = SMALL.priors_per_cell
    for anchor in range(anchors):
        was, now = before[anchor * 4 : (anchor + 1) * 4], after[anchor * 3 : (anchor + 1) * 3]
        assert torch.equal(now[0], was[0])  # background
        assert torch.equal(now[2], was[2])  # dog is the second class of both
        assert torch.equal(now[1], fresh[head][anchor * 3 + 1])  # horse is new
    semantic = new.semantic_seg_conv.weight
    assert torch.equal(semantic[1], old.semantic_seg_conv.weight[1])
    assert torch.equal(semantic[0], fresh["semantic_seg_conv.weight"][0])


def test_the_same_classes_are_taken_whole(tmp_path: Path) -> None:
    old = model()
    save_checkpoint(old, tmp_path / "old.safetensors")
    new = with_classes("cat", "dog", "cow")
    report = initialize(new, str(tmp_path / "old.safetensors"))
    assert report.kept == report.total
    assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())


def test_as_many_other_classes_are_not_taken_for_the_same(tmp_path: Path) -> None:
    save_checkpoint(model(), tmp_path / "old.safetensors")
    new = with_classes("one", "two", "three")
    before = new.semantic_seg_conv.weight.clone()
    report = initialize(new, str(tmp_path / "old.safetensors"))
    assert torch.equal(new.semantic_seg_conv.weight, before)
    assert report.classes == ("the background",)
    assert "semantic_seg_conv.weight" in report.reset


def test_other_channels_are_reset_and_told(tmp_path: Path) -> None:
    save_checkpoint(model(), tmp_path / "old.safetensors")
    new = model(fpn_channels=16)
    report = initialize(new, str(tmp_path / "old.safetensors"))
    assert all(not key.startswith("backbone.") for key in report.reset)
    assert "fpn.lat_layers.0.weight" in report.reset
    assert "random: " in str(report)


def test_an_original_checkpoint_and_another_backbone(resnet50_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="has another backbone than small"):
        initialize(model(), str(resnet50_checkpoint))
    ours = YolactModel(get_config("yolact_resnet50").with_classes(("dog", "spaceship"), (1, 2)))
    report = initialize(ours, str(resnet50_checkpoint))
    assert report.classes == ("the background", "dog")
    assert report.reset == ()
