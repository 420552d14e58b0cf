"""The API of training as its documents show it: the loop, the dataset's items, the dictionaries, the layer table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from few import few

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools")

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from sets import write_set

from yolact_deploy.errors import ConfigError, InputError, YolactDeployError
from yolact_deploy.training import CocoDataset, YolactConfig, YolactLoss, YolactModel

SIZE = 96


def small_model(classes: int = 2) -> YolactModel:
    torch.manual_seed(0)
    config = YolactConfig(backbone="mobilenet_v2", image_size=SIZE, num_classes=classes, fpn_channels=16)
    return YolactModel(config)


def target(**changes: Any) -> dict[str, Any]:
    """One image with two objects, the second a crowd."""
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    masks[0, 8:60, 10:50] = 1
    masks[1, :, 70:] = 1
    boxes = torch.tensor([[10.0, 8.0, 50.0, 60.0], [70.0, 0.0, 96.0, 96.0]])
    values = {
        "boxes": boxes,
        "labels": torch.tensor([1, 0]),
        "masks": masks,
        "iscrowd": torch.tensor([0, 1]),
        "area": torch.tensor([2080.0, 2496.0]),
        "width": SIZE,
        "height": SIZE,
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def loss_of(model: YolactModel, targets: Any) -> dict[str, Any]:
    images = torch.linspace(-1, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)
    losses: dict[str, Any] = YolactLoss()(model.train()(images), targets)
    return losses


# -- the loop -------------------------------------------------------------------------------------------------------


def test_the_model_of_the_first_lines() -> None:
    with torch.device("meta"):
        model = YolactModel(YolactConfig(num_classes=80))
    assert sum(parameter.numel() for parameter in model.parameters()) == 50_157_071


def test_the_training_loop() -> None:
    model, criterion = small_model(), YolactLoss()
    model.freeze_batch_norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    images, history = torch.randn(2, 3, SIZE, SIZE), []
    for _ in range(4):
        losses = criterion(model(images), [target(), target()])
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert set(losses) == {"box", "class", "mask", "semantic"}
    assert history[-1] < history[0]


# -- dictionaries ---------------------------------------------------------------------------------------------------


def test_outputs_in_training_and_in_evaluation() -> None:
    model, images = small_model(), torch.randn(2, 3, SIZE, SIZE)
    outputs = model(images)
    assert set(outputs) == {"boxes", "masks", "scores", "prior_boxes", "proto_masks", "semantic_masks"}
    with torch.inference_mode():
        detected = model.eval()(images)
    assert set(detected) == {"boxes", "masks", "scores", "labels", "keypoints"}
    for boxes, masks, scores, labels, keypoints in zip(*detected.values(), strict=True):
        count = len(boxes)
        assert boxes.shape == (count, 4)
        assert masks.shape == (count, 24, 24)
        assert scores.shape == labels.shape == (count,)
        assert labels.dtype == torch.int64
        assert keypoints.shape == (count, 0, 3)


def test_items_of_the_dataset(tmp_path: Path) -> None:
    write_set(tmp_path)
    dataset = CocoDataset(tmp_path / "train.json", tmp_path / "images")
    assert isinstance(dataset, torch.utils.data.Dataset)
    image, objects = dataset[0]
    assert image.shape == (3, 48, 64)
    assert image.dtype == torch.uint8
    dtypes = {key: objects[key].dtype for key in ("boxes", "labels", "masks", "area", "iscrowd")}
    assert dtypes == {
        "boxes": torch.float32, "labels": torch.int64, "masks": torch.uint8, "area": torch.float32,
        "iscrowd": torch.bool,
    }  # fmt: skip
    assert (objects["width"], objects["height"], objects["image_id"]) == (64, 48, 1)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, collate_fn=lambda batch: tuple(zip(*batch, strict=True))
    )
    images, targets = next(iter(loader))
    assert len(images) == len(targets) == 2


@pytest.mark.parametrize(
    "area", few([None, 2080.0, 7, torch.tensor([2080.0, 2496.0]), torch.tensor(3.0), [1.0, 2.0]], 0, 3)
)
def test_area_is_a_number_or_a_tensor(area: Any) -> None:
    model = small_model()
    torch.testing.assert_close(loss_of(model, [target(area=area)]), loss_of(model, [target()]))


@pytest.mark.parametrize("iscrowd", [[0, 1], [False, True], torch.tensor([0.0, 1.0]), torch.tensor([False, True])])
def test_iscrowd_of_each_object(iscrowd: Any) -> None:
    model = small_model()
    torch.testing.assert_close(loss_of(model, [target(iscrowd=iscrowd)]), loss_of(model, [target()]))


@pytest.mark.parametrize(("single", "every"), [(0, [0, 0]), (False, [0, 0]), (1, [1, 1]), (torch.tensor(0), [0, 0])])
def test_iscrowd_of_a_whole_image(single: Any, every: list[int]) -> None:
    model = small_model()
    ours, wanted = loss_of(model, [target(iscrowd=single)]), loss_of(model, [target(iscrowd=torch.tensor(every))])
    torch.testing.assert_close(ours, wanted)


# -- wrong types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (target(), "targets as a list with one dictionary per image, got dict"),
        (None, "got NoneType"),
        (torch.zeros(1), "got Tensor"),
        (["a"], "target 0: expected a dictionary .*, got str"),
        ([target(boxes=[[1, 2, 3, 4]] * 2)], "expected boxes to be a tensor, got list"),
        ([target(labels="cat")], "expected labels to be a tensor, got str"),
        ([target(masks={})], "expected masks to be a tensor, got dict"),
        ([target(iscrowd="no")], "expected iscrowd to be a tensor, or a number, got str"),
        ([target(area="big")], "expected area to be a tensor, or a number, got str"),
        ([target(area=torch.zeros(3))], r"expected area \[2\], got \[3\]"),
        ([target(width="wide")], "expected width to be a whole number, got str"),
    ],
)
def test_targets_of_a_wrong_type(targets: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        loss_of(small_model(), targets)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [(None, "got NoneType"), ([1, 2], "got list"), (torch.zeros(2), "got Tensor")],
)
def test_outputs_of_a_wrong_type(outputs: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"a dictionary, {words}"):
        YolactLoss()(outputs, [target()])


def test_a_single_output_of_a_wrong_type() -> None:
    model = small_model()
    outputs = model(torch.randn(1, 3, SIZE, SIZE))
    with pytest.raises(InputError, match="expected the output masks to be a tensor, got list"):
        YolactLoss()({**outputs, "masks": [1]}, [target()])
    with pytest.raises(InputError, match="settings: expected LossSettings, got dict"):
        YolactLoss({"positive_iou": 0.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("config", ["yolact_base", {"num_classes": 80}, 80, None])
def test_a_configuration_of_a_wrong_type(config: Any) -> None:
    with pytest.raises(ConfigError, match=f"expected a YolactConfig, got {type(config).__name__}"):
        YolactModel(config)


def test_images_of_a_wrong_type() -> None:
    model = small_model()
    for images in ([torch.zeros(3, SIZE, SIZE)], "street.jpg", None, torch.zeros(1, 3, SIZE, SIZE).numpy()):
        with pytest.raises(InputError, match=f"as a tensor, got {type(images).__name__}"):
            model(images)
    with pytest.raises(YolactDeployError, match=r"got torch\.uint8"):
        model(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
