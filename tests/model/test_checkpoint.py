from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deterministic import deterministic_state

from yolact_deploy.artifact import METADATA_KEY
from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.errors import CheckpointError, ConfigError, OutputError

torch = pytest.importorskip("torch")

from yolact_deploy.model.checkpoint import infer_config, read_state_dict
from yolact_deploy.training import YolactModel, load_model, save_checkpoint


@pytest.fixture(scope="module")
def model() -> YolactModel:
    """A small network that no published configuration equals."""
    torch.manual_seed(1)
    config = YolactConfig(name="cells", backbone="mobilenet_v2", image_size=96, num_classes=2, fpn_channels=8)
    return YolactModel(config).eval()


@pytest.fixture
def state(model: YolactModel) -> dict[str, Any]:
    return dict(model.state_dict())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def _meta_state(name: str, **changes: Any) -> dict[str, Any]:
    """Shapes of a configuration's tensors, without memory."""
    config = get_config(name)
    with torch.device("meta"):
        return dict(YolactModel(config.with_classes(**changes) if changes else config).state_dict())


def _same(loaded: Any, expected: Any) -> None:
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


# -- loading --------------------------------------------------------------------------------------------------------


def test_an_original_checkpoint_loads(resnet50_checkpoint: Path) -> None:
    loaded = load_model(resnet50_checkpoint)
    assert loaded.config == get_config("yolact_resnet50")
    assert not loaded.training
    _same(loaded.state_dict(), deterministic_state("yolact_resnet50"))
    assert load_model(resnet50_checkpoint, image_size=320).config == get_config("yolact_resnet50").with_size(320)


def test_saving_and_loading_keep_everything(model: YolactModel, tmp_path: Path) -> None:
    path = tmp_path / "new" / "cells.safetensors"
    save_checkpoint(model, path)
    loaded = load_model(path)
    assert loaded.config == model.config
    _same(loaded.state_dict(), model.state_dict())
    assert [p.name for p in path.parent.iterdir()] == ["cells.safetensors"]


def test_files_of_old_torch_versions_load(model: YolactModel, file: Path) -> None:
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=False)
    _same(load_model(file, config=model.config).state_dict(), model.state_dict())


def test_a_safetensors_file_is_known_without_its_suffix(model: YolactModel, file: Path) -> None:
    save_checkpoint(model, file)
    assert load_model(file).config == model.config


def test_a_safetensors_file_of_others_is_inferred(state: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "w.safetensors")
    found, config = read_state_dict(tmp_path / "w.safetensors")
    assert config is None
    assert set(found) == set(state)
    assert load_model(tmp_path / "w.safetensors", image_size=96).config.num_classes == 2


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_and_prefixed_checkpoints(model: YolactModel, file: Path, wrapper: str) -> None:
    prefixed = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({wrapper: prefixed, "epoch": 3}, file)
    _same(load_model(file, config=model.config).state_dict(), model.state_dict())


def test_superfluous_entries_are_dropped(state: dict[str, Any], file: Path) -> None:
    names = ["backbone.layer1.0.conv1.weight", "fpn.downsample_layers.2.weight", "fpn.downsample_layers.3.bias"]
    names += ["backbone.layers.8.0.weight", "backbone.layers.8.1.running_mean"]
    torch.save({**state, **{name: torch.zeros(1) for name in names}}, file)
    found, _ = read_state_dict(file)
    assert list(found) == list(state)


def test_the_pyramid_of_yolactedge_is_renamed(state: dict[str, Any], file: Path) -> None:
    def theirs(key: str) -> str:
        return key.replace("fpn.lat", "fpn_phase_1.lat").replace("fpn.", "fpn_phase_2.")

    torch.save({theirs(key): value for key, value in state.items()}, file)
    found, _ = read_state_dict(file)
    assert set(found) == set(state)


def test_files_without_batch_counters_load(model: YolactModel, file: Path) -> None:
    torch.save({k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}, file)
    _same(load_model(file, config=model.config).state_dict(), model.state_dict())


# -- inferring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "yolact_base",
        "yolact_resnet50",
        "yolact_darknet53",
        "yolact_edge_mobilenetv2",
        "yolact_plus_base",
        "yolact_plus_resnet50",
    ],
)
def test_published_configurations_are_inferred(name: str) -> None:
    assert infer_config(_meta_state(name)) == get_config(name)


def test_pascal_is_inferred_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert infer_config(_meta_state("yolact_resnet50_pascal")) == get_config("yolact_resnet50_pascal")
    assert "--config" in caplog.text


def test_other_numbers_of_classes_are_inferred() -> None:
    config = infer_config(_meta_state("yolact_base", class_names=7))
    assert (config.num_classes, config.backbone) == (7, "resnet101")


def test_inferring_needs_a_known_depth() -> None:
    state = {k: v for k, v in _meta_state("yolact_resnet50").items() if not k.startswith("backbone.layers.2.5")}
    with pytest.raises(CheckpointError, match="5 bottleneck blocks"):
        infer_config(state)


def test_other_priors_need_a_configuration() -> None:
    config = YolactConfig(backbone="resnet50", prior_scales=((24.0, 30.0),) * 5)
    with torch.device("meta"):
        state = YolactModel(config).state_dict()
    with pytest.raises(CheckpointError, match=r"6 priors per cell.*--config"):
        infer_config(state)


@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "layers.0.0.conv1.weight", "features.0.0.weight"])
def test_backbone_weights_are_told_apart(key: str) -> None:
    with pytest.raises(CheckpointError, match="initial weights of a backbone"):
        infer_config({key: torch.zeros(1)})


def test_an_original_checkpoint_of_yolact_plus_loads(file: Path) -> None:
    state = deterministic_state("yolact_plus_resnet50")
    torch.save(state, file)
    loaded = load_model(file)
    assert loaded.config == get_config("yolact_plus_resnet50")
    _same(loaded.state_dict(), state)


def test_other_classes_of_yolact_plus_are_inferred() -> None:
    config = infer_config(_meta_state("yolact_plus_base", class_names=7))
    assert (config.num_classes, config.mask_iou, config.deformable_blocks) == (7, True, (0, 4, 23, 3))


# -- refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "named"), [("yolact_base", "resnet101"), ("yolact_resnet50_pascal", "20 classes")])
def test_a_configuration_that_differs_is_refused(resnet50_checkpoint: Path, config: str, named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(resnet50_checkpoint, config=config)
    message = str(caught.value)
    assert all(
        text in message for text in (str(resnet50_checkpoint), config, named, "resnet50, 80 classes", "--config")
    )


def test_an_unknown_configuration_is_refused(resnet50_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean yolact_base"):
        load_model(resnet50_checkpoint, config="yolact_bas")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _evil_torch(path: Path) -> None:
    torch.save({"x": torch.zeros(1), "y": _Evil(path.parent / "ran")}, path)


def _evil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Evil(path.parent / "ran"), protocol=2))


def _truncated(path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:700])


def _script(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"model/{name}", b"3\n")


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such weights file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "short": (lambda path: path.write_bytes(b"PK"), "not a weights file, or it is damaged"),
    "text": (lambda path: path.write_text("hello, these are no weights\n" * 9), "not a weights file, or it is damaged"),
    "truncated": (_truncated, "not a weights file, or it is damaged"),
    "code in a torch file": (_evil_torch, "is refused: it holds more than tensors"),
    "code in a pickle": (_evil_pickle, "is refused: it holds more than tensors"),
    "TorchScript": (_script, "TorchScript archive"),
    "list": (lambda path: torch.save([torch.zeros(1)], path), "holds a list"),
    "tensor": (lambda path: torch.save(torch.zeros(1), path), "holds a Tensor"),
    "numbers": (lambda path: torch.save({"epoch": 1, "loss": 0.5}, path), "holds a dictionary with epoch, loss"),
    "empty dictionary": (lambda path: torch.save({}, path), "holds a dictionary with nothing"),
    "other network": (lambda path: torch.save({"fc.weight": torch.zeros(1)}, path), "not the weights of a YOLACT"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_one_line(kind: str, file: Path) -> None:
    make, expected = BAD_FILES[kind]
    make(file)
    with pytest.raises(CheckpointError) as caught:
        load_model(file)
    message = str(caught.value)
    assert expected in message
    assert str(file) in message
    assert "\n" not in message
    assert not (file.parent / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"hello, these are no weights", b'\x10\0\0\0\0\0\0\0{"x":1}          ', b"\xff" * 40]
)
def test_bad_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_state_dict(path)


def test_a_truncated_safetensors_file_is_refused(model: YolactModel, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_checkpoint(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_state_dict(path)


@pytest.mark.parametrize("text", ["[]", "{", '{"schema": 99}', '{"schema": 1, "config": {"color": 1}}'])
def test_bad_metadata_is_refused(state: dict[str, Any], tmp_path: Path, text: str) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "w.safetensors", metadata={METADATA_KEY: text})
    with pytest.raises(CheckpointError, match="metadata"):
        read_state_dict(tmp_path / "w.safetensors")


def test_metadata_of_another_network_is_refused(model: YolactModel, state: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from yolact_deploy.artifact import Metadata

    other = Metadata(config=get_config("yolact_base")).to_json()
    save_file(state, tmp_path / "w.safetensors", metadata={METADATA_KEY: other})
    with pytest.raises(CheckpointError, match="weights and configuration differ"):
        load_model(tmp_path / "w.safetensors")


def test_missing_extra_and_misshapen_tensors_are_named(model: YolactModel, state: dict[str, Any], file: Path) -> None:
    key = "proto_net.0.bias"
    for change, expected in (
        ({k: v for k, v in state.items() if k != key}, f"lacks 1 tensors: {key}"),
        ({**state, "surprise": torch.zeros(1)}, "has unknown 1 tensors: surprise"),
        ({**state, key: torch.zeros(9)}, rf"other shapes in 1 tensors: {key} \(expected \[8\], got \[9\]\)"),
    ):
        torch.save(change, file)
        with pytest.raises(CheckpointError, match=expected):
            load_model(file, config=model.config)


def test_saving_where_nothing_can_be_written(model: YolactModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_checkpoint(model, tmp_path / "file" / "w.safetensors")
