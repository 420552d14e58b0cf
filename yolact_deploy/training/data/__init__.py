"""Images and targets to train on: COCO-style sets, augmentation, and a generated set of shapes.

What a training loop needs, in its order:

    spec = open_dataset("my.yaml")                        # or a COCO folder; classes and splits
    config = spec.configure(get_config("yolact_resnet50"))
    train = CocoDataset.of_split(spec, "train", keep_empty=False)     # refuses bad data with the list of what is wrong
    loader = training_loader(train, Augmentation(size=config.image_size), batch_size=8, seed=0, start=steps_done)
    normalize = Normalizer(config).to(device)
    for batch in loader:                                  # Batch: uint8 BGR [N, S, S, 3] and objects; without end
        batch = batch.to(device)
        losses = criterion(model(normalize(batch.images)), batch.targets)

- ``BatchSampler(len(train), B, world_size=W).batches_per_epoch`` tells an epoch's length; the loader of a process takes
  ``rank`` and ``world_size``, and its B is that of the process. Batch i is the same whenever and wherever it is made.
- ``plain_loader(dataset, size, batch_size)`` gives all images once, only resized (a validation loss).
- ``check_dataset(spec, deep=True)`` reads everything, as ``yolact-deploy data check`` does.
- A target is described at :func:`make_target`; ``dataset[i]`` gives picture and target at the picture's size.
- Normalisation is :class:`Normalizer`'s, on the device: the loader's images are grey levels in BGR.
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
