"""The kernels of Fast NMS in the emulator, compared with the original's numbers, NumPy, and a plain implementation.

Legend: N images, P priors, C classes, K coefficients, D detection slots.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_emu import emulate
from few import few, few_rows

from yolact_deploy import postprocess
from yolact_deploy.benchmarks.scenarios.scene import make_scene
from yolact_deploy.config import get_config
from yolact_deploy.runtime.cuda.plans import plan_nms

pytestmark = pytest.mark.skipif(not emulate.available(), reason="needs g++ with C++20")

PURE = sorted((Path(__file__).resolve().parents[2] / "golden").glob("pure_*.npz"))
ALL = -0.5  # a score threshold that every prior passes
GARBAGE = 0x5A


class NmsOutputs(NamedTuple):
    """Outputs of the kernels for a batch, and their scratch."""

    num: Any  #: [N]
    boxes: Any  #: [N,D,4]
    scores: Any  #: [N,D]
    labels: Any  #: [N,D]
    coeff: Any  #: [N,D,K]
    scratch: dict[str, bytes]


def run_nms(boxes: Any, scores: Any, coeff: Any, *, run: dict[str, Any] | None = None, **options: Any) -> NmsOutputs:
    """Fast NMS of boxes [N,P,4], scores [N,P,C], coeff [N,P,K]; ``run``: arguments of the emulator."""
    options = {"top_k": 200, "max_detections": 100, "score_threshold": 0.05, "iou_threshold": 0.5} | options
    (num, priors, classes), width, slots = scores.shape, coeff.shape[2], options["max_detections"]
    plan = plan_nms.fast_nms(num, priors, classes, width, **options)
    outputs = {
        "num_detections": np.empty(num, np.int32),
        "out_boxes": np.empty((num, slots, 4), np.float32),
        "out_scores": np.empty((num, slots), np.float32),
        "out_labels": np.empty((num, slots), np.int32),
        "out_coeff": np.empty((num, slots, width), np.float32),
    }
    for array in outputs.values():
        array.view(np.uint8)[...] = GARBAGE
    buffers = emulate.run_plan(plan, {"boxes": boxes, "scores": scores, "coeff": coeff} | outputs, **(run or {}))
    scratch = {name: buffers[name].bytes.tobytes() for name in plan.scratch}
    values: list[Any] = [*outputs.values(), scratch]
    return NmsOutputs(*values)


def run_image(boxes: Any, scores: Any, coeff: Any, **options: Any) -> postprocess.Detected:
    """The detections of one image; all other slots must be zero."""
    result = run_nms(boxes[None], np.ascontiguousarray(scores)[None], coeff[None], **options)
    return detected(result, 0)


def detected(result: NmsOutputs, image: int) -> postprocess.Detected:
    num = int(result.num[image])
    for array in result[1:5]:
        assert not array[image, num:].any()
    return postprocess.Detected(*(array[image, :num] for array in result[1:5]))


def entries(boxes: Any, scores: Any, **options: Any) -> list[tuple[int, int]]:
    """(class, prior) of the detections of boxes [P,4] and scores [P,C], best first."""
    numbers = np.arange(len(boxes), dtype=np.float32)[:, None]
    result = run_image(boxes, scores, numbers, **options)
    priors = result.coeff[:, 0].astype(int)
    assert_same_bits(result.boxes, boxes[priors])
    kept = list(zip(result.labels.tolist(), priors.tolist(), strict=True))
    assert result.scores.tolist() == [scores[prior, label] for label, prior in kept]
    return kept


def plain_entries(
    boxes: Any,
    scores: Any,
    *,
    top_k: int = 200,
    max_detections: int = 100,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    cross_class: bool = False,
) -> list[tuple[int, int]]:
    """The definition, one pair of boxes at a time; NaN scores are ignored."""
    limit = np.float32(score_threshold)
    lists: dict[int, list[tuple[float, int, int]]] = {}
    for prior in np.flatnonzero((scores > limit).any(axis=1)).tolist():
        of_prior = [(-float(s), prior, label) for label, s in enumerate(scores[prior].tolist()) if s > -np.inf]
        if cross_class:
            of_prior = [min(of_prior, key=lambda entry: (entry[0], entry[2]))]
        for entry in of_prior:
            lists.setdefault(0 if cross_class else entry[2], []).append(entry)
    kept = []
    for number, members in lists.items():
        top = sorted(members)[:top_k]
        order = [prior for _, prior, _ in top]
        apart = postprocess.box_iou(boxes[order], boxes[order]) <= np.float32(iou_threshold)
        kept += [(*top[i][:1], number, i, top[i]) for i in range(len(top)) if apart[:i, i].all()]
    return [(entry[2], entry[1]) for *_, entry in sorted(kept)[:max_detections]]


def make_inputs(seed: int, priors: int, classes: int, *, levels: int = 0, size: float = 0.3) -> tuple[Any, Any]:
    """Random boxes [P,4] and scores [P,C]; ``levels`` creates equal scores."""
    rng = np.random.default_rng(seed)
    corner = rng.random((priors, 2))
    boxes = np.concatenate([corner, corner + rng.random((priors, 2)) * size + 0.001], axis=1).astype(np.float32)
    scores = rng.random((priors, classes)) ** 3
    if levels:
        scores = np.round(scores * levels) / levels
    return boxes, scores.astype(np.float32)


def assert_same_bits(mine: Any, other: Any) -> None:
    np.testing.assert_array_equal(mine.view(np.uint32), other.view(np.uint32))


# -- against the original and NumPy -----------------------------------------------------------------------------------


def golden_cases() -> list[Any]:
    cases = []
    for path in PURE:
        with np.load(path) as golden:
            for key in golden.files:
                name, _, rest = key.partition(".")
                if rest in ("fast.box", "cc.box"):
                    variant = rest.partition(".")[0]
                    cases.append(pytest.param(path, name, variant, id=f"{path.stem}-{name}-{variant}"))
    return cases


def assert_same_set(result: postprocess.Detected, boxes: Any, coeff: Any, labels: Any, scores: Any) -> None:
    """The same detections bit for bit; those with equal scores may be in any order."""
    np.testing.assert_array_equal(result.scores, scores)

    def rows(*columns: Any) -> list[tuple[float, ...]]:
        return sorted(tuple(np.concatenate([np.atleast_1d(c[i]) for c in columns]).tolist()) for i in range(len(boxes)))

    assert rows(result.scores, result.labels, result.boxes, result.coeff) == rows(scores, labels, boxes, coeff)


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name", "variant"), golden_cases())
def test_kernels_equal_the_original(path: Path, name: str, variant: str) -> None:
    with np.load(path) as golden:
        inputs = golden[f"{name}.boxes"], golden[f"{name}.scores"].T, golden[f"{name}.masks"]
        want = [golden[f"{name}.{variant}.{field}"] for field in ("box", "mask", "class", "score")]
    cross = variant == "cc"  # limited by top_k alone
    slots = 200 if cross else 100
    result = run_image(
        *inputs, score_threshold=ALL, cross_class=cross, max_detections=min(slots, 200 * len(inputs[1].T))
    )
    assert_same_set(result, *want)


@pytest.mark.golden
@pytest.mark.parametrize("path", [path for path in PURE if "seed" in path.stem], ids=lambda path: path.stem)
def test_kernels_with_threshold_equal_the_original(path: Path) -> None:
    with np.load(path) as golden:
        result = run_image(golden["detect.boxes"], golden["detect.conf"][:, 1:], golden["detect.masks"])
        assert_same_set(result, *(golden[f"detect.out.{field}"] for field in ("box", "mask", "class", "score")))


@pytest.mark.parametrize("cross_class", [False, True])
@pytest.mark.parametrize(("config", "objects"), few_rows([("yolact_resnet50", 30), ("yolact_plus_resnet50", 50)], 0))
def test_scene_equals_numpy(config: str, objects: int, cross_class: bool) -> None:
    """Outputs of a real size: P = 19248 and 57744, C = 80."""
    scene = make_scene(get_config(config), objects=objects)
    result = run_image(*scene[:3], cross_class=cross_class)
    want = postprocess.detect(*scene[:3], nms="cross-class" if cross_class else "fast").select(slice(100))
    for mine, theirs in zip(result, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_batch_of_scenes_equals_numpy() -> None:
    scenes = [make_scene(get_config("yolact_resnet50_pascal"), objects=n, seed=n) for n in (1, 25, 60)]
    stacked = [np.stack(arrays) for arrays in zip(*(scene[:3] for scene in scenes), strict=True)]
    result = run_nms(*stacked)
    for image, scene in enumerate(scenes):
        for mine, theirs in zip(detected(result, image), postprocess.detect(*scene[:3]), strict=True):
            np.testing.assert_array_equal(mine, theirs)


# -- against the definition, at odd sizes and with odd data -----------------------------------------------------------


@pytest.mark.parametrize("cross_class", [False, True])
@pytest.mark.parametrize(
    ("priors", "classes", "options"),
    [
        (1, 1, {"max_detections": 1}),
        (31, 5, {"top_k": 7}),
        (32, 5, {"max_detections": 3}),
        (33, 5, {"top_k": 1, "max_detections": 2}),
        (300, 1, {"score_threshold": 0.0, "iou_threshold": 0.1}),
        (700, 6, {"top_k": 31, "score_threshold": 0.6}),
        (1000, 21, {"top_k": 200, "score_threshold": 0.9, "iou_threshold": 0.0}),
        (500, 80, {"score_threshold": 0.99}),
        (97, 5, {"top_k": 300, "max_detections": 400, "score_threshold": ALL}),
    ],
)
@pytest.mark.parametrize("levels", [0, 12])
def test_kernels_against_the_definition(
    priors: int, classes: int, options: dict[str, Any], cross_class: bool, levels: int
) -> None:
    boxes, scores = make_inputs(priors + classes, priors, classes, levels=levels)
    options = options | {"cross_class": cross_class}
    assert entries(boxes, scores, **options) == plain_entries(boxes, scores, **options)


@pytest.mark.parametrize("order", ["rising", "falling", "equal"])
def test_any_number_of_candidates_streams_through(order: str) -> None:
    """Every prior passes, so the buffers are pruned again and again; ascending scores are the worst case."""
    boxes, scores = make_inputs(3, 9000, 5, size=0.01)
    scores = np.sort(scores, axis=0) if order == "rising" else -np.sort(-scores, axis=0)
    if order == "equal":
        scores[:] = 0.25
    assert entries(boxes, scores, score_threshold=ALL) == plain_entries(boxes, scores, score_threshold=ALL)


def test_largest_lists_and_several_pages_of_detections() -> None:
    boxes, scores = make_inputs(4, 2500, 5, size=0.001)
    options: dict[str, Any] = {
        "top_k": plan_nms.MAX_KEPT,
        "max_detections": 3 * plan_nms.MAX_KEPT - 5,
        "score_threshold": ALL,
    }
    result = entries(boxes, scores, **options)
    assert len(result) > 2 * plan_nms.MAX_KEPT
    assert result == plain_entries(boxes, scores, **options)


@pytest.mark.parametrize("cross_class", [False, True])
def test_nothing_found(cross_class: bool) -> None:
    boxes, scores = make_inputs(5, 200, 5)
    assert entries(boxes, scores * 0.04, cross_class=cross_class) == []
    assert entries(boxes, np.full_like(scores, np.nan), cross_class=cross_class) == []
    assert entries(boxes, np.full_like(scores, -np.inf), score_threshold=-np.inf, cross_class=cross_class) == []


@pytest.mark.parametrize("cross_class", [False, True])
def test_one_found(cross_class: bool) -> None:
    boxes, scores = make_inputs(6, 200, 5)
    scores[:] = 0
    scores[[3, 77, 199], [0, 4, 2]] = 0.05, 0.5, np.nan  # not above, above, nothing
    options: dict[str, Any] = {"cross_class": cross_class, "max_detections": 4}
    assert entries(boxes, scores, **options) == plain_entries(boxes, scores, **options)
    assert entries(boxes, scores, **options)[0] == (4, 77)


@pytest.mark.parametrize("cross_class", [False, True])
@pytest.mark.parametrize("bad", [[0.5] * 4, [np.nan] * 4, [0.1, 0.1, np.nan, 0.5], [-np.inf, 0, np.inf, 1]])
def test_degenerate_boxes(bad: list[float], cross_class: bool) -> None:
    """Two boxes without area drop each other; a NaN box drops all that follow, and is dropped itself."""
    boxes, scores = make_inputs(7, 150, 5)
    boxes[::5] = bad
    options: dict[str, Any] = {"cross_class": cross_class, "top_k": 120}
    assert entries(boxes, scores, **options) == plain_entries(boxes, scores, **options)


@pytest.mark.parametrize("cross_class", [False, True])
def test_nan_infinite_negative_and_zero_scores(cross_class: bool) -> None:
    boxes, scores = make_inputs(8, 300, 5)
    scores -= 0.4
    scores[::7] = np.nan
    scores[1::7, 2] = np.nan
    scores[2::31, 1] = np.inf
    scores[3::31, :3] = -np.inf
    scores[4::9, 3] = -0.0
    scores[5::9, 3] = 0.0
    for threshold in (0.05, 0.0, -0.3, -1.0, -np.inf):
        options: dict[str, Any] = {
            "score_threshold": threshold,
            "cross_class": cross_class,
            "iou_threshold": 0.3,
            "top_k": 90,
        }
        options |= {"max_detections": 450}
        assert entries(boxes, scores, **options) == plain_entries(boxes, scores, **options)


def test_thresholds_are_exclusive_and_inclusive() -> None:
    """A score equal to the threshold does not pass; an overlap equal to the threshold is kept."""
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5]], np.float32)  # IoU exactly 0.5
    scores = np.full((2, 1), 0.05, np.float32)
    assert entries(boxes, scores) == []
    assert entries(boxes, np.nextafter(scores, np.float32(1))) == [(0, 0), (0, 1)]
    assert entries(boxes, scores, score_threshold=0.04, iou_threshold=np.nextafter(np.float32(0.5), 0)) == [(0, 0)]


def test_fast_nms_drops_by_dropped_entries() -> None:
    boxes = np.array([[0, 0, 0.5, 1], [0.15, 0, 0.65, 1], [0.3, 0, 0.8, 1]], np.float32)
    assert entries(boxes, np.array([[0.9], [0.8], [0.7]], np.float32)) == [(0, 0)]


@pytest.mark.parametrize("cross_class", [False, True])
def test_images_of_a_batch_do_not_mix(cross_class: bool) -> None:
    """N = 3 with an odd P, so that images start at odd addresses; one image is empty."""
    images = [make_inputs(seed, 301, 5) for seed in range(3)]
    images[1][1][:] *= 0.01
    boxes, scores = (np.stack(arrays) for arrays in zip(*images, strict=True))
    coeff = np.random.default_rng(0).random((3, 301, 3), np.float32)
    result = run_nms(boxes, scores, coeff, cross_class=cross_class)
    assert result.num.tolist()[1] == 0
    for image in range(3):
        alone = run_image(boxes[image], scores[image], coeff[image], cross_class=cross_class)
        for mine, other in zip(detected(result, image), alone, strict=True):
            np.testing.assert_array_equal(mine, other)


# -- the order of threads ---------------------------------------------------------------------------------------------


def busy_inputs() -> tuple[Any, Any, Any]:
    """Two images that cover every part of the kernels: several windows of candidates, prunings and pages."""
    images = [make_inputs(seed, 2600, 5, levels=50, size=0.1) for seed in range(2)]
    coeff = np.random.default_rng(0).random((2, 2600, 3), np.float32)
    return np.stack([boxes for boxes, _ in images]), np.stack([scores for _, scores in images]), coeff


BUSY: dict[str, Any] = {"score_threshold": ALL, "top_k": 200, "max_detections": 1600}


@pytest.mark.parametrize("cross_class", few([False, True], 0))
def test_the_order_of_threads_does_not_matter(cross_class: bool) -> None:
    inputs = busy_inputs()
    options = BUSY | {"cross_class": cross_class, "max_detections": 300 if cross_class else 800}
    first = run_nms(*inputs, **options)
    assert first.num.min() > 40
    for seed in range(1, 5):
        other = run_nms(*inputs, **options, run={"seed": seed})
        assert [np.asarray(a).tobytes() for a in first[:5]] == [np.asarray(a).tobytes() for a in other[:5]]
        assert first.scratch == other.scratch


@pytest.mark.parametrize("cross_class", [False, True])
@pytest.mark.parametrize("second", [0.0, 0.1, 0.4])
def test_second_threshold(second: float, cross_class: bool) -> None:
    boxes, scores = make_inputs(4, 150, 5, size=0.15)
    scores **= 4
    coeff = np.random.default_rng(0).random((150, 3), np.float32)
    options: dict[str, Any] = {"score_threshold": 0.05, "top_k": 150, "max_detections": 150 if cross_class else 750}
    result = run_image(boxes, scores, coeff, cross_class=cross_class, second_threshold=second, **options)
    nms = "cross-class" if cross_class else "fast"
    want = postprocess.detect(boxes, scores, coeff, nms=nms, second_threshold=second, **options)
    assert 0 < len(want.scores) < options["max_detections"]
    assert (want.scores > second).all()
    for mine, other in zip(result, want, strict=True):
        np.testing.assert_array_equal(mine, other)


def small_inputs(monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Small enough for the sanitizers: blocks of 64 threads, short lists and pages, with pruning."""
    monkeypatch.setattr(plan_nms, "THREADS", 64)
    monkeypatch.setattr(plan_nms, "MAX_KEPT", 40)
    boxes, scores = make_inputs(1, 2200, 2, size=0.15)
    coeff = np.random.default_rng(0).random((2200, 3), np.float32)
    options = {"score_threshold": ALL, "top_k": 40, "max_detections": 70, "iou_threshold": 0.05}
    return (boxes[None], scores[None], coeff[None]), options


@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
@pytest.mark.parametrize("cross_class", few([False, True], 0))
def test_nothing_races(cross_class: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, options = small_inputs(monkeypatch)
    options |= {"cross_class": cross_class}
    fibers, threads = run_nms(*inputs, **options), run_nms(*inputs, **options, run={"mode": "race"})
    assert 0 < threads.num[0] < (1 if cross_class else 2) * options["top_k"]  # some were dropped
    assert cross_class or threads.num[0] > plan_nms.MAX_KEPT
    for mine, other in zip(fibers[:5], threads[:5], strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.skipif(not emulate.available("address"), reason="needs AddressSanitizer")
@pytest.mark.parametrize("cross_class", few([False, True], 0))
def test_no_access_outside_of_buffers(cross_class: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no misaligned address; P is odd."""
    inputs, options = small_inputs(monkeypatch)
    inputs = tuple(array[:, :2177] for array in inputs)
    options |= {"cross_class": cross_class}
    fibers, program = run_nms(*inputs, **options), run_nms(*inputs, **options, run={"mode": "address"})
    for mine, other in zip(fibers[:5], program[:5], strict=True):
        np.testing.assert_array_equal(mine, other)


BARRIER = re.compile(r"^ *__syncthreads\(\);.*\n", re.MULTILINE)


def barriers() -> list[Any]:
    """(file, number) of each barrier of the sources."""
    files = ("common.cuh", "streaming_top.cuh", "fast_nms.cu")
    texts = {file: (emulate.KERNELS / file).read_text() for file in files}
    return [(file, number) for file in files for number in range(len(BARRIER.findall(texts[file])))]


def assert_caught(file: str, number: int, inputs: Any, options: dict[str, Any]) -> None:
    """Without barrier ``number`` of a file, a race or an invalid access is reported."""
    text = (emulate.KERNELS / file).read_text()
    barrier = list(BARRIER.finditer(text))[number]
    edits = {file: text[: barrier.start()] + text[barrier.end() :]}
    with pytest.raises(emulate.EmulationError, match="ThreadSanitizer"):
        run_nms(*inputs, **options, run={"mode": "race", "edits": edits})


@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
def test_a_missing_barrier_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, options = small_inputs(monkeypatch)
    assert_caught("streaming_top.cuh", 1, inputs, options)


@pytest.mark.slow
@pytest.mark.skipif(not emulate.available("race"), reason="needs ThreadSanitizer")
@pytest.mark.parametrize(("file", "number"), barriers())
def test_every_barrier_is_needed(file: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(file, number, *small_inputs(monkeypatch))
