"""The resize kernel in the emulator, compared with OpenCV and a plain implementation.

Legend: H x W a frame, S the side of the image.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from cuda_emu import emulate

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import fit_image
from yolact_deploy.priors import place
from yolact_deploy.runtime.cuda.frame_work import Frame, equal_frames
from yolact_deploy.runtime.cuda.plans.launch import LaunchPlan, Offset, joined
from yolact_deploy.runtime.cuda.plans.plan_resize import resize
from yolact_deploy.vocabulary import FITS

pytestmark = pytest.mark.skipif(not emulate.available(), reason="needs g++ with C++20")

#: elsewhere OpenCV may use a vendor library of the CPU
X86 = platform.machine() in ("x86_64", "AMD64")
GARBAGE = 0x5A

SHAPES = [
    (480, 640), (640, 480), (1080, 1920), (2160, 3840), (1, 1), (1, 700), (700, 1), (2, 2), (3, 5), (37, 53), (63, 65),
    (64, 64), (128, 128), (128, 64), (129, 127), (256, 256), (192, 128), (999, 1001),
]  # fmt: skip


def picture(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def run_resize(frame: Any, size: int, dtype: str = "uint8", **run: Any) -> Any:
    """The kernel's image [S,S,3] of a frame [H,W,3]."""
    height, width, _ = frame.shape
    image = np.empty((size, size, 3), dtype)
    image.view(np.uint8)[...] = GARBAGE
    plan = resize(height, width, 3 * width, size, output_dtype=dtype)
    emulate.run_plan(plan, {"frame": frame, "images": image[None]}, **run)
    return image


def fixed_point(frame: Any, size: int) -> Any:
    """OpenCV's arithmetic for bytes, in NumPy."""

    def axis(length: int) -> tuple[Any, Any]:
        position = ((np.arange(size) + 0.5) * (1 / (size / length)) - 0.5).astype(np.float32)
        cell = np.floor(position)
        return cell.astype(int), position - cell

    def weights(share: Any) -> Any:
        return np.rint(np.stack([1 - share, share]) * np.float32(2048)).astype(int)

    (rows, down), (columns, across) = axis(frame.shape[0]), axis(frame.shape[1])
    across[(columns < 0) | (columns >= frame.shape[1] - 1)] = 0
    values = frame.astype(int)
    pair = [values[:, np.clip(columns + step, 0, frame.shape[1] - 1)] for step in (0, 1)]
    sums = sum(one * weight[:, None] for one, weight in zip(pair, weights(across), strict=True)) >> 4
    pair = [sums[np.clip(rows + step, 0, frame.shape[0] - 1)] for step in (0, 1)]
    total = sum(one * weight[:, None, None] >> 16 for one, weight in zip(pair, weights(down), strict=True))
    return (total + 2 >> 2).astype(np.uint8)


def bilinear(frame: Any, size: int) -> Any:
    """Exact values, float64."""

    def axis(length: int) -> tuple[Any, Any, Any]:
        position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = position.astype(int)
        return low, np.minimum(low + 1, length - 1), position - low

    (y0, y1, wy), (x0, x1, wx) = axis(frame.shape[0]), axis(frame.shape[1])
    values = frame.astype(np.float64)
    rows = values[y0] * (1 - wy)[:, None, None] + values[y1] * wy[:, None, None]
    return rows[:, x0] * (1 - wx)[:, None] + rows[:, x1] * wx[:, None]


def assert_equals_opencv(frame: Any, size: int) -> None:
    """Bit for bit with OpenCV's own code, elsewhere within one gray level."""
    image = run_resize(frame, size)
    np.testing.assert_array_equal(image, fixed_point(frame, size))
    theirs = cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR)
    if X86:
        np.testing.assert_array_equal(image, theirs)
    assert np.abs(image.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("size", [64, 33])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_equal_opencv(shape: tuple[int, int], size: int) -> None:
    assert_equals_opencv(picture(*shape), size)


@pytest.mark.parametrize(
    "shape", [(480, 640), (1080, 1920), (1100, 1100), (1100, 640), (275, 2200), (550, 550)], ids=str
)
def test_bytes_equal_opencv_at_the_size_of_networks(shape: tuple[int, int]) -> None:
    assert_equals_opencv(picture(*shape), 550)


def test_bytes_equal_opencv_at_any_size() -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        height, width, size = (int(2 ** rng.uniform(0, 8.5)) for _ in range(3))
        assert_equals_opencv(picture(height, width), size)


def test_extreme_bytes_stay_in_range() -> None:
    for value in (0, 255):
        frame = np.full((77, 91, 3), value, np.uint8)
        np.testing.assert_array_equal(run_resize(frame, 64), value)
        np.testing.assert_array_equal(run_resize(frame, 200), value)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_floats_are_bilinear(shape: tuple[int, int]) -> None:
    frame = picture(*shape)
    image = run_resize(frame, 64, "float32")
    np.testing.assert_allclose(image, bilinear(frame, 64), rtol=0, atol=1e-4)
    theirs = cv2.resize(frame.astype(np.float32), (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(image, theirs, rtol=0, atol=1e-3)  # positions are exact in float at this size


def test_floats_at_the_size_of_networks() -> None:
    """OpenCV may round positions to float; values differ by at most the distance of both to the exact ones."""
    frame = picture(1080, 1920)
    image = run_resize(frame, 550, "float32")
    np.testing.assert_allclose(image, bilinear(frame, 550), rtol=0, atol=1e-4)
    theirs = cv2.resize(frame.astype(np.float32), (550, 550), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(image, theirs, rtol=0, atol=1e-3 + 255 * (1080 + 1920) * 2**-24)


@pytest.mark.parametrize(("pitch", "start"), [(3 * 53, 1), (3 * 53 + 1, 3), (256, 2)])
def test_rows_may_be_apart_and_begin_anywhere(pitch: int, start: int) -> None:
    """A part of a larger picture: data between its rows is ignored."""
    frame, images = picture(37, 53), []
    for between in (0, 255):
        memory = np.full(start + 36 * pitch + 3 * 53, between, np.uint8)
        rows = np.lib.stride_tricks.as_strided(memory[start:], (37, 3 * 53), (pitch, 1))
        rows[...] = frame.reshape(37, -1)
        images.append(np.empty((1, 64, 64, 3), np.uint8))
        (launch,) = resize(37, 53, pitch, 64).launches
        launch = replace(launch, arguments=(Offset("frame", start), *launch.arguments[1:]))
        emulate.run_plan(LaunchPlan((launch,), {}, 0, 0), {"frame": memory, "images": images[-1]})
        np.testing.assert_array_equal(images[-1][0], fixed_point(frame, 64))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_images_of_a_batch(dtype: str) -> None:
    """Frames of different sizes, one per image; S is odd, so that images start at odd addresses."""
    frames = [picture(20 + 31 * i, 90 - 17 * i, seed=i) for i in range(4)]
    images = np.full((5, 35, 35, 3), GARBAGE, dtype)
    for index in (3, 0, 2):
        height, width, _ = frames[index].shape
        plan = resize(height, width, 3 * width, 35, output_dtype=dtype, image_index=index)
        emulate.run_plan(plan, {"frame": frames[index], "images": images})
    assert (images[[1, 4]] == GARBAGE).all()
    for index in (0, 2, 3):
        np.testing.assert_array_equal(images[index], run_resize(frames[index], 35, dtype))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(("gap", "count"), [(0, 3), (37, 2), (256, 1)])
def test_frames_of_one_size_in_one_launch(dtype: str, gap: int, count: int) -> None:
    frames = [picture(20, 31, seed=i) for i in range(count)]
    stride = frames[0].size + gap
    memory = np.zeros(stride * count, np.uint8)
    for index, frame in enumerate(frames):
        memory[index * stride :][: frame.size] = frame.reshape(-1)
    images = np.full((count + 2, 35, 35, 3), GARBAGE, dtype)
    plan = resize(20, 31, 93, 35, output_dtype=dtype, image_index=1, count=count, stride=stride)
    assert len(plan.launches) == 1
    assert plan.bytes_moved == count * resize(20, 31, 93, 35, output_dtype=dtype).bytes_moved
    emulate.run_plan(plan, {"frame": memory, "images": images})
    assert (images[[0, -1]] == GARBAGE).all()
    for image, frame in zip(images[1:], frames, strict=False):
        np.testing.assert_array_equal(image, run_resize(frame, 35, dtype))


@pytest.mark.parametrize(
    ("frames", "runs"),
    [
        ([(0, 4, 6, 18)], [(0, 1, 0)]),
        ([(0, 4, 6, 18), (256, 4, 6, 18), (512, 4, 6, 18)], [(0, 3, 256)]),
        ([(512, 4, 6, 18), (256, 4, 6, 18), (0, 4, 6, 18)], [(0, 3, -256)]),
        ([(0, 4, 6, 18), (256, 4, 6, 18), (768, 4, 6, 18), (1280, 4, 6, 18)], [(0, 2, 256), (2, 2, 512)]),
        ([(0, 4, 6, 18), (256, 4, 6, 20), (512, 4, 6, 20), (768, 5, 6, 20)], [(0, 1, 0), (1, 2, 256), (3, 1, 0)]),
    ],
)
def test_runs_of_equal_frames(frames: list[tuple[int, int, int, int]], runs: list[tuple[int, int, int]]) -> None:
    assert list(equal_frames([Frame(*frame) for frame in frames])) == runs


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_order_of_threads_does_not_matter(dtype: str) -> None:
    frame = picture(75, 90)
    first = run_resize(frame, 150, dtype)
    for seed in range(1, 9):
        np.testing.assert_array_equal(run_resize(frame, 150, dtype, seed=seed), first)


@pytest.mark.skipif(not emulate.available("address"), reason="needs AddressSanitizer")
@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (128, 128)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_no_access_outside_of_buffers(shape: tuple[int, int], dtype: str) -> None:
    frame = picture(*shape)
    np.testing.assert_array_equal(run_resize(frame, 65, dtype, mode="address"), run_resize(frame, 65, dtype))


@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
def test_nothing_races_and_the_barrier_is_needed() -> None:
    frame = picture(37, 53)
    np.testing.assert_array_equal(run_resize(frame, 40, mode="race"), run_resize(frame, 40))
    text = (emulate.KERNELS / "resize.cu").read_text()
    assert text.count("    __syncthreads();\n") == 1
    edits = {"resize.cu": text.replace("    __syncthreads();\n", "")}
    with pytest.raises(emulate.EmulationError, match="ThreadSanitizer"):
        run_resize(frame, 40, mode="race", edits=edits)


def test_the_plan_counts_what_must_be_moved() -> None:
    """A frame more than twice as large as the image needs two columns and rows per column and row of the image."""
    assert resize(480, 640, 1920, 550).bytes_moved == 3 * (480 * 640 + 550 * 550)
    assert resize(2160, 3840, 3 * 3840, 550).bytes_moved == 3 * (1100 * 1100 + 550 * 550)
    assert resize(480, 640, 1920, 550, output_dtype="float32").bytes_moved == 3 * (480 * 640 + 4 * 550 * 550)
    plan = joined(resize(480, 640, 1920, 550, image_index=i) for i in range(3))
    assert plan.operations == 3 * resize(480, 640, 1920, 550).operations > 0
    assert plan.buffers == ("frame", "images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 640, 1920, 550), "got 0 x 640 to 550"),
        ((480, 0, 1920, 550), "got 480 x 0"),
        ((480, 640, 1919, 550), r"expected rows at least 1920 bytes apart.*got 1919"),
        ((480, 640, 2**31, 550), "got 2147483648"),
        ((480, 640, 1920, 0), "640 to 0"),
        ((2**20 + 1, 640, 1920, 550), "got 1048577 x 640"),
    ],
)
def test_what_the_kernel_cannot_take(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resize(*arguments)


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="expected one of uint8, float32, got 'float16'"):
        resize(480, 640, 1920, 550, output_dtype="float16")


# -- other shapes than a square, with and without padding ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(80, 144), (144, 80)], ids=str)
@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (20, 300), (300, 20), (1, 90), (64, 64), (80, 144)], ids=str)
def test_fits(shape: tuple[int, int], size: tuple[int, int], fit: str, dtype: str) -> None:
    """The same images as on the CPU."""
    config = YolactConfig(image_size=(64, 64)).with_input(size, fit=fit)
    frame = picture(*shape)
    images = np.empty((1, *config.input_shape, 3), dtype)
    images.view(np.uint8)[...] = GARBAGE
    plan = resize(
        *shape, 3 * shape[1], config.image_size, output_dtype=dtype, placement=place(*shape, config),
        color=config.padding_color,
    )  # fmt: skip
    emulate.run_plan(plan, {"frame": frame, "images": images})
    expected = fit_image(frame, config, dtype)
    if dtype == "uint8":
        assert np.abs(images[0].astype(int) - expected).max() <= (0 if X86 else 1)
    else:
        np.testing.assert_allclose(images[0], expected, rtol=0, atol=2e-3)
