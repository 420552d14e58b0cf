"""Images and targets to train on: COCO-style datasets, augmentation and batches.

The parts of a training loop, in order:

    spec = open_dataset("my.yaml")                        # or a COCO folder; classes and splits
    config = spec.configure(get_config("yolact_resnet50"))
    train = CocoDataset.of_split(spec, "train", keep_empty=False)     # raises a list of errors for bad data
    loader = training_loader(train, Augmentation(size=config.image_size), batch_size=8, seed=0, start=steps_done)
    normalize = Normalizer(config).to(device)
    for batch in loader:                                  # Batch: uint8 BGR [N, S, S, 3] and objects; endless
        batch = batch.to(device)
        losses = criterion(model(normalize(batch.images)), GroundTruth.of_batch(batch, config.num_classes))

- ``BatchSampler(len(train), B, world_size=W).batches_per_epoch`` is the length of an epoch. The loader of each process
  takes ``rank`` and ``world_size``, and B counts its own images. Batch i is always the same, wherever it is made.
- ``plain_loader(dataset, size, batch_size)`` gives all images once, only resized (for a validation loss).
- ``check_dataset(spec, deep=True)`` reads everything, like ``yolact-deploy data check --deep``.
- :func:`make_target` describes a target; ``dataset[i]`` gives picture and target at the picture's size.
- :class:`Normalizer` normalizes on the device: the loader's images are pixel values in BGR.
"""

from __future__ import annotations

from yolact_deploy.datasets.check import DataReport, check_dataset
from yolact_deploy.datasets.dataset_file import DatasetSpec, open_dataset
from yolact_deploy.datasets.resolve import Split
from yolact_deploy.training.data.augment import Augmentation, make_target
from yolact_deploy.training.data.batch import Batch, Normalizer, collate
from yolact_deploy.training.data.coco_dataset import CocoDataset
from yolact_deploy.training.data.loader import AugmentedImages, BatchSampler, plain_loader, training_loader

__all__ = [
    "open_dataset", "DatasetSpec", "Split",
    "CocoDataset", "check_dataset", "DataReport",
    "Augmentation", "make_target",
    "AugmentedImages", "BatchSampler", "training_loader", "plain_loader",
    "Batch", "collate", "Normalizer",
]  # fmt: skip
