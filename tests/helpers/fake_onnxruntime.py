"""An onnxruntime package that claims to have GPU providers, built from the real one; everything runs on the CPU.

Sessions, bindings and options are the real classes, so a call with wrong arguments fails as in the real package; only
the names of providers and devices are replaced. Addresses are used unchanged: "device memory" is host memory.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as real
from onnxruntime.capi.onnxruntime_inference_collection import IOBinding

RTX = "NvTensorRTRTXExecutionProvider"
GPU_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


class Options(real.SessionOptions):  # type: ignore[misc]  # the package has no types
    """Records the devices that a session was given, which the real class does not expose."""

    devices: tuple[list[Any], dict[str, str]] | None = None

    def add_provider_for_devices(self, ep_devices: list[Any], provider_options: dict[str, str]) -> None:
        assert all(isinstance(text, str) for pair in provider_options.items() for text in pair)
        self.devices = (ep_devices, provider_options)


class Binding(IOBinding):  # type: ignore[misc]
    """Treats "cuda" memory as CPU memory."""

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        assert device_type == "cuda"
        super().bind_input(name, "cpu", 0, element_type, shape, buffer_ptr)

    def bind_output(  # the defaults are the real ones
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Any = None,
        buffer_ptr: int | None = None,
    ) -> None:
        assert device_type == "cuda"
        super().bind_output(name, "cpu", 0, element_type, shape, buffer_ptr)


class GpuDevice:
    """An OrtEpDevice."""

    def __init__(self, ordinal: int | None) -> None:
        self.ep_name, self._ordinal = RTX, ordinal

    def memory_info(self, kind: Any) -> Any:
        assert kind == real.OrtDeviceMemoryType.DEFAULT
        if self._ordinal is None:
            raise RuntimeError("no memory of this kind")
        return types.SimpleNamespace(device_id=self._ordinal)


class FakeOnnxRuntime(types.ModuleType):
    """The module.

    Attributes:
        falls_back: as if a provider's libraries were missing: sessions only have the CPU provider
        left_to_cpu: operators without a kernel in the provider
        sessions: (provider, its options, session options) of each session
        rtx_devices: devices of the plugin once it is registered
        enqueue: puts a bound run into the stream of the session, like a provider on a GPU; by default it runs at once
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("onnxruntime")
        (folder / "capi").mkdir(parents=True)
        for provider in ("cuda", "tensorrt"):  # loading an empty file fails, but not because the file is missing
            (folder / "capi" / f"libonnxruntime_providers_{provider}.so").touch()
        self.__file__ = str(folder / "__init__.py")
        self.__version__, self.cuda_version = "9.9.9", "13.0"
        self.falls_back = False
        self.left_to_cpu: tuple[str, ...] = ()
        self.sessions: list[tuple[str, dict[str, str], Any]] = []
        self.rtx_devices: list[GpuDevice] = []
        self.registered: list[tuple[str, str]] = []
        self.preloaded = 0
        self.enqueue: Callable[[int, Callable[[], None]], None] | None = None
        self.SessionOptions, self.RunOptions = Options, real.RunOptions
        self.OrtDeviceMemoryType = real.OrtDeviceMemoryType
        self.InferenceSession = _session_class(self)

    def get_available_providers(self) -> list[str]:
        return [*GPU_PROVIDERS, "CPUExecutionProvider"]

    def preload_dlls(self, cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: Any = None) -> None:
        print("Failed to load libcudnn.so.9")  # as the real one does
        self.preloaded += 1

    def get_ep_devices(self) -> list[Any]:
        return list(self.rtx_devices) if self.registered else []

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))


def _session_class(fake: FakeOnnxRuntime) -> type:
    class Session(real.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: bytes, options: Options, providers: Any = None, **kwargs: Any) -> None:
            assert kwargs == {"enable_fallback": 0}
            if options.devices is not None:
                assert providers is None
                self.asked, chosen = RTX, options.devices[1]
            else:
                ((self.asked, chosen),) = providers
            assert all(isinstance(text, str) for pair in chosen.items() for text in pair)
            fake.sessions.append((self.asked, chosen, options))
            super().__init__(model, options, **kwargs)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"] if fake.falls_back else [self.asked, "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            parts = []
            for part in super().get_provider_graph_assignment_info():
                nodes = part.get_nodes()
                left = any(node.op_type in fake.left_to_cpu for node in nodes)
                name = "CPUExecutionProvider" if left else self.asked
                parts.append(types.SimpleNamespace(ep_name=name, get_nodes=lambda nodes=nodes: nodes))
            return parts

        def io_binding(self) -> Binding:
            return Binding(self)

        def run_with_iobinding(self, iobinding: Binding, run_options: Any = None) -> None:
            assert run_options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
            chosen = fake.sessions[-1][1]
            assert chosen["has_user_compute_stream"] == "1"
            run = super().run_with_iobinding
            if fake.enqueue is None:
                run(iobinding, run_options)
            else:
                fake.enqueue(int(chosen["user_compute_stream"]), lambda: run(iobinding, run_options))

    return Session
