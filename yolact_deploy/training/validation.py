"""COCO AP of a model during training, with the images divided among the processes.

Scores the model like `yolact-deploy eval`: eager, through the predictor, with pycocotools.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from yolact_deploy.datasets.dataset_file import DatasetSpec
from yolact_deploy.datasets.image_sets import open_images
from yolact_deploy.detections import Detections
from yolact_deploy.draw import Image, draw_detections
from yolact_deploy.evaluation.accuracy import Accuracy, Result, accuracy, scoring_limit
from yolact_deploy.evaluation.confusion import Confusion
from yolact_deploy.model import YolactModel
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.torch.torch_backend import TorchBackend
from yolact_deploy.training.distributed import World

_AT_ONCE = 8
_EXAMPLES, _SHEET_HEIGHT, _SHOWN_SCORE = 4, 320, 0.15


class Evaluator:
    """Scores weights on the held-out images of a dataset.

    Args:
        model: its copies are scored; it is not changed
        spec: the dataset, which has a split "val"
        limit: only the first so many images; 0 means all

    Raises:
        DatasetError: the split cannot be used.
    """

    def __init__(
        self, model: YolactModel, spec: DatasetSpec, world: World, *, limit: int = 0, progress: Progress = SILENT
    ) -> None:
        self.model, self.world = model, world
        self.progress = progress if world.is_main else SILENT
        split = spec.split("val")
        images = open_images(
            annotations=split.annotations, images_dir=split.images, limit=limit or None, lenient=spec.lenient
        )
        self.images = images.of_classes(spec.category_ids)
        #: of the last evaluation, in the main process: all results, and a few pictures with their detections
        self.results: list[Result] = []
        self.examples: list[tuple[Path, Detections]] = []

    def __call__(self, weights: Mapping[str, Tensor]) -> Accuracy | None:
        """The accuracy of weights in the main process, None in the others. All processes must call.

        Draws no random numbers.
        """
        mine = self.images.images[self.world.rank :: self.world.size]
        chunks = [mine[i : i + _AT_ONCE] for i in range(0, len(mine), _AT_ONCE)]
        results: list[Result] = []
        self.examples = []
        with self._predictor(weights) as predictor:
            ids = predictor.config.category_ids
            shown = self.progress.track(chunks, "evaluating", unit="batches")
            for chunk in shown:
                predicted = predictor([image.path for image in chunk])
                for image, detections in zip(chunk, predicted, strict=True):
                    if len(self.examples) < _EXAMPLES:
                        self.examples.append((image.path, detections.above(_SHOWN_SCORE)))
                    results += detections.to_coco(image.image_id, ids)
        gathered = self.world.gather(results)
        if not self.world.is_main:
            return None
        assert self.images.content is not None  # of_classes made it
        self.results = results = [r for part in gathered for r in part]
        limit = scoring_limit(self.model.config)
        return accuracy(self.images.content, results, self.images.image_ids, max_detections=limit)

    def sheet(self) -> Image | None:
        """The first pictures of the last evaluation with what was detected, side by side, uint8 BGR [H, W, 3]."""
        drawn = []
        for path, detections in self.examples:
            picture = draw_detections(read_image(path), detections)
            scale = _SHEET_HEIGHT / picture.shape[0]
            drawn.append(cv2.resize(picture, (max(1, round(picture.shape[1] * scale)), _SHEET_HEIGHT),
                                    interpolation=cv2.INTER_AREA))  # fmt: skip
        return np.concatenate(drawn, axis=1) if drawn else None

    def confusion(self) -> Confusion | None:
        """Which classes the last evaluation took for which; None if there was none."""
        if not self.results or self.images.content is None:
            return None
        limit = scoring_limit(self.model.config)
        return Confusion.of(self.images.content, self.results, self.images.image_ids, max_detections=limit)

    def _predictor(self, weights: Mapping[str, Tensor]) -> Predictor:
        model = with_weights(self.model, weights)
        device = self.world.device
        backend = TorchBackend(model, device=device.index if device.type == "cuda" else None)
        return Predictor(backend, score_threshold=0, lazy_masks=False)


def with_weights(model: YolactModel, weights: Mapping[str, Tensor]) -> YolactModel:
    """A copy of a model with other weights; a new model would draw random numbers."""
    other = copy.deepcopy(model)
    other.load_state_dict(dict(weights))
    return other
