"""Batches: which images, the same wherever and whenever they are made, and put together without loss."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

import torch
from sets import write_set

from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.errors import ConfigError, InputError
from yolact_deploy.preprocess import normalize
from yolact_deploy.training.data import (
    Augmentation,
    AugmentedImages,
    Batch,
    BatchSampler,
    CocoDataset,
    Normalizer,
    collate,
    open_dataset,
    plain_loader,
    training_loader,
)
from yolact_deploy.training.data.batch import unpack_masks
from yolact_deploy.training.targets import GroundTruth

SIZE = 60  # no multiple of 8: masks travel as bits
# Python from 3.12 on warns of any fork in a process with threads; the workers use none of the parent's.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset.of_split(open_dataset(write_set(tmp_path_factory.mktemp("set"))), "train")


def same(a: Batch, b: Batch) -> bool:
    return (
        (a.counts, a.image_ids) == (b.counts, b.image_ids)
        and torch.equal(a.images, b.images)
        and torch.equal(a.boxes, b.boxes)
        and all(torch.equal(x["masks"], y["masks"]) for x, y in zip(a.targets, b.targets, strict=True))
    )


# -- sampler --------------------------------------------------------------------------------------------------------


def test_each_epoch_takes_each_image_once() -> None:
    sampler = BatchSampler(10, 2, seed=1, stop=15)
    assert (len(sampler), sampler.batches_per_epoch) == (15, 5)
    batches = list(sampler)
    orders = []
    for epoch in range(3):
        keys = [key for batch in batches[5 * epoch : 5 * epoch + 5] for key in batch]
        assert {e for e, _, _ in keys} == {epoch}
        orders.append([index for _, index, _ in keys])
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] != orders[1] != orders[2]
    assert list(BatchSampler(10, 2, seed=2, stop=15)) != batches


def test_what_fills_no_batch_is_left_out() -> None:
    sampler = BatchSampler(11, 4)
    assert sampler.batches_per_epoch == 2
    first = [index for batch in islice(sampler, 2) for _, index, _ in batch]
    assert len(set(first)) == 8


def test_a_small_set_is_repeated() -> None:
    sampler = BatchSampler(3, 8)
    assert sampler.batches_per_epoch == 1
    batch = next(iter(sampler))
    assert sorted(index for _, index, _ in batch[:3]) == [0, 1, 2]
    assert batch[3:6] == batch[:3]


def test_going_on_is_the_same_as_not_having_stopped() -> None:
    whole = list(BatchSampler(10, 3, seed=4, stop=20))
    for start in (0, 1, 3, 7, 20):
        assert list(BatchSampler(10, 3, seed=4, start=start, stop=20)) == whole[start:]


def test_processes_share_the_batches_of_one() -> None:
    one = list(BatchSampler(25, 6, seed=3, stop=9))
    parts = [list(BatchSampler(25, 2, seed=3, stop=9, rank=rank, world_size=3)) for rank in range(3)]
    assert [a + b + c for a, b, c in zip(*parts, strict=True)] == one


def test_batches_without_end_have_no_length() -> None:
    with pytest.raises(TypeError, match="stop"):
        len(BatchSampler(10, 2))


@pytest.mark.parametrize("wrong", [(0, 1, 0, 1), (5, 0, 0, 1), (5, 1, 1, 1), (5, 1, -1, 1)])
def test_numbers_are_checked(wrong: tuple[int, int, int, int]) -> None:
    length, batch, rank, world = wrong
    with pytest.raises(ConfigError, match="rank"):
        BatchSampler(length, batch, rank=rank, world_size=world)


# -- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_holds_its_samples(dataset: CocoDataset) -> None:
    images = AugmentedImages(dataset, Augmentation(size=SIZE), seed=1)
    samples = [images[0, i, 0] for i in (2, 0, 1)]
    batch = collate(samples)
    assert batch.images.shape == (3, SIZE, SIZE, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.image_ids == (3, 1, 2)
    for (image, expected), found, picture in zip(samples, batch.targets, batch.images, strict=True):
        np.testing.assert_array_equal(picture, image)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name


def test_a_batch_without_objects(dataset: CocoDataset) -> None:
    batch = collate([AugmentedImages(dataset, Augmentation(size=SIZE))[0, 2, 0]] * 2)
    assert batch.counts == (0, 0)
    assert [target["masks"].shape for target in batch.targets] == [(0, SIZE, SIZE)] * 2
    assert GroundTruth.of(batch.to("cpu").targets, 2, torch.device("cpu")).size == 0
    assert GroundTruth.of_batch(batch, 2).masks_at((5, 5))[0].shape == (1, 5, 5)


@pytest.mark.parametrize("width", [48, 53])
def test_masks_are_unpacked_on_a_device_as_here(width: int) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (3, 20, width), np.uint8)
    found = unpack_masks(torch.from_numpy(np.packbits(masks, axis=-1)), width)
    np.testing.assert_array_equal(found, masks)


@pytest.mark.parametrize("name", ["yolact_base", "yolact_darknet53"])
def test_normalization_is_that_of_inference(name: str) -> None:
    config: YolactConfig = get_config(name)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    found = Normalizer(config)(torch.from_numpy(images))
    np.testing.assert_allclose(found, normalize(images, config), rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_loss_sees_a_batch_as_its_targets(dataset: CocoDataset) -> None:
    batch = next(iter(training_loader(dataset, Augmentation(size=SIZE), 7, seed=3, stop=1, workers=0)))
    assert batch.iscrowd.any()
    direct, listed = GroundTruth.of_batch(batch, 2), GroundTruth.of(batch.targets, 2, torch.device("cpu"))
    assert direct.counts == listed.counts
    for name in ("boxes", "labels", "crowd", "image", "rows"):
        assert torch.equal(getattr(direct, name), getattr(listed, name)), name
    sizes = (9, 7), (23, 23)
    for a, b in zip(direct.masks_at(*sizes), listed.masks_at(*sizes), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="batch: expected labels from 0 to 0, got"):
        GroundTruth.of_batch(batch, 1)


# -- loader ---------------------------------------------------------------------------------------------------------


@FORKS
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on one core
def test_workers_change_nothing(dataset: CocoDataset) -> None:
    settings = Augmentation(size=SIZE)
    alone = list(training_loader(dataset, settings, 2, seed=5, stop=5, workers=0))
    together = list(training_loader(dataset, settings, 2, seed=5, stop=5, workers=2))
    resumed = list(training_loader(dataset, settings, 2, seed=5, start=3, stop=5, workers=1))
    assert len(alone) == 5
    assert all(map(same, alone, together))
    assert all(map(same, alone[3:], resumed))
    other = list(training_loader(dataset, settings, 2, seed=6, stop=5, workers=0))
    assert not all(map(same, alone, other))


def test_epochs_differ(dataset: CocoDataset) -> None:
    images = AugmentedImages(dataset, Augmentation(size=SIZE))
    assert np.array_equal(images[0, 1, 0][0], images[0, 1, 0][0])
    assert not np.array_equal(images[0, 1, 0][0], images[1, 1, 0][0])


def test_torchs_own_generator_is_left_alone(dataset: CocoDataset) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    next(iter(training_loader(dataset, Augmentation(size=SIZE), 2, workers=0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_images_come_once_and_in_order(dataset: CocoDataset) -> None:
    batches = list(plain_loader(dataset, SIZE, 2, workers=0))
    assert [batch.image_ids for batch in batches] == [(1, 2), (3,)]
    scale = torch.tensor([SIZE / 64, SIZE / 48] * 2)
    torch.testing.assert_close(batches[0].targets[0]["boxes"], dataset[0][1]["boxes"] * scale)


class Where(torch.utils.data.Dataset[tuple[bool, float]]):
    """For each item, whether the worker's annotations are in shared memory, and their first coordinate."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[bool, float]:
        points: Any = self.dataset._arrays["points"]
        return points.is_shared(), float(points[0, 0])


@pytest.mark.slow
def test_workers_that_are_started_anew_share_the_annotations(dataset: CocoDataset) -> None:
    from torch.utils.data import DataLoader

    loader = DataLoader(Where(dataset), num_workers=1, batch_size=None, multiprocessing_context="spawn")
    first = float(dataset._arrays["points"][0, 0])
    assert [tuple(item) for item in loader] == [(True, first)] * 2
    points: Any = dataset._arrays["points"]
    assert points.is_shared()


# -- several sizes --------------------------------------------------------------------------------------------------


def test_each_batch_has_a_size_of_the_range(dataset: CocoDataset) -> None:
    """Multiples of 32, the same in every process and after a resume, with boxes where they belong."""
    augmentation = Augmentation.plain((128, 192))
    varied = dataclasses.replace(augmentation, multi_scale=(0.5, 1.5))
    loader = training_loader(dataset, varied, 2, seed=5, stop=12, workers=0)
    batches = list(loader)
    shapes = [tuple(batch.images.shape[1:3]) for batch in batches]
    assert len(set(shapes)) >= 4
    assert all(height % 32 == width % 32 == 0 for height, width in shapes)
    assert min(h for h, _ in shapes) >= 64
    assert max(w for _, w in shapes) <= 288
    late = list(training_loader(dataset, varied, 2, seed=5, start=8, stop=12, workers=0))
    assert all(same(one, other) for one, other in zip(batches[8:], late, strict=True))
    ranks = [training_loader(dataset, varied, 1, seed=5, stop=4, workers=0, rank=rank, world_size=2) for rank in (0, 1)]
    assert [b.images.shape for b in ranks[0]] == [b.images.shape for b in ranks[1]]
    usual = list(training_loader(dataset, augmentation, 2, seed=5, stop=12, workers=0))
    for batch, other in zip(batches, usual, strict=True):
        height, width = batch.images.shape[1:3]
        torch.testing.assert_close(
            batch.boxes / torch.tensor([width, height] * 2), other.boxes / torch.tensor([192.0, 128] * 2)
        )
        assert batch.masks.shape[1:] == (height, width)


@pytest.mark.parametrize("factors", [(1.5, 0.5), (0.1, 1), (1, 5), (0.25, 1)])
def test_ranges_that_are_none(factors: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="multi_scale: expected"):
        Augmentation(size=128, multi_scale=factors)
