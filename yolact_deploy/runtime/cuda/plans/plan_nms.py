"""Launch plan for Fast NMS (kernels/fast_nms.cu): sizes, grids, arguments and scratch.

Legend: N images, P priors, C classes, K coefficients, k = top_k, D = max_detections, L = entries kept per list.

Three kernels, each of which can also be a plugin node of its own. Buffers, float32 unless noted:

    prior_best      scores [N,P,C]
                    -> candidates int32 [N, ceil(P/32)]: bit p%32 of word p//32 is set if the best score of prior p is
                       above the threshold; cross-class also best_scores [N,P] and best_classes int32 [N,P], which are
                       only defined for candidates
    select_entries  candidates, values, boxes [N,P,4]
                    -> entry_scores [N,lists,L], entry_priors int32 [N,lists,L]: the survivors of each list, best first,
                       then -1. Per class: values = scores, lists = C. Cross-class: values = best_scores, lists = 1
    merge_entries   entry_scores, entry_priors, boxes, coeff [N,P,K]; cross-class also best_classes
                    -> num_detections int32 [N], out_boxes [N,D,4], out_scores [N,D], out_labels int32 [N,D],
                       out_coeff [N,D,K]; slots past num_detections are 0
"""

from __future__ import annotations

from yolact_deploy.runtime.cuda.plans.launch import (
    Defines,
    Launch,
    LaunchPlan,
    ceil_div,
    check_sizes,
    float_bits,
    int32s,
)

SOURCE = "fast_nms.cu"

#: threads per block of select_entries and merge_entries
THREADS = 512
#: warps per block of prior_best; few, so that the warps of a single image spread evenly over the multiprocessors
PRIOR_WARPS = 2
#: most loads that a lane of prior_best has in flight
MAX_DEPTH = 20
#: most entries that a block keeps in shared memory, in addition to one offer
MAX_KEPT = 1536

_WINDOW = 2048  # as in the source
_KEY_BYTES = 8
_BOX_BYTES = 16
_OVERLAP_OPERATIONS = 15


def fast_nms(
    batch: int,
    priors: int,
    classes: int,
    coefficients: int,
    *,
    top_k: int,
    max_detections: int,
    score_threshold: float,
    iou_threshold: float,
    cross_class: bool = False,
    second_threshold: float = -1.0,
) -> LaunchPlan:
    """The three launches of Fast NMS; only grid y of the first two and grid x of the last depend on the batch.

    Args:
        top_k: entries of each list that take part, at most `MAX_KEPT`
        max_detections: slots of the outputs, D
        cross_class: use one list for all classes, in which each prior represents its best class
        second_threshold: detections must score above it in their own class

    Raises:
        ConfigError: sizes that the kernels do not support.
    """
    limits = {"batch": (batch, 65535), "priors": (priors, 2**30), "classes": (classes, 2**20)}
    limits |= {"coefficients": (coefficients, 2**20), "top_k": (top_k, MAX_KEPT)}
    check_sizes("Fast NMS", {**limits, "max_detections": (max_detections, 2**30 // max(coefficients, 1))})
    lists, length = 1 if cross_class else classes, min(top_k, max_detections)
    defines = kernel_defines(classes, cross_class=cross_class)
    entries = batch * lists * length * 4
    scratch = {"candidates": batch * ceil_div(priors, 32) * 4, "entry_scores": entries, "entry_priors": entries}
    if cross_class:
        scratch |= {"best_scores": batch * priors * 4, "best_classes": batch * priors * 4}
    launches = (
        _prior_best(batch, priors, classes, score_threshold, defines, cross_class),
        _select_entries(batch, priors, lists, top_k, length, (iou_threshold, second_threshold), defines, cross_class),
        _merge_entries(batch, priors, lists, length, coefficients, max_detections, defines, cross_class),
    )
    operations = priors * classes + lists * _OVERLAP_OPERATIONS * top_k * (top_k - 1) // 2
    moved = _bytes(priors, classes, coefficients, max_detections)
    return LaunchPlan(launches, scratch, batch * moved, batch * operations)


def kernel_defines(classes: int, *, cross_class: bool) -> Defines:
    """Preprocessor definitions of the kernels: width of a load, loads in flight, and the variant."""
    vector = next(width for width in (4, 2, 1) if classes % width == 0)
    loads = classes // vector  # per lane, for the 32 priors of its warp
    depth = ceil_div(loads, ceil_div(loads, MAX_DEPTH))
    return (("THREADS", THREADS), ("VECTOR", vector), ("DEPTH", depth), ("CROSS_CLASS", int(cross_class)))


def _prior_best(batch: int, priors: int, classes: int, threshold: float, defines: Defines, cross_class: bool) -> Launch:
    best = ("best_scores", "best_classes") if cross_class else ()
    return Launch(
        source=SOURCE,
        kernel="prior_best",
        grid=(ceil_div(ceil_div(priors, 32), PRIOR_WARPS), batch, 1),
        block=(32 * PRIOR_WARPS, 1, 1),
        shared_bytes=0,
        arguments=("scores", *int32s(priors, classes), float_bits(threshold), "candidates", *best),
        defines=defines,
    )


def _select_entries(
    batch: int,
    priors: int,
    lists: int,
    top_k: int,
    length: int,
    thresholds: tuple[float, float],
    defines: Defines,
    cross_class: bool,
) -> Launch:
    capacity = _capacity(top_k)
    return Launch(
        source=SOURCE,
        kernel="select_entries",
        grid=(lists, batch, 1),
        block=(THREADS, 1, 1),
        shared_bytes=capacity * _KEY_BYTES + max(_WINDOW * 4, top_k * _BOX_BYTES),
        arguments=(
            *("candidates", "best_scores" if cross_class else "scores", "boxes"),
            *int32s(priors, top_k, length),
            *(*map(float_bits, thresholds), *int32s(capacity)),
            *("entry_scores", "entry_priors"),
        ),
        defines=defines,
    )


def _merge_entries(
    batch: int,
    priors: int,
    lists: int,
    length: int,
    coefficients: int,
    detections: int,
    defines: Defines,
    cross_class: bool,
) -> Launch:
    page = min(detections, MAX_KEPT)
    capacity = _capacity(page)
    return Launch(
        source=SOURCE,
        kernel="merge_entries",
        grid=(batch, 1, 1),
        block=(THREADS, 1, 1),
        shared_bytes=capacity * _KEY_BYTES + page * 4,
        arguments=(
            *("entry_scores", "entry_priors", "boxes", "coeff", *(("best_classes",) if cross_class else ())),
            *int32s(priors, lists, length, coefficients, detections, page, capacity),
            *("num_detections", "out_boxes", "out_scores", "out_labels", "out_coeff"),
        ),
        defines=defines,
    )


def _capacity(kept: int) -> int:
    """Keys in shared memory: a power of two with room for the kept ones and one offer of the whole block."""
    return 1 << (kept + THREADS - 1).bit_length()


def _bytes(priors: int, classes: int, coefficients: int, detections: int) -> int:
    """Least traffic per image: all scores are read, and the data of the detections is read and written."""
    gathered = detections * 4 * (4 + coefficients)
    written = 4 + detections * 4 * (4 + 1 + 1 + coefficients)
    return priors * classes * 4 + gathered + written
