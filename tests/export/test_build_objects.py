"""The order in which TensorRT's objects are destroyed, whatever a build ends in, and its timing cache."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest

from yolact_deploy.errors import EngineBuildError
from yolact_deploy.export.tensorrt_build import Build, BuildPlan
from yolact_deploy.runtime import tensorrt_api

#: destroying one of these before those that follow it would crash TensorRT
ORDER = ["config", "monitor", "parser", "network", "builder"]


class Object:
    """An object of TensorRT that notes when it is destroyed; the call named ``fails`` raises."""

    def __init__(self, kind: str, module: Module) -> None:
        self.kind, self.module = kind, module

    def __del__(self) -> None:
        self.module.destroyed.append(self.kind)

    def __getattr__(self, name: str) -> Any:
        if name == self.module.fails:
            raise RuntimeError("a reason of pybind11")
        flags = self.module.flags
        results = {
            "set_flag": flags.add,
            "clear_flag": flags.discard,
            "create_network": lambda flags: Object("network", self.module),
            "create_builder_config": lambda: Object("config", self.module),
            "parse": lambda data: True,
            "get_input": lambda index: SimpleNamespace(shape=(1, 8, 8, 3)),
            "build_serialized_network": lambda network, config: b"plan with " + b",".join(sorted(flags)),
        }
        return results.get(name, lambda *args: None)


class Module(SimpleNamespace):
    """TensorRT's module."""

    def __init__(self, fails: str = "") -> None:
        destroyed: list[str] = []
        self.fails, self.destroyed = fails, destroyed
        self.flags = {b"TF32"}  # a configuration begins with it

        class Monitor:
            def __del__(self) -> None:
                destroyed.append("monitor")

        super().__init__(
            __version__="10.13.3.9",
            Builder=lambda logger: Object("builder", self),
            OnnxParser=lambda network, logger: Object("parser", self),
            IProgressMonitor=Monitor,
            MemoryPoolType=SimpleNamespace(WORKSPACE=0),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
            BuilderFlag=SimpleNamespace(TF32=b"TF32"),
        )


@pytest.fixture(autouse=True)
def logger(monkeypatch: pytest.MonkeyPatch) -> None:
    class Logger:
        listeners: list[Any] = []  # noqa: RUF012
        lock = tensorrt_api._making

    monkeypatch.setattr(tensorrt_api, "logger", lambda flavour: Logger)


@pytest.mark.parametrize(
    "fails",
    ["", "parse", "set_memory_pool_limit", "get_input", "build_serialized_network"],
    ids=lambda name: name or "-",
)
def test_nothing_is_left_behind(fails: str) -> None:
    module = Module(fails)
    build = Build(module, "tensorrt", BuildPlan(network_name="n", workspace_mib=8), None)
    gc.disable()
    try:
        if fails:
            with pytest.raises(EngineBuildError, match="cannot build m: RuntimeError: a reason of pybind11"):
                build.run(b"onnx", "m")
        else:
            assert build.run(b"onnx", "m").data == b"plan with "
        assert module.destroyed == ORDER
    finally:
        gc.enable()


@pytest.mark.parametrize(("tf32", "data"), [(False, b"plan with "), (True, b"plan with TF32")])
def test_tf32_only_on_demand(tf32: bool, data: bytes) -> None:
    """TensorRT rounds FP32 products to TF32 unless the flag is cleared."""
    build = Build(Module(), "tensorrt", BuildPlan(network_name="n", tf32=tf32), None)
    assert build.run(b"onnx", "m").data == data


@pytest.mark.parametrize("usable", ["always", "empty only", "never"])
def test_timing_caches_that_tensorrt_cannot_make(usable: str) -> None:
    made: list[bytes] = []

    class Config:
        def create_timing_cache(self, data: bytes) -> Any:
            if usable == "never" or (data and usable == "empty only"):
                return None
            made.append(data)
            return data or b"empty"

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert cache is not None, "TensorRT's bindings would crash"
            return True

        def get_timing_cache(self) -> Any:
            return None

    cache = tensorrt_api.set_timing_cache(Config(), "tensorrt", b"damaged")
    assert cache == {"always": b"damaged", "empty only": b"empty", "never": None}[usable]
    assert tensorrt_api.timing_cache(Config()) is None
