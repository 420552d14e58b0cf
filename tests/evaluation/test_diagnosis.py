"""Engines that are wrong on purpose, and their diagnosis."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few_rows

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper
from scripted import HEIGHT, WIDTH, Instance, ScriptedBackend, predictor
from small_net import CONFIG, pictures, write_blobs, write_model

from yolact_deploy.artifact import Metadata
from yolact_deploy.cli.main import main
from yolact_deploy.evaluation.diagnosis import Diagnosis, diagnose
from yolact_deploy.evaluation.trunk_comparison import LayerError, TrunkComparison
from yolact_deploy.loading import load
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import DetectionOutputs, HeadOutputs, Outputs

# -- files that are doctored ----------------------------------------------------------------------------------------


def insert(graph: Any, before: str, nodes: list[Any], constants: dict[str, Any]) -> None:
    """Rename the tensor ``before`` to ``<before>_right``, and let the nodes compute ``before`` from it."""
    (place,) = (i for i, node in enumerate(graph.node) if before in node.output)
    graph.node[place].output[0] = f"{before}_right"
    for i, node in enumerate(nodes, 1):
        graph.node.insert(place + i, node)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())


def shift_labels(graph: Any) -> None:
    """Class k becomes class k + 1, and the last one becomes the first."""
    order = helper.make_node("Gather", ["scores_right", "class_order"], ["scores"], axis=2)
    insert(graph, "scores", [order], {"class_order": np.array([3, 0, 1, 2], np.int64)})


def mix_labels(graph: Any) -> None:
    order = helper.make_node("Gather", ["scores_right", "class_order"], ["scores"], axis=2)
    insert(graph, "scores", [order], {"class_order": np.array([1, 0, 2, 3], np.int64)})


def flip_masks(graph: Any) -> None:
    order = helper.make_node("Gather", ["proto_right", "columns"], ["proto"], axis=2)
    insert(graph, "proto", [order], {"columns": np.arange(31, -1, -1)})


def swap_red_and_blue(graph: Any) -> None:
    """A missing conversion from BGR to RGB."""
    (flip,) = (node for node in graph.node if node.output[0] == "flip")
    flip.op_type = "Identity"
    del flip.input[1:], flip.attribute[:]


def swap_one_channel(graph: Any) -> None:
    """Swap blue and green of the input picture."""
    order = helper.make_node("Gather", ["gray_right", "channel_order"], ["gray"], axis=3)
    insert(graph, "gray", [order], {"channel_order": np.array([1, 0, 2], np.int64)})


def spoil_a_layer(graph: Any) -> None:
    for constant in graph.initializer:
        if constant.name == "model.backbone.layers.0.conv1.weight":
            values = numpy_helper.to_array(constant)[::-1].copy()
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))


def forget_the_mean(graph: Any) -> None:
    for constant in graph.initializer:
        if constant.name == "mean":
            constant.CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), "mean"))


_COUNTS = r"(\d+) of (\d+)"
_SWAPPED = "input channels are swapped: the engine "
#: the change, and kind and words of the diagnosis
DOCTORED = [
    (
        shift_labels,
        "labels",
        f"labels are shifted by one: {_COUNTS} detections have the same box and mask but class k\\+1",
    ),
    (mix_labels, "labels", rf"labels are mixed up: {_COUNTS} .*\(cat becomes dog, dog becomes cat\)"),
    (flip_masks, "masks", f"masks are mirrored left to right, as a whole; boxes and classes are right: .*?{_COUNTS}"),
    (swap_red_and_blue, "channels", f"{_SWAPPED}reads BGR as RGB.*after normalization.*?{_COUNTS}"),
    (swap_one_channel, "channels", f"{_SWAPPED}takes blue for green.*?{_COUNTS}"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("diagnosis") / "small.onnx")


def open_model(path: Path) -> Predictor:
    return load(path, score_threshold=0.0, lazy_masks=False, threads=1)


def check_counts(pattern: str, sentence: str) -> None:
    match = re.search(pattern, sentence)
    assert match, sentence
    same, all_of_them = (int(group) for group in match.groups())
    assert all_of_them > 10, "the network finds something"
    assert 0.9 * all_of_them < same <= all_of_them


@pytest.mark.parametrize(("doctor", "kind", "words"), few_rows(DOCTORED, 0, 2, 3))
def test_doctored_files(small: Path, tmp_path: Path, doctor: Callable[[Any], None], kind: str, words: str) -> None:
    wrong = write_model(tmp_path / "wrong.onnx", doctor)
    diagnosis = diagnose(open_model(small), open_model(wrong), pictures())
    assert diagnosis.kind == kind
    check_counts(words, diagnosis.sentence)
    assert diagnosis.similarity < 0.9
    assert diagnosis.explained is not None
    assert diagnosis.explained > 0.9


@pytest.mark.parametrize(
    ("doctor", "kind", "words"), [DOCTORED[0], *(pytest.param(*DOCTORED[i], marks=pytest.mark.slow) for i in (2, 3))]
)
def test_the_command_prints_the_diagnosis(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    doctor: Callable[[Any], None],
    kind: str,
    words: str,
) -> None:
    """The gate fails, and the sentence is in its message."""
    wrong = write_model(tmp_path / "wrong.onnx", doctor)
    arguments = ["compare", "--reference", str(small), "--engine", str(wrong), "--threads", "1"]
    arguments += ["--images", str(write_blobs(tmp_path / "pictures"))]
    assert main([*arguments, "--min-agreement", "0.95", "--quiet"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("yolact-deploy: error: wrong.onnx and small.onnx agree on 0.")
    check_counts(words, message)
    assert main(arguments) == 0
    check_counts("verdict: " + words, " ".join(capsys.readouterr().out.split()))


def test_a_good_engine(small: Path) -> None:
    diagnosis = diagnose(open_model(small), open_model(small), pictures())
    assert diagnosis == Diagnosis("agree", "the models agree (similarity 1.000)", 1.0)


@pytest.mark.parametrize(
    ("doctor", "kind", "words"),
    few_rows(
        [
            (spoil_a_layer, "layer", "the first layer to deviate is backbone.layers.0.conv1 (relative RMS error "),
            (forget_the_mean, "input", "the first layer's input already deviates (relative RMS error "),
        ],
        0,
    ),
)
def test_layers_explain_what_no_mistake_explains(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], doctor: Any, kind: str, words: str
) -> None:
    import json

    wrong = write_model(tmp_path / "wrong.onnx", doctor)
    arguments = ["compare", "--json", "--reference", str(small), "--engine", str(wrong), "--threads", "1"]
    assert main([*arguments, "--images", str(write_blobs(tmp_path / "pictures"))]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["diagnosis"]["kind"] == kind
    assert words in result["diagnosis"]["sentence"]
    assert result["diagnosis"]["explained"] is None
    assert result["trunk"]["first_over"] == {"layer": "backbone.layers.0.conv1", "input": "input"}[kind]


# -- outputs that are doctored --------------------------------------------------------------------------------------


class Doctored(Backend):
    """Another backend whose input or outputs are changed."""

    name, precision = "doctored", "fp32"

    def __init__(
        self, inner: Backend, change: Callable[[Any], Outputs] = lambda o: o, enter: Callable[[Any], Any] = lambda i: i
    ) -> None:
        self._inner, self._change, self._enter = inner, change, enter
        self.metadata, self.tail = inner.metadata, inner.tail

    def run(self, images: Any) -> Outputs:
        return self._change(self._inner.run(np.ascontiguousarray(self._enter(images))))

    def describe(self) -> dict[str, Any]:
        return {}


def doctored(inner: Predictor, **changes: Any) -> Predictor:
    return Predictor(Doctored(inner.backend, **changes), score_threshold=0.0, lazy_masks=False)


def swapped(heads: HeadOutputs, **changed: Any) -> HeadOutputs:
    return heads._replace(**{name: np.ascontiguousarray(value) for name, value in changed.items()})


def centers(boxes: Any) -> Any:
    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    few_rows(
        [
            ({"change": lambda h: swapped(h, proto=h.proto[:, ::-1])}, "masks", "mirrored upside down, as a whole"),
            ({"change": lambda h: swapped(h, proto=h.proto.swapaxes(1, 2))}, "masks", "masks have x and y exchanged"),
            (
                {"change": lambda h: swapped(h, boxes=h.boxes[..., [1, 0, 3, 2]])},
                "boxes",
                "boxes have x and y exchanged",
            ),
            ({"change": lambda h: swapped(h, boxes=centers(h.boxes))}, "boxes", "center and size instead of corners"),
            (
                {"change": lambda h: swapped(h, scores=h.scores * 0)},
                "nothing found",
                "detects nothing that scores above 0.15",
            ),
            (
                {"change": lambda h: swapped(h, coeff=h.coeff * np.nan)},
                "not finite",
                "coeff of the engine has values that",
            ),
            (
                {"enter": lambda images: images[..., [1, 2, 0]]},
                "channels",
                "takes green for blue, red for green and blue",
            ),
            ({"enter": lambda images: images[..., ::-1]}, "channels", "or the other way round: that explains"),
            ({"enter": lambda images: images[:, :, ::-1]}, "picture", "whole picture is mirrored left to right"),
        ],
        0,
        2,
        4,
        5,
        6,
    ),
)
def test_doctored_outputs(small: Path, changes: Any, kind: str, words: str) -> None:
    right = open_model(small)
    diagnosis = diagnose(right, doctored(right, **changes), pictures(2))
    assert diagnosis.kind == kind, diagnosis.sentence
    assert words in diagnosis.sentence
    assert diagnosis.similarity < 0.9


def test_errors_that_are_no_known_mistake(small: Path) -> None:
    right = open_model(small)
    noise = np.random.default_rng(0).random
    wrong = doctored(right, change=lambda h: swapped(h, scores=noise(h.scores.shape, np.float32)))
    diagnosis = diagnose(right, wrong, pictures(2))
    assert (diagnosis.kind, diagnosis.explained) == ("unknown", None)
    assert diagnosis.sentence.endswith("compare layers to see where it starts")
    clean = TrunkComparison(1, 0.02, (LayerError("stem", 0.0, 0.0),), 0)
    assert "no layer deviates: check what follows" in diagnose(right, wrong, pictures(2), trunk=clean).sentence


class DetectionsBackend(Backend):
    """One detection with a mask that fills its upper left part, as graphs with a tail output it."""

    name, precision = "detections", "fp32"
    metadata = Metadata(config=dataclasses.replace(CONFIG))

    def __init__(self, change: Callable[[Any], Any] = lambda masks: masks) -> None:
        self._change = change

    def run(self, images: Any) -> Outputs:
        masks = np.zeros((1, 1, 32, 32), np.float32)
        masks[0, 0, 4:16, 2:6] = masks[0, 0, 4:7, 2:14] = 1
        boxes = np.array([[[2, 4, 14, 16]]], np.float32) / np.float32(32)
        one = np.ones((1, 1), np.float32)
        return DetectionOutputs(np.array([1], np.int32), boxes, one, np.array([[1]], np.int32), self._change(masks))

    def describe(self) -> dict[str, Any]:
        return {}


def inside_the_box(masks: Any) -> Any:
    masks = masks.copy()
    masks[..., 2:14] = masks[..., 13:1:-1]
    return masks


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda masks: masks[..., ::-1], "masks are mirrored left to right, after they were cropped"),
        (lambda masks: masks[:, :, ::-1], "masks are mirrored upside down, after they were cropped"),
        (inside_the_box, "masks are mirrored left to right, inside their boxes"),
    ],
)
def test_masks_of_graphs_that_end_in_detections(change: Any, words: str) -> None:
    """Their prototypes are hidden, but pasted masks can be mirrored as well."""
    right, wrong = (Predictor(DetectionsBackend(*given), score_threshold=0.0) for given in ((), (change,)))
    diagnosis = diagnose(right, wrong, pictures(1))
    assert diagnosis.kind == "masks"
    assert words in diagnosis.sentence
    assert diagnosis.sentence.endswith("that explains 1 of 1 detections")


# -- what is no mistake ---------------------------------------------------------------------------------------------

_INSTANCES = [
    Instance(i % 3, 0.9 - i / 20, (i % 4 * 20, i // 4 * 30, i % 4 * 20 + 18, i // 4 * 30 + 25)) for i in range(8)
]


def diagnosis_of(engine_instances: list[Instance]) -> Diagnosis:
    right, wrong = (predictor(ScriptedBackend({1: instances})) for instances in (_INSTANCES, engine_instances))
    return diagnose(right, wrong, [np.full((HEIGHT, WIDTH, 3), 10, np.uint8)])


def test_a_flip_or_two_are_no_mistake() -> None:
    flipped = [dataclasses.replace(instance, label=2) if i == 0 else instance for i, instance in enumerate(_INSTANCES)]
    diagnosis = diagnosis_of(flipped)
    assert (diagnosis.kind, diagnosis.similarity) == ("unknown", pytest.approx(2 * 7 / 16))
    three = [dataclasses.replace(instance, label=2) if instance.label == 0 else instance for instance in _INSTANCES]
    assert diagnosis_of(three).kind == "labels"
    assert "labels are mixed up: 8 of 8" in diagnosis_of(three).sentence


def test_one_missed_of_eight() -> None:
    diagnosis = diagnosis_of(_INSTANCES[:-1])
    assert (diagnosis.kind, diagnosis.explained) == ("agree", None)
    assert diagnosis.sentence == "the models mostly agree (similarity 0.933); no common mistake explains the rest"


def test_a_box_that_scores_next_to_nothing_is_no_partner() -> None:
    """Each shifted detection has a low-scoring one of the right class in its place, as in real networks."""
    shifted = [dataclasses.replace(instance, label=(instance.label + 1) % 3) for instance in _INSTANCES[:4]]
    shadows = [dataclasses.replace(instance, score=0.05) for instance in _INSTANCES[:4]]
    right, wrong = (predictor(ScriptedBackend({1: instances})) for instances in (_INSTANCES[:4], shifted + shadows))
    diagnosis = diagnose(right, wrong, [np.full((HEIGHT, WIDTH, 3), 10, np.uint8)])
    assert diagnosis.sentence.startswith("labels are shifted by one: 4 of 4 detections")
    assert diagnosis.similarity == 0
