"""What the stages of each backend are, and that a stage which takes longer shows as itself and as no other.

Tiny networks; GPUs are replaced by the CPU as in the tests of their backends. The stages of the CUDA frame path are
tested in cuda/test_frame_pipeline.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolact_deploy.detections import Detections
from yolact_deploy.machine.nvidia import Gpu
from yolact_deploy.runtime import any_image
from yolact_deploy.runtime import predictor as predictor_module
from yolact_deploy.runtime import stage_timer as stages_module
from yolact_deploy.runtime import tails as tails_module
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import PARTS, StageTimer, stage_with

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from fake_onnxruntime import FakeOnnxRuntime
from plain_values import check_another_process, check_plain_value, outlive
from tiny_onnx import CONFIG, write_model

from yolact_deploy.model import torch_ops as ops
from yolact_deploy.priors import make_priors
from yolact_deploy.runtime import onnxruntime_gpu
from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
from yolact_deploy.runtime.openvino import OpenVinoBackend
from yolact_deploy.runtime.torch import frames
from yolact_deploy.runtime.torch import torch_backend as torch_backend_module
from yolact_deploy.runtime.torch.torch_backend import TorchBackend


class TinyTrunk(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch may be absent where types are checked
    """Raw heads that do not depend on the image, some of them above the threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.config = CONFIG
        self.priors = torch.from_numpy(make_priors(CONFIG).copy())
        random = torch.Generator().manual_seed(7)
        count, side = CONFIG.num_priors, CONFIG.prototype_size
        self._heads = (
            torch.zeros(1, count, 4),
            torch.randn(1, count, CONFIG.num_classes + 1, generator=random),
            torch.randn(1, count, CONFIG.num_prototypes, generator=random),
            torch.randn(1, side, side, CONFIG.num_prototypes, generator=random),
        )

    def heads(self, images: Any) -> tuple[Any, ...]:
        return tuple(values.expand(len(images), *values.shape[1:]) for values in self._heads)


def eager_frames(patch: pytest.MonkeyPatch) -> Backend:
    """The eager frame hook, its GPU replaced by the CPU."""
    patch.setattr(torch_backend_module, "place", lambda index: "cpu")
    return TorchBackend(TinyTrunk(), device=0)


def torch_host_tail(patch: pytest.MonkeyPatch) -> Backend:
    """Heads of a GPU, replaced by the CPU, and the tail in NumPy."""
    patch.setattr(torch_backend_module, "place", lambda index: "cpu")
    return TorchBackend(TinyTrunk(), device=0, tail="host")


def provider(tail: str, folder: Path, patch: pytest.MonkeyPatch) -> Backend:
    """ONNX Runtime's CUDA provider with NumPy arrays in and out, replaced by the CPU's."""
    patch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime(folder / "onnxruntime"))
    patch.setattr(onnxruntime_gpu, "require_gpu", lambda index: Gpu(index, "Test GPU", (8, 9), False, 1 << 30))
    path = write_model(folder / "gpu.onnx")
    return onnxruntime_gpu.OnnxRuntimeGpuBackend(path, provider="cuda", tail=tail)


#: for each way to run: how it is made in a folder, and its stages
WAYS: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], Backend], tuple[str, ...]]] = {
    "onnxruntime-host": (
        lambda folder, patch: OnnxRuntimeBackend(write_model(folder / "a.onnx"), tail="host"),
        ("decode", "preprocess", "network", "nms", "assembly", "detect", "paste"),
    ),
    "onnxruntime-graph": (
        lambda folder, patch: OnnxRuntimeBackend(write_model(folder / "a.onnx"), tail="graph"),
        ("decode", "preprocess", "network+nms+assembly", "detect", "paste"),
    ),
    "onnxruntime-heads": (
        lambda folder, patch: OnnxRuntimeBackend(write_model(folder / "a.onnx", tail="heads"), tail="graph"),
        ("decode", "preprocess", "network", "nms", "assembly", "detect", "paste"),
    ),
    "openvino-host": (
        lambda folder, patch: OpenVinoBackend(write_model(folder / "a.onnx"), tail="host"),
        ("decode", "preprocess", "network", "nms", "assembly", "detect", "paste"),
    ),
    "openvino-graph": (
        lambda folder, patch: OpenVinoBackend(write_model(folder / "a.onnx"), tail="graph"),
        ("decode", "preprocess", "network+nms+assembly", "detect", "paste"),
    ),
    "onnxruntime-cuda-host": (
        lambda folder, patch: provider("host", folder, patch),
        ("decode", "preprocess", "upload+network+download", "nms", "assembly", "detect", "paste"),
    ),
    "onnxruntime-cuda-graph": (
        lambda folder, patch: provider("graph", folder, patch),
        ("decode", "preprocess", "upload+network+nms+assembly+download", "detect", "paste"),
    ),
    "torch": (
        lambda folder, patch: TorchBackend(TinyTrunk()),
        ("decode", "preprocess", "network", "nms", "assembly", "detect", "paste"),
    ),
    "torch-cuda": (
        lambda folder, patch: eager_frames(patch),
        ("decode", "upload", "preprocess", "network", "nms", "assembly", "paste", "download", "detect"),
    ),
    "torch-cuda-host": (
        lambda folder, patch: torch_host_tail(patch),
        ("decode", "preprocess", "upload", "network", "download", "nms", "assembly", "detect", "paste"),
    ),
}

#: who does a stage; "run" is what the backend calls to run its network
NUMPY = {
    "decode": (any_image, "read_image"),
    "preprocess": (predictor_module, "fit_image"),
    "nms": (tails_module, "detect"),
    "assembly": (tails_module, "mask_windows"),
    "detect": (Detections, "from_normalized"),
    "paste": (tails_module, "paste_windows"),
}
TORCH = {
    **NUMPY,
    "nms": (ops, "detect"),
    "assembly": (ops, "assemble_masks"),
    "paste": (ops, "paste_masks_full"),
}
TORCH_CUDA = {
    **TORCH,
    "upload": (frames, "check_image"),
    "preprocess": (frames, "resize"),
    "download": (frames, "_to_host"),
}
WORKERS = {"torch": TORCH, "torch-cuda": TORCH_CUDA}


@dataclass
class Way:
    """A loaded model, its name in WAYS and what its stages should be."""

    name: str
    model: Predictor
    stages: tuple[str, ...]


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    make, stages = WAYS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        backend = make(tmp_path_factory.mktemp("stages"), patch)
        with Predictor(backend, score_threshold=0.0, lazy_masks=False) as model:
            yield Way(request.param, model, stages)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "gray.png"
    cv2.imwrite(str(path), np.full((40, 50, 3), 90, np.uint8))
    return path


def test_stages(way: Way, picture: Path) -> None:
    assert way.model.stages == way.stages
    start = time.perf_counter()
    assert len(way.model(picture)) > 0
    whole = (time.perf_counter() - start) * 1e3
    assert tuple(way.model.timings) == way.stages
    assert all(spent > 0 for spent in way.model.timings.values())
    assert sum(way.model.timings.values()) <= whole


def test_detections_outlive_their_model(picture: Path, tmp_path: Path) -> None:
    """A plain value from every way to run: no pickle holds a runtime, no result keeps a backend alive."""
    results = []
    for name, (make, _) in WAYS.items():
        for lazy_masks in (True, False) if name in ("onnxruntime-graph", "torch") else (True,):
            (folder := tmp_path / f"{name}-{lazy_masks}").mkdir()
            with pytest.MonkeyPatch.context() as patch:
                results.append(outlive(partial(_predictor, make, folder, patch, lazy_masks), picture))
            check_plain_value(results[-1])
    check_another_process(results)


def _predictor(make: Callable[..., Backend], folder: Path, patch: pytest.MonkeyPatch, lazy_masks: bool) -> Predictor:
    return Predictor(make(folder, patch), score_threshold=0.0, lazy_masks=lazy_masks)


class Clock:
    """Stands for the module `time`: time passes only where a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


def test_a_slow_stage_shows_as_itself(way: Way, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 ms in each stage in turn, by a clock that stands still otherwise."""
    clock = Clock()
    for module in (stages_module, frames):
        monkeypatch.setattr(module, "time", clock)
    workers = {stage: who for stage, who in WORKERS.get(way.name, NUMPY).items() if stage in way.stages}
    network = stage_with("network", way.stages)
    assert network is not None
    workers[network] = (way.model.backend.frames or way.model.backend, "_heads") if "torch" in way.name else (
        way.model.backend, "run",
    )  # fmt: skip
    slow: str | None = None

    def slowed(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any, **options: Any) -> Any:
            if stage == slow:
                clock.seconds += 0.005
            return work(*args, **options)

        return do

    for stage, (owner, name) in workers.items():
        monkeypatch.setattr(owner, name, slowed(stage, getattr(owner, name)))

    assert set(way.stages) - set(workers) <= {"upload", "download"}, "which PyTorch does in one call"
    for slow in workers:
        way.model(picture)
        assert way.model.timings == pytest.approx({stage: 5.0 * (stage == slow) for stage in way.stages}), slow


def test_names() -> None:
    names = {part for _, stages in WAYS.values() for stage in stages for part in stage.split("+")}
    assert names < set(PARTS)
    stages = ("decode", "upload+network+download", "nms")
    assert stage_with("network", stages) == stage_with("upload", stages) == "upload+network+download"
    assert stage_with("nms", stages) == "nms"
    assert stage_with("assembly", stages) is None
    assert stage_with("net", stages) is None, "names are whole"


def test_a_timer() -> None:
    timer = StageTimer(("a", "b"))
    assert timer.spent == {"a": 0.0, "b": 0.0}
    for _ in range(2):
        with timer.stage("b"):
            time.sleep(0.002)
    timer.add({"a": 1.5, "c": 2.0})
    timer.add({"a": 1.0})
    assert tuple(timer.spent) == ("a", "b", "c")
    assert (timer.spent["a"], timer.spent["c"]) == (2.5, 2.0)
    assert timer.spent["b"] >= 4
