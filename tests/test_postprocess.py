"""The NumPy detector compared with the original's outputs and with plain implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy import postprocess
from yolact_deploy.mask_forms import sigmoid
from yolact_deploy.postprocess import (
    Detected,
    assemble_masks,
    box_iou,
    crop_windows,
    cross_class_nms,
    detect,
    fast_nms,
    mask_logits,
    sanitize_coordinates,
    traditional_nms,
)
from yolact_deploy.vocabulary import NMS_VARIANTS

GOLDEN = Path(__file__).parent / "golden"
PURE = sorted(GOLDEN.glob("pure_*.npz"))
SEEDS = [path for path in PURE if "seed" in path.stem]
VARIANTS = ("fast", "fast2", "cc", "trad")


def nms_cases() -> list[Any]:
    """Every ``<name>.boxes`` in the golden files with outputs of an NMS variant."""
    cases = []
    for path in PURE:
        with np.load(path) as golden:
            for key in golden.files:
                name, _, rest = key.partition(".")
                variant, _, field = rest.partition(".")
                if variant in VARIANTS and field == "box":
                    cases.append(pytest.param(path, name, variant, id=f"{path.stem}-{name}-{variant}"))
    return cases


def run_variant(variant: str, boxes: Any, scores: Any, coeff: Any) -> Detected:
    if variant == "fast":
        return fast_nms(boxes, scores, coeff)
    if variant == "fast2":
        return fast_nms(boxes, scores, coeff, second_threshold=0.05)
    return cross_class_nms(boxes, scores, coeff) if variant == "cc" else traditional_nms(boxes, scores, coeff)


def assert_same_set(detected: Detected, boxes: Any, coeff: Any, labels: Any, scores: Any) -> None:
    """The same detections, with equal scores in any order: both sorted by score, class and box."""

    def rows(b: Any, m: Any, c: Any, s: Any) -> Any:
        order = np.lexsort((*np.round(b, 4).T, c, np.round(s, 5)))
        return b[order], m[order], c[order], s[order]

    actual = rows(detected.boxes, detected.coeff, detected.labels, detected.scores)
    want = rows(boxes, coeff, labels, scores)
    np.testing.assert_array_equal(actual[2], want[2])
    for mine, theirs in zip(actual, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert (np.diff(detected.scores) <= 0).all()


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name", "variant"), nms_cases())
def test_nms_equals_the_originals(path: Path, name: str, variant: str) -> None:
    with np.load(path) as golden:
        detected = run_variant(variant, golden[f"{name}.boxes"], golden[f"{name}.scores"], golden[f"{name}.masks"])
        want = [golden[f"{name}.{variant}.{field}"] for field in ("box", "mask", "class", "score")]
    assert_same_set(detected, *want)


@pytest.mark.golden
@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_detect_equals_the_originals(path: Path) -> None:
    with np.load(path) as golden:
        detected = detect(golden["detect.boxes"], golden["detect.conf"][:, 1:], golden["detect.masks"])
        assert_same_set(detected, *(golden[f"detect.out.{field}"] for field in ("box", "mask", "class", "score")))


@pytest.mark.golden
@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_iou_equals_the_originals(path: Path) -> None:
    with np.load(path) as golden:
        np.testing.assert_allclose(
            box_iou(golden["jaccard.a"], golden["jaccard.b"]), golden["jaccard.iou"], rtol=1e-5, atol=1e-6
        )


@pytest.mark.golden
@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_sanitize_equals_the_originals(path: Path) -> None:
    with np.load(path) as golden:
        cases = [key for key in golden.files if key.startswith("sanitize.S")]
        assert cases
        for key in cases:
            _, size, padding, cast = key.split(".")
            first, second = sanitize_coordinates(
                golden["sanitize.x1"], golden["sanitize.x2"], int(size[1:]), int(padding[3:])
            )
            if cast == "cast0":
                np.testing.assert_allclose([first, second], golden[key], rtol=1e-5, atol=1e-4)
            elif padding == "pad0":  # the original casts before it pads, so it is another function with padding
                np.testing.assert_array_equal(np.trunc([first, second]), golden[key])


@pytest.mark.golden
@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("key", "padding"), [("crop.out", 1), ("crop.out_pad0", 0)])
def test_crop_equals_the_originals(path: Path, key: str, padding: int) -> None:
    with np.load(path) as golden:
        masks, boxes, expected = golden["crop.masks"].transpose(2, 0, 1), golden["crop.boxes"], golden[key]
    cropped = np.zeros_like(masks)
    for i, (x1, y1, x2, y2) in enumerate(crop_windows(boxes, masks.shape[1], masks.shape[2], padding)):
        cropped[i, y1:y2, x1:x2] = masks[i, y1:y2, x1:x2]
    np.testing.assert_array_equal(cropped, expected.transpose(2, 0, 1))


@pytest.mark.golden
@pytest.mark.parametrize("path", [p for p in PURE if "edge" in p.stem], ids=lambda path: path.stem)
def test_no_detections_equal_the_originals(path: Path) -> None:
    with np.load(path) as golden:
        assert golden["empty_detect.is_none"].all()
        assert not golden["empty_post.sizes"].any()
    low = np.full((30, 4), 0.01, np.float32)
    for nms in NMS_VARIANTS:
        detected = detect(
            np.random.default_rng(0).random((30, 4), np.float32), low, np.ones((30, 8), np.float32), nms=nms
        )
        assert [len(part) for part in detected] == [0, 0, 0, 0]


# -- properties ---------------------------------------------------------------------------------------------------


def make_inputs(seed: int, num: int, classes: int, levels: int = 0) -> tuple[Any, Any, Any]:
    """Boxes [n, 4], scores [C, n] and coefficients [n, 1] that are the box numbers; ``levels`` creates equal scores."""
    rng = np.random.default_rng(seed)
    corner = rng.random((num, 2))
    boxes = np.concatenate([corner, corner + rng.random((num, 2)) * 0.3 + 0.01], axis=1).astype(np.float32)
    scores = rng.random((classes, num))
    if levels:
        scores = np.round(scores * levels) / levels
    return boxes, scores.astype(np.float32), np.arange(num, dtype=np.float32)[:, None]


def brute_force(boxes: Any, scores: Any, iou_threshold: float, top_k: int) -> list[tuple[int, int]]:
    """(class, box) kept by Fast NMS, best first, by the paper's definition, one pair at a time."""
    iou = box_iou(boxes, boxes)
    kept = []
    for label, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda i: -row[i])[:top_k]
        for rank, candidate in enumerate(order):
            if all(iou[better, candidate] <= iou_threshold for better in order[:rank]):
                kept.append((label, candidate))
    return sorted(kept, key=lambda entry: (-scores[entry], entry))


def entries(detected: Detected) -> list[tuple[int, int]]:
    return list(zip(detected.labels.tolist(), detected.coeff[:, 0].astype(int).tolist(), strict=True))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("num", "classes", "top_k"), [(7, 3, 200), (90, 5, 200), (90, 5, 20), (300, 8, 50)])
@pytest.mark.parametrize("iou_threshold", [0.1, 0.5])
def test_fast_nms_against_brute_force(seed: int, num: int, classes: int, top_k: int, iou_threshold: float) -> None:
    boxes, scores, coeff = make_inputs(seed, num, classes)
    detected = fast_nms(boxes, scores, coeff, iou_threshold=iou_threshold, top_k=top_k, max_detections=10_000)
    expected = brute_force(boxes, scores, iou_threshold, top_k)
    assert entries(detected) == expected
    best = fast_nms(boxes, scores, coeff, iou_threshold=iou_threshold, top_k=top_k, max_detections=15)
    assert entries(best) == expected[:15]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("num", "top_k"), [(60, 200), (60, 20), (200, 50)])
def test_fast_nms_with_equal_scores(seed: int, num: int, top_k: int) -> None:
    boxes, scores, coeff = make_inputs(seed, num, 6, levels=8)
    for limit in (10_000, 40):
        detected = fast_nms(boxes, scores, coeff, top_k=top_k, max_detections=limit)
        assert entries(detected) == brute_force(boxes, scores, 0.5, top_k)[:limit]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [0, 30])
def test_fast_nms_over_many_chunks(seed: int, levels: int) -> None:
    boxes, scores, coeff = make_inputs(seed, 250, 12, levels)
    boxes[:, 2:] = boxes[:, :2] + 0.02  # few overlaps, so that every chunk has survivors
    assert scores.size > 5 * postprocess._NMS_CHUNK
    detected = fast_nms(boxes, scores, coeff, max_detections=10_000)
    assert entries(detected) == brute_force(boxes, scores, 0.5, 200)
    assert len(detected.scores) > 2 * postprocess._NMS_CHUNK


@pytest.mark.parametrize("chunk", [1, 2, 7, 100, 10_000])
@pytest.mark.parametrize("levels", [0, 5])
def test_the_chunk_size_does_not_matter(chunk: int, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "_NMS_CHUNK", chunk)
    boxes, scores, coeff = make_inputs(11, 60, 5, levels)
    detected = fast_nms(boxes, scores, coeff, top_k=40, max_detections=60)
    assert entries(detected) == brute_force(boxes, scores, 0.5, 40)[:60]


def test_first_chunk_may_hold_no_survivor() -> None:
    """600 copies of one box, then a separate box: only the best copy and the last box are kept."""
    boxes = np.tile(np.array([[0.1, 0.1, 0.2, 0.2]], np.float32), (601, 1))
    boxes[600] = [0.6, 0.6, 0.9, 0.9]
    scores = np.linspace(0.9, 0.1, 601, dtype=np.float32)[None]
    detected = fast_nms(boxes, scores, np.arange(601, dtype=np.float32)[:, None], top_k=1000)
    assert entries(detected) == [(0, 0), (0, 600)]


def test_fast_nms_drops_by_dropped_entries() -> None:
    """A overlaps B, B overlaps C, A does not overlap C: Fast NMS drops C, greedy NMS keeps it."""
    boxes = np.array([[0, 0, 0.5, 1], [0.15, 0, 0.65, 1], [0.3, 0, 0.8, 1]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    coeff = np.arange(3, dtype=np.float32)[:, None]
    assert entries(fast_nms(boxes, scores, coeff)) == [(0, 0)]
    assert entries(traditional_nms(boxes, scores, coeff)) == [(0, 0), (0, 2)]


def test_overlap_equal_to_the_threshold_is_kept() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5]], np.float32)  # IoU exactly 0.5
    scores = np.array([[0.9, 0.8]], np.float32)
    coeff = np.arange(2, dtype=np.float32)[:, None]
    assert len(fast_nms(boxes, scores, coeff).scores) == 2
    assert len(cross_class_nms(boxes, scores, coeff).scores) == 2
    assert len(fast_nms(boxes, scores, coeff, iou_threshold=0.49).scores) == 1


@pytest.mark.parametrize("bad", [[0.5, 0.5, 0.5, 0.5], [np.nan] * 4, [-np.inf, 0, np.inf, 1]])
@pytest.mark.parametrize("nms", NMS_VARIANTS)
def test_degenerate_boxes_neither_warn_nor_crash(bad: list[float], nms: str) -> None:
    boxes, scores, coeff = make_inputs(3, 40, 4)
    boxes[::5] = bad
    detected = detect(boxes, scores.T, coeff, nms=nms)
    assert len(detected.scores) > 0


def test_two_boxes_without_area_drop_each_other() -> None:
    boxes = np.tile(np.array([[0.3, 0.3, 0.3, 0.3]], np.float32), (2, 1))
    detected = fast_nms(boxes, np.array([[0.9, 0.8]], np.float32), np.zeros((2, 1), np.float32))
    assert detected.scores.tolist() == pytest.approx([0.9])


def test_nan_scores_give_no_detections() -> None:
    boxes, scores, coeff = make_inputs(4, 30, 3)
    scores[:, 4] = np.nan
    assert 4 not in detect(boxes, scores.T, coeff).coeff[:, 0]


@pytest.mark.parametrize("nms", NMS_VARIANTS)
@pytest.mark.parametrize("num", [0, 1])
def test_few_boxes(nms: str, num: int) -> None:
    boxes, scores, coeff = make_inputs(5, num, 4)
    detected = detect(boxes, scores.T, coeff, nms=nms, score_threshold=0.0)
    assert detected.boxes.shape[1:] == (4,)
    assert detected.coeff.shape[1:] == (1,)
    assert (len(detected.scores) > 0) == (num > 0)
    assert [part.dtype for part in detected] == [np.float32, np.float32, np.int64, np.float32]


def test_thresholds() -> None:
    boxes, scores, coeff = make_inputs(6, 100, 5)
    assert len(detect(boxes, scores.T, coeff, max_detections=7).scores) == 7
    assert len(detect(boxes, scores.T, coeff, nms="traditional", max_detections=7).scores) == 7
    assert len(detect(boxes, scores.T, coeff, nms="cross-class", top_k=7).scores) <= 7
    assert (fast_nms(boxes, scores, coeff, second_threshold=0.9).scores > 0.9).all()
    with pytest.raises(ValueError, match="nms: expected one of"):
        detect(boxes, scores.T, coeff, nms="soft")


def test_a_kept_prior_may_score_low_in_another_class() -> None:
    boxes = np.array([[0, 0, 0.2, 0.2]], np.float32)
    detected = detect(boxes, np.array([[0.9, 0.01]], np.float32), np.zeros((1, 1), np.float32))
    assert detected.scores.tolist() == pytest.approx([0.9, 0.01])


def test_inputs_are_not_changed() -> None:
    arrays = make_inputs(7, 300, 4)
    copies = [array.copy() for array in arrays]
    for nms in NMS_VARIANTS:
        detect(arrays[0], arrays[1].T, arrays[2], nms=nms, top_k=20)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# -- masks --------------------------------------------------------------------------------------------------------


def test_crop_windows() -> None:
    boxes = np.array(
        [[0.25, 0.5, 0.5, 0.75], [0.5, 0.75, 0.25, 0.5], [-3, -3, 5, 5], [2, 2, 3, 3], [np.nan, 0, 1, 1]], np.float32
    )
    windows = crop_windows(boxes, 8, 16, padding=0)
    np.testing.assert_array_equal(windows[0], [4, 4, 8, 6])
    np.testing.assert_array_equal(windows[1], windows[0])
    np.testing.assert_array_equal(windows[2], [0, 0, 16, 8])
    assert (windows[3, 2:] <= windows[3, :2]).any()  # empty: outside the image
    np.testing.assert_array_equal(windows[4], 0)
    np.testing.assert_array_equal(crop_windows(boxes[:1], 8, 16)[0], [3, 3, 9, 7])


def test_assemble_masks_against_the_definition() -> None:
    rng = np.random.default_rng(8)
    proto, coeff = rng.random((9, 11, 5), np.float32), rng.standard_normal((6, 5)).astype(np.float32)
    boxes = np.sort(rng.random((6, 2, 2), np.float32), axis=1).reshape(6, 4)
    masks = assemble_masks(proto, coeff, boxes)
    for mask, c, (x1, y1, x2, y2) in zip(masks, coeff, boxes, strict=True):
        whole = 1 / (1 + np.exp(-(proto @ c)))
        columns = [max(x1 * 11 - 1, 0) <= x < min(x2 * 11 + 1, 11) for x in range(11)]
        rows = [max(y1 * 9 - 1, 0) <= y < min(y2 * 9 + 1, 9) for y in range(9)]
        np.testing.assert_allclose(mask, np.where(np.outer(rows, columns), whole, 0), atol=1e-6)
    assert (mask_logits(proto, coeff, None) > -80).all()
    np.testing.assert_array_equal(assemble_masks(proto, coeff, boxes), sigmoid(mask_logits(proto, coeff, boxes)))
    assert assemble_masks(proto, coeff[:0], boxes[:0]).shape == (0, 9, 11)


def test_sigmoid_does_not_overflow() -> None:
    x = np.array([-200, -80, 0, 80, 200], np.float32)
    np.testing.assert_allclose(sigmoid(x), [0, 0, 0.5, 1, 1], atol=1e-30)


def test_nan_scores_are_ignored() -> None:
    rng = np.random.default_rng(3)
    corner = rng.random((300, 2)).astype(np.float32)
    boxes, coeff = np.concatenate([corner, corner + 0.01], axis=1), rng.random((300, 4)).astype(np.float32)
    scores = rng.random((5, 300)).astype(np.float32)
    holes = rng.random(scores.shape) < 0.4
    detected = fast_nms(boxes, np.where(holes, np.float32(np.nan), scores), coeff, top_k=20)
    expected = fast_nms(boxes, np.where(holes, np.float32(-1), scores), coeff, top_k=20)
    assert len(detected.scores) == 100
    np.testing.assert_array_equal(detected.scores, expected.scores)
    np.testing.assert_array_equal(detected.boxes, expected.boxes)
