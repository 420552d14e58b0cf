"""Chains of one-kernel plugins: launches for any batch, run in the emulator and compared with NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_emu import emulate

from yolact_deploy import postprocess
from yolact_deploy.errors import ConfigError, ExportError
from yolact_deploy.ops import FAST_NMS, FLOAT16, FLOAT32, MASK_ASSEMBLY
from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan
from yolact_deploy.runtime.plugins import aot_stages as module
from yolact_deploy.runtime.plugins.aot_stages import Extent, Stage, stages_of
from yolact_deploy.runtime.plugins.node_plans import output_dtypes, plan_for, workspace

PRIORS, CLASSES, COEFFICIENTS, SLOTS = 300, 6, 8, 40
NMS_SHAPES = ((None, PRIORS, 4), (None, PRIORS, CLASSES), (None, PRIORS, COEFFICIENTS))
F32 = ("float32", "float32", "float32")

needs_compiler = pytest.mark.skipif(not emulate.available(), reason="no g++")


def nms_chain(batch: int = 1, **attributes: Any) -> list[Stage]:
    values = FAST_NMS.attribute_values({"top_k": 50, "max_detections": SLOTS, **attributes})
    return stages_of(FAST_NMS, NMS_SHAPES, F32, values, batch=batch, arch="75")


def mask_chain(
    batch: int = 1, *, height: int = 20, width: int = 24, half: bool = False, slots: int = SLOTS
) -> list[Stage]:
    shapes = ((None, height, width, COEFFICIENTS), (None, slots, COEFFICIENTS), (None, slots, 4))
    values = MASK_ASSEMBLY.attribute_values({"mask_dtype": FLOAT16 if half else FLOAT32})
    dtypes = ("float16" if half else "float32", *F32[1:])
    return stages_of(MASK_ASSEMBLY, shapes, dtypes, values, batch=batch, arch="75")


def test_names_of_kernels_are_short() -> None:
    """TensorRT 10.9 to 10.13 keeps a pointer into the string, which is dangling if it has more than 15 bytes."""
    names = {stage.launch.kernel for chain in (nms_chain(), nms_chain(cross_class=1), mask_chain()) for stage in chain}
    assert len(names) >= 4
    assert [name for name in names if len(name.encode()) > 15] == []


def run_chain(chain: list[Stage], batch: int, arrays: dict[str, Any], seed: int = 0) -> None:
    """TensorRT's part: evaluate the expressions, and pass inputs, scalars and outputs."""
    launches = tuple(
        Launch(
            stage.launch.source,
            stage.launch.kernel,
            tuple(extent.of(batch) for extent in stage.grid),  # type: ignore[arg-type]
            stage.launch.block,
            stage.launch.shared_bytes,
            (*stage.inputs, *(np.int32(extent.of(batch)) for extent in stage.scalars), *stage.outputs),
            stage.launch.defines,
        )
        for stage in chain
    )
    tensors = {name: stage for stage in chain for name in (*stage.inputs, *stage.outputs)}
    between = {
        name: np.prod((batch, *stage.shape(name)), dtype=int).item() * 4
        for name, stage in tensors.items()
        if name not in arrays
    }
    assert all(tensors[name].dtype(name) == "int32" for name in between)
    for name in set(arrays) & set(tensors):
        assert arrays[name].shape == (batch, *tensors[name].shape(name))
        assert arrays[name].dtype == tensors[name].dtype(name)
    emulate.run_plan(LaunchPlan(launches, between, 0, 0), arrays, seed=seed)


def random_heads(seed: int, images: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    corner = rng.random((images, PRIORS, 2))
    boxes = np.concatenate([corner, corner + 0.05 + 0.2 * rng.random((images, PRIORS, 2))], axis=2)
    heads = {
        "boxes": boxes,
        "scores": rng.random((images, PRIORS, CLASSES)) ** 6,
        "coeff": rng.standard_normal((images, PRIORS, COEFFICIENTS)),
    }
    return {name: array.astype(np.float32) for name, array in heads.items()}


def outputs_for(chain: list[Stage], batch: int) -> dict[str, Any]:
    """Arrays of garbage, as plugins receive them."""
    last = chain[-1]
    return {
        tensor.name: np.full((batch, *last.shape(tensor.name)), 77, last.dtype(tensor.name))
        for tensor in last.op.outputs
    }


@needs_compiler
@pytest.mark.parametrize("cross_class", [0, 1])
@pytest.mark.parametrize(("usual", "batch"), [(1, 1), (1, 3), (2, 3), (4, 1)])
def test_fast_nms_chain(cross_class: int, usual: int, batch: int) -> None:
    chain = nms_chain(usual, cross_class=cross_class, max_detections=50 if cross_class else SLOTS)
    heads = random_heads(batch, batch)
    heads["scores"][0] *= 0.1  # few are left
    if batch > 2:
        heads["scores"][1] = 0.01  # none
    made = outputs_for(chain, batch)
    run_chain(chain, batch, {**heads, **made}, seed=usual)
    for image in range(batch):
        want = postprocess.detect(
            *(heads[name][image] for name in ("boxes", "scores", "coeff")),
            top_k=50, max_detections=SLOTS, nms="cross-class" if cross_class else "fast",
        )  # fmt: skip
        count = len(want.scores)
        assert made["num_detections"][image] == count
        names = ("out_boxes", "out_scores", "out_labels", "out_coeff")
        for name, expected in zip(names, want, strict=True):
            np.testing.assert_array_equal(made[name][image][:count], expected, err_msg=name)
            assert not made[name][image][count:].any()


@needs_compiler
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("usual", "batch"), [(1, 1), (1, 3), (2, 1), (8, 3)])
def test_mask_chain(half: bool, usual: int, batch: int) -> None:
    """Large prototypes, so that the launch is tuned to the batch, which must not change the masks."""
    height, width, slots = 90, 100, 60
    chain = mask_chain(usual, height=height, width=width, half=half, slots=slots)
    rng = np.random.default_rng(batch)
    proto = np.maximum(rng.standard_normal((batch, height, width, COEFFICIENTS)), 0).astype(chain[0].dtypes[0])
    coeff = rng.standard_normal((batch, slots, COEFFICIENTS)).astype(np.float32)
    boxes = np.sort(rng.random((batch, slots, 2, 2)), axis=2).reshape(batch, slots, 4).astype(np.float32)
    boxes[:, -5:] = 0  # as of empty slots
    made = outputs_for(chain, batch)
    run_chain(chain, batch, {"proto": proto, "coeff": coeff, "boxes": boxes, **made})
    for image in range(batch):
        want = postprocess.assemble_masks(proto[image].astype(np.float32), coeff[image], boxes[image])
        np.testing.assert_allclose(made["masks"][image], want, atol=1e-3 if half else 1e-6)
        assert not made["masks"][image][want < 1e-30].any()  # outside


@pytest.mark.parametrize("usual", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_launches_of_fast_nms_are_those_of_the_plan(usual: int, batch: int) -> None:
    chain = nms_chain(usual)
    plan = plan_for(FAST_NMS, [(batch, *shape[1:]) for shape in NMS_SHAPES], F32, chain[0].attributes)
    assert len(chain) == len(plan.launches) == 3
    for stage, launch in zip(chain, plan.launches, strict=True):
        assert tuple(extent.of(batch) for extent in stage.grid) == launch.grid
        scalars = tuple(np.int32(extent.of(batch)) for extent in stage.scalars)
        assert (*stage.inputs, *scalars, *stage.outputs) == launch.arguments
        for name, nbytes in plan.scratch.items():
            assert 4 * batch * stage.shape(name)[0] == nbytes


def test_masks_have_the_grid_of_the_usual_batch() -> None:
    for usual in (1, 2, 8):
        (stage,) = mask_chain(usual, height=138, width=138, slots=100)
        assert stage.grid == (
            Extent(stage.launch.grid[0], per_image=False),
            Extent(stage.launch.grid[1], per_image=False),
            Extent(1, per_image=True),
        )
        assert not any(extent.per_image for extent in stage.scalars)
    assert mask_chain(1, height=138, width=138, slots=100)[0].launch.grid[1] > stage.launch.grid[1]


def test_plugins_differ_by_what_is_built_in() -> None:
    chains = [nms_chain(), nms_chain(2), nms_chain(cross_class=1), nms_chain(iou_threshold=0.6), mask_chain(half=True)]
    chains += [mask_chain(), [replace(stage, arch="90") for stage in nms_chain()]]
    names = [stage.plugin_name for chain in chains for stage in chain]
    assert len(set(names)) == len(names)
    assert [stage.plugin_name for stage in nms_chain()] == names[:3]
    assert names[0].startswith("PriorBest_")
    assert nms_chain()[0].plugin_id == f"yolact::{names[0]}"


def test_largest_batches() -> None:
    for batch in (1, 256, 1024):
        assert len(nms_chain(batch)) == 3
        assert len(mask_chain(batch)) == 1


def fake_plan(monkeypatch: pytest.MonkeyPatch, launch: Any) -> None:
    monkeypatch.setattr(
        module, "plan_for", lambda op, shapes, dtypes, attributes: LaunchPlan((launch(shapes[0][0]),), {}, 0, 0)
    )


def test_kernels_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(batch: int, **changes: Any) -> Launch:
        given: dict[str, Any] = {"arguments": ("scores", np.int32(1), "out"), "shared_bytes": 0, **changes}
        return Launch("a.cu", "kernel", (batch, 1, 1), (32, 1, 1), **given)

    fake_plan(monkeypatch, plain)
    assert nms_chain()[0].inputs == ("scores",)
    fake_plan(monkeypatch, lambda batch: plain(batch, shared_bytes=min(batch, 9)))
    with pytest.raises(ExportError, match="not only the grid of kernel depends on the batch: build with --plugin off"):
        nms_chain()
    for wrong in (("scores", np.int32(1), "out", np.int32(1)), ("scores", np.int64(1), "out")):
        fake_plan(monkeypatch, lambda batch, wrong=wrong: plain(batch, arguments=wrong))
        with pytest.raises(ExportError, match="expected arguments in the order inputs, int32 scalars, outputs"):
            _ = nms_chain()[0].inputs


def test_sizes_that_the_kernels_do_not_take() -> None:
    with pytest.raises(ConfigError, match="top_k"):
        nms_chain(top_k=10**6)


# -- plans ----------------------------------------------------------------------------------------------------------


def test_plans_check_dtypes() -> None:
    with pytest.raises(ValueError, match="FastNMS: expected scores of float32, got float16"):
        plan_for(FAST_NMS, [(1, *s[1:]) for s in NMS_SHAPES], ("float32", "float16", "float32"), {})
    with pytest.raises(ValueError, match="expected proto of float32 or float16, got int32"):
        plan_for(MASK_ASSEMBLY, [], ("int32", "float32", "float32"), {})


def test_output_dtypes() -> None:
    assert output_dtypes(FAST_NMS, {}) == ["int32", "float32", "float32", "int32", "float32"]
    assert output_dtypes(MASK_ASSEMBLY, {"mask_dtype": FLOAT16}) == ["float16"]
    assert output_dtypes(MASK_ASSEMBLY, MASK_ASSEMBLY.attribute_values({})) == ["float32"]


def test_workspace() -> None:
    layout = workspace(LaunchPlan((), {"a": 1, "b": 256, "c": 257}, 0, 0))
    assert layout.pointers(0) == {"a": 0, "b": 256, "c": 512}
    assert layout.nbytes == 1024
