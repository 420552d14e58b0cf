"""The kernel of mask assembly in the emulator, compared with NumPy at odd sizes, dtypes and boxes.

Legend: N images, D detection slots, K coefficients, h x w prototypes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emu import emulate

from yolact_deploy import postprocess
from yolact_deploy.benchmarks.scenarios.scene import make_scene
from yolact_deploy.config import get_config
from yolact_deploy.runtime.cuda.plans import plan_masks

pytestmark = pytest.mark.skipif(not emulate.available(), reason="needs g++ with C++20")

UNWRITTEN = -7.0  # no probability


def run_masks(
    proto: Any,
    coeff: Any,
    boxes: Any,
    *,
    mask_dtype: str = "float32",
    run: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Masks [N,D,h,w] of proto [N,h,w,K], coeff [N,D,K], boxes [N,D,4]; ``run``: arguments of the emulator."""
    (batch, height, width, num), detections = proto.shape, coeff.shape[1]
    plan = plan_masks.mask_assembly(
        *(batch, detections, height, width, num), proto_dtype=str(proto.dtype), mask_dtype=mask_dtype, **options
    )
    masks = np.full((batch, detections, height, width), UNWRITTEN, mask_dtype)
    emulate.run_plan(plan, {"proto": proto, "coeff": coeff, "boxes": boxes, "masks": masks}, **(run or {}))
    return masks


def inside_of(boxes: Any, height: int, width: int, *, padding: float = 1.0) -> Any:
    """Pixels [..., h, w] within padded boxes [..., 4], by float32 comparison, as in the paper's crop."""
    x1, y1, x2, y2 = np.moveaxis(boxes.astype(np.float32), -1, 0)[..., None, None]
    sides = np.float32(width), np.float32(height), np.float32(padding)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    left, right = (
        np.minimum(x1 * sides[0], x2 * sides[0]) - sides[2],
        np.maximum(x1 * sides[0], x2 * sides[0]) + sides[2],
    )
    top, bottom = (
        np.minimum(y1 * sides[1], y2 * sides[1]) - sides[2],
        np.maximum(y1 * sides[1], y2 * sides[1]) + sides[2],
    )
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def expected(proto: Any, coeff: Any) -> tuple[Any, Any]:
    """Probabilities [N,D,h,w] in float64, and the largest rounding error of float32 for each."""
    wide, factors = proto.astype(np.float64), coeff.astype(np.float64)
    logits = np.einsum("nhwk,ndk->ndhw", wide, factors)
    sizes = np.einsum("nhwk,ndk->ndhw", abs(wide), abs(factors))
    probabilities = 1 / (1 + np.exp(-logits.clip(-700)))
    return probabilities, 2e-7 + 2.0**-23 * sizes * probabilities * (1 - probabilities) * proto.shape[-1] ** 0.5


def assert_masks(masks: Any, proto: Any, coeff: Any, boxes: Any, *, outside: float = 0.0, padding: float = 1.0) -> None:
    """Each pixel inside equals the probability within rounding; each pixel outside equals ``outside``."""
    inside = inside_of(boxes, *proto.shape[1:3], padding=padding)
    probabilities, slack = expected(proto, coeff)
    if masks.dtype == np.float16:
        slack = slack + probabilities * 2.0**-11 + 2.0**-25
    assert (abs(masks.astype(np.float64) - probabilities) <= slack)[inside].all()
    assert (masks[~inside] == outside).all()


def make_inputs(
    seed: int, batch: int, detections: int, height: int, width: int, num: int, *, dtype: str = "float32"
) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    proto = np.maximum(rng.normal(0.3, 1, (batch, height, width, num)), 0).astype(dtype)
    coeff = rng.uniform(-1, 1, (batch, detections, num)).astype(np.float32)
    corner = rng.random((batch, detections, 2))
    boxes = np.concatenate([corner, corner + rng.random((batch, detections, 2)) ** 2 * 0.6], axis=2).astype(np.float32)
    return proto, coeff, boxes


ODD_BOXES = np.array(
    [
        [0.2, 0.3, 0.7, 0.8],
        [0.7, 0.8, 0.2, 0.3],  # corners swapped
        [-3, -3, 5, 5],
        [0, 0, 1, 1],
        [2, 2, 3, 3],  # outside
        [-2, 0.2, -1.5, 0.6],
        [0, 0, 0, 0],  # an empty slot: its padding leaves pixel (0, 0)
        [0.5, 0.5, 0.5, 0.5],
        [np.nan, 0, 1, 1],
        [0, np.nan, 1, 1],
        [0, 0, np.nan, 1],
        [0, 0, 1, np.nan],
        [-np.inf, 0, np.inf, 1],
        [np.inf, 0, np.inf, 1],
        [0, -np.inf, 1, -np.inf],
        [1e30, 1e30, 2e38, 3e38],
        [0.25, 0.25, 0.5, 0.5],  # edges on pixels
        [np.nextafter(np.float32(0.25), 1), 0.25, np.nextafter(np.float32(0.5), 0), np.nextafter(np.float32(0.5), 1)],
    ],
    np.float32,
)


@pytest.mark.parametrize(("proto_dtype", "mask_dtype"), [("float32", "float32"), ("float16", "float16")])
def test_scene_of_real_size(proto_dtype: str, mask_dtype: str) -> None:
    """h = w = 138, K = 32, D = 100, compared with NumPy's masks."""
    scene = make_scene(get_config("yolact_resnet50"))
    detected = postprocess.detect(*scene[:3])
    assert len(detected.scores) == 100
    proto, coeff, boxes = scene.proto[None].astype(proto_dtype), detected.coeff[None], detected.boxes[None]
    masks = run_masks(proto, coeff, boxes, mask_dtype=mask_dtype)
    assert_masks(masks, proto, coeff, boxes)
    numpy_masks = postprocess.assemble_masks(proto[0].astype(np.float32), detected.coeff, detected.boxes)
    # The scene's coefficients are in the thousands, so that NumPy's own rounding shows too; a float16 adds 2.4e-4.
    np.testing.assert_allclose(masks[0], numpy_masks, atol=1e-3 if mask_dtype == "float32" else 1.5e-3)
    assert ((masks[0] > 0.5) == (numpy_masks > 0.5)).mean() > 0.99999


@pytest.mark.parametrize("zero_outside", [True, False])
@pytest.mark.parametrize(
    ("shape", "proto_dtype", "mask_dtype"),
    [
        ((1, 1, 1, 1, 4), "float32", "float32"),
        ((3, 37, 9, 11, 32), "float32", "float32"),
        ((2, 33, 7, 19, 32), "float16", "float16"),
        ((2, 5, 31, 33, 32), "float16", "float32"),
        ((2, 5, 31, 33, 32), "float32", "float16"),
        ((2, 3, 13, 5, 7), "float32", "float32"),
        ((2, 3, 13, 5, 7), "float16", "float16"),
        ((2, 3, 13, 5, 4), "float16", "float32"),
        ((2, 17, 20, 12, 80), "float32", "float32"),
        ((1, 2, 12, 11, 128), "float16", "float32"),
        ((1, 2, 12, 11, 128), "float32", "float32"),
    ],
    ids=str,
)
def test_shapes_and_dtypes(shape: Any, proto_dtype: str, mask_dtype: str, zero_outside: bool) -> None:
    proto, coeff, boxes = make_inputs(sum(shape), *shape, dtype=proto_dtype)
    masks = run_masks(proto, coeff, boxes, mask_dtype=mask_dtype, zero_outside=zero_outside)
    assert_masks(masks, proto, coeff, boxes, outside=0.0 if zero_outside else UNWRITTEN)


@pytest.mark.parametrize("zero_outside", [True, False])
@pytest.mark.parametrize("padding", [1.0, 0.0, 2.5])
@pytest.mark.parametrize(("height", "width"), [(8, 16), (25, 25), (3, 140)])
def test_odd_boxes(height: int, width: int, padding: float, zero_outside: bool) -> None:
    proto, coeff, _ = make_inputs(1, 1, len(ODD_BOXES), height, width, 32)
    boxes = ODD_BOXES[None]
    masks = run_masks(proto, coeff, boxes, padding=padding, zero_outside=zero_outside)
    with np.errstate(invalid="ignore", over="ignore"):
        assert_masks(masks, proto, coeff, boxes, outside=0.0 if zero_outside else UNWRITTEN, padding=padding)


def test_crop_is_that_of_numpy() -> None:
    """The kernel writes the pixels of crop_windows, NaN included, for boxes with edges on and next to pixels."""
    rng = np.random.default_rng(2)
    edges = rng.integers(-2, 20, (300, 4)) / np.float32(17)
    boxes = np.concatenate([ODD_BOXES, np.nextafter(edges, rng.choice([-1, 1], edges.shape).astype(np.float32)), edges])
    proto, coeff, _ = make_inputs(2, 1, len(boxes), 17, 17, 4)
    masks = run_masks(proto, coeff, boxes[None].astype(np.float32), zero_outside=False)[0]
    with np.errstate(over="ignore"):
        windows = postprocess.crop_windows(boxes.astype(np.float32), 17, 17)
    for mask, (x1, y1, x2, y2) in zip(masks, windows, strict=True):
        written = np.zeros((17, 17), bool)
        written[y1:y2, x1:x2] = True
        np.testing.assert_array_equal(mask != UNWRITTEN, written)


def test_large_logits_neither_overflow_nor_give_nan() -> None:
    proto = np.full((1, 4, 4, 4), 1e4, np.float32)
    coeff = np.array([[[1e4] * 4, [-1e4] * 4, [3e38] * 4, [-3e38] * 4, [0] * 4]], np.float32)
    masks = run_masks(proto, coeff, np.tile(np.array([0, 0, 1, 1], np.float32), (1, 5, 1)))
    np.testing.assert_array_equal(masks[0, :, 0, 0], [1, 0, 1, 0, 0.5])


@pytest.mark.parametrize("detections", [1, 16, 40, 100])
def test_groups_of_detections_give_the_same_masks(detections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(3, 2, detections, 12, 13, 32)
    together = run_masks(*inputs)
    monkeypatch.setattr(plan_masks, "ENOUGH_BLOCKS", 10_000)
    groups = plan_masks.mask_assembly(2, detections, 12, 13, 32).launches[0].grid[1]
    assert groups == -(-detections // 16)
    np.testing.assert_array_equal(run_masks(*inputs), together)


@pytest.mark.parametrize("zero_outside", [True, False])
def test_the_order_of_threads_does_not_matter(zero_outside: bool) -> None:
    inputs = make_inputs(4, 2, 40, 21, 22, 32, dtype="float16")
    first = run_masks(*inputs, zero_outside=zero_outside)
    for seed in range(1, 9):
        np.testing.assert_array_equal(run_masks(*inputs, zero_outside=zero_outside, run={"seed": seed}), first)


@pytest.mark.parametrize("mode", ["race", "address"])
@pytest.mark.parametrize(("shape", "dtype"), [((2, 3, 9, 21, 32), "float32"), ((2, 3, 9, 21, 7), "float16")], ids=str)
def test_sanitizers_find_nothing(shape: Any, dtype: str, mode: str) -> None:
    if not emulate.available(mode):
        pytest.skip("this g++ lacks the sanitizer")
    inputs = make_inputs(5, *shape, dtype=dtype)
    masks = run_masks(*inputs, mask_dtype=dtype, run={"mode": mode})
    np.testing.assert_array_equal(masks, run_masks(*inputs, mask_dtype=dtype))


@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
def test_the_missing_barrier_is_caught() -> None:
    text = (emulate.KERNELS / plan_masks.SOURCE).read_text()
    assert text.count("__syncwarp();") == 1
    edits = {plan_masks.SOURCE: text.replace("__syncwarp();", "")}
    with pytest.raises(emulate.EmulationError, match="data race"):
        run_masks(*make_inputs(6, 1, 3, 9, 21, 32), run={"mode": "race", "edits": edits})
