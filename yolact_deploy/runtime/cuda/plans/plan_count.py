"""Launch plan for counting the detections worth pasting (kernels/count_above.cu).

Legend: N images, D detection slots.
"""

from __future__ import annotations

from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan, float_bits, int32s

SOURCE = "count_above.cu"

_THREADS = 128


def count_above(batch: int, detections: int, *, score_threshold: float) -> LaunchPlan:
    """The one launch (kernel ``count_above``).

    Buffers in: scores float32 [N,D], best first; num_detections int32 [N]. Out: wanted int32 [N], the number of
    detections above the threshold.
    """
    launch = Launch(
        source=SOURCE,
        kernel="count_above",
        grid=(batch, 1, 1),
        block=(_THREADS, 1, 1),
        shared_bytes=0,
        arguments=("scores", "num_detections", *int32s(detections), float_bits(score_threshold), "wanted"),
    )
    return LaunchPlan(
        launches=(launch,), scratch={}, bytes_moved=batch * (4 * detections + 8), operations=batch * detections
    )
