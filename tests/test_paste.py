"""Masks at image size compared with a dense float64 interpolation, and their packed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.detections import Detections
from yolact_deploy.mask_forms import MaskCrops, MaskWindows, compress_counts, compress_masks, sigmoid
from yolact_deploy.paste import paste_masks
from yolact_deploy.postprocess import assemble_masks, mask_logits, sanitize_coordinates

GOLDEN = Path(__file__).parent / "golden"
POST = [
    pytest.param(path, name, id=f"{path.stem}-{name}")
    for path in sorted(GOLDEN.glob("pure_*.npz"))
    for name in ("post", "post_nocrop")
    if f"{name}.proto" in np.load(path).files
]


@pytest.mark.golden
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize(("path", "name"), POST)
def test_postprocess_equals_the_originals(path: Path, name: str, logits: bool) -> None:
    with np.load(path) as golden:
        case = {key.removeprefix(f"{name}."): golden[key] for key in golden.files if key.startswith(f"{name}.")}
    keep = case["scores"] > case["thr"]
    boxes, scores, labels = case["boxes"][keep], case["scores"][keep], case["classes"][keep]
    width, height = (int(v) for v in case["wh"])
    make = mask_logits if logits else assemble_masks
    masks = make(case["proto"], case["coef"][keep], None if name == "post_nocrop" else boxes)
    detections = Detections.from_normalized(
        boxes,
        scores,
        labels,
        MaskWindows.from_dense(masks, logits=logits),
        class_names=tuple(map(str, range(100))),
        height=height,
        width=width,
    )
    assert len(detections) == int(case["out.n"][0])
    np.testing.assert_array_equal(detections.pixel_boxes, case["out.box"])
    np.testing.assert_array_equal(detections.labels, case["out.class"])
    np.testing.assert_allclose(detections.scores, case["out.score"], rtol=1e-6)
    expected = np.unpackbits(case["out.mask_packed"], axis=-1, count=width).astype(bool)
    np.testing.assert_array_equal(detections.masks, expected)
    np.testing.assert_array_equal(detections.areas(), case["out.area"])
    np.testing.assert_array_equal(detections.packed_masks(), case["out.mask_packed"])


def dense(masks: Any, height: int, width: int) -> Any:
    """Bilinear interpolation (align_corners False) of probabilities [n, h, w] in float64, before the threshold."""

    def axis(source: int, target: int) -> tuple[Any, Any, Any]:
        position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
        low = np.minimum(position.astype(int), source - 1)
        return low, np.minimum(low + 1, source - 1), position - low

    values = masks.astype(np.float64)
    y0, y1, wy = axis(masks.shape[1], height)
    x0, x1, wx = axis(masks.shape[2], width)
    rows = values[:, y0] * (1 - wy)[:, None] + values[:, y1] * wy[:, None]
    return rows[:, :, x0] * (1 - wx) + rows[:, :, x1] * wx


def assert_pasted(masks: Any, height: int, width: int) -> MaskCrops:
    """The pasted masks equal the dense ones, except where these are within rounding of the threshold."""
    crops = paste_masks(masks, height, width)
    value = dense(masks, height, width)
    full = crops.full()
    assert full.shape == value.shape
    wrong = (full != (value > 0.5)) & (np.abs(value - 0.5) > 1e-5)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} pixels"
    return crops


def random_masks(seed: int, num: int, height: int, width: int, density: float = 0.4) -> Any:
    rng = np.random.default_rng(seed)
    masks = rng.random((num, height, width), np.float32)
    masks[rng.random(masks.shape) > density * 2] = 0
    for mask in masks[::2]:  # some are blobs inside a crop, like real masks
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[:] = 0
        mask[y : y + height // 2 + 1, x : x + width // 2 + 1] = rng.random()
    return masks


SIZES = [
    (8, 8, 8, 8), (8, 8, 16, 16), (8, 8, 37, 53), (9, 7, 61, 29), (5, 6, 1, 1), (16, 16, 5, 3), (16, 16, 1, 64),
    (16, 16, 64, 1), (1, 1, 20, 30), (1, 9, 20, 30), (9, 1, 20, 30), (138, 138, 97, 211), (2, 2, 3, 3),
    (17, 17, 16, 18),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_paste_against_dense_interpolation(size: tuple[int, int, int, int], seed: int) -> None:
    h, w, height, width = size
    assert_pasted(random_masks(seed, 6, h, w), height, width)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_paste_as_their_probabilities(size: tuple[int, int, int, int]) -> None:
    h, w, height, width = size
    logits = np.random.default_rng(5).standard_normal((4, h, w)).astype(np.float32) * 4
    logits[:, : h // 3] = -80
    np.testing.assert_array_equal(
        paste_masks(logits, height, width, logits=True).full(), paste_masks(sigmoid(logits), height, width).full()
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_empty_and_full_masks(size: tuple[int, int, int, int]) -> None:
    h, w, height, width = size
    masks = np.stack([np.zeros((h, w), np.float32), np.ones((h, w), np.float32)])
    crops = assert_pasted(masks, height, width)
    assert crops.areas().tolist() == [0, height * width]
    assert crops.crops[0].size == 0
    assert [rle["counts"] for rle in crops.rle()] == [
        compress_counts(np.array([height * width])),
        compress_counts(np.array([0, height * width])),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_masks_encoded_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.integers(0, 10 ** int(rng.integers(1, 7)), int(rng.integers(1, 40))) for _ in range(20)]
    together = compress_masks(np.concatenate(masks), np.array(list(map(len, masks))))
    assert together == [compress_counts(counts) for counts in masks]
    assert compress_masks(np.zeros(0, np.int64), np.zeros(0, np.int64)) == []
    tools = pytest.importorskip("pycocotools.mask")
    for counts, text in zip(masks, together, strict=True):
        size = [int(counts.sum()), 1]
        assert tools.frPyObjects({"size": size, "counts": counts.tolist()}, *size)["counts"] == text.encode()


def test_one_pixel_at_each_position() -> None:
    masks = np.eye(25, dtype=np.float32).reshape(25, 5, 5)
    assert_pasted(masks, 23, 31)
    assert_pasted(masks, 3, 2)


def test_float16_masks() -> None:
    masks = random_masks(1, 3, 12, 12).astype(np.float16)
    assert_pasted(masks, 40, 50)


def test_no_masks() -> None:
    crops = paste_masks(np.zeros((0, 8, 8), np.float32), 20, 30)
    assert len(crops) == 0
    assert crops.full().shape == (0, 20, 30)
    assert crops.packed().shape == (0, 20, 4)
    assert crops.rle() == []
    assert crops.areas().shape == (0,)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 53])
def test_packed_equals_packbits(width: int) -> None:
    crops = paste_masks(random_masks(2, 8, 12, 12), 19, width)
    full = crops.full()
    np.testing.assert_array_equal(crops.packed(), np.packbits(full, axis=-1))
    np.testing.assert_array_equal(np.unpackbits(crops.packed(), axis=-1, count=width), full)
    np.testing.assert_array_equal(crops.areas(), full.sum(axis=(1, 2)))


def test_select() -> None:
    crops = paste_masks(random_masks(3, 6, 12, 12), 30, 40)
    index = np.array([4, 0])
    np.testing.assert_array_equal(crops.select(index).full(), crops.full()[index])


def decode_counts(text: str) -> list[int]:
    """Decode COCO's text form to run lengths, as specified."""
    counts: list[int] = []
    characters = iter(text.encode())
    for character in characters:
        value, shift = 0, 0
        while True:
            bits = character - 48
            value |= (bits & 0x1F) << shift
            shift += 5
            if not bits & 0x20:
                break
            character = next(characters)
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_rle_decodes_to_the_masks(seed: int) -> None:
    height, width = 29, 37
    crops = paste_masks(random_masks(seed, 8, 14, 14), height, width)
    for rle, mask in zip(crops.rle(), crops.full(), strict=True):
        assert rle["size"] == [height, width]
        counts = decode_counts(rle["counts"])
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        np.testing.assert_array_equal(values.reshape(width, height).T, mask)


@pytest.mark.parametrize("size", [*SIZES, (138, 138, 720, 1280)], ids=str)
def test_rle_equals_pycocotools(size: tuple[int, int, int, int]) -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    h, w, height, width = size
    masks = np.concatenate([random_masks(4, 6, h, w), np.zeros((1, h, w)), np.ones((1, h, w))]).astype(np.float32)
    crops = paste_masks(masks, height, width)
    encoded = mask_api.encode(np.asfortranarray(crops.full().transpose(1, 2, 0).astype(np.uint8)))
    assert [rle["counts"].encode() for rle in crops.rle()] == [rle["counts"] for rle in encoded]
    assert [rle["size"] for rle in crops.rle()] == [rle["size"] for rle in encoded]


def test_runs_over_the_column_end() -> None:
    """A run that continues at the top of the next column is one run, even at the border of the crop."""
    full = np.zeros((1, 4, 3), bool)
    full[0, 2:, 0] = full[0, :, 1] = full[0, :1, 2] = True
    crops = MaskCrops(4, 3, np.array([[0, 0]]), (full[0],))
    assert decode_counts(crops.rle()[0]["counts"]) == [2, 7, 3]


def test_sanitized_boxes_are_inside_the_image() -> None:
    first, second = sanitize_coordinates(np.array([-1.0, 0.9, 0.2]), np.array([2.0, 0.1, 0.2]), 100)
    assert (first >= 0).all()
    assert (second <= 100).all()
    assert (first <= second).all()
