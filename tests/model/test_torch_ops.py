from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from deterministic import GOLDEN

from yolact_deploy import postprocess
from yolact_deploy.vocabulary import NMS_VARIANTS

pytest.importorskip("torch")

import torch

from yolact_deploy.model import torch_ops as ops

FILES = sorted(path.stem for path in GOLDEN.glob("pure_*.npz"))
NMS: dict[str, Callable[..., Any]] = {
    "fast": ops.fast_nms,
    "fast2": lambda *arrays: ops.fast_nms(*arrays, second_threshold=0.05),
    "cc": ops.cross_class_nms,
    "trad": ops.traditional_nms,
}


@pytest.fixture(params=FILES)
def golden(request: pytest.FixtureRequest) -> Any:
    with np.load(GOLDEN / f"{request.param}.npz") as arrays:
        return dict(arrays)


def _cases(*fields: str) -> list[tuple[str, str]]:
    """(file, case) for every case of the golden files that has all the fields."""
    found = []
    for name in FILES:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            keys = set(arrays.files)
        cases = sorted({key.split(".")[0] for key in keys})
        found += [(name, case) for case in cases if all(f"{case}.{field}" in keys for field in fields)]
    return found


def _load(name: str, case: str, *fields: str) -> list[Any]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return [torch.from_numpy(arrays[f"{case}.{field}"]) for field in fields]


def _close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def _rows(box: Any, label: Any, score: Any, coeff: Any) -> Any:
    """Detections as rows in an order that does not depend on the order of near-ties."""
    rows = torch.cat([label[:, None].double(), score[:, None].double(), box.double(), coeff.double()], dim=1).numpy()
    return torch.from_numpy(rows[np.lexsort(rows.round(4).T[::-1])])


@pytest.mark.golden
@pytest.mark.parametrize("variant", NMS)
@pytest.mark.parametrize(("name", "case"), _cases("boxes", "masks", "scores", "fast.box"))
def test_nms_golden(name: str, case: str, variant: str) -> None:
    boxes, scores, coeff = _load(name, case, "boxes", "scores", "masks")
    expected = _load(name, case, *(f"{variant}.{field}" for field in ("box", "class", "score", "mask")))
    found = NMS[variant](boxes, scores, coeff)
    assert (found.scores.diff() <= 0).all()
    if case == "identical":  # which of several equal boxes stays is open, and so are its coefficients
        expected[3] = expected[3] * 0
        found = found._replace(coeff=found.coeff * 0)
    _close(_rows(found.boxes, found.labels, found.scores, found.coeff), _rows(*expected))


@pytest.mark.golden
@pytest.mark.parametrize(("name", "case"), _cases("conf", "boxes", "masks", "out.box"))
def test_detect_golden(name: str, case: str) -> None:
    conf, boxes, coeff = _load(name, case, "conf", "boxes", "masks")
    expected = _load(name, case, "out.box", "out.class", "out.score", "out.mask")
    found = ops.detect(boxes, conf[:, 1:], coeff)
    _close(_rows(found.boxes, found.labels, found.scores, found.coeff), _rows(*expected))


@pytest.mark.golden
@pytest.mark.parametrize(("name", "case"), _cases("proto", "coef", "out.box"))
def test_masks_golden(name: str, case: str) -> None:
    proto, coeff, boxes, labels, scores, (width, height), threshold = _load(
        name, case, "proto", "coef", "boxes", "classes", "scores", "wh", "thr"
    )
    keep = scores > threshold
    assert int(keep.sum()) == int(_load(name, case, "out.n")[0])
    assert torch.equal(labels[keep], _load(name, case, "out.class")[0])
    box, area, packed, shape = _load(name, case, "out.box", "out.area", "out.mask_packed", "out.mask_shape")
    masks = ops.assemble_masks(proto, coeff[keep], None if case == "post_nocrop" else boxes[keep])
    masks = ops.paste_masks_full(masks, int(height), int(width))
    expected = np.unpackbits(packed.numpy(), axis=-1, count=int(shape[-1])).astype(bool)
    assert list(masks.shape) == shape.tolist()
    assert (masks.numpy() != expected).sum(axis=(1, 2)).max() <= 1
    assert torch.equal(ops.pixel_boxes(boxes[keep], int(height), int(width)), box)
    assert (masks.sum((1, 2)) - area).abs().max() <= 1


@pytest.mark.golden
@pytest.mark.parametrize(("name", "case"), _cases("a", "iou"))
def test_box_iou_golden(name: str, case: str) -> None:
    a, b, iou, crowd = _load(name, case, "a", "b", "iou", "crowd")
    _close(ops.box_iou(a, b), iou)
    _close(ops.box_iou(a, b, crowd=True), crowd)
    (a3, out3) = _load(name, "jaccard3", "a", "out")
    _close(ops.box_iou(a3, a3), out3)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "case"), _cases("loc", "priors", "decode"))
def test_decode_golden(name: str, case: str) -> None:
    loc, priors, decoded, encoded, boxes = _load(name, case, "loc", "priors", "decode", "encode", "boxes")
    _close(ops.decode_boxes(loc, priors), decoded)
    torch.testing.assert_close(ops.decode_boxes(encoded, priors), boxes, rtol=1e-4, atol=1e-5)


@pytest.mark.golden
def test_sanitize_golden(golden: Any) -> None:
    for key in (k for k in golden if k.startswith("sanitize.S")):
        size, padding, cast = (int("".join(filter(str.isdigit, part))) for part in key.split(".")[1:])
        first, second = (torch.from_numpy(golden[f"sanitize.{v}"]) for v in ("x1", "x2"))
        found = torch.stack(ops.sanitize_coordinates(first, second, size, padding, cast=bool(cast))).double()
        _close(found, torch.from_numpy(golden[key]))


@pytest.mark.golden
@pytest.mark.parametrize(("name", "case"), _cases("masks", "boxes", "out_pad0"))
def test_crop_golden(name: str, case: str) -> None:
    masks, boxes, out, out_pad0 = _load(name, case, "masks", "boxes", "out", "out_pad0")
    _close(ops.crop_masks(masks.permute(2, 0, 1), boxes), out.permute(2, 0, 1))
    _close(ops.crop_masks(masks.permute(2, 0, 1), boxes, padding=0), out_pad0.permute(2, 0, 1))


@pytest.mark.parametrize("nms", NMS_VARIANTS)
def test_no_candidate_gives_empty_detections(nms: str) -> None:
    found = ops.detect(torch.rand(5, 4), torch.full((5, 3), 0.01), torch.rand(5, 8), nms=nms)
    assert [tuple(t.shape) for t in found] == [(0, 4), (0,), (0,), (0, 8)]
    assert found.labels.dtype == torch.int64
    masks = ops.assemble_masks(torch.rand(6, 7, 8), found.coeff, found.boxes)
    assert masks.shape == (0, 6, 7)
    assert ops.paste_masks_full(masks, 9, 10).shape == (0, 9, 10)
    assert ops.pixel_boxes(found.boxes, 9, 10).shape == (0, 4)


@pytest.mark.parametrize("nms", NMS_VARIANTS)
def test_the_numpy_twin_agrees(nms: str) -> None:
    rng = np.random.default_rng(5)
    corner = rng.random((400, 2))
    boxes = np.concatenate([corner, corner + 0.05 + 0.2 * rng.random((400, 2))], axis=1).astype(np.float32)
    scores = rng.random((400, 6)).astype(np.float32) ** 4
    coeff = rng.standard_normal((400, 8)).astype(np.float32)
    ours = ops.detect(*map(torch.from_numpy, (boxes, scores, coeff)), nms=nms)
    twin = postprocess.detect(boxes, scores, coeff, nms=nms)
    assert ours._fields == twin._fields
    for a, b in zip(ours, twin, strict=True):
        np.testing.assert_allclose(a.numpy(), np.asarray(b), rtol=1e-5, atol=1e-6)


def test_an_unknown_nms_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        ops.detect(torch.rand(2, 4), torch.rand(2, 3), torch.rand(2, 8), nms="soft")
