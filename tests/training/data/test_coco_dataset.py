"""Items of a COCO-style set."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from data import data_dir
from sets import annotation, content, write_set

from yolact_deploy.config import get_config
from yolact_deploy.errors import DatasetError
from yolact_deploy.preprocess import read_image
from yolact_deploy.training.data import CocoDataset, open_dataset
from yolact_deploy.training.targets import GroundTruth


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return CocoDataset.of_split(open_dataset(write_set(tmp_path)), "train")


def test_item(dataset: CocoDataset, tmp_path: Path) -> None:
    image, target = dataset[0]
    assert isinstance(dataset, torch.utils.data.Dataset)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 48, 64))
    np.testing.assert_array_equal(image.permute(1, 2, 0).flip(2), read_image(tmp_path / "images" / "1.png"))
    assert target["image_id"] == 1
    assert (target["width"], target["height"]) == (64, 48)
    assert target["boxes"].tolist() == [[10, 12, 30, 28], [2, 2, 10, 10], [40, 0, 50, 48]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [0, 1, 1]  # cat is 7, dog is 42
    assert target["iscrowd"].tolist() == [False, False, True]  # crowds last
    assert target["area"].tolist() == [320, 64, 480]
    assert target["masks"].dtype == torch.uint8
    for mask, (x0, y0, x1, y1) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        expected = torch.zeros(48, 64, dtype=torch.uint8)
        expected[y0:y1, x0:x1] = 1
        assert torch.equal(mask, expected)
    assert "keypoints" not in target


def test_images_are_in_the_order_of_their_ids(dataset: CocoDataset) -> None:
    assert [dataset.record(i).image_id for i in range(len(dataset))] == [1, 2, 3]
    with pytest.raises(IndexError):
        dataset[3]


def test_an_image_without_objects(dataset: CocoDataset) -> None:
    _, target = dataset[2]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 48, 64)


def test_images_without_objects_can_be_left_out(tmp_path: Path) -> None:
    data = content()
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 1 or a["iscrowd"]]
    dataset = CocoDataset.of_split(open_dataset(write_set(tmp_path, data)), "train", keep_empty=False)
    assert [dataset.record(i).image_id for i in range(len(dataset))] == [2]  # 1 has a crowd only, 3 nothing


def test_the_loss_takes_the_targets(dataset: CocoDataset) -> None:
    truth = GroundTruth.of([dataset[i][1] for i in range(3)], 2, torch.device("cpu"))
    assert truth.counts == (3, 1, 0)


def test_the_network_is_configured_for_the_classes(tmp_path: Path) -> None:
    config = open_dataset(write_set(tmp_path)).configure(get_config("yolact_resnet50"))
    assert (config.num_classes, config.class_names, config.category_ids) == (2, ("cat", "dog"), (7, 42))


def test_without_classes_those_of_the_file_are_taken(tmp_path: Path) -> None:
    write_set(tmp_path)
    dataset = CocoDataset(tmp_path / "train.json", tmp_path / "images")
    assert (dataset.class_names, dataset.category_ids) == (("cat", "dog"), (7, 42))


def test_keypoints(tmp_path: Path) -> None:
    data = content()
    data["categories"][1]["keypoints"] = ["nose", "left_ear", "right_ear"]
    data["annotations"][1]["keypoints"] = [12, 14, 2, 20, 15, 1, 0, 0, 0]
    dataset = CocoDataset.of_split(open_dataset(write_set(tmp_path, data)), "train")
    keypoints = dataset[0][1]["keypoints"]
    assert keypoints.shape == (3, 3, 3)
    assert keypoints[0].tolist() == [[12, 14, 2], [20, 15, 1], [0, 0, 0]]
    assert not keypoints[1:].any()
    assert dataset.objects(0).keypoint_mirror == (0, 2, 1)


def encoded(mask: Any) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def test_masks_of_all_forms_are_the_same(tmp_path: Path) -> None:
    data = content()
    mask = np.zeros((48, 64), np.uint8)
    mask[12:28, 10:30] = 1
    runs = [10 * 48 + 12, *[16, 32] * 19, 16]
    runs.append(48 * 64 - sum(runs))
    data["annotations"] += [
        annotation(10, 3, 7, (10, 12, 20, 16), segmentation=encoded(mask)),
        annotation(11, 3, 7, (10, 12, 20, 16), segmentation={"size": [48, 64], "counts": runs}),
        annotation(12, 3, 7, (10, 12, 20, 16)),
    ]
    target = CocoDataset.of_split(open_dataset(write_set(tmp_path, data)), "train")[2][1]
    for found in target["masks"]:
        np.testing.assert_array_equal(found, mask)


def test_a_mask_of_two_polygons_is_their_union(tmp_path: Path) -> None:
    data = content()
    parts = [[5.0, 6, 25, 6, 25, 36, 5, 36], [20.0, 6, 55, 6, 55, 36, 20, 36]]
    data["annotations"][2]["segmentation"] = parts
    target = CocoDataset.of_split(open_dataset(write_set(tmp_path, data)), "train")[1][1]
    assert int(target["masks"].sum()) == 50 * 30


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    data = content()
    for image in data["images"]:
        image["width"] = 63
    data["annotations"].pop(0)
    with pytest.raises(DatasetError, match=r"3 x image of another size \(3.png: 64 x 48, not 63 x 48"):
        CocoDataset.of_split(open_dataset(write_set(tmp_path, data)), "train")
    dataset = CocoDataset.of_split(open_dataset(write_set(tmp_path)), "train")
    cv2.imwrite(str(tmp_path / "images" / "1.png"), np.zeros((48, 63, 3), np.uint8))
    with pytest.raises(DatasetError, match="has 63 x 48 pixels, its annotations say 64 x 48"):
        dataset[0]


def test_the_table_is_compact(tmp_path: Path) -> None:
    data = content()
    number = 100
    for image in (1, 2, 3):
        for _ in range(200):
            number += 1
            data["annotations"].append(annotation(number, image, 7, (1 + number % 9, 2, 9, 9)))
    dataset = CocoDataset.of_split(open_dataset(write_set(tmp_path, data)), "train")
    assert dataset.nbytes / len(data["annotations"]) < 110  # a rectangle: 32 bytes of points, 61 of the rest


def test_bad_data_is_refused_with_the_list(tmp_path: Path) -> None:
    data = content()
    data["annotations"][1]["category_id"] = 8
    data["annotations"][2]["bbox"] = [float("nan"), 1, 2, 3]
    data["annotations"][3]["segmentation"] = [[]]
    data["images"].append({"id": 9, "file_name": "absent.png", "height": 5, "width": 5})
    spec = open_dataset(write_set(tmp_path, copy.deepcopy(data)))
    with pytest.raises(DatasetError) as caught:
        CocoDataset.of_split(spec, "train")
    for part in ("absent.png", "category_id 8", "impossible box (annotation 3", "1 x empty mask (annotation 4"):
        assert part in str(caught.value)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_of_real_pictures_are_those_of_pycocotools() -> None:
    from pycocotools.coco import COCO

    file = data_dir("coco_mini", "instances_val_mini.json")
    dataset = CocoDataset(file, data_dir("coco_mini", "images"))
    coco = COCO(str(file))
    for index in range(0, len(dataset), 4):
        target = dataset[index][1]
        records = sorted(coco.imgToAnns[target["image_id"]], key=lambda a: a["iscrowd"])
        assert [dataset.category_ids[label] for label in target["labels"]] == [a["category_id"] for a in records]
        for record, mask, box in zip(records, target["masks"].numpy(), target["boxes"], strict=True):
            if not record["iscrowd"]:  # the table keeps points in single precision
                record["segmentation"] = [np.float32(ring).tolist() for ring in record["segmentation"]]
            np.testing.assert_array_equal(mask, coco.annToMask(record))
            x, y, w, h = record["bbox"]
            np.testing.assert_allclose(box, [x, y, x + w, y + h], atol=0.02)
