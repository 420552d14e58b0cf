"""`evaluate`: the COCO average precision of one model."""

from __future__ import annotations

from yolact_deploy.benchmarks.accuracy import Accuracy, Result, accuracy
from yolact_deploy.benchmarks.coco import CocoImages
from yolact_deploy.console import progress
from yolact_deploy.errors import DatasetError
from yolact_deploy.runtime.predictor import Predictor


def evaluate(predictor: Predictor, images: CocoImages, *, quiet: bool = False) -> tuple[Accuracy, list[Result]]:
    """Run a model with score threshold 0 over annotated images; its accuracy and its COCO results.

    Raises:
        DatasetError: images without annotations, or of classes that the model does not have.
    """
    if images.content is None:
        raise DatasetError("these images have no annotations: give --coco DIR with instances_*.json, or --annotations")
    images.check_classes(predictor.config)
    results: list[Result] = []
    for image in progress(images.images, "evaluating", quiet=quiet):
        results += predictor(image.path).to_coco(image.image_id, predictor.config.category_ids)
    return accuracy(images.content, results, images.image_ids), results
