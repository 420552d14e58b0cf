"""The exported web page in a browser: what it is made of, pictures dropped on it, and what it then has."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from chromium import Chromium
from numpy.typing import NDArray

from yolact_deploy import Detections
from yolact_deploy.artifact import Metadata
from yolact_deploy.export.targets.target_source import TargetSource

_DROP = """
(() => {
  const bytes = Uint8Array.from(atob("CONTENT"), c => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "dropped", {type: "TYPE"}));
  document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
})()
"""
_ANSWER = """
answer.detections.map(({label, name, score, box, mask}) => (
  {label, name, score, box, ...mask, data: mask.data.join("")}
))
"""
_TEXT = "document.getElementById('{}').textContent"
#: the browser's own words where it has no GPU
NO_GPU = "No available adapters."


def source_of(path: Path, ort_web: Path) -> TargetSource:
    import onnx

    from yolact_deploy.graph.onnx_graph import onnx_metadata

    metadata: Metadata = onnx_metadata(onnx.load(path), path)
    return TargetSource(onnx_path=path, metadata=metadata, ort_web=ort_web)


def text(browser: Chromium, element: str) -> str:
    return str(browser.evaluate(_TEXT.format(element)))


def wait_for(browser: Chromium, element: str, wanted: Callable[[str], bool], seconds: float = 60) -> str:
    """The text of an element, once it is as wanted."""
    end = time.monotonic() + seconds
    while not wanted(words := text(browser, element)):
        assert time.monotonic() < end, f"{element}: {words}; status: {text(browser, 'status')}"
        time.sleep(0.05)
    return words


def ready(browser: Chromium) -> str:
    """Wait until the model is loaded; what the page says about where it runs."""
    return wait_for(browser, "engine", lambda words: words.startswith("Runs on"))


def drop(browser: Chromium, content: bytes, kind: str = "image/png") -> None:
    browser.evaluate(_DROP.replace("CONTENT", base64.b64encode(content).decode()).replace("TYPE", kind))


def look_at(browser: Chromium, content: bytes) -> str:
    """Drop a picture and wait until its masks are there; what the page says."""
    browser.evaluate("answer = null; say('')")
    drop(browser, content)
    return wait_for(browser, "status", lambda words: "pixels" in words or "not" in words)


def answered(browser: Chromium) -> list[dict[str, Any]]:
    """The detections on the page."""
    values = browser.evaluate(_ANSWER)
    assert isinstance(values, list)
    return values


def whole_mask(one: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape[:2], np.bool_)
    part = np.frombuffer(one["data"].encode(), np.uint8).reshape(one["height"], one["width"]) == ord("1")
    mask[one["y"] : one["y"] + one["height"], one["x"] : one["x"] + one["width"]] = part
    assert one["area"] == part.sum()
    return mask


def assert_same(found: list[dict[str, Any]], expected: Detections) -> None:
    """The same detections as Python's: labels, scores within 0.001, boxes within 0.2 pixels, mask IoU from 0.99."""
    assert [one["label"] for one in found] == expected.labels.tolist()
    assert [one["name"] for one in found] == expected.names
    np.testing.assert_allclose([one["score"] for one in found], expected.scores, atol=1e-3)
    np.testing.assert_allclose(np.array([one["box"] for one in found]).reshape(-1, 4), expected.boxes, atol=0.2)
    for one, mask in zip(found, expected.masks, strict=True):
        own = whole_mask(one, mask.shape)
        either = (own | mask).sum()
        assert either == 0 or (own & mask).sum() / either >= 0.99, one["name"]
