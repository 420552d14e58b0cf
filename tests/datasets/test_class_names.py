"""A model's classes and a dataset's: the same ids must stand for the same names, wherever the two meet."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools")

from scripted import CONFIG, SCRIPT, ScriptedBackend, coco_content, predictor, source, write_coco
from scripted_backend import install

from yolact_deploy.benchmarks.measure import run_bench
from yolact_deploy.cli.at_hand import _knows
from yolact_deploy.cli.main import main
from yolact_deploy.config import COCO_CATEGORY_IDS, COCO_NAMES, YolactConfig, get_config
from yolact_deploy.datasets.class_names import AnnotatedClasses
from yolact_deploy.datasets.image_sets import CocoImages, open_images
from yolact_deploy.datasets.scan import scan_file
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.evaluation.detection_cache import DetectionCache
from yolact_deploy.evaluation.engines import EngineSource, check_same_classes
from yolact_deploy.evaluation.evaluate import cache_key, evaluate
from yolact_deploy.evaluation.insight import InsightMeter
from yolact_deploy.progress import NOTE

IDS = tuple(CONFIG.category_ids)  # a plain tuple, which fits any names


def annotated(*names: str, match: str = "both", ids: tuple[int, ...] = IDS) -> AnnotatedClasses:
    return AnnotatedClasses("data.json", dict(zip(ids, names, strict=True)), frozenset(ids), match)


def renamed(folder: Path, *names: str, ids: tuple[int, ...] = IDS) -> Path:
    """The scripted dataset with other categories, and with the ids of its annotations moved along."""
    content: dict[str, Any] = coco_content()
    moved = dict(zip(IDS, ids, strict=True))
    content["categories"] = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    for annotation in content["annotations"]:
        annotation["category_id"] = moved[annotation["category_id"]]
    return write_coco(folder, content)


def scripted_source(backend: ScriptedBackend) -> EngineSource:
    return source("shapes.onnx", backend)


def ap(folder: Path, match: str = "both") -> float | None:
    done = evaluate(scripted_source(ScriptedBackend(SCRIPT)), open_images(coco=folder, match_classes=match))
    return done.accuracy.mask.ap if done.accuracy.mask else None


# -- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("wolf", "dog", "owl"), "5 is 'wolf' in the file and 'cat' in the model"),
        (("cat", "dog", "owls"), "9 is 'owls' in the file and 'owl' in the model"),
        (("dog", "cat", "owl"), "5 is 'dog' in the file and 'cat' in the model"),
        (("Katze", "Hund", "Eule"), "5 is 'Katze' in the file and 'cat' in the model"),
        (("cat\x1b[2J", "dog", "owl"), r"5 is 'cat\\x1b\[2J' in the file"),
    ],
)
def test_other_names_are_refused(names: tuple[str, ...], first: str) -> None:
    with pytest.raises(DatasetError, match=f"data.json has other classes than shapes.onnx under the same.*{first}"):
        annotated(*names).category_ids(CONFIG, "shapes.onnx")


@pytest.mark.parametrize(
    ("names", "cure"),
    [
        (("dog", "owl", "cat"), "the model has these classes under other ids: add --match-classes name"),
        (("wolf", "dog", "owl"), "the same classes by other names, add --match-classes id"),
    ],
)
def test_the_cure_fits(names: tuple[str, ...], cure: str) -> None:
    with pytest.raises(DatasetError, match=cure):
        annotated(*names).category_ids(CONFIG)


@pytest.mark.parametrize(
    ("of_data", "of_model"),
    [
        ("traffic light", "traffic_light"),
        ("Traffic Light", "traffic light"),
        (" traffic  light\n", "traffic-light"),
        ("TRAFFIC_LIGHT", "Traffic-light"),
        ("STRASSE", "straße"),
    ],
)
def test_spellings_are_accepted_and_said(of_data: str, of_model: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(NOTE, "yolact_deploy")
    config = dataclasses.replace(CONFIG, class_names=(of_model, "dog", "owl"), category_ids=IDS)
    assert annotated(of_data, "dog", "owl").category_ids(config) == IDS
    assert "taken for the same classes" in caplog.text


@pytest.mark.parametrize(
    ("of_data", "of_model"),
    [
        (("cat", "dog", "owl"), ("class 1", "class 2", "class 3")),
        (("class_5", "Class 7", "class-9"), ("cat", "dog", "owl")),
        (("", "dog", " "), ("cat", "class 2", "owl")),
    ],
)
def test_a_side_without_names_is_accepted_in_one_line(
    of_data: tuple[str, ...], of_model: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(NOTE, "yolact_deploy")
    config = dataclasses.replace(CONFIG, class_names=of_model, category_ids=IDS)
    assert annotated(*of_data).category_ids(config) == IDS
    assert [record.levelno for record in caplog.records] == [NOTE]
    assert "category ids alone decide" in caplog.text


def test_equal_names_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "yolact_deploy")
    assert annotated(*CONFIG.class_names).category_ids(CONFIG) == IDS
    assert not caplog.records


def test_only_annotated_classes_count() -> None:
    names = {5: "cat", 7: "fox", 9: "owl"}
    assert AnnotatedClasses("d", names, frozenset({5, 9})).category_ids(CONFIG) == IDS
    with pytest.raises(DatasetError, match="7 is 'fox'"):
        AnnotatedClasses("d", names, frozenset()).category_ids(CONFIG)  # a file without annotations lists its classes


def test_ids_unknown_to_the_model() -> None:
    other = YolactConfig(name="other", num_classes=3, image_size=64)
    with pytest.raises(DatasetError, match=r"ids 5, 7, 9 that other \(3 classes\) does not know.*was trained on$"):
        annotated("cat", "dog", "owl").category_ids(other)
    coco = get_config("yolact_base")
    with pytest.raises(DatasetError, match=r"category ids 12 that.*--match-classes name"):
        annotated("stop sign", ids=(12,)).category_ids(coco)


# -- the choices ----------------------------------------------------------------------------------------------------


def test_ids_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(NOTE, "yolact_deploy")
    assert annotated("Katze", "Hund", "Eule", match="id").category_ids(CONFIG) == IDS
    assert "5 is 'Katze' in the file and 'cat' in the model" in caplog.text


@pytest.mark.parametrize(
    ("names", "ids", "expected"),
    [
        (("owl", "cat", "dog"), (5, 7, 9), (7, 9, 5)),
        (("Dog", "CAT", "owl"), (0, 1, 2), (1, 0, 2)),
        (("dog", "bird"), (1, 3), (2, 1, 4)),
    ],
)
def test_names_alone(names: tuple[str, ...], ids: tuple[int, ...], expected: tuple[int, ...]) -> None:
    classes = AnnotatedClasses("d", dict(zip(ids, names, strict=True)), frozenset(ids[:1]), "name")
    assert classes.category_ids(CONFIG) == expected
    assert len(set(expected)) == 3


def test_names_of_another_tool_for_a_coco_model() -> None:
    numbered = dict(enumerate(COCO_NAMES))  # as YOLO files count
    ids = AnnotatedClasses("d", numbered, frozenset(numbered), "name").category_ids(get_config("yolact_base"))
    assert ids == tuple(range(80))
    assert ids != COCO_CATEGORY_IDS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "fox", "owl"), "no class called 'fox', only 'cat', 'dog', 'owl'"),
        (("cat", "Cat", "owl"), "two are called 'Cat'"),
        (("", "dog", "owl"), "no class called ''"),
    ],
)
def test_names_that_decide_nothing(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        annotated(*names, match="name").category_ids(CONFIG)


def test_an_unknown_choice(tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(InputError, match="match_classes: expected one of both, id, name, got 'ids'"):
        open_images(coco=tmp_path, match_classes="ids").category_ids(CONFIG)


# -- the doors ------------------------------------------------------------------------------------------------------


def test_eval(tmp_path: Path) -> None:
    write_coco(tmp_path / "right")
    right = ap(tmp_path / "right")
    renamed(tmp_path / "turned", "dog", "owl", "cat", ids=(9, 5, 7))
    renamed(tmp_path / "moved", "cat", "dog", "owl", ids=(1, 2, 3))
    renamed(tmp_path / "foreign", "Katze", "Hund", "Eule")
    with pytest.raises(DatasetError, match=r"instances_val2017.json has other classes than shapes.onnx"):
        ap(tmp_path / "foreign")
    with pytest.raises(DatasetError, match="does not know"):
        ap(tmp_path / "moved")
    assert ap(tmp_path / "foreign", "id") == ap(tmp_path / "moved", "name") == right
    assert right is not None
    assert right > 0.9
    assert ap(tmp_path / "turned", "name") == pytest.approx(0)


def cached(folder: Path, match: str, resume: bool) -> float | None:
    """The AP with a cache in the current folder."""
    images = open_images(coco=folder, match_classes=match)
    Path("m.onnx").write_bytes(b"model")
    backend = ScriptedBackend(SCRIPT)
    model = EngineSource("m.onnx", lambda: predictor(backend), path=Path("m.onnx"))
    with DetectionCache("c.jsonl", cache_key(model, {}, images), images.image_ids, resume=resume) as cache:
        done = evaluate(predictor(backend), images, cache=cache)
    return done.accuracy.mask.ap if done.accuracy.mask else None


@pytest.mark.parametrize("names", [("Katze", "dog", "owl"), ("dog", "cat", "owl"), ("cat", "dog", "uhu")])
def test_a_complete_cache_is_no_back_door(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    annotations = write_coco(tmp_path / "d")
    assert cached(tmp_path / "d", "both", resume=False) == cached(tmp_path / "d", "both", resume=True)
    content = json.loads(annotations.read_text())
    for category, name in zip(content["categories"], names, strict=True):
        category["name"] = name
    annotations.write_text(json.dumps(content))
    for match in ("both", "id"):
        with pytest.raises(DatasetError, match="other detections: classes_sha256"):
            cached(tmp_path / "d", match, resume=True)


def test_bench(tmp_path: Path) -> None:
    renamed(tmp_path, "Katze", "dog", "owl")
    unnamed = dataclasses.replace(CONFIG, class_names=("class 1", "class 2", "class 3"), category_ids=IDS)
    named = source("named.onnx", ScriptedBackend(SCRIPT))
    with pytest.raises(DatasetError, match=r"than named.onnx under the same"):
        run_bench([named], open_images(coco=tmp_path))
    with pytest.raises(DatasetError, match=r"than named.onnx under the same"):  # behind a reference without names
        run_bench([source("eager", ScriptedBackend(SCRIPT, config=unnamed)), named], open_images(coco=tmp_path))
    record = run_bench([named], open_images(coco=tmp_path, match_classes="id")).record
    assert record.engines[0].accuracy is not None


@pytest.mark.parametrize("names", [("class 1", "class 2", "class 3"), ("Cat", "dog", "owl"), ("cat", "dog_", "owl")])
def test_models_that_are_compared_may_spell_classes_differently(names: tuple[str, ...]) -> None:
    other = dataclasses.replace(CONFIG, class_names=names, category_ids=IDS)
    a, b = (predictor(ScriptedBackend(SCRIPT, config=config)) for config in (CONFIG, other))
    check_same_classes("a", a, "b", b)
    changed = dataclasses.replace(CONFIG, class_names=("fox", "dog", "owl"), category_ids=IDS)
    with pytest.raises(InputError, match="the first that differ: 'cat' and 'fox'"):
        check_same_classes("a", a, "b", predictor(ScriptedBackend(SCRIPT, config=changed)))


@pytest.mark.parametrize(("names", "known"), [(("CAT", "dog", "owl"), True), (("fox", "dog", "owl"), False)])
def test_pictures_at_hand(names: tuple[str, ...], known: bool, tmp_path: Path) -> None:
    renamed(tmp_path, *names)
    assert _knows(CONFIG, open_images(coco=tmp_path)) is known


@pytest.mark.parametrize("names", [("Katze", "Hund", "Eule"), ("dog", "cat", "owl"), ("cat", "dog", "uhu")])
def test_a_held_out_split_of_other_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    annotations = renamed(tmp_path, *names)
    classes = dict(zip(IDS, CONFIG.class_names, strict=True))
    with pytest.raises(DatasetError, match="are the ids of all splits the same"):
        scan_file(annotations, tmp_path / "images", classes)


def test_names_of_a_dataset_file_are_those_that_count(tmp_path: Path) -> None:
    renamed(tmp_path, "animal", "animal", "owl")
    split = "{annotations: annotations/instances_val2017.json, images: images}"
    (tmp_path / "set.yaml").write_text(f"names: {{5: cat, 7: dog, 9: owl}}\nval: {split}\n")
    images: CocoImages = open_images(coco=tmp_path / "set.yaml")
    assert images.category_ids(CONFIG) == IDS


@pytest.fixture
def at_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``predict`` of an 80-class network on two pictures of a dataset with other names, and more options."""
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    content = coco_content()
    ids = {5: 1, 7: 2, 9: 3}
    content["categories"] = [{"id": ids[c["id"]], "name": c["name"]} for c in content["categories"]]
    content["annotations"] = [{**a, "category_id": ids[a["category_id"]]} for a in content["annotations"]]
    path = write_coco(tmp_path, content)
    command = ["predict", "model.onnx", "images", "--annotations", str(path), "--format", "coco", "-o", "out"]
    return lambda *more: main([*command, *more])


def test_predict_with_ids_of_annotations(
    at_command_line: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert at_command_line() == 2
    assert "1 is 'cat' in the file and 'person' in the model" in capsys.readouterr().err
    assert not list(Path("out").glob("*.json"))
    assert at_command_line("--match-classes", "id") == 0
    capsys.readouterr()
    assert main(["predict", "model.onnx", "images", "--match-classes", "id"]) == 2
    assert "--match-classes is about the classes of --annotations" in capsys.readouterr().err


def test_a_model_with_more_classes_than_the_dataset_gets_its_report(tmp_path: Path) -> None:
    renamed(tmp_path, "cat", "dog", "owl")
    images = open_images(coco=tmp_path)
    assert images.content is not None
    few = {**images.content, "categories": [c for c in images.content["categories"] if c["id"] != 9]}
    few["annotations"] = [a for a in few["annotations"] if a["category_id"] != 9]
    meter = InsightMeter(few, images.image_ids, "segm", 100)
    done = evaluate(
        scripted_source(ScriptedBackend(SCRIPT)), dataclasses.replace(images, content=few), on_results=meter.add
    )
    insight = meter.result(done.accuracy, done.matches["mask"])
    assert insight.names == ("cat", "dog")
    assert all(result["category_id"] != 9 for shown in insight.shown.values() for result in shown)
