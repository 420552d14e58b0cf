"""`evaluate`: the same figures in one run, interrupted and resumed, or from a file alone; and where time goes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools")

from scripted import SCRIPT, Instance, ScriptedBackend, coco_content, predictor, source, write_coco, write_pictures

from yolact_deploy.datasets.image_sets import CocoImages, open_images
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.evaluation.accuracy import AccuracyMeter, accuracy
from yolact_deploy.evaluation.detection_cache import DetectionCache, read_detections
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.evaluation.evaluate import EVAL_STAGES, Evaluation, cache_key, evaluate
from yolact_deploy.loading import ModelSpec

# One of three objects is detected as another class, so that the figures are neither 0 nor 1.
SCRIPTED = {**SCRIPT, 2: (Instance(0, 0.8, (20, 10, 60, 50)),)}


class Interrupted(ScriptedBackend):
    """A backend that is interrupted by Ctrl-C at one image."""

    def __init__(self, at: int) -> None:
        super().__init__(SCRIPTED)
        self.at = at

    def run(self, images: Any) -> Any:
        outputs = super().run(images)
        if self.seen[-1] == self.at:
            raise KeyboardInterrupt
        return outputs


@pytest.fixture
def images(tmp_path: Path) -> CocoImages:
    write_coco(tmp_path / "coco")
    return open_images(coco=tmp_path / "coco")


def test_accuracy_and_results(images: CocoImages) -> None:
    results: list[Any] = []
    done = evaluate(predictor(ScriptedBackend(SCRIPTED)), images, on_results=results.extend)
    assert images.content is not None
    assert done.accuracy == accuracy(images.content, results, images.image_ids)
    assert done.accuracy.detections == len(results) == 4
    assert done.accuracy.mask is not None
    assert done.accuracy.mask.per_class == {"cat": pytest.approx(1), "dog": pytest.approx(1), "owl": 0}
    assert done.accuracy.curves["box"].iou50 == pytest.approx((2 / 3,) * 101, abs=1e-5)
    assert sorted(done.matches) == ["box", "mask"]
    assert json.loads(json.dumps(done.accuracy.to_json()))["curves"]["mask"]["iou75"][0] == pytest.approx(0.66667)


def test_time_says_where_it_went(images: CocoImages, tmp_path: Path) -> None:
    model = predictor(ScriptedBackend(SCRIPTED, delay=0.02))
    with DetectionCache(tmp_path / "d", {}, images.image_ids) as cache:
        time = evaluate(model, images, cache=cache).time
    assert list(time.stages_s) == [*model.stages, *(stage for stage in EVAL_STAGES if stage != "read")]
    assert all(seconds > 0 for seconds in time.stages_s.values())
    assert 0 <= time.unaccounted_s < 0.5 * time.whole_s
    assert (time.ran, time.stored) == (3, 0)
    assert time.network_stage == "network+nms+assembly"
    network = time.stages_s[time.network_stage]
    assert network >= 3 * 0.02
    assert time.outside_network == pytest.approx(1 - network / time.whole_s)
    json.dumps(time.to_json())


def interrupted(images: CocoImages, path: Path, at: int) -> None:
    with DetectionCache(path, {}, images.image_ids) as cache, pytest.raises(KeyboardInterrupt):
        evaluate(predictor(Interrupted(at)), images, cache=cache)


def resumed(images: CocoImages, path: Path, backend: ScriptedBackend) -> Evaluation:
    with DetectionCache(path, {}, images.image_ids, resume=True) as cache:
        return evaluate(source("m", backend), images, cache=cache)


def load_scripted(*, threads: int) -> Any:
    """At the top, so that other processes can import it."""
    assert threads == 1
    return predictor(ScriptedBackend(SCRIPTED))


def test_several_workers_give_the_same(images: CocoImages, tmp_path: Path) -> None:
    once: list[Any] = []
    lines: list[Any] = []
    with DetectionCache(tmp_path / "a", {}, images.image_ids) as cache:
        alone = evaluate(predictor(ScriptedBackend(SCRIPTED)), images, cache=cache, on_results=once.extend)
    model = EngineSource("m", load_scripted, spec=ModelSpec(tmp_path / "m.onnx"))
    with DetectionCache(tmp_path / "b", {}, images.image_ids) as cache:
        both = evaluate(model, images, cache=cache, on_results=lines.extend, workers=2)
    assert both.accuracy == alone.accuracy
    assert lines == once
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert both.time.workers == 2
    assert set(both.time.stages_s) == set(alone.time.stages_s)
    assert 0 < (both.time.outside_network or 0) < 1
    with pytest.raises(InputError, match="2 workers load the model themselves"):
        evaluate(predictor(ScriptedBackend(SCRIPTED)), images, workers=2)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_interrupted_and_resumed(images: CocoImages, tmp_path: Path, at: int) -> None:
    once = evaluate(predictor(ScriptedBackend(SCRIPTED)), images)
    interrupted(images, tmp_path / "d", at)
    assert [stored.image_id for stored in read_detections(tmp_path / "d")] == list(range(1, at))
    backend = ScriptedBackend(SCRIPTED)
    again = resumed(images, tmp_path / "d", backend)
    assert backend.seen == list(range(at, 4)), "what was done is not done again"
    assert backend.closed
    assert again.accuracy == once.accuracy
    assert 0 < (once.accuracy.mask.ap or 0) < 1 if once.accuracy.mask else False
    assert (again.time.ran, again.time.stored) == (4 - at, at - 1)


def test_a_whole_file_needs_no_model(images: CocoImages, tmp_path: Path) -> None:
    first = resumed(images, tmp_path / "d", ScriptedBackend(SCRIPTED))

    def load() -> Any:
        raise AssertionError("the model is loaded")

    with DetectionCache(tmp_path / "d", {}, images.image_ids, resume=True) as cache:
        again = evaluate(EngineSource("m", load), images, cache=cache)
    assert again.accuracy == first.accuracy
    assert again.time.network_stage is None
    assert again.time.outside_network is None
    assert set(again.time.stages_s) == {"read", "match", "accumulate"}


def test_faster_coco_eval(images: CocoImages) -> None:
    pytest.importorskip("faster_coco_eval")
    slow = evaluate(predictor(ScriptedBackend(SCRIPTED)), images)
    fast = evaluate(predictor(ScriptedBackend(SCRIPTED)), images, evaluator="faster-coco-eval")
    assert fast.accuracy.mask is not None
    assert slow.accuracy.mask is not None
    assert fast.accuracy.mask.ap == pytest.approx(slow.accuracy.mask.ap, abs=1e-9)
    assert fast.matches == {}


def test_the_key_distinguishes_models_options_and_images(tmp_path: Path, images: CocoImages) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"one")
    model = EngineSource("m", lambda: predictor(ScriptedBackend(SCRIPTED)), path=file)
    keys = [cache_key(model, {"threads": 2}, images), cache_key(model, {"threads": 1}, images)]
    keys.append(cache_key(model, {"threads": 2}, dataclasses.replace(images, images=images.images[:2])))
    file.write_bytes(b"two")
    keys.append(cache_key(model, {"threads": 2}, images))
    assert len({json.dumps(key) for key in keys}) == 4
    (tmp_path / "moved.onnx").write_bytes(b"two")
    moved = dataclasses.replace(model, path=tmp_path / "moved.onnx")
    assert cache_key(moved, {"threads": 2}, images) == keys[-1], "where the file lies does not matter"


def test_images_without_annotations(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    with pytest.raises(DatasetError, match="have no annotations"):
        evaluate(predictor(ScriptedBackend(SCRIPTED)), open_images(coco=tmp_path))


def test_an_unknown_evaluator() -> None:
    with pytest.raises(InputError, match="evaluator: expected one of pycocotools, faster-coco-eval, got 'coco'"):
        AccuracyMeter(coco_content(), [1], evaluator="coco")
