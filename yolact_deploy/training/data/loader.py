"""Which images make each batch, and the workers that prepare them.

All randomness follows from the seed, the epoch and the index of the image, whichever worker prepares it. A run that
resumes at batch ``start`` therefore gets the same batches as an undisturbed one, and each of several processes gets its
part of the batches that a single process would get.

Legend: B images of a process in each batch, h x w the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from yolact_deploy.config import Size
from yolact_deploy.errors import ConfigError
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.training.data.augment import Augmentation, Target
from yolact_deploy.training.data.balance import Floats, drawn, repeat_factors
from yolact_deploy.training.data.batch import Batch, collate
from yolact_deploy.training.data.coco_dataset import CocoDataset
from yolact_deploy.training.data.mixing import copy_paste

Key = tuple[int, int, int]  # epoch, index of the image in the set, iteration


class BatchSampler(Sampler[list[Key]]):
    """The keys (epoch, index, step) of the images of batches ``start`` to ``stop``, for one process.

    Each epoch is shuffled anew; images that do not fill a batch of all processes are left out. A dataset smaller than
    one batch is repeated to fill it.

    Args:
        length: images of the dataset
        batch_size: B
        start: first batch, counted from the start of the training over all epochs
        stop: batch before which to end; None for no end
        weights: how often each image is drawn, relative to the others; by default once in each epoch
        rank, world_size: this process among all; together they take ``B * world_size`` consecutive images
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        weights: Floats | None = None,
    ) -> None:
        if length < 1 or batch_size < 1 or start < 0 or not 0 <= rank < world_size:
            raise ConfigError(
                f"expected images, a batch size of 1 or more, a start of 0 or more and a rank below {world_size}, "
                f"got {length} images, batch size {batch_size}, start {start}, rank {rank}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop, self.rank, self.world_size = start, stop, rank, world_size
        self.shuffle, self.weights = shuffle, weights

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.length // (self.batch_size * self.world_size))

    def __len__(self) -> int:
        """Number of batches; raises TypeError if there is no end."""
        if self.stop is None:
            raise TypeError("endless batches have no length: give stop")
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        step, order, order_epoch = self.start, np.zeros(0, np.int64), -1
        while self.stop is None or step < self.stop:
            epoch, place = divmod(step, self.batches_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self.order(epoch), epoch
            first = (place * self.world_size + self.rank) * self.batch_size
            yield [(epoch, int(order[i % self.length]), step) for i in range(first, first + self.batch_size)]
            step += 1

    def order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The order of the images in an epoch, int64 [length]."""
        if not self.shuffle:
            return np.arange(self.length)
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(self.length) if self.weights is None else drawn(self.weights, rng)


class AugmentedImages(Dataset[tuple[Any, Target]]):
    """The augmented images of a dataset: ``images[epoch, index, step]``, where the step decides the size."""

    def __init__(self, dataset: CocoDataset, augmentation: Augmentation, seed: int = 0) -> None:
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> tuple[Any, Target]:
        """The image [h, w, 3] and its target; the same for the same key in any process."""
        epoch, index, step = key
        rng, augmentation = np.random.default_rng([self.seed, epoch, index]), self.augmentation.at_step(self.seed, step)
        image, target = self._one(index, augmentation, rng)
        if augmentation.copy_paste and rng.random() < augmentation.copy_paste:
            image, target = copy_paste(image, target, *self._one(int(rng.integers(len(self))), augmentation, rng), rng)
        return image, {**target, "image_id": self.dataset.record(index).image_id}

    def _one(self, index: int, augmentation: Augmentation, rng: np.random.Generator) -> tuple[Any, Target]:
        return augmentation(self.dataset.image(index), self.dataset.objects(index), rng)


def training_loader(
    dataset: CocoDataset,
    augmentation: Augmentation,
    batch_size: int,
    *,
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    prefetch: int = 4,
    balance: float = 0.0,
) -> DataLoader[Batch]:
    """Batches ``start`` to ``stop`` of the training, over all epochs (see :class:`BatchSampler`).

    A run that resumes after k steps makes a loader with ``start=k``. Torch's own generator is not used.

    Args:
        batch_size: images for this process
        workers: processes that prepare batches; by default one per CPU core, at most 16; 0 for none
        prefetch: batches that each worker prepares ahead
        balance: draw images with classes in a smaller share of the images than this more often; 0 draws all alike
    """
    weights = repeat_factors(dataset.labels(), len(dataset.class_names), balance) if balance else None
    sampler = BatchSampler(
        len(dataset), batch_size, seed=seed, start=start, stop=stop, rank=rank, world_size=world_size, weights=weights
    )
    return _loader(AugmentedImages(dataset, augmentation, seed), sampler, workers, prefetch)


def plain_loader(
    dataset: CocoDataset,
    size: Size,
    batch_size: int,
    *,
    fit: str = "stretch",
    workers: int | None = None,
    prefetch: int = 4,
) -> DataLoader[Batch]:
    """All images once and in order, only resized, as ``fit`` says; a smaller batch may come last."""
    images = AugmentedImages(dataset, Augmentation.plain(size, fit=fit))
    keys = [(0, i, 0) for i in range(len(dataset))]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    return _loader(images, batches, workers, prefetch)


def default_workers() -> int:
    """One per CPU core that this process may use, at most 16."""
    return min(usable_cores(), 16)


def _loader(images: AugmentedImages, batches: Any, workers: int | None, prefetch: int) -> DataLoader[Batch]:
    count = default_workers() if workers is None else workers
    return DataLoader(
        images,  # type: ignore[arg-type]  # collate makes a Batch of the samples
        batch_sampler=batches,
        num_workers=count,
        collate_fn=collate,
        worker_init_fn=_begin_worker,
        prefetch_factor=prefetch if count else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # else each pass draws from the global one
    )


def _begin_worker(worker: int) -> None:
    """Limit the worker to one thread: parallelism comes from the number of workers."""
    torch.set_num_threads(1)
    # 0 means "in the calling thread". With 1, OpenCV waits for the parent's threads, which a fork does not have.
    cv2.setNumThreads(0)
