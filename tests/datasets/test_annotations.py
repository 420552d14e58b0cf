"""What the checker of annotations completes, leaves out and accepts, and that both evaluators score it alike."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from sets import content, rectangle, write_set

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.annotations import PictureIds, check_records, read_annotations
from yolact_deploy.datasets.coco_results import check_results
from yolact_deploy.datasets.image_sets import open_images
from yolact_deploy.datasets.rle import decode, image_runs, mask_bounds, without_empty_runs
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation.accuracy import accuracy
from yolact_deploy.mask_forms import compress_counts
from yolact_deploy.vocabulary import EVALUATORS

Change = Callable[[dict[str, Any]], object]


def second(**changes: Any) -> Change:
    return lambda data: data["annotations"][1].update(changes)


def checked(change: Change, **options: Any) -> dict[str, Any]:
    data = content()
    change(data)
    return check_records(data, "x.json", **options)


@pytest.mark.parametrize("value", [None, -1, -320.5, ...])
@pytest.mark.parametrize(
    ("segmentation", "area"),
    [
        (rectangle(10, 12, 20, 16), 320.0),
        ([[10, 12, 30, 12, 30, 28]], 160.0),
        ({"size": [48, 64], "counts": [480, 30, 48 * 64 - 510]}, 30.0),
    ],
)
def test_a_missing_area_is_that_of_the_mask(value: Any, segmentation: Any, area: float) -> None:
    data = content()
    data["annotations"][1].update(segmentation=segmentation, area=value)
    if value is ...:
        del data["annotations"][1]["area"]
    assert check_records(data, "x.json")["annotations"][1]["area"] == area


def test_what_is_completed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    checked(second(area=None))
    checked(second(bbox=[10, 12, 30, 28]))
    assert "x.json: 1 x no area (annotation 2): computed from the mask" in caplog.text
    assert "x.json: 1 x box that does not fit its mask (annotation 2: [10, 12, 30, 28])" in caplog.text


@pytest.mark.parametrize(("value", "expected"), [(None, 0), (0, 0), (1, 1), (True, 1), (False, 0)])
def test_crowds_become_numbers(value: Any, expected: int) -> None:
    crowd = checked(second(iscrowd=value))["annotations"][1]["iscrowd"]
    assert type(crowd) is int
    assert crowd == expected


@pytest.mark.parametrize(
    "change",
    [
        second(iscrowd="0"),
        second(image_id="1"),
        second(bbox=[float("nan")] * 4),
        second(segmentation=[[0, 0, 1e308, 0, 1e308, 1e308]]),
        second(segmentation={"size": [48, 64], "counts": [48 * 64, 5]}),
        lambda data: data["annotations"].__setitem__(1, "text"),
    ],
)
def test_lenient_leaves_out_and_counts(change: Change, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DatasetError, match=r"1 x .*--lenient"):
        checked(change)
    assert [a["id"] for a in checked(change, lenient=True)["annotations"]] == [1, 3, 4]
    assert "x.json: left out 1 records: 1 x " in caplog.text


@pytest.mark.parametrize("change", [{"id": "3"}, {"height": 0}, {"file_name": "/etc/hostname"}])
def test_lenient_leaves_out_images_with_their_annotations(
    tmp_path: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    data = content()
    data["images"][2].update(change)  # image 2
    if "file_name" not in change:
        data["annotations"][2]["image_id"] = data["images"][2]["id"]
    write_set(tmp_path, data)
    assert open_images(coco=tmp_path / "set.yaml", lenient=True).image_ids == [1, 3]
    assert "left out" in caplog.text
    with pytest.raises(DatasetError, match="cannot be used"):
        open_images(coco=tmp_path / "set.yaml")


@pytest.mark.parametrize("change", [lambda d: d.update(images=[]), lambda d: d["images"].clear()])
def test_lenient_needs_something_that_is_left(change: Change) -> None:
    with pytest.raises(DatasetError, match="no images"):
        checked(change, lenient=True)


def test_every_command_is_lenient_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from yolact_deploy.training.data import CocoDataset, open_dataset

    data = content()
    data["annotations"][1]["iscrowd"] = "0"
    data["images"].append({"id": 9, "file_name": "absent.png", "height": 48, "width": 64})
    file = str(write_set(tmp_path, data))
    with pytest.raises(DatasetError, match=r"1 x missing image.*1 x malformed annotation"):
        CocoDataset.of_split(open_dataset(file), "train")
    dataset = CocoDataset.of_split(open_dataset(file, lenient=True), "train")
    assert len(dataset) == 3
    assert sum(len(dataset.objects(index)) for index in range(3)) == 3
    assert len(open_images(coco=file, lenient=True)) == 3
    (tmp_path / "r.json").write_text(json.dumps([]))
    arguments = ["eval", "--results", str(tmp_path / "r.json"), "--data", file]
    assert main(arguments) == 2
    assert "annotation 2: iscrowd is '0', expected 0 or 1" in capsys.readouterr().err
    assert main([*arguments, "--lenient"]) == 0
    assert "left out 1 records: 1 x malformed annotation" in capsys.readouterr().err


def test_lists_of_problems_are_bounded() -> None:
    data = content()
    for number in range(10_000):
        data["annotations"].append({**data["annotations"][1], "id": 10 + number, "bbox": ["x" * 1000] * 4})
    with pytest.raises(DatasetError, match="10000 x impossible box") as caught:
        check_records(data, "x.json")
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("bom", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(tmp_path: Path, bom: str) -> None:
    (tmp_path / "x.json").write_bytes(json.dumps(content()).encode(bom))
    assert len(read_annotations(tmp_path / "x.json")["annotations"]) == 4


@pytest.mark.parametrize("name", ["1.png", "..\\images\\1.png", "../images/1.png", "sub/../1.png", ".\\1.png"])
def test_names_that_lead_to_the_folder(tmp_path: Path, name: str) -> None:
    data = content()
    data["images"][1]["file_name"] = name
    images = open_images(coco=write_set(tmp_path, data))
    assert images.paths[0] == tmp_path / "images" / "1.png"


@pytest.mark.parametrize("name", ["../secret.png", "..\\secret.png", "/etc/hostname", "C:\\images\\1.png", "a/../../x"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    data = content()
    data["images"][1]["file_name"] = name
    file = write_set(tmp_path, data)
    (tmp_path / "images" / "1.png").rename(tmp_path / "secret.png")
    with pytest.raises(DatasetError, match="1 x file name outside the folder"):
        open_images(coco=file)


# -- results --------------------------------------------------------------------------------------------------------


def perfect(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Results that detect every annotation, with masks of the boxes."""
    results = []
    for annotation in data["annotations"]:
        x, y, w, h = (int(value) for value in annotation["bbox"])
        mask = np.zeros((48, 64), np.int64)
        mask[y : y + h, x : x + w] = 1
        flat = np.concatenate([[0], mask.T.ravel(), [2]])
        edges = np.flatnonzero(flat[1:-1] != flat[:-2])
        counts = np.diff(np.concatenate([[0], edges, [48 * 64]]))
        rle = {"size": [48, 64], "counts": compress_counts(counts)}
        keys = ("image_id", "category_id", "bbox")
        results.append({key: annotation[key] for key in keys} | {"score": 0.9, "segmentation": rle})
    return results


ACCEPTED: dict[str, Change] = {
    "as it is": lambda data: None,
    "id 0": lambda data: [a.update(id=a["id"] - 1) for a in data["annotations"]],
    "large ids": lambda data: [a.update(id=a["id"] + (1 << 60)) for a in data["annotations"]],
    "negative ids": lambda data: [a.update(id=-a["id"]) for a in data["annotations"]],
    "no area": lambda data: [a.pop("area") for a in data["annotations"]],
    "no iscrowd": lambda data: data["annotations"][1].pop("iscrowd"),
    "iscrowd true": second(iscrowd=True),
    "box without area": second(bbox=[3, 3, 0, 5]),
    "flat polygon": second(segmentation=[[10, 12, 20, 12, 30, 12]]),
    "first ring of two points": second(segmentation=[[1, 1, 9, 9], *rectangle(10, 12, 20, 16)]),
    "first ring empty": second(segmentation=[[], *rectangle(10, 12, 20, 16)]),
    "polygon beyond the image": second(segmentation=rectangle(-40, -30, 200, 200), bbox=[-40, -30, 200, 200]),
    "run lengths": second(segmentation={"size": [48, 64], "counts": [480, 30, 48 * 64 - 510]}),
    "run lengths in floats of size": second(segmentation={"size": [48.0, 64.0], "counts": [480, 30, 2562]}),
    "empty runs": second(segmentation={"size": [48, 64], "counts": [480, 10, 0, 0, 0, 20, 0, 0, 2562]}),
    "empty runs as text": second(
        segmentation={"size": [48, 64], "counts": compress_counts(np.array([480, 9, 0, 21, 2562]))}
    ),
    "whole image": second(segmentation={"size": [48, 64], "counts": [0, 48 * 64]}, bbox=[0, 0, 64, 48]),
    "annotation twice": lambda data: data["annotations"].append({**data["annotations"][1], "id": 99}),
    "unused category": lambda data: data["categories"].append({"id": 1, "name": "owl"}),
    "two categories of one name": lambda data: data["categories"].append({"id": 1, "name": "cat"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_evaluators_agree(name: str) -> None:
    pytest.importorskip("faster_coco_eval")
    results = perfect(content())
    results.append({**results[1], "bbox": [3, 3, 0, 5], "score": 0.8})
    truth = checked(ACCEPTED[name])
    check_results(results, truth, "results")
    ids = [image["id"] for image in truth["images"]]
    scores = [accuracy(copy.deepcopy(truth), copy.deepcopy(results), ids, evaluator) for evaluator in EVALUATORS]
    for kind in ("box", "mask"):
        ours, theirs = (getattr(score, kind) for score in scores)
        assert (ours.ap, ours.small, ours.medium, ours.large) == pytest.approx(
            (theirs.ap, theirs.small, theirs.medium, theirs.large), abs=1e-9
        )


def test_empty_runs_are_the_same_mask() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        runs = rng.integers(0, 3, 40)
        runs[rng.integers(40)] += 48 - runs.sum() % 48
        height, width = 48, int(runs.sum()) // 48
        plain = without_empty_runs(runs)
        assert plain[1:].all()
        mask = decode(compress_counts(runs).encode(), height, width)
        assert np.array_equal(mask, decode(compress_counts(plain).encode(), height, width))
        y, x = np.nonzero(mask)
        assert mask_bounds(plain, height) == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("counts", [[1 << 62] * 4 + [48], [1 << 70], [-(1 << 40), 48], [True, 47], "0" * 9, "\u0660"])
def test_runs_that_overflow_or_are_no_numbers(counts: Any) -> None:
    assert image_runs(counts, 6, 8) is None


def test_a_text_of_a_million_runs_is_read_at_once() -> None:
    text = "0" * 1_000_000
    assert image_runs(text, 6, 8) is None
    assert image_runs(compress_counts(np.ones(1_000_000, np.int64)), 1000, 1000) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": float("nan")}, "score nan"),
        ({"score": float("inf")}, "score inf"),
        ({"score": 10**400}, "score an integer of"),
        ({"score": True}, "score True"),
        ({"mask_score": float("nan")}, "mask_score nan"),
        ({"bbox": [0, 0, 1e308, 1]}, "bbox"),
        ({"bbox": [0, 0, 10**400, 1]}, "bbox"),
        ({"bbox": [True] * 4}, "bbox"),
        ({"image_id": "1"}, "belongs to image '1'"),
        ({"image_id": 10**400}, "belongs to image an integer of"),
        ({"category_id": "7"}, "category id '7'"),
        ({"segmentation": {"size": [True, 64], "counts": "0"}}, "mask of size"),
        ({"segmentation": {"size": [48.0, 64.0], "counts": "0"}}, "mask of size"),
    ],
)
def test_numbers_of_results(changes: dict[str, Any], message: str) -> None:
    results = perfect(content())
    results[1].update(changes)
    with pytest.raises(DatasetError, match=f"result number 1 .*{message}") as caught:
        check_results(results, checked(lambda data: None), "r.json")
    assert len(str(caught.value)) < 500


# -- ids by name ----------------------------------------------------------------------------------------------------

IMAGES = ((7, "1.png"), (8, "val\\2.png"), (9, "a/3.png"), (10, "b/3.png"), (11, "./4.png"))
NAMES = PictureIds({"id": number, "file_name": name} for number, name in IMAGES)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("1.png", 7),
        ("/data/in/1.png", 7),
        ("val/2.png", 8),
        ("C:\\data\\val\\2.png", 8),
        ("2.png", 8),
        ("data/b/3.png", 10),
        ("3.png", None),
        ("c/3.png", None),
        ("4.png", 11),
        ("5.png", None),
    ],
)
def test_ids_by_file_name(path: str, number: int | None) -> None:
    assert NAMES.find(path) == number


def test_two_pictures_of_one_name() -> None:
    assert NAMES.of(["x/1.png", "x/1.png", "y/4.png", "5.png"]) == {"x/1.png": 7, "y/4.png": 11}
    with pytest.raises(DatasetError, match=r"'x/1.png' and 'y/1.png' both"):
        NAMES.of(["x/1.png", "y/1.png"])


@pytest.mark.parametrize("numbers", [(1, 2, 3), (3, 1, 2), (77, 78, 79)])
def test_results_that_name_their_pictures(
    tmp_path: Path, numbers: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data = content()
    write_set(tmp_path, data)
    results = [r for r, a in zip(perfect(data), data["annotations"], strict=True) if not a["iscrowd"]]
    for result in results:
        name = f"in/{result['image_id']}.png"
        result.update(file_name=name, image_id=numbers[result["image_id"] - 1])
    (tmp_path / "r.json").write_text(json.dumps(results))
    arguments = ["eval", "--results", str(tmp_path / "r.json"), "--data", str(tmp_path / "set.yaml"), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["box"]["ap"] == pytest.approx(1.0)
    results[0]["file_name"] = "other.png"
    (tmp_path / "r.json").write_text(json.dumps(results))
    assert main(arguments) == 2
    assert "results of the picture 'other.png', which the annotations do not list" in capsys.readouterr().err


# -- nothing to score -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda data: [a.update(iscrowd=1) for a in data["annotations"]],
        lambda data: data["annotations"].clear(),
        lambda data: data.pop("annotations"),
    ],
)
def test_nothing_to_score_is_said(tmp_path: Path, change: Change, capsys: pytest.CaptureFixture[str]) -> None:
    data = content()
    change(data)
    write_set(tmp_path, data)
    (tmp_path / "r.json").write_text("[]")
    assert main(["eval", "--results", str(tmp_path / "r.json"), "--annotations", str(tmp_path / "train.json")]) == 2
    assert "none of the 3 images has an object to score" in capsys.readouterr().err


def test_a_file_that_only_lists_images(tmp_path: Path) -> None:
    data = content()
    del data["annotations"]
    images = open_images(coco=write_set(tmp_path, data))
    assert images.image_ids == [1, 2, 3]
    assert not images.has_objects
