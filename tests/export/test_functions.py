"""The bodies of FastNMS and MaskAssembly alone, in ONNX Runtime and OpenVINO, against the original and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from deterministic import GOLDEN

from yolact_deploy import postprocess
from yolact_deploy.errors import import_optional

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper

from yolact_deploy.export import functions
from yolact_deploy.graph.onnx_graph import inline_functions
from yolact_deploy.runtime.openvino import shared_core

RUNTIMES = ("onnxruntime", "openvino")
FILES = sorted(path.stem for path in GOLDEN.glob("pure_*.npz"))
ALL = -0.5  # a score threshold that takes every candidate

Run = Callable[[Any, dict[str, Any]], list[Any]]


@pytest.fixture(params=RUNTIMES)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a model on named inputs."""
    runtime = request.param
    if runtime == "onnxruntime":
        ort = pytest.importorskip("onnxruntime")

        def run_ort(model: Any, feed: dict[str, Any]) -> list[Any]:
            session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            return list(session.run(None, feed))

        return run_ort
    pytest.importorskip("openvino")
    core = shared_core()

    def run_openvino(model: Any, feed: dict[str, Any]) -> list[Any]:
        network = core.read_model(inline_functions(model).SerializeToString())
        compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled(feed)
        return [np.array(results[i]) for i in range(len(compiled.outputs))]

    return run_openvino


def one_node_model(op: str, function: Any, attributes: dict[str, Any], inputs: Any, outputs: Any) -> Any:
    """A model of one node of our domain; inputs and outputs are (name, type, shape)."""
    node = helper.make_node(op, [i[0] for i in inputs], [o[0] for o in outputs], domain="yolact", **attributes)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", functions.OPSET), helper.make_opsetid("yolact", 1)],
        functions=[function],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def nms_model(
    priors: int,
    classes: int,
    coefficients: int,
    *,
    score_threshold: float = 0.05,
    top_k: int = 200,
    max_detections: int = 100,
    cross_class: bool = False,
    second_threshold: float = -1.0,
) -> Any:
    top_k = min(top_k, priors)
    slots = top_k if cross_class else min(max_detections, top_k * classes)
    return one_node_model(
        functions.FAST_NMS,
        functions.fast_nms_function(cross_class=cross_class),
        {
            "score_threshold": score_threshold,
            "iou_threshold": 0.5,
            "top_k": top_k,
            "max_detections": slots,
            "cross_class": int(cross_class),
            "second_threshold": second_threshold,
        },
        [
            ("boxes", TensorProto.FLOAT, ["N", priors, 4]),
            ("scores", TensorProto.FLOAT, ["N", priors, classes]),
            ("coeff", TensorProto.FLOAT, ["N", priors, coefficients]),
        ],
        [
            ("count", TensorProto.INT32, ["N"]),
            ("out_boxes", TensorProto.FLOAT, ["N", slots, 4]),
            ("out_scores", TensorProto.FLOAT, ["N", slots]),
            ("out_labels", TensorProto.INT32, ["N", slots]),
            ("out_coeff", TensorProto.FLOAT, ["N", slots, coefficients]),
        ],
    )


def nms(run: Run, boxes: Any, scores: Any, coeff: Any, **options: Any) -> list[Any]:
    """Outputs of FastNMS for boxes [N, P, 4], scores [N, P, C], coeff [N, P, K]."""
    model = nms_model(boxes.shape[1], scores.shape[2], coeff.shape[2], **options)
    feed = {"boxes": boxes, "scores": np.ascontiguousarray(scores), "coeff": coeff}
    return run(model, feed)


def assert_same_set(outputs: list[Any], image: int, boxes: Any, scores: Any, labels: Any, coeff: Any) -> None:
    """The same detections, in any order of equals, and nothing in the slots after them."""
    count = int(outputs[0][image])
    assert count == len(scores)
    found = [output[image] for output in outputs[1:]]
    for output in found:
        assert not output[count:].any()
    assert (np.diff(found[1][:count]) <= 0).all()

    def rows(b: Any, s: Any, c: Any, m: Any) -> Any:
        table = np.concatenate([s[:, None], c[:, None], b, m], axis=1).astype(np.float64)
        return table[np.lexsort(table.round(4).T[::-1])]

    ours = rows(*(output[:count] for output in found))
    np.testing.assert_allclose(ours, rows(boxes, scores, labels, coeff), rtol=1e-5, atol=1e-6)


def golden_cases(*fields: str) -> list[Any]:
    """(file, case) for every case of the golden files that has all the fields."""
    cases = []
    for name in FILES:
        with np.load(GOLDEN / f"{name}.npz") as z:
            names = sorted({key.partition(".")[0] for key in z.files})
            found = [case for case in names if all(f"{case}.{field}" in z.files for field in fields)]
        cases += [pytest.param(name, case, id=f"{name}-{case}") for case in found]
    return cases


def load(name: str, case: str, *fields: str) -> list[Any]:
    with np.load(GOLDEN / f"{name}.npz") as z:
        return [z[f"{case}.{field}"] for field in fields]


# -- Fast NMS -------------------------------------------------------------------------------------------------------


def test_all_golden_cases_are_found() -> None:
    cases = {case.values[1] for case in golden_cases("boxes", "masks", "scores", "fast.box")}
    assert cases >= {"identical", "thr_equal", "outside", "zero_area", "single", "lowscore", "nms"}
    assert golden_cases("conf", "boxes", "masks", "out.box")


@pytest.mark.golden
@pytest.mark.parametrize("variant", ["fast", "cc"])
@pytest.mark.parametrize(("name", "case"), golden_cases("boxes", "masks", "scores", "fast.box"))
def test_nms_golden(run: Run, name: str, case: str, variant: str) -> None:
    boxes, scores, coeff = load(name, case, "boxes", "scores", "masks")
    fields = [f"{variant}.{field}" for field in ("box", "score", "class", "mask")]
    outputs = nms(run, boxes[None], scores.T[None], coeff[None], score_threshold=ALL, cross_class=variant == "cc")
    assert_same_set(outputs, 0, *load(name, case, *fields))


@pytest.mark.golden
@pytest.mark.parametrize(("name", "case"), golden_cases("conf", "boxes", "masks", "out.box"))
def test_detect_golden(run: Run, name: str, case: str) -> None:
    conf, boxes, coeff = load(name, case, "conf", "boxes", "masks")
    outputs = nms(run, boxes[None], conf[None, :, 1:], coeff[None], score_threshold=0.05)
    assert_same_set(outputs, 0, *load(name, case, "out.box", "out.score", "out.class", "out.mask"))


def random_heads(seed: int, images: int, priors: int = 300, classes: int = 6) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    corner = rng.random((images, priors, 2))
    boxes = np.concatenate([corner, corner + 0.05 + 0.2 * rng.random((images, priors, 2))], axis=2)
    scores = rng.random((images, priors, classes)) ** 6
    coeff = rng.standard_normal((images, priors, 5))
    return boxes.astype(np.float32), scores.astype(np.float32), coeff.astype(np.float32)


@pytest.mark.parametrize("cross_class", [False, True])
def test_second_threshold(run: Run, cross_class: bool) -> None:
    rng = np.random.default_rng(8)
    corner = rng.random((1, 300, 2))
    boxes = np.concatenate([corner, corner + 0.2 * rng.random((1, 300, 2))], axis=2).astype(np.float32)
    scores, coeff = (rng.random((1, 300, 4)) ** 9).astype(np.float32), rng.random((1, 300, 3)).astype(np.float32)
    options = {"top_k": 300, "max_detections": 1200}
    kind = "cross-class" if cross_class else "fast"
    counts = []
    for second in (0.0, 0.05, 0.3):
        outputs = nms(run, boxes, scores, coeff, cross_class=cross_class, second_threshold=second, **options)
        want = postprocess.detect(boxes[0], scores[0], coeff[0], nms=kind, second_threshold=second, **options)
        assert_same_set(outputs, 0, *want)
        assert (want.scores > second).all()
        counts.append(len(want.scores))
    assert counts[0] > counts[2] > 0
    assert cross_class or counts[0] > counts[1]


@pytest.mark.parametrize("cross_class", [False, True])
def test_images_of_a_batch_do_not_mix(run: Run, cross_class: bool) -> None:
    boxes, scores, coeff = random_heads(1, 3)
    scores[1] *= 0.0505  # hardly anything over the threshold
    scores[2] = 0.01  # nothing
    outputs = nms(run, boxes, scores, coeff, cross_class=cross_class, top_k=40, max_detections=60)
    counts = []
    for image in range(3):
        kind = "cross-class" if cross_class else "fast"
        want = postprocess.detect(boxes[image], scores[image], coeff[image], top_k=40, max_detections=60, nms=kind)
        assert_same_set(outputs, image, want.boxes, want.scores, want.labels, want.coeff)
        counts.append(len(want.scores))
    assert counts[0] > counts[1] > counts[2] == 0
    assert [output.dtype for output in outputs] == [np.int32, np.float32, np.float32, np.int32, np.float32]


@pytest.mark.parametrize("cross_class", [False, True])
def test_nothing_found(run: Run, cross_class: bool) -> None:
    boxes, scores, coeff = random_heads(2, 1, priors=30)
    outputs = nms(run, boxes, scores * 0 + 0.04, coeff, cross_class=cross_class)
    assert outputs[0].tolist() == [0]
    assert not any(output.any() for output in outputs)


def tied_heads() -> tuple[Any, Any, Any]:
    """Far more entries of one score than there are slots; coefficient 0 is the number of the prior."""
    boxes, scores, coeff = random_heads(3, 1)
    coeff[0, :, 0] = np.arange(300)
    return boxes, np.where(scores > 0.2, np.float32(0.75), np.float32(0)), coeff


def test_equal_scores_give_entries_that_do_not_overlap(run: Run) -> None:
    boxes, scores, coeff = tied_heads()
    count, found_boxes, found_scores, labels, found = nms(run, boxes, scores, coeff)
    assert count.tolist() == [100]
    assert (found_scores == 0.75).all()
    priors = found[0, :, 0].astype(int)
    assert (scores[0, priors, labels[0]] == 0.75).all()
    np.testing.assert_array_equal(found_boxes[0], boxes[0, priors])
    for label in set(labels[0]):
        own = found_boxes[0, labels[0] == label]
        assert (np.triu(postprocess.box_iou(own, own), k=1) <= 0.5).all()


@pytest.mark.parametrize("run", ["onnxruntime"], indirect=True)  # OpenVINO's TopK takes equals in any order
def test_equal_scores_keep_the_order_of_classes_and_priors(run: Run) -> None:
    boxes, scores, coeff = tied_heads()
    _, _, _, labels, found = nms(run, boxes, scores, coeff)
    want = postprocess.detect(boxes[0], scores[0], coeff[0])
    np.testing.assert_array_equal(labels[0], want.labels)
    np.testing.assert_array_equal(found[0, :, 0], want.coeff[:, 0])


def test_threshold_is_of_the_best_class(run: Run) -> None:
    """A prior over the threshold in one class stays a candidate of the others, with a lower score."""
    boxes = np.array([[[0, 0, 0.2, 0.2], [0.5, 0.5, 0.7, 0.7]]], np.float32)
    scores = np.array([[[0.9, 0.01], [0.04, 0.04]]], np.float32)
    outputs = nms(run, boxes, scores, np.ones((1, 2, 3), np.float32), max_detections=4)
    assert outputs[0].tolist() == [2]
    np.testing.assert_allclose(outputs[2], [[0.9, 0.01, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(outputs[3], [[0, 1, 0, 0]])


# -- masks ----------------------------------------------------------------------------------------------------------


def assemble(run: Run, proto: Any, coeff: Any, boxes: Any, padding: float = 1.0) -> Any:
    """Outputs of MaskAssembly for proto [N, h, w, K], coeff [N, D, K], boxes [N, D, 4]."""
    (_, height, width, num), slots = proto.shape, coeff.shape[1]
    model = one_node_model(
        functions.MASK_ASSEMBLY,
        functions.mask_assembly_function(),
        {"padding": padding},
        [
            ("proto", TensorProto.FLOAT, ["N", height, width, num]),
            ("coeff", TensorProto.FLOAT, ["N", slots, num]),
            ("boxes", TensorProto.FLOAT, ["N", slots, 4]),
        ],
        [("masks", TensorProto.FLOAT, ["N", slots, height, width])],
    )
    (masks,) = run(model, {"proto": proto, "coeff": coeff, "boxes": boxes})
    return masks


ODD_BOXES = np.array(
    [
        [0.2, 0.3, 0.7, 0.8],
        [0.7, 0.8, 0.2, 0.3],  # corners swapped
        [0.7, 0.3, 0.2, 0.8],
        [-0.5, -0.2, 0.3, 1.4],  # over the edge
        [1.2, 1.1, 1.6, 1.9],  # outside
        [-2, -2, -1, -1],
        [0.4, 0.4, 0.4, 0.4],  # without area: the padding stays
        [0, 0, 1, 1],
        [0.25, 0.5, 0.5, 0.75],  # edges on whole pixels of some sizes
        [0, 0, 0, 0],  # an unused slot
    ],
    np.float32,
)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (16, 16), (33, 20), (138, 138)])
@pytest.mark.parametrize("padding", [0, 1])
def test_masks_against_numpy(run: Run, height: int, width: int, padding: int) -> None:
    rng = np.random.default_rng(height * width)
    proto = rng.random((1, height, width, 8), np.float32)
    coeff = rng.standard_normal((1, len(ODD_BOXES), 8)).astype(np.float32) * 3
    masks = assemble(run, proto, coeff, ODD_BOXES[None], float(padding))
    want = postprocess.assemble_masks(proto[0], coeff[0], ODD_BOXES, padding)
    np.testing.assert_array_equal(masks[0] > 0, want > 1e-30)  # the same pixels inside
    np.testing.assert_allclose(masks[0], want, atol=1e-6)
    assert not masks[0, 4:6].any() or max(height, width) == 1  # a padding of 1 reaches everywhere in one pixel


def test_masks_of_a_batch_do_not_mix(run: Run) -> None:
    rng = np.random.default_rng(5)
    proto = rng.random((3, 11, 9, 4), np.float32)
    coeff = rng.standard_normal((3, 10, 4)).astype(np.float32)
    boxes = np.stack([ODD_BOXES, ODD_BOXES[::-1], np.roll(ODD_BOXES, 3, axis=0)])
    masks = assemble(run, proto, coeff, boxes)
    for image in range(3):
        want = postprocess.assemble_masks(proto[image], coeff[image], boxes[image])
        np.testing.assert_allclose(masks[image], want, atol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "case"), golden_cases("proto", "coef", "boxes"))
def test_masks_golden(run: Run, name: str, case: str) -> None:
    """Prototypes to the masks in the image: ours assembled in the graph, pasted by NumPy."""
    from yolact_deploy.paste import paste_masks

    proto, coeff, boxes, scores, (width, height), threshold = load(
        name, case, "proto", "coef", "boxes", "scores", "wh", "thr"
    )
    keep = scores > threshold
    cropped = case != "post_nocrop"
    inside = boxes if cropped else np.tile(np.array([[-9, -9, 9, 9]], np.float32), (len(boxes), 1))
    masks = assemble(run, proto[None], coeff[None], inside[None])[0]
    reference = postprocess.assemble_masks(proto, coeff, boxes if cropped else None)
    np.testing.assert_allclose(masks, reference, atol=1e-6)
    packed, shape, area = load(name, case, "out.mask_packed", "out.mask_shape", "out.area")
    expected = np.unpackbits(packed, axis=-1, count=int(shape[-1])).astype(bool)
    pasted = paste_masks(masks[keep], int(height), int(width), logits=False).full()
    assert pasted.shape == tuple(shape)
    assert (pasted != expected).sum(axis=(1, 2)).max() <= 2
    np.testing.assert_allclose(pasted.sum(axis=(1, 2)), area, atol=2)


# -- text -----------------------------------------------------------------------------------------------------------


def test_the_bodies_use_standard_ops_only() -> None:
    for function in (
        functions.fast_nms_function(),
        functions.fast_nms_function(cross_class=True),
        functions.mask_assembly_function(),
    ):
        assert function.domain == functions.DOMAIN
        assert [(entry.domain, entry.version) for entry in function.opset_import] == [("", functions.OPSET)]
        assert {node.domain for node in function.node} == {""}
        refused = {"NonZero", "NonMaxSuppression", "RoiAlign", "Loop", "If", "Scan"}  # by TensorRT, or dynamic
        assert not refused & {node.op_type for node in function.node}
    assert import_optional("onnx", "onnx", "test") is onnx
