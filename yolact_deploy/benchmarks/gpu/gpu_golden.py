"""Our CUDA kernels compared with the output of the original implementation: the golden files of a checkout.

Both kinds of Fast NMS on random and on difficult boxes, and cropped masks from prototypes to pixels. An installed
package has no golden files; its kernels are only compared with NumPy.

Legend: n boxes, C classes, K coefficients, D detection slots, h x w prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.gpu.gpu_kernels import Arrays, KernelCase, nms_shapes, paste_shapes
from yolact_deploy.mask_forms import PackedMasks
from yolact_deploy.priors import Placement
from yolact_deploy.runtime.cuda.plans import plan_masks, plan_nms, plan_paste
from yolact_deploy.runtime.cuda.plans.launch import joined

#: relative to the root of a checkout
GOLDEN = Path("tests/golden")

_VARIANTS = {"fast": False, "cc": True}
_SLOTS = 100
_TOP_K = 200
_FIELDS = ("class", "score", "box", "mask")


def golden_cases(folder: Path = GOLDEN) -> Iterator[KernelCase]:
    """A case for each output of the original in ``pure_*.npz`` that a kernel computes."""
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
        score_threshold=-1.0,  # the original function gets only what passed the threshold
        iou_threshold=0.5,
        cross_class=cross_class,
    )

    def check(outputs: Arrays) -> str:
        number = int(outputs["num_detections"][0])
        names = ("out_labels", "out_scores", "out_boxes", "out_coeff")
        ours = _rows(*(outputs[name][0, :number] for name in names))
        theirs = _rows(*(expected[field] for field in _FIELDS))
        if ours.shape != theirs.shape:
            return f"{number} detections instead of {len(theirs)}"
        return "" if np.allclose(ours, theirs, rtol=1e-5, atol=1e-6) else "the detections differ from the original's"

    shapes = nms_shapes(1, slots, coefficients)
    return KernelCase(f"fast_nms, {name}", plan, inputs, shapes, check)


def _rows(labels: Any, scores: Any, boxes: Any, coeff: Any) -> NDArray[np.float64]:
    """Detections as rows in an order that ties do not change."""
    rows = np.concatenate([labels[:, None], scores[:, None], boxes, coeff], axis=1).astype(np.float64)
    return rows[np.lexsort(np.round(rows, 4).T[::-1])]


def _mask_cases(stem: str, golden: Mapping[str, NDArray[Any]]) -> Iterator[KernelCase]:
    for key in golden:
        name, separator, rest = key.partition(".out.mask_packed")
        if not separator or rest or "nocrop" in name:
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
            plan_paste.paste(1, count, h, w, capacity_words=words, score_threshold=-1.0),
        ]
    )

    def check(outputs: Arrays) -> str:
        packed = PackedMasks(outputs["windows"][0], outputs["bits"][0], height, width).packed()
        # The sigmoid is approximate on a GPU: a pixel at 0.5 may fall to either side.
        wrong = int(np.unpackbits(packed ^ expected).sum())
        return f"{wrong} pixels of {count} masks differ from the original's" if wrong > count else ""

    inputs = {
        "proto": case["proto"][None],
        "coeff": case["coef"][keep][None],
        "boxes": case["boxes"][keep][None],
        "scores": case["scores"][keep][None],
        "labels": np.zeros((1, count), np.int32),
        "num_detections": np.array([count], np.int32),
        "placements": np.array([Placement.whole(height, width)], np.int32),
    }
    shapes = {"masks": ((1, count, h, w), np.float32), **paste_shapes(1, count, words)}
    return KernelCase(f"masks and paste, {name}", plan, inputs, shapes, check)
