"""The rules of the page against the package's own: resizing, placement, pasting, and the comparison of two runs."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from importlib import resources
from typing import Any

import chromium
import cv2
import numpy as np
import pytest

from yolact_deploy.config import get_config
from yolact_deploy.paste import paste_masks
from yolact_deploy.preprocess import fit_image, padding_color
from yolact_deploy.priors import place

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium here: apt-get install chromium")
RNG = np.random.default_rng(5)
_BYTES = "const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));"


@pytest.fixture(scope="module", autouse=True)
def empty_page(browser: chromium.Chromium) -> None:
    browser.open("about:blank", 400)


def call(browser: chromium.Chromium, code: str, **values: object) -> Any:
    """The result of code that has the functions of detector.js, ``values`` and ``bytes(base64)``."""
    source = (resources.files("yolact_deploy.export.targets") / "web_page" / "detector.js").read_text("utf-8")
    given = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    return browser.evaluate(f"(() => {{ {source}\n{_BYTES}\n{{ {given}\n{code} }} }})()")


def packed(array: Any) -> str:
    return base64.b64encode(array.tobytes()).decode()


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "pad"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(48, 64), (90, 37), (20, 200), (64, 64)])
def test_resize(browser: chromium.Chromium, fit: str, dtype: str, shape: tuple[int, int]) -> None:
    config = replace(get_config("yolact_base").with_size((64, 96)), fit=fit)
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    rgba = cv2.cvtColor(image, cv2.COLOR_BGR2RGBA)
    network = {"shape": [64, 96], "dtype": dtype, "fit": fit, "padding": list(padding_color(config, dtype))}
    where, made = call(
        browser,
        "const where = place(height, width, network);"
        "return [Object.values(where), [...resize(bytes(rgba), where, network)]];",
        rgba=packed(rgba), height=shape[0], width=shape[1], network=network,
    )  # fmt: skip
    assert tuple(where) == tuple(place(*shape, config))
    expected = fit_image(image, config, dtype).astype(np.float64)
    difference = np.abs(np.array(made).reshape(expected.shape) - expected)
    # OpenCV rounds a few values per thousand differently, by one gray level.
    assert difference.max() <= (1 if dtype == "uint8" else 0.01)
    assert (difference > 0.01).mean() <= 0.01


@pytest.mark.parametrize("shape", [(50, 70), (8, 9), (300, 200), (31, 400)])
def test_paste(browser: chromium.Chromium, shape: tuple[int, int]) -> None:
    rows, columns = 24, 32
    masks = cv2.GaussianBlur(RNG.random((rows, columns, 6), np.float32), (0, 0), 2)
    masks = (masks - masks.mean()) * 6 + 0.5
    masks = np.ascontiguousarray(masks.clip(0, 1).transpose(2, 0, 1))
    masks[0, :5] = masks[1, :, 9:] = masks[2] = 0  # cropped, and empty
    made = call(
        browser,
        "const data = new Float32Array(bytes(masks).buffer), down = axis(24, height, height, 0);"
        "const across = axis(32, width, width, 0);"
        "return [...Array(6).keys()].map(i => {"
        "  const one = paste(data.subarray(i * 768, i * 768 + 768), 24, 32, down, across);"
        "  return { ...one, data: [...one.data] }; });",
        masks=packed(masks), height=shape[0], width=shape[1],
    )  # fmt: skip
    crops = paste_masks(masks, *shape)
    for i, one in enumerate(made):
        own, expected = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        part = np.array(one["data"], np.bool_).reshape(one["height"], one["width"])
        own[one["y"] : one["y"] + one["height"], one["x"] : one["x"] + one["width"]] = part
        (x, y), crop = crops.offsets[i].tolist(), crops.crops[i]
        expected[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        assert one["area"] == own.sum()
        assert (own != expected).sum() <= 1 + shape[0] * shape[1] // 10_000  # interpolation rounds differently
        assert expected.any() == (i != 2)


def test_half(browser: chromium.Chromium) -> None:
    """All float16 from 0 to 1, as some runtimes give them."""
    bits = np.arange(0x3C01, dtype=np.uint16)
    made = call(browser, "return [...floats(new Uint16Array(bytes(bits).buffer), 0, 15361)];", bits=packed(bits))
    np.testing.assert_array_equal(made, bits.view(np.float16).astype(np.float64))


_BOX = {"x": 2, "y": 3, "width": 10, "height": 10, "area": 100, "data": [1] * 100}
_ONE = {"label": 1, "score": 0.8, "mask": _BOX}


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        ([_ONE], ""),
        ([{**_ONE, "score": 0.81}], ""),
        ([_ONE, {**_ONE, "score": 0.31}], ""),  # near the threshold of 0.3
        ([], "a detection with score 0.80 is missing"),
        ([{**_ONE, "label": 2}], "a detection with score 0.80 is missing"),
        ([{**_ONE, "score": 0.9}], "a detection with score 0.80 is missing"),
        ([_ONE, {**_ONE, "label": 0, "score": 0.5}], "a detection with score 0.50 is extra"),
        ([{**_ONE, "mask": {**_BOX, "x": 3}}], "masks differ: IoU 0.82, at least 0.95 expected"),
        ([{**_ONE, "mask": {**_BOX, "area": 0, "data": [0] * 100}}], "masks differ: IoU 0.00, at least 0.95 expected"),
    ],
)
def test_comparison_of_gpu_and_cpu(browser: chromium.Chromium, actual: list[Any], reason: str) -> None:
    assert call(browser, "return difference(expected, actual, 0.3);", expected=[_ONE], actual=actual) == reason
