"""Our CUDA kernels held to what the original implementation put out: the golden files of a checkout of this project.

Fast NMS of both kinds on random and on awkward boxes, and masks from prototypes to pixels, cropped. An installed
package has no golden files; there is nothing to hold the kernels to then but NumPy.

Legend: n boxes, C classes, K coefficients, D detection slots, h x w prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.gpu.gpu_kernels import Arrays, KernelCase
from yolact_deploy.mask_forms import PackedMasks
from yolact_deploy.runtime.cuda.plans import plan_masks, plan_nms, plan_paste
from yolact_deploy.runtime.cuda.plans.launch import joined

#: where a checkout has them, from its root
GOLDEN = Path("tests/golden")

_VARIANTS = {"fast": False, "cc": True}
_SLOTS = 100
_TOP_K = 200
_FIELDS = ("class", "score", "box", "mask")


def golden_cases(folder: Path = GOLDEN) -> Iterator[KernelCase]:
    """A case for each output of the original in ``pure_*.npz`` that a kernel can give."""
    for path in sorted(folder.glob("pure_*.npz")):
        with np.load(path) as golden:
            yield from _nms_cases(path.stem, golden)
            yield from _mask_cases(path.stem, golden)


def _nms_cases(stem: str, golden: Mapping[str, NDArray[Any]]) -> Iterator[KernelCase]:
    for key in golden:
        name, _, rest = key.partition(".")
        variant, _, field = rest.partition(".")
        if variant in _VARIANTS and field == "score":
            inputs = {
                "boxes": golden[f"{name}.boxes"][None],
                "scores": np.ascontiguousarray(golden[f"{name}.scores"].T)[None],
                "coeff": golden[f"{name}.masks"][None],
            }
            expected = {field: golden[f"{name}.{variant}.{field}"] for field in _FIELDS}
            yield _nms_case(f"{stem} {name} {variant}", inputs, expected, cross_class=_VARIANTS[variant])


def _nms_case(name: str, inputs: Arrays, expected: Arrays, *, cross_class: bool) -> KernelCase:
    (_, count, classes), coefficients = inputs["scores"].shape, inputs["coeff"].shape[2]
    slots = min(_TOP_K if cross_class else _SLOTS, _TOP_K * classes)
    plan = plan_nms.fast_nms(
        *(1, count, classes, coefficients),
        top_k=_TOP_K,
        max_detections=slots,
        score_threshold=-1.0,  # the original's function gets what passed already
        iou_threshold=0.5,
        cross_class=cross_class,
    )

    def check(got: Arrays) -> str:
        number = int(got["num_detections"][0])
        names = ("out_labels", "out_scores", "out_boxes", "out_coeff")
        ours = _rows(*(got[name][0, :number] for name in names))
        theirs = _rows(*(expected[field] for field in _FIELDS))
        if ours.shape != theirs.shape:
            return f"{number} detections instead of {len(theirs)}"
        return "" if np.allclose(ours, theirs, rtol=1e-5, atol=1e-6) else "other detections than the original's"

    outputs: dict[str, Any] = {
        "num_detections": ((1,), np.int32),
        "out_boxes": ((1, slots, 4), np.float32),
        "out_scores": ((1, slots), np.float32),
        "out_labels": ((1, slots), np.int32),
        "out_coeff": ((1, slots, coefficients), np.float32),
    }
    return KernelCase(f"fast_nms, {name}", plan, inputs, outputs, check)


def _rows(labels: Any, scores: Any, boxes: Any, coeff: Any) -> NDArray[np.float64]:
    """Detections as rows in an order that does not depend on that of equals."""
    rows = np.concatenate([labels[:, None], scores[:, None], boxes, coeff], axis=1).astype(np.float64)
    return rows[np.lexsort(np.round(rows, 4).T[::-1])]


def _mask_cases(stem: str, golden: Mapping[str, NDArray[Any]]) -> Iterator[KernelCase]:
    for key in golden:
        name, found, rest = key.partition(".out.mask_packed")
        if not found or rest or "nocrop" in name:
            continue
        case = {part: golden[f"{name}.{part}"] for part in ("proto", "coef", "boxes", "scores", "thr", "wh")}
        keep = case["scores"] > case["thr"]
        if keep.any():
            yield _mask_case(f"{stem} {name}", case, keep, golden[key])


def _mask_case(name: str, case: Arrays, keep: NDArray[np.bool_], expected: NDArray[np.uint8]) -> KernelCase:
    count, (h, w, k) = int(keep.sum()), case["proto"].shape
    width, height = (int(side) for side in case["wh"])
    words = count * height * -(-width // 32)
    plan = joined(
        [
            plan_masks.mask_assembly(1, count, h, w, k, zero_outside=False),
            plan_paste.paste(1, count, h, w, capacity_words=words),
        ]
    )

    def check(got: Arrays) -> str:
        packed = PackedMasks(got["windows"][0], got["bits"][0], height, width).packed()
        # The sigmoid is approximate on a GPU: a pixel at one half may fall to either side.
        wrong = int(np.unpackbits(packed ^ expected).sum())
        return f"{wrong} pixels of {count} masks are not the original's" if wrong > count else ""

    inputs = {
        "proto": case["proto"][None],
        "coeff": case["coef"][keep][None],
        "boxes": case["boxes"][keep][None],
        "num_detections": np.array([count], np.int32),
        "image_sizes": np.array([[height, width]], np.int32),
    }
    outputs: dict[str, Any] = {
        "masks": ((1, count, h, w), np.float32),
        "windows": ((1, count, 6), np.int32),
        "words_needed": ((1,), np.int32),
        "bits": ((1, words), np.uint32),
    }
    return KernelCase(f"masks and paste, {name}", plan, inputs, outputs, check)
