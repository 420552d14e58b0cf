"""The pages at / and /docs in a real browser: a picture is dropped, its masks are seen, and nothing is foreign."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from few import few_rows
from pictures import encoded
from served import Served, served
from services import require_serving

from yolact_deploy.datasets.shapes import render

require_serving()
pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium here: apt-get install chromium")

#: drops a picture on the page as a user does
_DROP = """
(() => {
  const bytes = Uint8Array.from(atob("CONTENT"), c => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "picture.png", {type: "TYPE"}));
  document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
})()
"""
_CUT_OFF = """
[...document.querySelectorAll("p, label, button, h1, nav, canvas, td, th")]
  .filter(e => !e.closest(".scroll") && e.checkVisibility() && e.id !== "file")
  .filter(e => { const r = e.getBoundingClientRect(); return r.left < -1 || r.right > innerWidth + 1; })
  .map(e => e.tagName + ": " + e.textContent)
"""


@pytest.fixture(scope="module")
def service(demo_onnx: Path) -> Iterator[Served]:
    with served(f"demo={demo_onnx}", "--predictors", "1") as running:
        yield running


def drop(browser: chromium.Chromium, content: bytes, kind: str = "image/png") -> str:
    """Drop a picture and wait for the answer; the text of the status line."""
    browser.evaluate(_DROP.replace("CONTENT", base64.b64encode(content).decode()).replace("TYPE", kind))
    end = time.monotonic() + 60
    while (status := str(browser.evaluate("document.getElementById('status').textContent"))) in ("", "Detecting ..."):
        assert time.monotonic() < end
        time.sleep(0.05)
    return status


@pytest.mark.parametrize(("width", "dark"), few_rows([(1280, False), (390, False), (390, True)], 0, 2))
def test_drop_a_picture(browser: chromium.Chromium, service: Served, tmp_path: Path, width: int, dark: bool) -> None:
    made = render(3)
    content = encoded(made.image, ".png")
    expected = service.request("POST", "/v1/predict?masks=none", content)
    seen = browser.open(f"{service.address}/", width, 844 if width < 600 else 900, dark=dark)
    browser.screenshot(tmp_path / "empty.png")
    status = drop(browser, content)
    browser.screenshot(tmp_path / "masks.png")
    print(tmp_path)
    count = expected[1].count(b'"name"')
    assert status == f"{count} objects in 320 x 240 pixels"
    assert browser.evaluate("document.querySelectorAll('#rows tr').length") == count
    # The pixels of a mask, drawn with strength 0.5 and no boxes, are halfway to the color of the mask.
    browser.evaluate("document.getElementById('show-boxes').click()")
    wrong = browser.evaluate(
        """(() => { const c = document.getElementById("canvas"), plain = document.createElement("canvas");
             plain.width = c.width; plain.height = c.height;
             const p = plain.getContext("2d"); p.drawImage(picture, 0, 0);
             const a = p.getImageData(0, 0, c.width, c.height).data;
             const b = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
             let wrong = 0;
             for (let i = 0; i < c.width * c.height; i++) {
               const inside = answer.detections.some(d => d.pixels.data[i]);
               const same = a[4 * i] === b[4 * i] && a[4 * i + 1] === b[4 * i + 1] && a[4 * i + 2] === b[4 * i + 2];
               wrong += inside === same;
             }
             return wrong; })()"""
    )
    assert wrong < 0.002 * 320 * 240, "a pixel of a mask may happen to have its color"
    areas = browser.evaluate("answer.detections.map(d => d.pixels.area)")
    assert areas == mask_areas(service, content)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    assert browser.evaluate(_CUT_OFF) == []
    later = browser.events_since_open()
    assert seen.errors + later.errors == []
    requests = seen.requests + later.requests
    assert f"{service.address}/v1/predict?score_threshold=0.15&model=demo" in requests
    assert [url for url in requests if not url.startswith((f"{service.address}/", "blob:"))] == []


def mask_areas(service: Served, content: bytes) -> Any:
    import json

    from yolact_deploy.datasets.rle import decode

    values = json.loads(service.request("POST", "/v1/predict", content)[1])
    return [int(decode(item["mask"]["counts"].encode(), 240, 320).sum()) for item in values["detections"]]


def test_what_is_no_picture(browser: chromium.Chromium, service: Served) -> None:
    browser.open(f"{service.address}/", 390)
    assert drop(browser, b"hello", "text/plain").startswith("Content-Type: expected image/jpeg")
    assert browser.evaluate("document.getElementById('status').className") == "wrong"
    assert drop_again(browser, service)


def drop_again(browser: chromium.Chromium, service: Served) -> bool:
    """A good picture after a bad one."""
    browser.evaluate("document.getElementById('status').textContent = ''")
    return "objects in" in drop(browser, encoded(render(3).image, ".png"))


def test_description_of_the_routes(browser: chromium.Chromium, service: Served, tmp_path: Path) -> None:
    seen = browser.open(f"{service.address}/docs", 1280)
    end = time.monotonic() + 60
    while not browser.evaluate("document.querySelectorAll('.opblock').length"):
        assert time.monotonic() < end
        time.sleep(0.05)
    browser.screenshot(tmp_path / "docs.png")
    print(tmp_path)
    later = browser.events_since_open()
    assert seen.errors + later.errors == []
    foreign = [url for url in seen.requests + later.requests if not url.startswith((f"{service.address}/", "data:"))]
    assert foreign == []
