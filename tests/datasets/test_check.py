"""Every kind of problem is detected, counted and reported with a cure; end to end with exit code 2."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from sets import SPEC, annotation, content, rectangle, write_set

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.findings import KINDS
from yolact_deploy.errors import DatasetError
from yolact_deploy.training.data import CocoDataset, check_dataset, open_dataset

Change = Callable[[dict[str, Any]], object]
TRAIN_ONLY = "\n".join(SPEC.splitlines()[:2]) + "\n"


def second(**changes: Any) -> Change:
    """Changes the second annotation, the cat of image 1."""
    return lambda data: data["annotations"][1].update(changes)


def image(**changes: Any) -> Change:
    return lambda data: data["images"][2].update(changes)


def add(*records: dict[str, Any], to: str = "annotations") -> Change:
    return lambda data: data[to].extend(records)


BAD: list[tuple[str, Change]] = [
    ("no images", lambda data: data.update(images=[], annotations=[])),
    ("no objects", lambda data: data.update(annotations=data["annotations"][:1])),
    ("malformed image record", image(height=0)),
    ("malformed image record", image(file_name=3)),
    ("malformed image record", add("text", to="images")),  # type: ignore[arg-type]
    ("duplicate image id", add({"id": 1, "file_name": "1.png", "height": 48, "width": 64}, to="images")),
    ("missing image", image(file_name="absent.png")),
    ("malformed image record", image(id="3")),
    ("malformed image record", image(width=10**9)),
    ("malformed image record", image(width=1 << 20, height=1 << 20)),
    ("file name outside the folder", image(file_name="../set.yaml")),
    ("file name outside the folder", image(file_name="..\\set.yaml")),
    ("file name outside the folder", image(file_name="/etc/hostname")),
    ("file name outside the folder", image(file_name="C:\\data\\1.png")),
    ("file name outside the folder", image(file_name="\\\\server\\data\\1.png")),
    ("missing image", image(file_name="a\0b.png")),
    ("missing image", image(file_name="x" * 100_000)),
    ("missing image", image(file_name=".")),
    ("image of another size", image(height=64, width=48)),
    ("malformed annotation", lambda data: data["annotations"][1].pop("bbox")),
    ("malformed annotation", lambda data: data["annotations"][1].pop("segmentation")),
    ("malformed annotation", second(area=float("nan"))),
    ("malformed annotation", second(area="12")),
    ("malformed annotation", second(area=10**400)),
    ("malformed annotation", second(id="x")),
    ("malformed annotation", second(id=10**400)),
    ("malformed annotation", second(iscrowd="0")),
    ("malformed annotation", second(iscrowd=2)),
    ("malformed annotation", second(iscrowd=[0])),
    ("malformed annotation", second(keypoints=7)),
    ("malformed annotation", second(keypoints=[1, "2", 3])),
    ("malformed annotation", second(keypoints=[1, 2, float("inf")])),
    ("annotation of an unknown image", second(image_id="1")),
    ("annotation of an unknown image", second(image_id=1.5)),
    ("annotation of an unknown image", second(image_id=None)),
    ("duplicate annotation id", second(id=1)),
    ("annotation of an unknown image", second(image_id=77)),
    ("unknown category id", second(category_id=8)),
    ("unknown category id", second(category_id=[7])),
    ("impossible box", second(bbox=[float("nan"), 1, 2, 3])),
    ("impossible box", second(bbox=[1, 1, -2, 3])),
    ("impossible box", second(bbox=[1, 1, 2])),
    ("impossible box", second(bbox=[1e308] * 4)),
    ("impossible box", second(bbox=[0, 0, 10**400, 1])),
    ("impossible box", second(bbox=["1", "1", "2", "2"])),
    ("empty mask", second(segmentation=[])),
    ("empty mask", second(segmentation=[[]])),
    ("empty mask", second(segmentation=[[1, 1, 2, 2]])),
    ("empty mask", second(segmentation={"size": [48, 64], "counts": [48 * 64]})),
    ("malformed mask", second(segmentation=None)),
    ("malformed mask", second(segmentation=[1, 2, 3])),
    ("malformed mask", second(segmentation=[[1, 2, 3, 4, 5, "6"]])),
    ("malformed mask", second(segmentation=[[1, 2, 3, 4, 5, [6]]])),
    ("malformed mask", second(segmentation=[[1, 2, 3, 4, 5]])),
    ("malformed mask", second(segmentation=[[1, 2, 3, 4, 5, 1, float("inf"), 2]])),
    ("malformed mask", second(segmentation={"size": [64, 48], "counts": [0, 48 * 64]})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": [0, 5]})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": [-1, 1 + 48 * 64]})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": "ooooo"})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": "\n"})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": 5})),
    ("malformed mask", second(segmentation=[10, 12, 30, 12, 30, 28])),
    ("malformed mask", second(segmentation=[[[10, 12], [30, 12], [30, 28]]])),
    ("malformed mask", second(segmentation=[[0, 0, 1e308, 0, 1e308, 1e308]])),
    ("malformed mask", second(segmentation=[[0, 0, 10**400, 0, 5, 5]])),
    ("malformed mask", second(segmentation=[[float("nan")] * 6])),
    ("malformed mask", second(segmentation=[[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9]])),
    ("malformed mask", second(segmentation=[[0, 0, 64, 48] * 1000])),
    ("malformed mask", second(segmentation=[[-9e6, -9e6, 9e6, -9e6, 9e6, 9e6]])),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": [48 * 64, 5]})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": [1 << 62] * 4 + [48 * 64]})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": [10**400]})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": [1.5]})),
    ("malformed mask", second(segmentation={"size": [48, 64], "counts": "o" * 1_000_000})),
    ("malformed mask", second(segmentation={"size": [10**400, 64], "counts": [0, 5]})),
    ("malformed mask", second(segmentation={"counts": [0, 48 * 64]})),
]
ODD: list[tuple[str, Change]] = [
    ("box without area", second(bbox=[3, 3, 0, 5])),
    ("box outside its image", second(bbox=[90, 3, 4, 5])),
    ("box partly outside its image", second(bbox=[50, 12, 30, 16], segmentation=rectangle(50, 12, 30, 16))),
    ("mask without area", second(segmentation=[[1, 1, 5, 5, 9, 9]])),
    ("polygon of fewer than three points", second(segmentation=[*rectangle(10, 12, 20, 16), [1, 1, 2, 2]])),
    ("box that does not fit its mask", second(bbox=[1, 1, 5, 5])),
    ("box that does not fit its mask", second(bbox=[10, 12, 30, 28])),
    ("box that does not fit its mask", second(bbox=[10, 12, 10, 8])),
    ("box that does not fit its mask", second(segmentation={"size": [48, 64], "counts": [48 * 12, 480, 48 * 42]})),
    ("no area", lambda data: data["annotations"][1].pop("area")),
    ("no area", second(area=None)),
    ("no area", second(area=-320)),
    ("duplicate annotation", add(annotation(9, 1, 7, (10, 12, 20, 16)))),
    ("duplicate image file", add({"id": 9, "file_name": "1.png", "height": 48, "width": 64}, to="images")),
    ("image without objects", lambda data: None),
    ("class without objects", lambda data: data["annotations"].pop(1)),
]


def kinds(tmp_path: Path, data: dict[str, Any], **options: Any) -> dict[str, int]:
    report = check_dataset(open_dataset(write_set(tmp_path, data, TRAIN_ONLY)), **options)
    assert all(problem.fix for problem in report.splits[0].problems)
    return {problem.kind: problem.count for problem in report.splits[0].problems}


@pytest.mark.parametrize(("kind", "change"), BAD)
def test_what_cannot_be_trained_on_is_refused(tmp_path: Path, kind: str, change: Change) -> None:
    data = content()
    change(data)
    assert KINDS[kind][0]
    assert kinds(tmp_path, data)[kind] == 1
    with pytest.raises(DatasetError, match=f"cannot be used.*1 x {kind}"):
        CocoDataset.of_split(open_dataset(tmp_path / "set.yaml"), "train")


@pytest.mark.parametrize(("kind", "change"), ODD)
def test_what_is_odd_is_reported_and_trained_on(tmp_path: Path, kind: str, change: Change) -> None:
    data = content()
    change(data)
    counts = kinds(tmp_path, data)
    assert counts[kind] >= 1
    assert not any(KINDS[other][0] for other in counts)
    dataset = CocoDataset.of_split(open_dataset(tmp_path / "set.yaml"), "train")
    for index in range(len(dataset)):
        target = dataset[index][1]
        assert target["masks"].flatten(1).any(1).all()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()


def test_every_kind_is_tried() -> None:
    of_pictures = {"unreadable image", "image in several splits"}
    assert {kind for kind, _ in [*BAD, *ODD]} | of_pictures == set(KINDS)


def test_deep_reads_the_pictures(tmp_path: Path) -> None:
    data = content()
    spec = open_dataset(write_set(tmp_path, data, TRAIN_ONLY))
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    assert not check_dataset(spec).errors
    data["images"][0]["width"] = 70
    write_set(tmp_path, data, TRAIN_ONLY)
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    assert [problem.kind for problem in check_dataset(spec).errors] == ["image of another size"]
    report = check_dataset(spec, deep=True)
    assert [(p.kind, p.examples) for p in report.errors] == [
        ("unreadable image", ["2.png"]),
        ("image of another size", ["3.png: 64 x 48, not 70 x 48"]),
    ]


def test_pictures_of_several_splits_are_reported(tmp_path: Path) -> None:
    report = check_dataset(open_dataset(write_set(tmp_path)))
    val = {problem.kind: problem.count for problem in report.splits[1].problems}
    assert val["image in several splits"] == 3


def test_counts_and_examples(tmp_path: Path) -> None:
    data = content()
    data["annotations"] += [annotation(100 + i, 1, 9, (1, 1, 5, 5)) for i in range(50)]
    report = check_dataset(open_dataset(write_set(tmp_path, data, TRAIN_ONLY)))
    (problem,) = report.errors
    assert (problem.kind, problem.count, len(problem.examples)) == ("unknown category id", 50, 5)
    assert "annotation 100: category_id 9" in problem.examples[0]
    split = report.splits[0]
    assert (split.images, split.objects, split.crowds) == (3, 3, 1)
    assert split.objects_of_class == {"cat": 1, "dog": 2}


# -- command --------------------------------------------------------------------------------------------------------


def test_check_of_a_sound_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(write_set(tmp_path)), "--deep", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["errors"], result["deep"], len(result["splits"])) == (0, True, 2)
    assert "reading val: 3/3" in err


def test_check_of_a_bad_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = copy.deepcopy(content())
    data["annotations"][1]["bbox"][0] = float("nan")
    assert main(["data", "check", str(write_set(tmp_path, data))]) == 2
    out, err = capsys.readouterr()
    assert "impossible box" in out
    assert err.count("\n") == 1
    assert "error: " in err
    assert "four finite numbers" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "absent.yaml"], "no such dataset"),
        (["shapes", "-o", "{}/s", "--train", "0", "--val", "0"], "one image or more"),
        (["shapes", "-o", "{}/s", "--frames", "3"], "add --videos, or leave it out"),
        (["shapes", "-o", "{}/s", "--videos", "1", "--frames", "0"], "1 to 100000 videos and frames"),
        (["shapes", "-o", "{}/s", "--size", "big"], "--size: expected WxH"),
        (["shapes", "-o", "{}/s", "--size", "20"], "at least 64 x 64"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["data", *(argument.format(tmp_path) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("s/**/*.png"))


@pytest.mark.parametrize("option", ["--train=-1", f"--val={10**30}", "--train=many"])
def test_numbers_of_pictures_have_a_range(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", "shapes", "-o", str(tmp_path / "s"), option])
    assert "expected a whole number from 0 to 10000000" in capsys.readouterr().err


def test_an_action_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data"])
    assert caught.value.code == 2
    assert "ACTION" in capsys.readouterr().err


def test_shapes_are_written_and_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-o", str(tmp_path / "s"), "--train", "3", "--val", "2", "--size", "96x64", "--seed", "4"]
    assert main(["data", "shapes", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["val"] == 2
    assert "5/5, " in err
    assert main(["data", "check", str(tmp_path / "s"), "--quiet"]) == 0
