from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deterministic import deterministic_state
from few import few_rows

from yolact_deploy.artifact import METADATA_KEY, read_config
from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.errors import CheckpointError, ConfigError, OutputError

torch = pytest.importorskip("torch")

from yolact_deploy.model.checkpoint import infer_config
from yolact_deploy.model.quantized import read_quantized
from yolact_deploy.model.weights_file import Weights, read_state_dict
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


@pytest.mark.slow
def test_an_original_checkpoint_of_yolact_plus_loads(file: Path) -> None:
    state = deterministic_state("yolact_plus_resnet50")
    torch.save(state, file)
    loaded = load_model(file)
    assert loaded.config == get_config("yolact_plus_resnet50")
    _same(loaded.state_dict(), state)


@pytest.mark.slow
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


# -- wrappers, prefixes and values ----------------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "compiled inside data-parallel": lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "Lightning": lambda s: {
        "epoch": 3,
        "state_dict": {f"model.{k}": v for k, v in s.items()},
        "optimizer_states": [{}],
    },
    "Lightning with net": lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}},
    "SWA": lambda s: {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}},
    "SWA of a compiled model": lambda s: {
        "model": {"n_averaged": torch.tensor(7), **{f"module._orig_mod.{k}": v for k, v in s.items()}}
    },
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "weights": lambda s: {"weights": s, "epoch": 3},
    "network": lambda s: {"network": s},
    "nested": lambda s: {"checkpoint": {"model": {"state_dict": s}}},
    "epoch beside tensors": lambda s: {**s, "epoch": 3},
    "arguments of a script": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, name="run")},
    "an average alone": lambda s: {"ema": {f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_and_prefixes_load(
    kind: str, state: dict[str, Any], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(WRAPPED[kind](state), file)
    _same(read_state_dict(file)[0], state)
    assert not caplog.records


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda own, other: {"ema": other, "model": own}, "took 'model', not 'ema'"),
        (lambda own, other: {"state_dict": own, "state_dict_ema": other}, "took 'state_dict', not 'state_dict_ema'"),
        (
            lambda own, other: {"state_dict": {**_prefixed("teacher.", other), **_prefixed("model.", own)}},
            "took 'state_dict.model', not 'state_dict.teacher'",
        ),
        (lambda own, other: {**own, **_prefixed("ema.", other)}, "took 'the one at the top', not 'ema'"),
    ],
)
def test_the_choice_among_networks_is_said(
    wrap: Any, said: str, state: dict[str, Any], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(wrap(state, {key: torch.zeros_like(value) for key, value in state.items()}), file)
    _same(read_state_dict(file)[0], state)
    assert said in caplog.text


def _prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def test_tensors_outside_of_the_network_are_named(
    state: dict[str, Any], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"state_dict": {**_prefixed("model.", state), "criterion.weight": torch.ones(3)}}, file)
    assert list(read_state_dict(file)[0]) == list(state)
    assert "left out 1 tensors outside of the network 'state_dict.model': criterion.weight" in caplog.text


def test_a_checkpoint_that_holds_itself_ends(state: dict[str, Any], file: Path) -> None:
    content: dict[str, Any] = {"model": state}
    content["again"] = content
    torch.save(content, file)
    assert list(read_state_dict(file)[0]) == list(state)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v.fill_(float("nan")), "not finite"),
        (lambda v: v.index_fill_(0, torch.tensor([0]), float("inf")), "not finite"),
        (lambda v: v.double() * 1e300 + 1e300, "not finite"),
        (lambda v: v.to(torch.int64), "is int64, expected dense floating-point"),
        (lambda v: v.to(torch.bool), "is bool, expected"),
        (lambda v: v.to(torch.complex64), "is complex64, expected"),
    ],
)
def test_values_that_are_no_weights_are_refused(
    change: Callable[[Any], Any], expected: str, form: str, state: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    key, path = "proto_net.0.bias", tmp_path / f"w.{form}"
    content = {**state, key: change(state[key].clone())}
    torch.save(content, path) if form == "pth" else save_file(content, path)
    with pytest.raises(CheckpointError, match=f"{key} .*{expected}"):
        read_state_dict(path)


# -- configurations that users name ---------------------------------------------------------------------------------


def test_a_published_configuration_adopts_the_classes_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from yolact_deploy.model import checkpoint

    state = _meta_state("yolact_resnet50", class_names=20)
    monkeypatch.setattr(checkpoint, "read_weights", lambda path: Weights(state))
    monkeypatch.setattr(checkpoint, "_fill", lambda model, state, path: None)
    with torch.device("meta"):
        loaded = load_model("w.pth", config="yolact_resnet50")
        assert loaded.config == get_config("yolact_resnet50").with_classes(20)
        assert "the weights have 20" in caplog.text
        (tmp_path / "own.json").write_text('{"name": "yolact_resnet50", "class_names": ["a", "b"]}')
        with pytest.raises(CheckpointError, match="2 classes"):
            load_model("w.pth", config=str(tmp_path / "own.json"))
        names = [f"part {i}" for i in range(20)]
        (tmp_path / "own.json").write_text(json.dumps({"name": "yolact_resnet50", "class_names": names}))
        assert load_model("w.pth", config=str(tmp_path / "own.json")).config.class_names == tuple(names)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, YolactConfig()),
        ({"name": "yolact_resnet50_pascal", "image_size": 320}, get_config("yolact_resnet50_pascal").with_size(320)),
        ({"name": "a", "fpn_channels": 8, "num_classes": 3}, YolactConfig(name="a", fpn_channels=8, num_classes=3)),
        (get_config("yolact_plus_base").to_dict(), get_config("yolact_plus_base")),
    ],
)  # fmt: skip
def test_a_configuration_in_a_json_file(fields: dict[str, Any], expected: YolactConfig, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(fields))
    assert read_config(str(tmp_path / "c.json")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "expected a JSON object"),
        ("{", "not valid JSON"),
        ('{"classes": 3}', "unknown configuration fields"),
        ('{"class_names": ["a"], "num_classes": 2}', "class_names: expected 2 names"),
        ('{"image_size": "big"}', "image_size: expected 64 to 4096"),
    ],
)
def test_a_json_file_that_is_no_configuration(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"c\.json.*{expected}"):
        read_config(str(tmp_path / "c.json"))


@pytest.mark.parametrize(
    ("backbone", "channels"),
    few_rows([("resnet18", 512), ("resnet34", 512), ("resnet152", 2048), ("mobilenet_v3_large", 160)], 0, 1, 3),
)
def test_other_backbones_are_told_by_their_blocks(backbone: str, channels: int) -> None:
    config = YolactConfig(name="own", backbone=backbone, num_classes=3, image_size=128, fpn_channels=32)
    with torch.device("meta"):
        model = YolactModel(config)
        loc, *_ = model.heads(torch.empty(1, 3, 128, 128))
    assert loc.shape == (1, config.num_priors, 4)
    assert model.fpn.lat_layers[0].in_channels == channels
    inferred = infer_config(model.state_dict())
    assert (inferred.backbone, inferred.name) == (backbone, f"yolact_{backbone}")
    assert (inferred.num_classes, inferred.fpn_channels) == (3, 32)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(3 * (10**9 + 1), 64, 3, 3),
        torch.zeros(1).expand(10**6, 10**6, 3, 3),
        torch.arange(9.0).as_strided((10**7, 9), (0, 1)),
        torch.zeros(64, dtype=torch.float16).as_strided((10**5, 10**5), (0, 0)),
    ],
    ids=["classes", "both sides", "rows", "half"],
)
@pytest.mark.parametrize("wrapper", ["", "state_dict"])
def test_repeated_values_are_not_filled_in(tensor: Any, wrapper: str, tmp_path: Path) -> None:
    state = {"prediction_layers.0.conf_layer.weight": tensor, "prediction_layers.0.conf_layer.bias": torch.zeros(3)}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"w\.pth: prediction_layers\.0\.conf_layer\.weight of shape .* repeated"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["deflated", "the same bytes many times", "array"])
def test_an_archive_that_fills_the_memory_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 MB of zeros in some hundred kilobytes, and bytes that many entries of the archive share."""
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(np, "load", None)
    file = tmp_path / ("w.npz" if kind == "array" else "w.pth")
    method = zipfile.ZIP_STORED if kind.startswith("the same") else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(file, "w", method) as archive:
        if method == zipfile.ZIP_STORED:
            archive.writestr("archive/data/0", bytes(2_000_000))
            (entry,) = archive.infolist()
            archive.filelist += [entry] * 49
        else:
            archive.writestr("archive/data/0", bytes(100_000_000))
    assert file.stat().st_size < 2_100_000
    read = partial(read_quantized, config=get_config("yolact_base")) if kind == "array" else read_state_dict
    with pytest.raises(CheckpointError, match=r"unpacks to 100,000,000 bytes, \d+ times its size"):
        read(file)
