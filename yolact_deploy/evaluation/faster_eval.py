"""Average precision by faster-coco-eval: the figures of pycocotools, faster, for results that fit into memory.

It does not expose the matches, so bootstrap intervals are not available.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from yolact_deploy.datasets.coco_results import Result
from yolact_deploy.errors import import_optional
from yolact_deploy.evaluation.coco_rules import COCO_LIMIT
from yolact_deploy.evaluation.matches import Floats, Truth, coco_index, detection, scoring

_EXTRA = "faster-eval"


class FasterMatcher:
    """Collects detections and scores them at the end; see :class:`~yolact_deploy.evaluation.matches.Matcher`."""

    def __init__(
        self, content: Mapping[str, Any], image_ids: Iterable[int], kind: str, *, max_detections: int = COCO_LIMIT
    ) -> None:
        self._tools = import_optional("faster_coco_eval", _EXTRA, "The evaluator faster-coco-eval")
        self._kind, self._max_detections = kind, max_detections
        self._truth = Truth(content, image_ids)
        self._detections: list[Result] = []
        self._scores: tuple[Floats, Floats] | None = None

    def add(self, results: Mapping[int, Sequence[Result]]) -> None:
        assert self._scores is None
        self._detections += [detection(result, self._kind) for of_image in results.values() for result in of_image]

    def precision(self) -> Floats:
        """Interpolated precision [T, R, K, A], -1 without objects; nothing can be added afterwards.

        Raises:
            DatasetError: the annotations have an unreadable segmentation.
        """
        return self._both()[0]

    def recall(self) -> Floats:
        """Recall of all detections that count [T, K, A], -1 without objects; nothing can be added afterwards."""
        return self._both()[1]

    def _both(self) -> tuple[Floats, Floats]:
        if self._scores is None:
            self._scores = self._score()
        return self._scores

    def _score(self) -> tuple[Floats, Floats]:
        truth, detections = self._truth.parts(self._truth.image_ids, self._detections)
        self._detections = []  # frees most of the memory before the next kind is scored
        with scoring("faster-coco-eval"):
            evaluation = self._tools.COCOeval_faster(
                coco_index(self._tools.COCO, truth), coco_index(self._tools.COCO, detections), iouType=self._kind
            )
            evaluation.params.imgIds = list(self._truth.image_ids)
            evaluation.params.catIds = list(self._truth.category_ids)
            evaluation.params.maxDets = [1, 10, self._max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]
