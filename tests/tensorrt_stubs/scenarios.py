"""What our code does with TensorRT, run on doubles: builds, failures, loading, running.

Each function of SCENARIOS takes the stage and raises if our code uses TensorRT in a way that this version does not
support. The plugins themselves are covered by tests/runtime/plugins.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tensorrt_stubs.doubles import World
from yolact_deploy import ops
from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import get_config
from yolact_deploy.errors import ArtifactError, BackendError, ExportError
from yolact_deploy.export.functions import fast_nms_function, mask_assembly_function
from yolact_deploy.machine.nvidia import Gpu
from yolact_deploy.runtime import tensorrt_api as api

GPU = Gpu(0, "Test GPU", (8, 7), integrated=True, memory_bytes=8 << 30)
SIDE, PRIORS, CLASSES, COEFFICIENTS, PROTO = 8, 40, 3, 4, 6


@dataclass
class Stage:
    """One TensorRT and a folder to work in.

    Attributes:
        creators: of plugins, as they were registered
    """

    world: World
    trt: ModuleType
    flavour: str
    folder: Path
    patch: pytest.MonkeyPatch
    creators: list[Any] = field(default_factory=list)

    @property
    def answers(self) -> dict[tuple[str, str], Any]:
        return self.world.answers

    def model(self, name: str, batch: tuple[int, int, int] = (1, 1, 1), *, half: bool = False) -> Path:
        """An ONNX file like ours, as far as the builder reads it."""
        path = self.folder / f"{name}.onnx"
        onnx.save(make_model(batch, half=half), str(path))
        return path


def prepare(stage: Stage) -> None:
    """Doubles of everything that needs the library or a GPU."""
    from yolact_deploy.machine import nvidia

    stage.patch.setenv("YOLACT_DEPLOY_CACHE", str(stage.folder / "cache"))
    stage.patch.setattr(nvidia, "require_gpu", lambda index=0: GPU)
    stage.world.stand_in("Builder", "OnnxParser", "Runtime")
    registry = stage.world.double("IPluginRegistry")
    stage.patch.setattr(stage.trt, "get_plugin_registry", lambda: registry)

    def register(double: Any, creator: Any, **_: Any) -> bool:
        stage.creators.append(creator)
        return True

    stage.answers[("IPluginRegistry", "register_creator")] = register
    stage.answers[("IPluginRegistry", "get_creator")] = lambda double, type, version, plugin_namespace="": next(
        (each for each in stage.creators if (each.name, each.plugin_namespace) == (type, plugin_namespace)), None
    )
    stage.answers[("IPluginRegistry", "all_creators")] = lambda double: list(stage.creators)
    stage.answers[("INetworkDefinition", "get_input")] = lambda double, index: images(stage)
    stage.answers[("Builder", "build_serialized_network")] = lambda double, network, config, **_: build(stage, config)
    stage.answers[("IBuilderConfig", "set_compute_capability")] = lambda double, compute_capability, index: (
        index < double.num_compute_capabilities
    )
    stage.answers[("OnnxParser", "num_errors")] = 1
    stage.answers[("OnnxParser", "get_error")] = lambda double, index: stage.world.double("ParserError")
    stage.answers[("ParserError", "local_function_stack")] = ["FastNMS", "inner"]


def images(stage: Stage) -> Any:
    tensor = stage.world.double("ITensor")
    tensor.name = "images"
    tensor.shape = stage.trt.Dims((-1, SIDE, SIDE, 3))
    return tensor


def build(stage: Stage, config: Any) -> Any:
    """TensorRT's part with the configuration: it reports progress from a separate thread."""
    assert bool(config.progress_monitor)
    finished: list[bool] = []

    def work() -> None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        finished.append(monitor.step_complete("Building", 0))
        monitor.phase_finish("Building")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    assert finished == [True]
    return stage.world.double("IHostMemory")


def make_model(batch: tuple[int, int, int], *, half: bool = False) -> onnx.ModelProto:
    """A graph of one unknown node before our two."""
    count: int | str = batch[0] if batch[0] == batch[2] else "batch"
    info = helper.make_tensor_value_info
    shapes = {
        "boxes": [count, PRIORS, 4], "scores": [count, PRIORS, CLASSES], "coeff": [count, PRIORS, COEFFICIENTS],
        "proto": [count, PROTO, PROTO, COEFFICIENTS],
    }  # fmt: skip
    detections = 10
    outputs = {
        "num": ([count], TensorProto.INT32), "out_boxes": ([count, detections, 4], TensorProto.FLOAT),
        "out_scores": ([count, detections], TensorProto.FLOAT), "labels": ([count, detections], TensorProto.INT32),
    }  # fmt: skip
    heads = [*list(shapes)[:3], "proto16" if half else "proto"]
    nodes = [helper.make_node("Heads", ["images"], heads, domain="elsewhere")]
    values = [info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    if half:
        nodes.append(helper.make_node("Cast", ["proto16"], ["proto"], to=TensorProto.FLOAT))
        values.append(info("proto16", TensorProto.FLOAT16, shapes["proto"]))
    values.append(info("kept", TensorProto.FLOAT, [count, detections, COEFFICIENTS]))
    attributes: dict[str, Any] = {"top_k": 20, "max_detections": detections, "cross_class": 0}
    nodes.append(
        helper.make_node(
            "FastNMS", ["boxes", "scores", "coeff"], [*outputs, "kept"], domain=ops.DOMAIN, name="nms",
            score_threshold=0.05, iou_threshold=0.5, second_threshold=-1.0, **attributes,
        )
    )  # fmt: skip
    nodes.append(
        helper.make_node(
            "MaskAssembly", ["proto", "kept", "out_boxes"], ["masks"], domain=ops.DOMAIN, name="masks", padding=1.0
        )
    )
    graph = helper.make_graph(
        nodes,
        "like_ours",
        [info("images", TensorProto.UINT8, [count, SIDE, SIDE, 3])],
        [
            *(info(name, dtype, shape) for name, (shape, dtype) in outputs.items()),
            info("masks", TensorProto.FLOAT, [count, detections, PROTO, PROTO]),
        ],
        value_info=values,
    )
    versions = {"": 20, ops.DOMAIN: ops.DOMAIN_VERSION, "elsewhere": 1}
    domains = [helper.make_opsetid(*version) for version in versions.items()]
    model = helper.make_model(graph, opset_imports=domains)
    model.functions.extend([fast_nms_function(), mask_assembly_function()])
    metadata = Metadata(config=get_config("yolact_resnet50"), batch=batch)
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    return model


# -- building -------------------------------------------------------------------------------------------------------


def builds(stage: Stage) -> None:
    from yolact_deploy.export.engine import BuildOptions, build_engine

    fixed, dynamic = stage.model("fixed"), stage.model("dynamic", (1, 2, 4))
    target = stage.folder / "out.trt"
    steps: list[tuple[str, int, int]] = []
    report = build_engine(fixed, target, flavour=stage.flavour, progress=lambda *step: steps.append(step))
    assert target.read_bytes() == b"host memory"
    assert report.version == stage.trt.__version__
    assert steps == [("Building", 0, 2), ("Building", 1, 2), ("Building", 2, 2)]

    targets = ("8.6", "sm_89") if stage.flavour == "rtx" else ()
    everything = BuildOptions(
        workspace_mib=64,
        optimization_level=5,
        tf32=True,
        layer_details=True,
        targets=targets,
        profiles=((1, 1, 1), (2, 4, 8)),
        cache=True,
    )
    for cached in (False, True):
        report = build_engine(dynamic, target, flavour=stage.flavour, options=everything)
        assert report.cached == cached
    if stage.flavour == "tensorrt":
        own = stage.folder / "own.cache"
        build_engine(fixed, target, flavour=stage.flavour, options=BuildOptions(timing_cache=own))
        build_engine(fixed, target, flavour=stage.flavour, options=BuildOptions(timing_cache=own))
        assert own.read_bytes() == b"host memory"
        build_engine(fixed, target, flavour=stage.flavour, options=BuildOptions(use_timing_cache=False))
        taken: list[bool] = []

        def set_timing_cache(double: Any, cache: Any, ignore_mismatch: Any) -> bool:
            taken.append(bool(taken))
            return taken[-1]

        stage.answers[("IBuilderConfig", "set_timing_cache")] = set_timing_cache
        build_engine(fixed, target, flavour=stage.flavour, options=BuildOptions(timing_cache=own))
        assert taken == [False, True]  # the first one belongs to another version


def failing_builds(stage: Stage) -> None:
    from yolact_deploy.export.engine import BuildOptions, build_engine

    fixed, target = stage.model("fixed"), stage.folder / "failed.trt"
    logger = api.logger(stage.flavour)
    severity = stage.trt.ILogger.Severity

    def complain(double: Any, network: Any, config: Any) -> None:
        logger.log(severity.WARNING, "not heard")
        logger.log(severity.ERROR, "a reason")

    usual = stage.answers[("Builder", "build_serialized_network")]
    stage.answers[("Builder", "build_serialized_network")] = complain
    with pytest.raises(ExportError, match=r"cannot build .*: a reason$"):
        build_engine(fixed, target, flavour=stage.flavour)
    stage.answers[("Builder", "build_serialized_network")] = usual

    def raise_error(double: Any, index: int) -> None:
        raise RuntimeError("of pybind11")

    usual = stage.answers[("INetworkDefinition", "get_input")]
    stage.answers[("INetworkDefinition", "get_input")] = raise_error
    with pytest.raises(ExportError, match=r"cannot build .*: RuntimeError: of pybind11$"):
        build_engine(fixed, target, flavour=stage.flavour)
    stage.answers[("INetworkDefinition", "get_input")] = usual

    stage.answers[("OnnxParser", "parse")] = False
    with pytest.raises(ExportError, match=r"node 'text' \(text\) in function inner in function FastNMS: text"):
        build_engine(fixed, target, flavour=stage.flavour)
    stage.answers[("OnnxParser", "num_errors")] = 0
    with pytest.raises(ExportError, match=r"cannot parse .*: no reason given"):
        build_engine(fixed, target, flavour=stage.flavour)
    del stage.answers[("OnnxParser", "parse")]
    stage.answers[("OnnxParser", "num_errors")] = 1

    def nothing(double: Any, **_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    stage.answers[("Builder", "__init__")] = nothing
    with pytest.raises(ExportError, match="cannot start to build"):
        build_engine(fixed, target, flavour=stage.flavour)
    del stage.answers[("Builder", "__init__")]
    if stage.flavour == "rtx":
        for wrong in (("1.0",), ("current", "8.9")):
            with pytest.raises(ExportError, match="--target-sm"):
                build_engine(fixed, target, flavour="rtx", options=BuildOptions(targets=wrong))
        usual = stage.answers.pop(("IBuilderConfig", "set_compute_capability"))
        stage.answers[("IBuilderConfig", "set_compute_capability")] = False
        with pytest.raises(ExportError, match=r"cannot build for SM89 from .*: no reason given"):
            build_engine(fixed, target, flavour="rtx", options=BuildOptions(targets=("89",)))
        stage.answers[("IBuilderConfig", "set_compute_capability")] = usual
    assert not target.exists()


def builds_with_plugins(stage: Stage) -> None:
    from yolact_deploy.export.engine import BuildOptions, build_engine

    kinds = set()
    for mode in ("auto", "on", "off", "v3", "aot"):
        for name, batch, half in (("p1", (1, 1, 1), False), ("p2", (1, 2, 4), True)):
            source = stage.model(name, batch, half=half)
            try:
                report = build_engine(
                    source,
                    stage.folder / "p.trt",
                    flavour=stage.flavour,
                    options=BuildOptions(plugin=mode, cache=half),
                )
            except ExportError:
                if mode not in ("on", "aot"):  # this TensorRT has none, and says so
                    raise
                continue
            kinds.add(report.plugin)
            assert report.plugin_reason
    assert {"none", "v3"} <= kinds
    assert ("aot" in kinds) == (stage.flavour == "tensorrt" and api.version(stage.trt) >= (10, 9))


# -- loading and running --------------------------------------------------------------------------------------------


def loads(stage: Stage) -> None:
    trt, flavour = stage.trt, stage.flavour

    def nothing(double: Any, **_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    stage.answers[("Runtime", "__init__")] = nothing
    with pytest.raises(BackendError, match="cannot start: there is no NVIDIA driver"):
        api.load_engine(flavour, b"plan", "m.trt")
    del stage.answers[("Runtime", "__init__")]

    if flavour == "rtx":
        invalid, bits = trt.EngineValidity.INVALID, trt.EngineInvalidityDiagnostics
        both = int(bits.UNSUPPORTED_CC) | int(bits.OLD_CUDA_DRIVER)
        stage.answers[("Runtime", "get_engine_validity")] = (invalid, both)
        with pytest.raises(BackendError, match=r"cannot load m\.trt here: unsupported cc, old cuda driver\."):
            api.load_engine(flavour, b"plan" * 20, "m.trt")
        stage.answers[("Runtime", "get_engine_validity")] = (trt.EngineValidity.VALID, 0)
    stage.answers[("Runtime", "deserialize_cuda_engine")] = lambda double, **_: None
    with pytest.raises(BackendError, match=r"cannot load m\.trt here: no reason given\."):
        api.load_engine(flavour, b"plan" * 20, "m.trt")
    del stage.answers[("Runtime", "deserialize_cuda_engine")]

    engine = api.load_engine(flavour, memoryview(b"plan" * 20), "m.trt")
    assert api.scratch_bytes(engine) == api.scratch_bytes(engine, profile=1) == 1
    for user_memory in (False, True):
        context = api.create_context(trt, flavour, engine, user_memory=user_memory, kernels=b"earlier")
        api.set_scratch(context, 1 << 40, 256)
        assert api.capturable(context, 0)
        assert (api.compiled_kernels(context) is None) == (flavour == "tensorrt")
    stage.answers[("ICudaEngine", "create_execution_context")] = lambda double, **_: None
    with pytest.raises(BackendError, match="cannot prepare the engine to run: no reason given"):
        api.create_context(trt, flavour, engine)
    del stage.answers[("ICudaEngine", "create_execution_context")]

    assert api.numpy_dtype(trt, trt.DataType.HALF) == np.float16
    with pytest.raises(BackendError, match="BF16"):
        api.numpy_dtype(trt, trt.DataType.BF16)


class FakeDevice:
    """The parts of `runtime.cuda.driver.Device` that an engine uses."""

    index, name, integrated = 0, "Test GPU", False

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def memory(self) -> tuple[int, int]:
        return 4 << 30, 8 << 30

    def allocate(self, nbytes: int, label: str) -> SimpleNamespace:
        return SimpleNamespace(pointer=1 << 40, nbytes=nbytes, free=lambda: None)

    def stream(self) -> SimpleNamespace:
        return SimpleNamespace(handle=1 << 20, synchronize=lambda: None, close=lambda: None)


def write_engine(stage: Stage, tail: str, versions: dict[str, str], version: tuple[int, ...] = ()) -> Path:
    """An engine file as far as it is read without TensorRT; by default of this version."""
    path = stage.folder / f"{tail}.trt"
    metadata = Metadata(config=get_config("yolact_resnet50"), tail=tail, batch=(1, 2, 4), versions=versions)
    body = metadata.to_json().encode()
    magic = b"vtrt" if stage.flavour == "rtx" else b"ftrt"
    numbers = (*(version or api.version(stage.trt)), 0, 0)[:4]
    path.write_bytes(magic + struct.pack("<IQQ4B", 0, 2, 32 + len(body), *numbers) + bytes(4) + body)
    return path


def answer_as_engine(stage: Stage, tail: str, batch: int) -> None:
    """Let the engine have the tensors of a tail; -1 is a dynamic batch, with two profiles."""
    kinds = stage.trt.DataType
    tensors: dict[str, tuple[Any, tuple[int, ...]]] = {
        "heads": {
            "boxes": (kinds.FLOAT, (PRIORS, 4)), "scores": (kinds.FLOAT, (PRIORS, CLASSES)),
            "coeff": (kinds.FLOAT, (PRIORS, COEFFICIENTS)), "proto": (kinds.HALF, (PROTO, PROTO, COEFFICIENTS)),
        },
        "functions": {
            "num_detections": (kinds.INT32, ()), "boxes": (kinds.FLOAT, (10, 4)), "scores": (kinds.FLOAT, (10,)),
            "labels": (kinds.INT32, (10,)), "masks": (kinds.HALF, (10, PROTO, PROTO)),
        },
    }[tail]  # fmt: skip
    tensors["images"] = (kinds.UINT8, (SIDE, SIDE, 3))
    dims = stage.trt.Dims
    sizes = [tuple(dims((n, SIDE, SIDE, 3)) for n in profile) for profile in ((1, 1, 2), (1, 2, 4))]
    answers = {
        "num_io_tensors": len(tensors),
        "get_tensor_name": lambda double, index: list(tensors)[index],
        "get_tensor_shape": lambda double, name: dims((batch, *tensors[name][1])),
        "get_tensor_dtype": lambda double, name: tensors[name][0],
        "num_optimization_profiles": 2,
        "get_tensor_profile_shape": lambda double, name, profile_index: list(sizes[profile_index]),
    }
    stage.answers.update({("ICudaEngine", name): answer for name, answer in answers.items()})


def runs(stage: Stage) -> None:
    from yolact_deploy.runtime import tensorrt
    from yolact_deploy.runtime.cuda.driver import calls

    stage.patch.setattr(tensorrt, "Device", SimpleNamespace(open=lambda index: FakeDevice()))
    stage.patch.setattr(calls, "driver_version", lambda: (12, 8))
    stream: Any = SimpleNamespace(handle=1 << 20)
    for tail, batch, versions in (("heads", -1, {}), ("functions", 2, {"plugins": "v3"})):
        answer_as_engine(stage, tail, batch)
        network = tensorrt.TensorRtNetwork(write_engine(stage, tail, versions))
        assert (network.max_batch, network.fixed_batch) == (4 if batch < 0 else 2, batch > 0)
        network.bind_outputs({name: (i + 2) << 40 for i, name in enumerate(network.outputs)})
        for count in (1, 4, 4) if batch < 0 else (2,):
            network.enqueue(stream, count)
        network.keep_kernels()
        assert network.describe()["tail"] == tail
        network.close()

    network = tensorrt.TensorRtNetwork(write_engine(stage, "functions", {}))
    network.bind_outputs(dict.fromkeys(network.outputs, 1 << 40))
    for member, words in (("set_tensor_address", "rejects a batch of 2"), ("execute_async_v3", "failed to run")):
        stage.answers[("IExecutionContext", member)] = False
        with pytest.raises(BackendError, match=words):
            network.enqueue(stream, 2)
        del stage.answers[("IExecutionContext", member)]
    answer_as_engine(stage, "heads", 1)
    with pytest.raises(ArtifactError, match="has tensors"):
        tensorrt.TensorRtNetwork(write_engine(stage, "functions", {}))
    with pytest.raises(ArtifactError, match=r"and does not run on"):
        tensorrt.TensorRtNetwork(write_engine(stage, "heads", {}, version=(9, 9, 9)))
    run_backend(stage)


def run_backend(stage: Stage) -> None:
    """The backend without its pipeline, which does not involve TensorRT."""
    from yolact_deploy.runtime import tensorrt
    from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend

    ran: list[Any] = []

    def make(self: Any, network: Any, device: Any, *, graphs: bool, in_place: bool | None, jpeg: Any) -> None:
        self.network, self.max_batch, self.fixed_batch = network, network.max_batch, network.fixed_batch
        self.frames = SimpleNamespace(infer=ran.append, close=lambda: None)

    stage.patch.setattr(CudaBackend, "__init__", make)
    answer_as_engine(stage, "heads", -1)
    tensorrt.TensorRtBackend(write_engine(stage, "heads", {}))
    assert [images.shape for images in ran] == [(1, SIDE, SIDE, 3)]


def profiles(stage: Stage) -> None:
    """Layers by the inspector, times by a profiler that the context calls."""
    from yolact_deploy.runtime import tensorrt, tensorrt_profile
    from yolact_deploy.runtime.cuda.driver import calls

    def run(double: Any, **arguments: Any) -> bool:
        for layer, milliseconds in (("conv", 0.5), ("nms", 0.25)):
            double.state["profiler"].report_layer_time(layer, milliseconds)
        return True

    stage.patch.setattr(tensorrt, "Device", SimpleNamespace(open=lambda index: FakeDevice()))
    stage.patch.setattr(calls, "driver_version", lambda: (12, 8))
    stage.answers[("IExecutionContext", "execute_async_v3")] = run
    described = '{"Layers": [{"Name": "conv", "LayerType": "Convolution", "TacticName": "t"}, "other"]}'
    stage.answers[("EngineInspector", "get_engine_information")] = described
    answer_as_engine(stage, "heads", -1)
    profile = tensorrt_profile.profile_engine(write_engine(stage, "heads", {}), runs=2)
    assert [(layer.name, layer.mean_ms) for layer in profile.layers] == [("conv", 0.5), ("other", None), ("nms", 0.25)]
    stage.answers[("EngineInspector", "get_engine_information")] = "conv\nnms"
    with pytest.raises(BackendError, match="describes the layers in another form"):
        tensorrt_profile.profile_engine(write_engine(stage, "heads", {}), runs=2)
    del stage.answers[("IExecutionContext", "execute_async_v3")]


SCENARIOS: tuple[Callable[[Stage], None], ...] = (builds, failing_builds, builds_with_plugins, loads, runs, profiles)
