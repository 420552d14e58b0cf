"""The kernels of paste in the emulator: equal to the original's masks, and to paste.py bit for bit.

Legend: N images, D detection slots, h x w prototypes, H x W image size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_emu import emulate

from yolact_deploy.benchmarks.scenarios.scene import make_scene
from yolact_deploy.config import get_config
from yolact_deploy.errors import BackendError, ConfigError
from yolact_deploy.mask_forms import MaskCrops, MaskWindows, sigmoid
from yolact_deploy.paste import paste_windows
from yolact_deploy.postprocess import assemble_masks, crop_windows, detect
from yolact_deploy.priors import Placement, place_in
from yolact_deploy.runtime.cuda.plans import plan_paste

pytestmark = pytest.mark.skipif(not emulate.available(), reason="needs g++ with C++20")

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
GARBAGE = 0x5A
WHOLE = 1e6  # a padding that covers the whole image

SIZES = [
    (8, 8, 8, 8), (8, 8, 16, 16), (8, 8, 37, 53), (9, 7, 61, 29), (5, 6, 1, 1), (16, 16, 5, 3), (16, 16, 1, 64),
    (16, 16, 64, 1), (1, 1, 20, 30), (1, 9, 20, 30), (9, 1, 20, 30), (138, 138, 97, 211), (138, 138, 480, 640),
    (2, 2, 3, 3), (17, 17, 16, 18), (3, 3, 2, 1000), (1, 2, 700, 33),
]  # fmt: skip


class Pasted(NamedTuple):
    """Outputs of the kernels for a batch."""

    windows: Any  #: int32 [N,D,6]
    words_needed: Any  #: int32 [N]
    bits: Any  #: uint32 [N,capacity]

    def crops(self, image: int, num: int, size: tuple[int, int]) -> MaskCrops:
        return plan_paste.unpack(self.windows[image], self.bits[image], num, *size)


def run_paste(
    masks: Any,
    boxes: Any,
    num: Any,
    sizes: Any,
    *,
    where: list[Placement] | None = None,
    capacity: int = 0,
    padding: float = 1.0,
    **run: Any,
) -> Pasted:
    """Masks [N,D,h,w], boxes [N,D,4], num [N] and sizes [N,2] through the kernels; by default everything fits."""
    (batch, slots, height, width), sizes = masks.shape, np.asarray(sizes, np.int32)
    scores = np.ones((batch, slots), np.float32)
    capacity = capacity or slots * max(h * -(-w // 32) for h, w in sizes.tolist())
    pasted = Pasted(
        np.empty((batch, slots, 6), np.int32), np.empty(batch, np.int32), np.empty((batch, capacity), np.uint32)
    )
    for array in pasted:
        array.view(np.uint8)[...] = GARBAGE
    dtype = masks.dtype.name
    placements = np.array(where or [Placement.whole(*size) for size in sizes.tolist()], np.int32)
    plan = plan_paste.paste(batch, slots, height, width, mask_dtype=dtype, capacity_words=capacity, padding=padding)
    inputs = {"masks": masks, "boxes": boxes, "num_detections": np.asarray(num, np.int32), "placements": placements}
    inputs |= {"scores": scores, "labels": np.zeros((batch, slots), np.int32)}
    emulate.run_plan(plan, {**inputs, **pasted._asdict(), **found_arrays(batch, slots)}, **run)
    return pasted


def found_arrays(batch: int, slots: int) -> dict[str, Any]:
    """What the host gets besides the bits, filled with garbage."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "wanted": ((batch,), np.int32),
        "found_windows": ((batch, slots, 6), np.int32),
        "found_boxes": ((batch, slots, 4), np.float32),
        "found_scores": ((batch, slots), np.float32),
        "found_labels": ((batch, slots), np.int32),
        "found_mask_scores": ((batch, slots), np.float32),
    }
    return {name: np.full(shape, -5, dtype) for name, (shape, dtype) in shapes.items()}


def paste_image(masks: Any, boxes: Any, size: tuple[int, int], **options: Any) -> MaskCrops:
    """One image: masks [n,h,w], boxes [n,4]."""
    return run_paste(masks[None], boxes[None], [len(masks)], [size], **options).crops(0, len(masks), size)


def cropped(masks: Any, boxes: Any) -> Any:
    """Masks [n,h,w], 0 outside the padded boxes."""
    out = np.zeros_like(masks)
    for one, mask, (x1, y1, x2, y2) in zip(out, masks, crop_windows(boxes, *masks.shape[1:]), strict=True):
        one[y1:y2, x1:x2] = mask[y1:y2, x1:x2]
    return out


def expected(masks: Any, boxes: Any, size: tuple[int, int]) -> Any:
    """The result of paste.py, bool [n,H,W]."""
    return paste_windows(MaskWindows.from_dense(cropped(masks, boxes)), *size).full()


def random_masks(seed: int, num: int, height: int, width: int) -> Any:
    """Probabilities [n,h,w]: half of them noise, half smooth; nothing is 0 outside any box."""
    rng = np.random.default_rng(seed)
    masks = rng.random((num, height, width), np.float32)
    y, x = np.mgrid[0:height, 0:width] / np.float32(max(height, width))
    for mask, (a, b, c) in zip(masks[::2], rng.random((num, 3)), strict=False):
        mask[...] = sigmoid((8 * np.sin(9 * (a * x + b * y) + 6 * c)).astype(np.float32))
    return masks


def random_boxes(seed: int, num: int) -> Any:
    """Boxes [n,4] of all sizes: some outside the image, some with swapped corners, some tiny."""
    rng = np.random.default_rng(seed)
    center, side = rng.uniform(-0.1, 1.1, (num, 2)), rng.uniform(-0.5, 0.5, (num, 2)) ** 3 * 4
    return np.concatenate([center - side, center + side], axis=1).astype(np.float32)


def check_windows(windows: Any, crops: Any, size: tuple[int, int]) -> int:
    """Check that windows [n,6] are inside the image, consecutive and no larger than their boxes; returns words."""
    first = 0
    for x, y, width, height, row_words, first_word in windows.tolist():
        if width == 0:
            assert (x, y, height, row_words, first_word) == (0, 0, 0, 0, 0)
            continue
        assert (x % 8, row_words, first_word) == (0, -(-width // 32), first)
        assert x >= 0
        assert y >= 0
        assert width > 0
        assert height > 0
        assert x + width <= size[1]
        assert y + height <= size[0]
        first += height * row_words
    assert len(crops) == len(windows)
    return first


# -- against the original, and paste.py -------------------------------------------------------------------------------


def golden_cases() -> list[Any]:
    cases = []
    for path in sorted(GOLDEN.glob("pure_*.npz")):
        with np.load(path) as golden:
            names = [name for name in ("post", "post_nocrop") if f"{name}.proto" in golden.files]
        cases += [pytest.param(path, name, id=f"{path.stem}-{name}") for name in names]
    return cases


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name"), golden_cases())
def test_kernels_equal_the_original(path: Path, name: str) -> None:
    with np.load(path) as golden:
        case = {key.removeprefix(f"{name}."): golden[key] for key in golden.files if key.startswith(f"{name}.")}
    keep = case["scores"] > case["thr"]
    width, height = (int(v) for v in case["wh"])
    masks = assemble_masks(case["proto"], case["coef"][keep], None)  # the kernel itself ignores pixels outside
    padding = WHOLE if name == "post_nocrop" else 1.0
    crops = paste_image(masks, case["boxes"][keep], (height, width), padding=padding)
    np.testing.assert_array_equal(crops.packed(), case["out.mask_packed"])
    np.testing.assert_array_equal(crops.areas(), case["out.area"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernels_equal_numpy(size: tuple[int, int, int, int], dtype: str) -> None:
    """Masks are full of ones outside the boxes, which must not be read."""
    masks, boxes = random_masks(1, 24, *size[:2]).astype(dtype), random_boxes(2, 24)
    inside = cropped(np.ones_like(masks), boxes) > 0
    masks[~inside] = 1
    pasted = run_paste(masks[None], boxes[None], [24], [size[2:]])
    crops = pasted.crops(0, 24, size[2:])
    want = expected(masks, boxes, size[2:])
    np.testing.assert_array_equal(crops.full(), want)
    np.testing.assert_array_equal(crops.packed(), np.packbits(want, axis=-1))
    assert crops.rle() == MaskCrops(*size[2:], np.zeros((24, 2), int), tuple(want)).rle()
    assert check_windows(pasted.windows[0], crops, size[2:]) == pasted.words_needed[0]
    masks[~inside] = np.nan
    assert run_paste(masks[None], boxes[None], [24], [size[2:]]).bits.tobytes() == pasted.bits.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [(480, 640), (138, 138), (97, 100)], ids=str)
def test_scene_equals_numpy(size: tuple[int, int], dtype: str) -> None:
    scene = make_scene(get_config("yolact_resnet50"), objects=60)
    detected = detect(*scene[:3])
    masks = assemble_masks(scene.proto, detected.coeff, None).astype(dtype)
    crops = paste_image(masks, detected.boxes, size)
    want = expected(masks, detected.boxes, size)
    assert len(want) > 50
    assert want.any(axis=(1, 2)).mean() > 0.8
    np.testing.assert_array_equal(crops.full(), want)


def test_probabilities_at_the_threshold() -> None:
    """Values around 0.5: a cell whose corners are all above it is inside, whatever the rounding."""
    near = np.array([np.nextafter(np.float32(0.5), 0), 0.5, np.nextafter(np.float32(0.5), 1)], np.float32)
    masks = np.random.default_rng(3).choice(near, (12, 9, 9)).astype(np.float32)
    masks[0], masks[1] = near[2], near[1]
    boxes = np.tile(np.array([[0, 0, 1, 1]], np.float32), (12, 1))
    for size in ((40, 61), (9, 9), (5, 7)):
        full = paste_image(masks, boxes, size).full()
        np.testing.assert_array_equal(full, expected(masks, boxes, size))
        assert full[0].all()
        assert not full[1].any()


def test_nan_inside_a_mask() -> None:
    masks, boxes = random_masks(4, 6, 12, 12), random_boxes(5, 6)
    masks[:, 3:6, 4:8] = np.nan
    np.testing.assert_array_equal(paste_image(masks, boxes, (50, 61)).full(), expected(masks, boxes, (50, 61)))


@pytest.mark.parametrize("width", [121, 291, 346, 566])
def test_pixels_on_prototype_pixels(width: int) -> None:
    """At these sizes rounding decides where a cell starts: NaN in the previous cell must not leak into it."""
    masks = np.ones((138, 2, 138), np.float32)
    masks[np.arange(138), :, np.arange(138)] = np.nan
    boxes = np.tile(np.array([[0, 0, 1, 1]], np.float32), (138, 1))
    np.testing.assert_array_equal(paste_image(masks, boxes, (3, width)).full(), expected(masks, boxes, (3, width)))


# -- boxes ------------------------------------------------------------------------------------------------------------

BOXES = {
    "whole": [0, 0, 1, 1],
    "turned round": [0.9, 0.8, 0.1, 0.2],
    "a point": [0.5, 0.5, 0.5, 0.5],
    "tiny": [0.31, 0.31, 0.3101, 0.3101],
    "the corner": [1, 1, 1, 1],
    "one pixel beyond": [1.07, 0.2, 2, 0.4],
    "just beyond": [1 + 1 / 16, 0.2, 2, 0.4],
    "left of the image": [-3, 0.2, -2, 0.4],
    "below the image": [0.1, 5, 0.4, 6],
    "huge": [-1e30, -1e30, 1e30, 1e30],
    "largest": [-3e38, -3e38, 3e38, 3e38],
    "infinite": [-np.inf, -np.inf, np.inf, np.inf],
    "half infinite": [0.5, -np.inf, np.inf, 0.5],
    "infinitely far": [np.inf, 0, np.inf, 1],
    "all NaN": [np.nan] * 4,
    "NaN at left": [np.nan, 0, 1, 1],
    "NaN at top": [0, np.nan, 1, 1],
    "NaN at right": [0, 0, np.nan, 1],
    "NaN at bottom": [0, 0, 1, np.nan],
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("size", [(16, 16, 100, 130), (16, 16, 16, 16), (16, 16, 7, 5), (1, 1, 40, 50)], ids=str)
def test_odd_boxes(name: str, size: tuple[int, int, int, int]) -> None:
    """Between two ordinary masks, which must not be affected."""
    h, w, height, width = size
    masks = np.ones((3, h, w), np.float32)
    boxes = np.array([[0.1, 0.1, 0.5, 0.5], BOXES[name], [0.4, 0.3, 0.8, 0.9]], np.float32)
    with np.errstate(over="ignore"):
        want = expected(masks, boxes, (height, width))
    pasted = run_paste(masks[None], boxes[None], [3], [(height, width)])
    np.testing.assert_array_equal(pasted.crops(0, 3, (height, width)).full(), want)
    if "NaN" in name or name in ("left of the image", "below the image", "infinitely far"):
        assert not pasted.windows[0, 1].any()
    if name in ("whole", "huge", "largest", "infinite"):
        assert pasted.windows[0, 1, :4].tolist() == [0, 0, width, height]
        assert want[1].all()


def test_windows_are_no_larger_than_need_be() -> None:
    """The padded box, less half a prototype pixel on each side; columns start at whole bytes."""
    masks, box = np.ones((1, 100, 100), np.float32), np.array([[0.33, 0.47, 0.52, 0.61]], np.float32)
    pasted = run_paste(masks[None], box[None], [1], [(1000, 2000)])
    # Prototype columns 32 .. 52 and rows 46 .. 61, each 20 columns wide and 10 rows high.
    assert pasted.windows[0, 0, :4].tolist() == [640, 460, 420, 160]
    crop = pasted.crops(0, 1, (1000, 2000)).crops[0]
    assert crop[80].all()
    assert crop[:, 210].all()


def edges(bounds: Any, source: int, target: int) -> tuple[set[int], set[int]]:
    """Possible start and end of a window with prototype pixels start .. stop - 1 and half of their neighbors."""
    start, stop = (int(v) for v in bounds)
    close = 1e-3  # a pixel in the middle between two may fall on either side
    first, last = (
        {min(max(math.ceil(at * target / source - 0.5 + e), 0), target) for e in (-close, close)}
        for at in (start, stop)
    )
    return first, {target} if stop == source else last


def test_windows_are_as_the_boxes_want() -> None:
    rng, seen = np.random.default_rng(6), 0
    for seed in range(60):
        h, w, height, width = rng.integers(1, [40, 40, 300, 300]).tolist()
        boxes = random_boxes(seed, 8)
        masks = np.ones((1, 8, h, w), np.float32)
        windows = run_paste(masks, boxes[None], [8], [(height, width)]).windows[0].tolist()
        for window, bounds in zip(windows, crop_windows(boxes, h, w), strict=True):
            if window[2] == 0:
                continue
            x, y = edges(bounds[0::2], w, width), edges(bounds[1::2], h, height)
            assert window[0] in {first // 8 * 8 for first in x[0]}
            assert window[0] + window[2] in x[1]
            assert window[1] in y[0]
            assert window[1] + window[3] in y[1]
            seen += 1
    assert seen > 100


# -- batches, numbers, room -------------------------------------------------------------------------------------------


def test_images_of_different_sizes_and_numbers() -> None:
    """Slots past the number are garbage; the number is clamped to 0 .. slots."""
    sizes, numbers = [(100, 60), (1, 1), (31, 200), (64, 64), (5, 5)], [7, 9, 0, 99, -3]
    rng = np.random.default_rng(7)
    masks, boxes = rng.random((5, 9, 12, 10), np.float32), np.stack([random_boxes(i, 9) for i in range(5)])
    pasted = run_paste(masks, boxes, numbers, sizes)
    for i, (size, number) in enumerate(zip(sizes, numbers, strict=True)):
        count = min(max(number, 0), 9)
        crops = pasted.crops(i, count, size)
        np.testing.assert_array_equal(crops.full(), expected(masks[i, :count], boxes[i, :count], size))
        assert check_windows(pasted.windows[i, :count], crops, size) == pasted.words_needed[i]
        assert not pasted.windows[i, count:].any()
        untouched = pasted.bits[i, pasted.words_needed[i] :].view(np.uint8)
        assert (untouched == GARBAGE).all()


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-4, -4)])
def test_an_image_without_pixels(size: tuple[int, int]) -> None:
    masks, boxes = random_masks(8, 4, 6, 6), random_boxes(9, 4)
    pasted = run_paste(masks[None], boxes[None], [4], [size], capacity=10)
    assert not pasted.windows.any()
    assert pasted.words_needed.tolist() == [0]
    assert (pasted.bits.view(np.uint8) == GARBAGE).all()


def test_more_detections_than_threads() -> None:
    num = 2 * plan_paste.THREADS + 77
    masks, boxes = random_masks(10, num, 5, 6), random_boxes(11, num)
    np.testing.assert_array_equal(paste_image(masks, boxes, (33, 41)).full(), expected(masks, boxes, (33, 41)))


def test_more_words_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread computes several words."""
    monkeypatch.setattr(plan_paste, "MOST_BLOCKS", 2)
    masks, boxes = random_masks(12, 30, 20, 20), random_boxes(13, 30)
    pasted = run_paste(masks[None], boxes[None], [30], [(300, 400)])
    assert pasted.words_needed[0] > 5 * 2 * plan_paste.THREADS
    np.testing.assert_array_equal(pasted.crops(0, 30, (300, 400)).full(), expected(masks, boxes, (300, 400)))


def test_too_little_room() -> None:
    """Masks that fit are correct, others are flagged, nothing else is written; with enough capacity all fit."""
    size, num = (90, 120), 12
    masks, boxes = random_masks(14, num, 16, 16), random_boxes(15, num)
    all_of_it = run_paste(masks[None], boxes[None], [num], [size])
    needed, want = int(all_of_it.words_needed[0]), expected(masks, boxes, size)
    first_of = all_of_it.windows[0, :, 5].tolist()
    for capacity in (1, needed // 3, needed // 2, needed - 1, needed):
        # Two images, so that the second shows whether the first writes past its end.
        pasted = run_paste(np.stack([masks] * 2), np.stack([boxes] * 2), [num] * 2, [size] * 2, capacity=capacity)
        assert pasted.words_needed.tolist() == [needed] * 2
        for image in range(2):
            windows = pasted.windows[image]
            fits = all_of_it.windows[0, :, 5] + all_of_it.windows[0, :, 3] * all_of_it.windows[0, :, 4] <= capacity
            assert (windows[:, 2] < 0).tolist() == [not fit for fit in fits]
            assert not windows[windows[:, 2] < 0][:, [0, 1, 3, 4, 5]].any()
            kept = np.flatnonzero(fits)
            crops = plan_paste.unpack(windows[kept], pasted.bits[image], len(kept), *size)
            np.testing.assert_array_equal(crops.full(), want[kept])
            end = min([first_of[i] for i in np.flatnonzero(~fits)], default=needed)
            assert (pasted.bits[image, end:].view(np.uint8) == GARBAGE).all()
        if capacity < needed:
            with pytest.raises(BackendError, match=f"{capacity} words are too few.*paste again with words_needed"):
                pasted.crops(0, num, size)


def test_more_words_than_an_int_counts() -> None:
    """The number saturates at the largest int instead of wrapping around."""
    boxes = np.tile(np.array([[0, 0, 1, 1]], np.float32), (300, 1))
    masks = np.ones((300, 2, 2), np.float32)
    for size in ((40000, 40000), (2**20, 2**20)):
        pasted = run_paste(masks[None], boxes[None], [300], [size], capacity=64)
        assert pasted.words_needed.tolist() == [2**31 - 1]
        assert (pasted.windows[0, :, 2] == -1).all()
        assert (pasted.bits.view(np.uint8) == GARBAGE).all()
    pasted = run_paste(masks[None, :40], boxes[None, :40], [40], [(40000, 40000)], capacity=64)
    assert pasted.words_needed.tolist() == [40 * 40000 * 1250]


# -- the order of threads ---------------------------------------------------------------------------------------------


def busy_inputs() -> tuple[Any, ...]:
    masks = np.stack([random_masks(seed, 40, 20, 24) for seed in (16, 17)])
    boxes = np.stack([random_boxes(seed, 40) for seed in (18, 19)])
    return masks, boxes, [40, 33], [(130, 90), (64, 201)]


def small_inputs(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Small enough for the sanitizers: blocks of 64 threads, and more detections than threads."""
    monkeypatch.setattr(plan_paste, "THREADS", 64)
    monkeypatch.setattr(plan_paste, "MOST_BLOCKS", 4)
    return random_masks(20, 150, 7, 5)[None], random_boxes(21, 150)[None], [139], [(19, 75)]


def test_the_order_of_threads_does_not_matter() -> None:
    first = run_paste(*busy_inputs())
    for seed in range(1, 9):
        other = run_paste(*busy_inputs(), seed=seed)
        assert [array.tobytes() for array in first] == [array.tobytes() for array in other]


@pytest.mark.skipif(not emulate.available("address"), reason="needs AddressSanitizer")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_access_outside_of_buffers(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, *others = small_inputs(monkeypatch)
    masks = masks.astype(dtype)
    plain, sanitized = run_paste(masks, *others), run_paste(masks, *others, mode="address")
    assert [array.tobytes() for array in plain] == [array.tobytes() for array in sanitized]


@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
def test_nothing_races(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = small_inputs(monkeypatch)
    plain, sanitized = run_paste(*inputs), run_paste(*inputs, mode="race")
    assert [array.tobytes() for array in plain] == [array.tobytes() for array in sanitized]


@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
@pytest.mark.parametrize(("line", "without"), [("    __syncthreads();\n", ""), ("sums[page / THREADS % 2]", "sums[0]")])
def test_a_missing_barrier_is_caught(line: str, without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One barrier per page is enough, because pages alternate between two buffers for their sums."""
    text = (emulate.KERNELS / "paste.cu").read_text()
    assert text.count(line) == 1
    with pytest.raises(emulate.EmulationError, match="ThreadSanitizer"):
        run_paste(*small_inputs(monkeypatch), mode="race", edits={"paste.cu": text.replace(line, without)})


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan() -> None:
    plan = plan_paste.paste(4, 100, 138, 138, mask_dtype="float16", capacity_words=70000)
    assert plan.buffers == (
        "boxes", "scores", "labels", "num_detections", "placements", "windows", "words_needed", "wanted",
        "found_windows", "found_boxes", "found_scores", "found_labels", "masks", "bits",
    )  # fmt: skip
    assert plan.scratch == {"paste_offsets": 4 * 101 * 4}
    assert plan.bytes_moved == 4 * (100 * (2 * 138 * 138 + 2 * 48) + 4 * 70000)
    assert plan.operations > 0
    assert plan.launches[1].grid == (256, 4, 1)
    assert plan_paste.paste(1, 100, 138, 138, capacity_words=300).launches[1].grid == (2, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch: the CUDA kernels of paste support 1 to 65535, got 0"),
        ({"detections": 0}, "detections: .* got 0"),
        ({"mask_height": 2**14 + 1}, "mask_height: .* 1 to 16384, got 16385"),
        ({"mask_width": 0}, "mask_width: .* got 0"),
        ({"capacity_words": 0}, "capacity_words: .* got 0"),
        ({"capacity_words": 2**30 + 1}, "capacity_words: .* got 1073741825"),
        ({"mask_dtype": "int8"}, "float32 or float16, got 'int8'"),
    ],
)
def test_what_the_kernels_cannot_take(change: dict[str, Any], message: str) -> None:
    sizes = {"batch": 1, "detections": 10, "mask_height": 8, "mask_width": 8, "capacity_words": 100} | change
    with pytest.raises(ConfigError, match=message):
        plan_paste.paste(**sizes)


# -- images that are a part of the canvas -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("fit", ["letterbox", "pad"])
@pytest.mark.parametrize("size", [(60, 300), (300, 60), (97, 131), (1, 200), (200, 1), (333, 500)], ids=str)
def test_images_on_a_canvas(size: tuple[int, int], fit: str, dtype: str) -> None:
    """Bit for bit as paste.py, which the whole canvas confirms."""
    masks, boxes = random_masks(3, 20, 40, 24).astype(dtype), random_boxes(4, 20)
    where = place_in(*size, (160, 96), fit)
    pasted = run_paste(masks[None], boxes[None], [20], [size], where=[where]).crops(0, 20, size).full()
    windows = MaskWindows.from_dense(cropped(masks, boxes).astype(np.float32))
    np.testing.assert_array_equal(pasted, paste_windows(windows.placed(where), *size).full())
    canvas = paste_windows(windows, where.canvas_height, where.canvas_width).full()
    bottom, right = where.top + where.height, where.left + where.width
    np.testing.assert_array_equal(pasted, canvas[:, where.top : bottom, where.left : right])


# -- what is worth pasting --------------------------------------------------------------------------------------------


def select(scores: Any, num: Any, threshold: float, *, rescored: bool = False, **run: Any) -> dict[str, Any]:
    """Outputs for scores [N,D] above a threshold, on masks of ones at boxes of any kind."""
    batch, slots = scores.shape
    capacity = slots * 60 * 3
    plan = plan_paste.paste(batch, slots, 6, 6, capacity_words=capacity, score_threshold=threshold, rescored=rescored)
    arrays = {
        "masks": np.ones((batch, slots, 6, 6), np.float32),
        "boxes": np.stack([random_boxes(seed, slots) for seed in range(batch)]),
        "scores": scores,
        "labels": np.arange(batch * slots, dtype=np.int32).reshape(batch, slots),
        "num_detections": np.asarray(num, np.int32),
        "placements": np.tile(np.array(Placement.whole(60, 70), np.int32), (batch, 1)),
        "windows": np.full((batch, slots, 6), -5, np.int32),
        "words_needed": np.full(batch, -5, np.int32),
        "bits": np.full((batch, capacity), 0, np.uint32),
        **found_arrays(batch, slots),
    }
    if rescored:
        arrays["mask_scores"] = np.random.default_rng(1).random((batch, slots), np.float32)
    emulate.run_plan(plan, arrays, **run)
    return arrays


@pytest.mark.parametrize("rescored", [False, True])
@pytest.mark.parametrize(("batch", "slots"), [(1, 1), (1, 100), (3, 255), (2, 256), (2, 257), (2, 600)])
def test_what_scores_too_low_is_left_out(batch: int, slots: int, rescored: bool) -> None:
    rng = np.random.default_rng(slots)
    scores = -np.sort(-rng.random((batch, slots), np.float32), axis=1)
    num = rng.integers(0, slots + 1, batch)
    for threshold in (0.0, 0.3, 1.0):
        arrays = select(scores, num, threshold, rescored=rescored, seed=slots)
        expected = [int((row[:n] > np.float32(threshold)).sum()) for row, n in zip(scores, num, strict=True)]
        assert arrays["wanted"].tolist() == expected
        copied = ("windows", "boxes", "scores", "labels", *(("mask_scores",) if rescored else ()))
        for image, wanted in enumerate(expected):
            assert not arrays["windows"][image, wanted:].any(), "nothing is pasted for them"
            assert arrays["windows"][image, :wanted, 4].any() or wanted < 5
            for name in copied:
                np.testing.assert_array_equal(arrays[f"found_{name}"][image, :wanted], arrays[name][image, :wanted])
                assert (arrays[f"found_{name}"][image, wanted:] == -5).all(), "the host reads nothing there"


def test_edges_of_the_threshold() -> None:
    scores = np.array([[0.5, 0.5, np.nan, 0.25]], np.float32)
    assert select(scores, [4], 0.5)["wanted"] == [0], "the threshold itself is not above it"
    assert select(scores, [4], 0.25)["wanted"] == [2]
    assert select(scores, [0], 0.0)["wanted"] == [0]
    assert select(scores, [99], 0.0)["wanted"] == [3], "a count beyond the slots reads no further"
