"""Engines behind a fake TensorRT and a fake driver, with the real kernels emulated, held to ONNX Runtime on the CPU."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_cuda as fake
import numpy as np
import pytest
from host_network import emulated
from plain_values import check_another_process, check_plain_value, outlive

from yolact_deploy.detections import Detections
from yolact_deploy.errors import ArtifactError, BackendError, InputError, MissingDependencyError, YolactDeployError
from yolact_deploy.loading import load
from yolact_deploy.runtime.predictor import Predictor

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import fake_tensorrt
import tiny_onnx

from yolact_deploy.runtime import tensorrt
from yolact_deploy.runtime.cuda.driver import Device
from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
from yolact_deploy.runtime.tensorrt import TensorRtBackend
from yolact_deploy.size_range import SizeRange

__all__ = ["emulated"]

with_driver = pytest.mark.fake_cuda(memory=256 * 2**20, capability="8.9")

FRAMES = [np.full((height, width, 3), gray, np.uint8) for height, width, gray in
          ((48, 64, 10), (33, 47, 120), (64, 64, 200), (48, 64, 90), (20, 131, 250))]  # fmt: skip


@pytest.fixture(autouse=True)
def fakes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorRT and the cache folder of a test; nothing is left on the device."""
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    fake_tensorrt.RuntimeCache.given.clear()
    with fake_tensorrt.installed():
        if "fake_cuda" in request.keywords:
            request.getfixturevalue("emulated")
        yield
    if "fake_cuda" in request.keywords:
        gc.collect()
        assert fake.control().leaks() == ""


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """``make_engine(tail, batch, **options of write_engine)``: paths of an ONNX file and its engine."""

    def make(
        tail: str = "functions",
        batch: tuple[int, int, int] = (1, 1, 1),
        *,
        mask_iou: bool = False,
        sizes: SizeRange | None = None,
        **options: Any,
    ) -> tuple[Path, Path]:
        made = {"tail": tail, "batch": batch, "mask_iou": mask_iou, "sizes": sizes}
        onnx_path = tiny_onnx.write_model(tmp_path / "tiny.onnx", **made)
        return onnx_path, fake_tensorrt.write_engine(tmp_path / "tiny.trt", onnx_path, **options)

    return make


def assert_same(ours: Detections, theirs: Detections) -> None:
    """As sets, since equal scores may come in any order."""
    assert len(ours) == len(theirs) > 0
    left = list(range(len(theirs)))
    masks, other = ours.masks, theirs.masks
    for i in range(len(ours)):
        match = next(
            j
            for j in left
            if ours.labels[i] == theirs.labels[j]
            and np.allclose(ours.boxes[i], theirs.boxes[j], atol=0.01)
            and abs(ours.scores[i] - theirs.scores[j]) < 1e-5
        )
        left.remove(match)
        assert (masks[i] & other[match]).sum() >= 0.999 * (masks[i] | other[match]).sum()


def filled(outputs: Any) -> list[Any]:
    """The outputs that the graph has: mask scores are None in a plain YOLACT."""
    return [values for values in outputs if values is not None]


# -- the same as ONNX Runtime ---------------------------------------------------------------------------------------


@with_driver
@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "rtx"])
@pytest.mark.parametrize("tail", ["functions", "heads"])
@pytest.mark.parametrize("batch", [(1, 1, 1), (3, 3, 3), (1, 2, 3)], ids=["one", "fixed", "dynamic"])
def test_detections(make_engine: Any, tail: str, batch: Any, rtx: bool) -> None:
    onnx_path, engine = make_engine(tail, batch, rtx=rtx, profiles=() if batch[0] == batch[2] else (batch,))
    expected = Predictor(OnnxRuntimeBackend(onnx_path))
    with load(engine) as model:
        assert (model.backend.name, model.backend.max_batch) == ("tensorrt", batch[2])
        for _ in range(3):
            for ours, theirs in zip(model(FRAMES), expected(FRAMES), strict=True):
                assert_same(ours, theirs)
        for (_, ours), frame in zip(model.stream(FRAMES), FRAMES, strict=True):
            assert_same(ours, expected(frame))
        images = model.preprocess(FRAMES[: batch[2]])
        reference = OnnxRuntimeBackend(onnx_path, tail="graph").run(images)
        for ours, theirs in zip(filled(model.backend.run(images)), filled(reference), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@with_driver
@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "rtx"])
@pytest.mark.parametrize("batch", [(1, 1, 1), (1, 2, 3)], ids=["one", "dynamic"])
def test_one_size_of_a_range(make_engine: Any, rtx: bool, batch: Any) -> None:
    sizes = SizeRange.of(tiny_onnx.CONFIG, 64, (96, 128))
    profiles = () if batch[0] == batch[2] else (batch,)
    onnx_path, engine = make_engine("functions", batch, sizes=sizes, rtx=rtx, profiles=profiles)
    for size, shape in ((None, (64, 64)), ((96, 80), (96, 80))):
        expected = load(onnx_path, image_size=shape, tail="graph")
        with load(engine, image_size=size) as model:
            network = model.backend.network  # type: ignore[attr-defined]
            assert model.config.input_shape == network.input.shape[1:3] == shape
            for ours, theirs in zip(model(FRAMES), expected(FRAMES), strict=True):
                assert_same(ours, theirs)
    with pytest.raises(InputError, match="takes inputs from 64x64 to 96x128, not 160"):
        load(engine, image_size=160)


@with_driver
def test_one_size_only(make_engine: Any) -> None:
    _, engine = make_engine()
    load(engine, image_size=64).close()
    with pytest.raises(InputError, match=r"takes inputs of 64 only, not 96x64: export it for a range"):
        load(engine, image_size=(96, 64))


@with_driver
def test_detections_outlive_their_engine(make_engine: Any) -> None:
    onnx_path, engine = make_engine("functions", (1, 2, 4), profiles=((1, 2, 4),), mask_iou=True)
    detections = outlive(lambda: load(engine), FRAMES[1])
    assert_same(detections, Predictor(OnnxRuntimeBackend(onnx_path, tail="graph"))(FRAMES[1]))
    assert detections.mask_scores is not None
    check_plain_value(detections)
    check_another_process([detections])


@with_driver
@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "rtx"])
def test_mask_scores(make_engine: Any, rtx: bool) -> None:
    """Those of the graph, from frames as they are and from resized images."""
    onnx_path, engine = make_engine("functions", (1, 2, 4), rtx=rtx, profiles=((1, 2, 4),), mask_iou=True)
    expected = Predictor(OnnxRuntimeBackend(onnx_path, tail="graph"))
    with load(engine) as model:
        for ours, theirs in zip(model(FRAMES), expected(FRAMES), strict=True):
            assert len(theirs) > 0
            assert ours.mask_scores is not None
            assert theirs.mask_scores is not None
            np.testing.assert_allclose(np.sort(ours.mask_scores), np.sort(theirs.mask_scores), atol=1e-5)
            assert (theirs.mask_scores > 0).any()
        images = model.preprocess(FRAMES[:2])
        wanted: Any = OnnxRuntimeBackend(onnx_path, tail="graph").run(images)
        outputs: Any = model.backend.run(images)
        np.testing.assert_allclose(outputs.mask_scores, wanted.mask_scores, atol=1e-5)


@with_driver
def test_the_engine_is_captured_into_the_graph_of_the_frame(make_engine: Any) -> None:
    _, engine = make_engine()
    with load(engine) as model:
        for _ in range(6):
            model(FRAMES[0])
        control = fake.control()
        control.reset_calls()
        model(FRAMES[0])
        assert control.calls("cuGraphLaunch") == 1
        assert control.calls("cuLaunchHostFunc") == 0, "the fake TensorRT's way of running"
        told = model.backend.describe()
        assert told["graphs"] == "whole frame"
        assert told["contexts"] == 2, "one for each place of the outputs"
        assert (told["version"], told["flavour"], told["plugins"]) == ("10.13.3.9", "TensorRT", "none")
        assert told["scratch_bytes"] == fake_tensorrt.SCRATCH
        assert {"TensorRT scratch", "network input", "results", "frames"} <= set(told["device_bytes"])


@with_driver
def test_profiles(make_engine: Any) -> None:
    """Each batch runs in the narrowest profile that takes it; scratch memory is that of the hungriest."""
    onnx_path, engine = make_engine("functions", (1, 2, 4), profiles=((1, 1, 1), (2, 3, 4)))
    expected = Predictor(OnnxRuntimeBackend(onnx_path))
    with load(engine) as model:
        for _ in range(3):
            for ours, theirs in zip(model(FRAMES), expected(FRAMES), strict=True):  # 4 and 1
                assert_same(ours, theirs)
        contexts = model.backend.network._contexts  # type: ignore[attr-defined]
        assert {(batch, context._profile) for (batch, _), context in contexts.items()} == {(1, 0), (4, 1)}
        assert model.backend.describe()["scratch_bytes"] == 4 * fake_tensorrt.SCRATCH


@with_driver
def test_a_batch_below_the_smallest_of_the_engine(make_engine: Any) -> None:
    onnx_path, engine = make_engine("functions", (2, 3, 4), profiles=((2, 3, 4),))
    with load(engine) as model:
        assert not model.backend.fixed_batch
        assert_same(model(FRAMES[0]), Predictor(OnnxRuntimeBackend(onnx_path))(FRAMES[:2])[0])


@with_driver
def test_kernels_that_rtx_compiled_are_kept(make_engine: Any, tmp_path: Path) -> None:
    _, engine = make_engine(rtx=True)
    load(engine).close()
    (kept,) = (tmp_path / "cache" / "rtx").iterdir()
    assert kept.read_bytes() == b"compiled kernels"
    assert fake_tensorrt.RuntimeCache.given == []
    load(engine).close()
    assert set(fake_tensorrt.RuntimeCache.given) == {b"compiled kernels"}
    other = shutil.copy(engine, tmp_path / "other.trt")
    load(other).close()
    assert len(list((tmp_path / "cache" / "rtx").iterdir())) == 1, "the same engine under another name"


@with_driver
def test_a_cache_that_cannot_be_written_is_no_failure(
    make_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "file" / "cache"))
    _, engine = make_engine(rtx=True)
    with load(engine) as model:
        assert len(model(FRAMES[0])) > 0


@with_driver
def test_several_engines(make_engine: Any, tmp_path: Path) -> None:
    _, engine = make_engine()
    copies = [shutil.copy(engine, tmp_path / f"{i}.trt") for i in range(2)]
    with load(copies[0]) as one, load(copies[1]) as two:
        assert_same(one(FRAMES[0]), two(FRAMES[0]))
        one.close()
        assert len(two(FRAMES[1])) > 0


@with_driver
@pytest.mark.parametrize("tail", ["functions", "heads"])
def test_nms_of_an_engine_is_as_exported(make_engine: Any, tail: str) -> None:
    """Other settings are refused; fewer detections are picked afterwards."""
    _, engine = make_engine(tail)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"top_k": 3}, r"top_k=3 instead of \d+", "--top-k"),
        ({"nms_iou": 0.9}, r"nms_iou=0\.9 instead of 0\.5", "--nms-iou"),
        ({"top_k": 3, "nms_iou": 0.9}, r"top_k=3 instead of \d+, nms_iou=0\.9 instead of 0\.5", "--top-k --nms-iou"),
        ({"max_detections": 1000}, r"max_detections=1000 instead of \d+", "--max-detections"),
    ]
    for option, change, name in cases:
        text = rf"^{change}: NMS of .*tiny\.trt runs on the GPU as exported: export it again with {name}, or "
        with pytest.raises(InputError, match=text):
            load(engine, **option)
    with load(engine, max_detections=1) as model:
        assert len(model(FRAMES[1])) == 1


@with_driver
@pytest.mark.slow
def test_a_real_network(resnet50_checkpoint: Path, tmp_path: Path) -> None:
    """YOLACT with ResNet-50 on small images, exported for real, both tails."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.model.checkpoint import load_model

    network = load_model(resnet50_checkpoint, image_size=138)
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 256, size, np.uint8) for size in ((90, 120, 3), (138, 138, 3), (90, 120, 3))]
    for tail in ("functions", "heads"):
        onnx_path = tmp_path / f"{tail}.onnx"
        export_onnx(network, onnx_path, ExportSpec(tail=tail))
        engine = fake_tensorrt.write_engine(tmp_path / f"{tail}.trt", onnx_path)
        expected = load(onnx_path, score_threshold=0.0)
        with load(engine, score_threshold=0.0) as model:
            for frame in frames:
                assert_same(model(frame), expected(frame))


# -- what cannot be loaded ------------------------------------------------------------------------------------------


@with_driver
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"version": (10, 3, 0, 26)}, ArtifactError, "was built by TensorRT 10.3.0.26 and does not run on 10.13.3.9"),
        ({"version": (10, 13, 3, 8)}, BackendError, r"cannot load .*tiny.trt here: .*expecting \(10, 13, 3, 9\)"),
        ({"rtx": True, "version": (1, 4, 0, 5)}, ArtifactError, "was built by TensorRT for RTX 1.4.0.5"),
        ({"capability": "9.0"}, BackendError, "cannot load .*: The engine was built for compute capability 9.0"),
    ],
)
def test_engines_of_elsewhere(make_engine: Any, options: Any, error: type[Exception], message: str) -> None:
    _, engine = make_engine(**options)
    with pytest.raises(error, match=message) as raised:
        load(engine)
    assert "yolact-deploy build" in str(raised.value)


@with_driver
def test_the_cure_names_the_files(make_engine: Any) -> None:
    onnx_path, engine = make_engine(version=(10, 3, 0, 26))
    with pytest.raises(ArtifactError, match=f"yolact-deploy build {onnx_path} --engine tensorrt -o {engine}"):
        load(engine)
    onnx_path.unlink()
    with pytest.raises(ArtifactError, match=f"yolact-deploy build MODEL.onnx --engine tensorrt -o {engine}"):
        load(engine)


@with_driver
def test_the_wrong_tensorrt_is_installed(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = make_engine(rtx=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    with pytest.raises(MissingDependencyError, match=r"an engine of TensorRT for RTX, .*yolact-deploy\[rtx\]"):
        load(engine)


@with_driver
def test_engines_that_are_not_ours(make_engine: Any) -> None:
    onnx_path, engine = make_engine(metadata="{}")
    with pytest.raises(ArtifactError, match="has no yolact-deploy metadata"):
        load(engine)
    heads = tiny_onnx.write_model(onnx_path.with_name("heads.onnx"), tail="heads", batch=(1, 1, 1))
    text = TensorRtBackend(make_engine()[1]).metadata.to_json()
    fake_tensorrt.write_engine(engine, heads, metadata=text)
    with pytest.raises(ArtifactError, match=r"has tensors images, boxes, .*, expected images, num_det"):
        load(engine)


@with_driver
def test_a_file_that_is_cut_short(make_engine: Any) -> None:
    _, engine = make_engine(rtx=True)
    engine.write_bytes(engine.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="is truncated"):
        load(engine)


@with_driver
def test_too_little_memory_is_told_before_it_is_taken(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = make_engine()
    monkeypatch.setattr(Device, "memory", lambda device: (1000, 1000))
    with pytest.raises(
        BackendError, match="the engine needs 1 MiB of GPU memory, but only 0 of 0 MiB are free on cuda:0"
    ):
        load(engine)


@pytest.mark.fake_cuda(memory=100 << 20, integrated=True)
def test_free_memory_of_an_integrated_gpu(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves out caches, which the system gives back when memory is allocated."""
    _, engine = make_engine()
    total = 100 << 20
    monkeypatch.setattr(Device, "memory", lambda device: (1000, total))
    with load(engine) as model:
        assert len(model(FRAMES[0])) > 0
    monkeypatch.setattr(Device, "memory", lambda device: (1000, 1000))
    with pytest.raises(BackendError, match="the engine needs 1 MiB of GPU memory"):
        load(engine)


@with_driver
@pytest.mark.parametrize("tail", ["functions", "heads"])
@pytest.mark.parametrize("sizes", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 3, 1, 4)], ids=str)
def test_contexts_have_a_limit(make_engine: Any, monkeypatch: pytest.MonkeyPatch, tail: str, sizes: Any) -> None:
    """With as many as there may be, a batch runs as the next larger one; frames are captured as before."""
    monkeypatch.setattr(tensorrt, "_MOST_CONTEXTS", 2)
    onnx_path, engine = make_engine(tail, (1, 2, 4), profiles=((1, 2, 4),))
    expected = Predictor(OnnxRuntimeBackend(onnx_path))(FRAMES[:4])
    with load(engine) as model:
        for _ in range(4):
            for batch in sizes:
                for ours, theirs in zip(model(FRAMES[:batch]), expected[:batch], strict=True):
                    assert_same(ours, theirs)
        facts = model.backend.describe()
        assert facts["contexts"] <= 3 * (1 if tail == "heads" else 2)
        assert facts["graphs"] == "whole frame"


@with_driver
def test_a_profile_that_tensorrt_rejects(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bindings raise, although their documentation says that they return False."""

    def refuse(context: Any, index: int, stream: int) -> bool:
        raise RuntimeError("Error in set optimization profile async.")

    _, engine = make_engine("functions", (1, 2, 4), profiles=((1, 2, 4),))
    monkeypatch.setattr(fake_tensorrt.Context, "set_optimization_profile_async", refuse)
    with pytest.raises(BackendError, match=r"TensorRT rejects a batch of 1 for .*tiny\.trt"):
        load(engine)


@with_driver
def test_no_such_gpu(make_engine: Any) -> None:
    _, engine = make_engine()
    with pytest.raises(BackendError, match="cuda:3"):
        load(engine, device="cuda:3")


@pytest.mark.fake_cuda(devices=0)
@pytest.mark.slow
def test_a_driver_without_a_gpu(make_engine: Any) -> None:
    _, engine = make_engine()
    with pytest.raises(BackendError, match="GPU"):
        load(engine)


@with_driver
def test_an_engine_that_fails_while_running(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = make_engine()
    with load(engine) as model:
        monkeypatch.setattr(fake_tensorrt.Context, "execute_async_v3", lambda self, stream: False)
        with pytest.raises(BackendError, match=r"TensorRT failed to run .*tiny\.trt: no reason given"):
            model.backend.run(model.preprocess(FRAMES[:1]))


def test_without_a_driver(make_engine: Any) -> None:
    """One sentence that says so, on the machine of the tests as it is."""
    if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        pytest.skip("there is a driver here")
    _, engine = make_engine()
    with pytest.raises(BackendError, match="no NVIDIA driver here") as raised:
        load(engine)
    assert "\n" not in str(raised.value)


def test_a_file_of_another_kind_is_told_without_a_driver(tmp_path: Path) -> None:
    (tmp_path / "a.trt").write_bytes(b"something else altogether, of some length")
    with pytest.raises(YolactDeployError, match="is not a TensorRT engine"):
        load(tmp_path / "a.trt")
