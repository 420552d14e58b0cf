"""Builds of which TensorRT's part is a stand-in: what is written, and what a failure with plugins leads to."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import get_config
from yolact_deploy.engine_file import plugin_kind, read_engine_metadata, sidecar_path
from yolact_deploy.errors import EngineBuildError, ExportError
from yolact_deploy.export import engine
from yolact_deploy.export.build_options import BuildOptions
from yolact_deploy.export.tensorrt_build import Build, Plan
from yolact_deploy.runtime import plugins


class Builds:
    """TensorRT: it drops a name of more than 4095 bytes, and fails for nodes of the types in ``rejects``."""

    def __init__(self) -> None:
        self.rejects: set[str] = set()
        self.parsed: list[list[str]] = []
        self.tf32: list[bool] = []

    def run(self, build: Build, onnx_bytes: bytes, source: str) -> Plan:
        nodes = [node.op_type for node in onnx.load_model_from_string(onnx_bytes).graph.node]
        self.parsed.append(nodes)
        self.tf32.append(build.plan.tf32)
        if self.rejects & set(nodes):
            raise EngineBuildError(f"TensorRT 10.9.0 cannot parse {source}: an odd node")
        name = build.plan.network_name.encode()
        body = name if len(name) <= 4095 else b"Unnamed Network 0"
        return Plan(b"ftrt" + struct.pack("<IQQ4B", 0, 2, 32 + len(body), 10, 9, 0, 34) + bytes(4) + body)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Builds:
    builds = Builds()
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(engine, "import_tensorrt", lambda flavour: SimpleNamespace(__version__="10.9.0.34"))
    monkeypatch.setattr(engine, "_gpu", lambda flavour, targets: "A GPU")
    monkeypatch.setattr(Build, "run", lambda build, *args: builds.run(build, *args))

    def prepare(model: Any, trt: Any, flavour: str, mode: str) -> plugins.PluginChoice:
        if mode == "off":
            return plugins.PluginChoice(model, "none", "Plugins are off.")
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.node[0].op_type, copy.graph.node[0].domain = "PriorBest_1", "yolact"
        return plugins.PluginChoice(copy, "aot", "NMS and masks are our kernels.", ("yolact::PriorBest_1",))

    monkeypatch.setattr(plugins, "prepare", prepare)
    return builds


def write(path: Path, metadata: Metadata) -> Path:
    info = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info("x", 1, [1])], [info("y", 1, [1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("yolact", 1)])
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, str(path))
    return path


# -- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [80, 365, 1203])
@pytest.mark.parametrize("cache", [False, True])
def test_metadata_of_many_classes(tmp_path: Path, tensorrt: Builds, classes: int, cache: bool) -> None:
    names = tuple(f"class {index * 7919 % 99991:x}" for index in range(classes))
    source = write(tmp_path / "m.onnx", Metadata(config=get_config("yolact_base").with_classes(names)))
    told: list[str] = []
    for name in ("a.trt", "b.trt"):  # the second one from the cache, if there is one
        options = BuildOptions(plugin="off", cache=cache)
        report = engine.build_engine(source, tmp_path / name, flavour="tensorrt", options=options, tell=told.append)
        assert report.cached == (cache and name == "b.trt")
        metadata = read_engine_metadata(tmp_path / name)
        assert (metadata.config.class_names, metadata.versions["tensorrt"]) == (names, "10.9.0.34")
    beside = sidecar_path(tmp_path / "a.trt")
    if classes < 1000:
        assert (told, beside.exists()) == ([], False)
    else:
        assert told[0] == f"the metadata is too long for an engine and is in {beside}: keep the two files together"


def test_a_failed_build_leaves_the_files_of_an_earlier_one(tmp_path: Path, tensorrt: Builds) -> None:
    for classes, rejects in ((1203, set()), (1300, {"Relu"})):
        source = write(tmp_path / "m.onnx", Metadata(config=get_config("yolact_base").with_classes(classes)))
        tensorrt.rejects = rejects
        if rejects:
            with pytest.raises(ExportError, match="an odd node"):
                engine.build_engine(source, tmp_path / "m.trt", flavour="tensorrt", options=BuildOptions(plugin="off"))
        else:
            engine.build_engine(source, tmp_path / "m.trt", flavour="tensorrt", options=BuildOptions(plugin="off"))
        assert read_engine_metadata(tmp_path / "m.trt").config.num_classes == 1203


@pytest.mark.parametrize(
    ("precision", "tf32", "reported"),
    [("fp32", False, "fp32"), ("fp32", True, "tf32"), ("fp16", True, "fp16"), ("fp16", False, "fp16")],
)
def test_tf32_is_a_precision(tmp_path: Path, tensorrt: Builds, precision: str, tf32: bool, reported: str) -> None:
    source = write(tmp_path / "m.onnx", Metadata(config=get_config("yolact_base"), precision=precision))
    options = BuildOptions(plugin="off", tf32=tf32)
    engine.build_engine(source, tmp_path / "m.trt", flavour="tensorrt", options=options)
    assert read_engine_metadata(tmp_path / "m.trt").precision == reported
    assert tensorrt.tf32 == [tf32]


# -- plugins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [False, True])
def test_a_build_that_fails_with_plugins_is_repeated_without(tmp_path: Path, tensorrt: Builds, cache: bool) -> None:
    source = write(tmp_path / "m.onnx", Metadata(config=get_config("yolact_base")))
    tensorrt.rejects, told = {"PriorBest_1"}, list[str]()
    options = BuildOptions(cache=cache)
    report = engine.build_engine(source, tmp_path / "m.trt", flavour="tensorrt", options=options, tell=told.append)
    assert tensorrt.parsed == [["PriorBest_1"], ["Relu"]]
    error = f"TensorRT 10.9.0 cannot parse {source}: an odd node"
    assert told == [f"{error}. Building again without plugins"]
    assert report.plugin == "none"
    assert report.plugin_reason.endswith(f"because the build with plugins failed: {error}")
    assert plugin_kind(read_engine_metadata(tmp_path / "m.trt")) == "none"


@pytest.mark.parametrize("mode", ["on", "aot", "v3"])
def test_plugins_that_are_required(tmp_path: Path, tensorrt: Builds, mode: str) -> None:
    source = write(tmp_path / "m.onnx", Metadata(config=get_config("yolact_base")))
    tensorrt.rejects = {"PriorBest_1"}
    with pytest.raises(ExportError, match="an odd node"):
        engine.build_engine(source, tmp_path / "m.trt", flavour="tensorrt", options=BuildOptions(plugin=mode))
    assert tensorrt.parsed == [["PriorBest_1"]]


def test_a_network_that_fails_without_plugins_as_well(tmp_path: Path, tensorrt: Builds) -> None:
    source = write(tmp_path / "m.onnx", Metadata(config=get_config("yolact_base")))
    tensorrt.rejects = {"PriorBest_1", "Relu"}
    with pytest.raises(ExportError, match="an odd node"):
        engine.build_engine(source, tmp_path / "m.trt", flavour="tensorrt")
    assert tensorrt.parsed == [["PriorBest_1"], ["Relu"]]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
