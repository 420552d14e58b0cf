"""Debug builds and debugging aids that make this process slow."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

#: variables that make CUDA wait for each kernel or runtimes log each layer
_SLOWING_VARIABLES = ("CUDA_LAUNCH_BLOCKING", "TORCH_SHOW_DISPATCH_TRACE", "ONEDNN_VERBOSE", "DNNL_VERBOSE")


def debug_builds(
    modules: Mapping[str, ModuleType | Any] = sys.modules, variables: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """A sentence with the cure for each; checks loaded modules only."""
    return (*_python(), *_torch(modules.get("torch")), *_ort(modules.get("onnxruntime")), *_set(variables))


def _python() -> Iterator[str]:
    if hasattr(sys, "gettotalrefcount"):
        yield "this Python is a debug build: use a release build"
    elif sys.flags.dev_mode:
        yield "Python's development mode is on: leave out -X dev and PYTHONDEVMODE"
    if sys.gettrace() is not None:
        yield "a debugger or coverage tool traces every line of Python: measure without it"


def _torch(torch: Any) -> Iterator[str]:
    if torch is None:
        return
    if getattr(getattr(torch, "version", None), "debug", False):
        yield "torch is a debug build: install a release build"
        return
    try:
        settings = torch.__config__.show()
        anomalies = torch.is_anomaly_enabled()
    except (AttributeError, RuntimeError):
        return
    kind = re.search(r"BUILD_TYPE=(\w+)", settings)
    if kind and kind[1] == "Debug":
        yield "torch is a debug build: install a release build"
    elif "CXX_FLAGS=" in settings and "-DNDEBUG" not in settings:
        yield "torch was built with assertions enabled: install a release build"
    if anomalies:
        yield "torch checks every operation for anomalies: call torch.autograd.set_detect_anomaly(False)"


def _ort(onnxruntime: Any) -> Iterator[str]:
    try:
        info = onnxruntime.get_build_info()
    except AttributeError:
        return
    if re.search(r"build type=Debug", info):
        yield "onnxruntime is a debug build: install a release build"


def _set(variables: Mapping[str, str]) -> Iterator[str]:
    for name in _SLOWING_VARIABLES:
        if variables.get(name, "0") not in ("", "0", "none"):
            yield f"{name}={variables[name]} slows every call: unset it"
