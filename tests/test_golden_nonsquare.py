"""Networks at other shapes than a square compared with the original: every case of tests/golden/net_nonsquare_*.json.

Further files and cases are picked up automatically. The weights are the deterministic ones of a square network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deterministic import GOLDEN, deterministic_state
from goldencheck import check_sample

from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.priors import decode_boxes, make_priors

FILES = sorted(path.stem for path in GOLDEN.glob("net_nonsquare_*.json"))
CASES = [
    (name, number)
    for name in FILES
    for number in range(len(json.loads((GOLDEN / f"{name}.json").read_text())["cases"]))
]

pytestmark = pytest.mark.golden


@dataclass(frozen=True)
class Case:
    """One shape of one file."""

    name: str
    number: int

    @cached_property
    def z(self) -> Any:
        with np.load(GOLDEN / f"{self.name}.npz") as arrays:
            return dict(arrays)

    @cached_property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((GOLDEN / f"{self.name}.json").read_text())
        return facts

    @property
    def case(self) -> dict[str, Any]:
        case: dict[str, Any] = self.facts["cases"][self.number]
        return case

    @cached_property
    def config(self) -> YolactConfig:
        return get_config(self.facts["config"]).with_size((self.case["h"], self.case["w"]))

    @cached_property
    def input(self) -> Any:
        """Normalized RGB, float32 [b, 3, h, w]."""
        case = self.case
        random = np.random.Generator(np.random.PCG64(case["seed"]))
        values = random.standard_normal((case["b"], 3, case["h"], case["w"]), dtype=np.float32)
        if hashlib.sha256(values.tobytes()).hexdigest() != case["input_sha256"]:
            random = np.random.Generator(np.random.PCG64(case["seed"]))
            values = random.standard_normal((case["b"], 3, case["h"], case["w"])).astype(np.float32)
        assert hashlib.sha256(values.tobytes()).hexdigest() == case["input_sha256"]
        return values

    @cached_property
    def more(self) -> Any:
        """The input of the case and another image behind it, float32 [b + 1, 3, h, w]."""
        return np.concatenate([self.input, self.input[:1, :, ::-1, ::-1]])

    def check(self, name: str, values: Any, atol: float) -> None:
        ok, worst = check_sample(self.z, f"case{self.number}.{name}", np.asarray(values), atol)
        assert ok, f"{name}: largest difference {worst}"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def test_priors_are_the_same_bytes(case: Case) -> None:
    priors, facts = make_priors(case.config), case.case
    np.testing.assert_array_equal(priors, case.z[f"case{case.number}.priors"])
    assert len(priors) == case.config.num_priors == facts["num_priors"]
    assert hashlib.sha256(priors.astype("<f4").tobytes()).hexdigest() == facts["priors_sha256"]
    assert [list(shape) for shape in case.config.level_shapes] == facts["fpn_sizes"]
    assert list(case.config.prototype_shape) == facts["proto"][1:3]


def test_eager(case: Case) -> None:
    """The images of the case, and each row of a larger batch as that image alone."""
    torch = pytest.importorskip("torch")
    from yolact_deploy.model import YolactModel

    model = YolactModel(case.config).eval()
    model.load_state_dict(deterministic_state(case.facts["config"]))
    count = case.case["b"]
    with torch.inference_mode():
        raw = model.heads(torch.from_numpy(case.more))
        last = model.heads(torch.from_numpy(case.more[count:]))
    assert all(len(values) == count + 1 for values in raw)
    case.check("loc", raw.loc[:count], 2e-4)
    case.check("conf", raw.logits[:count].softmax(-1), 5e-5)
    case.check("mask", raw.coeff[:count], 2e-4)
    case.check("proto", raw.proto[:count], 5e-4)
    for name, row, alone in zip(raw._fields, raw, last, strict=True):
        np.testing.assert_allclose(row[count:], alone, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("onnxscript")
    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.model import YolactModel

    model = YolactModel(case.config).eval()
    model.load_state_dict(deterministic_state(case.facts["config"]))
    path = tmp_path_factory.mktemp("nonsquare") / "heads.onnx"
    count = case.case["b"]
    export_onnx(model, path, ExportSpec(tail="heads", input_dtype="float32", batch=(1, count, count + 1)))
    yield path
    path.unlink()


def _onnxruntime() -> Callable[..., Any]:
    pytest.importorskip("onnxruntime")
    from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend


def _openvino() -> Callable[..., Any]:
    pytest.importorskip("openvino")
    from yolact_deploy.runtime.openvino import OpenVinoBackend

    return OpenVinoBackend


@pytest.mark.slow  # tests/export/test_input_shapes.py holds exports of such shapes to eager
@pytest.mark.parametrize("backend", [_onnxruntime, _openvino])
def test_exported(case: Case, exported: Path, backend: Callable[[], Callable[..., Any]]) -> None:
    config, count = case.config, case.case["b"]
    pixels = case.more.transpose(0, 2, 3, 1)[..., ::-1] * np.array(config.pixel_std, np.float32)
    pixels = np.ascontiguousarray(pixels + np.array(config.pixel_mean, np.float32), np.float32)
    opened = backend()(exported)
    try:
        outputs, whole = opened.run(pixels[:count].copy()), opened.run(pixels)
    finally:
        opened.close()
    for name, rows, given in zip(outputs._fields, whole, outputs, strict=True):
        assert len(rows) == count + 1
        np.testing.assert_allclose(rows[:count], given, rtol=1e-4, atol=1e-4, err_msg=name)
    conf = case.z[f"case{case.number}.conf.shape"]
    assert outputs.scores.shape == (conf[0], conf[1], conf[2] - 1)
    index = case.z[f"case{case.number}.conf.idx"]
    expected = case.z[f"case{case.number}.conf.val"]
    foreground = index % conf[2] > 0  # the graph has no score for the background
    where = np.unravel_index(index[foreground], conf)
    np.testing.assert_allclose(outputs.scores[where[0], where[1], where[2] - 1], expected[foreground], atol=5e-5)
    case.check("mask", outputs.coeff, 2e-4)
    case.check("proto", outputs.proto, 5e-4)
    _check_boxes(case, outputs.boxes)


def _check_boxes(case: Case, boxes: Any) -> None:
    """Boxes of the priors for which the golden file has all four values of the regression, or else one of them."""
    shape, index = case.z[f"case{case.number}.loc.shape"], case.z[f"case{case.number}.loc.idx"]
    image, prior, value = np.unravel_index(index, shape)
    # The regression is what a box says of its prior.
    priors = case.z[f"case{case.number}.priors"]
    x1, y1, x2, y2 = np.moveaxis(boxes.astype(np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        loc = np.stack(
            [
                ((x1 + x2) / 2 - priors[:, 0]) / (0.1 * priors[:, 2]),
                ((y1 + y2) / 2 - priors[:, 1]) / (0.1 * priors[:, 3]),
                np.log((x2 - x1) / priors[:, 2]) / 0.2,
                np.log((y2 - y1) / priors[:, 3]) / 0.2,
            ],
            axis=-1,
        )
    np.testing.assert_allclose(loc[image, prior, value], case.z[f"case{case.number}.loc.val"], atol=1e-3)
    assert np.isfinite(decode_boxes(loc.astype(np.float32), priors)).all()
