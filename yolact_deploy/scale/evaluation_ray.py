"""`eval --ray`: the figures of one process, from a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolact_deploy.datasets.image_sets import CocoImages
from yolact_deploy.errors import InputError
from yolact_deploy.evaluation.accuracy import KINDS, Accuracy, accuracy, scoring_limit
from yolact_deploy.loading import load
from yolact_deploy.progress import Progress
from yolact_deploy.scale.ray_rows import coco_results, predict_rows, running_ray


def accuracy_on_ray(
    address: str | None,
    model: str,
    options: Mapping[str, Any],
    images: CocoImages,
    *,
    evaluator: str,
    workers: int | None,
    progress: Progress,
) -> Accuracy:
    """Score a model whose detections a cluster computes.

    Args:
        address: of a cluster; None starts one on this machine
        options: arguments of :class:`~yolact_deploy.scale.ray_rows.Predict`
        workers: predictors at once; None for all the cluster has room for

    Raises:
        InputError: a picture cannot be read.
        BackendError: the cluster cannot be used.
    """
    assert images.content is not None
    path = model if "://" in model else str(Path(model).resolve())
    with load(path, **options) as predictor:  # a model that cannot be loaded is reported here, once
        config = predictor.config
    ids = images.category_ids(config, model)
    rows = [{"path": str(image.path.resolve()), "image_id": image.image_id} for image in images.images]
    results = []
    with running_ray(address) as ray:
        dataset = predict_rows(ray, rows, path, options, actors=workers)
        for row in progress.track(dataset.iter_rows(), "eval", len(images)):
            if row["error"] is not None:
                raise InputError(row["error"])
            results += coco_results(row, row["image_id"], ids)
    return accuracy(images.content, results, images.image_ids, evaluator, tuple(KINDS), scoring_limit(config))
