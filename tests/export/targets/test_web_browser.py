"""The exported page in a real browser: Python's detections, nothing foreign, no errors, and it fits the screen."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import chromium
import cv2
import numpy as np
import pytest
from few import few
from pictures import encoded
from static_server import folder_served
from web_pages import NO_GPU, answered, assert_same, drop, look_at, ready, source_of, text, wait_for

from yolact_deploy import load
from yolact_deploy.artifact import sha256_file
from yolact_deploy.datasets.shapes import render
from yolact_deploy.export.targets import html_file, web

pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium here: apt-get install chromium")

_CUT_OFF = """
[...document.querySelectorAll("p, label, button, h1, canvas, td, th, select")]
  .filter(e => !e.closest(".scroll") && e.checkVisibility() && e.id !== "file")
  .filter(e => { const r = e.getBoundingClientRect(); return r.left < -1 || r.right > innerWidth + 1; })
  .map(e => e.tagName + ": " + e.textContent)
"""


@pytest.fixture(scope="module")
def demo_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that ships with the package, in FP16; its masks are float16."""
    for module in ("torch", "torchvision", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from yolact_deploy import samples
    from yolact_deploy.export.onnx import export_onnx
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.model.checkpoint import load_model

    path = tmp_path_factory.mktemp("half") / "shapes_demo.onnx"
    export_onnx(
        load_model(samples.DEMO_MODEL),
        path,
        ExportSpec(precision="fp16"),
        weights_sha256=sha256_file(samples.DEMO_MODEL),
    )
    return path


@pytest.fixture(scope="module")
def page(demo_onnx: Path, demo_fp16: Path, ort_web: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with two models, as two exports to one name write it."""
    stem, made = tmp_path_factory.mktemp("web") / "shapes", tmp_path_factory.mktemp("made")
    whole = stem.with_name("shapes_web")
    for exported in (demo_onnx, demo_fp16):
        path = stem.with_suffix(".onnx")
        path.write_bytes(exported.read_bytes())
        (folder := made / exported.parent.name).mkdir()
        web.write(source_of(path, ort_web), folder)
        shutil.copytree(folder, whole, dirs_exist_ok=True)
    with folder_served(whole) as address:
        yield address


def loaded(browser: chromium.Chromium, page: str) -> None:
    """The page with its model: as a test before has left it, since loading takes seconds, with its first settings."""
    if browser.evaluate("location.href") != f"{page}/":
        browser.open(f"{page}/", 1280)
        ready(browser)
    browser.evaluate("$('threshold').value = config.threshold; $('show-boxes').checked = true; say('')")


def assert_clean(browser: chromium.Chromium, seen: chromium.Page, address: str) -> None:
    """No errors, and no request to elsewhere."""
    later = browser.events_since_open()
    assert [error for error in seen.errors + later.errors if NO_GPU not in error] == []
    requests = seen.requests + later.requests
    assert requests
    assert [url for url in requests if not url.startswith((address, "blob:"))] == []


@pytest.mark.parametrize("width", few([1280, 400], 0))
def test_same_as_python(browser: chromium.Chromium, page: str, demo_onnx: Path, tmp_path: Path, width: int) -> None:
    seen = browser.open(f"{page}/", width)
    assert ready(browser) == "Runs on the CPU (WebAssembly, 1 thread) in FP32."
    with load(demo_onnx, tail="graph") as model:
        for seed, size in ((3, (240, 320)), (4, (411, 250)), (5, (64, 48))):
            image = cv2.resize(render(seed).image, size[::-1])
            expected = model(image)
            assert look_at(browser, encoded(image, ".png")) == (
                f"{len(expected)} object{'s' * (len(expected) != 1)} in {size[1]} x {size[0]} pixels"
            )
            assert_same(answered(browser), expected)
            assert browser.evaluate("document.querySelectorAll('#rows tr').length") == len(expected)
            browser.screenshot(tmp_path / f"masks_{seed}.png")
    print(tmp_path)
    assert text(browser, "engine").endswith("WebGPU is not used: this browser offers no GPU.")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    assert browser.evaluate(_CUT_OFF) == []
    assert_clean(browser, seen, page)


def test_masks_are_drawn(browser: chromium.Chromium, page: str) -> None:
    """Where no mask is, the pixels are those of the picture, and inside a mask they are halfway to its color."""
    image = cv2.resize(render(3).image, (1000, 750))  # large enough to be drawn pixel by pixel
    loaded(browser, page)
    look_at(browser, encoded(image, ".png"))
    browser.evaluate("$('show-boxes').click()")
    wrong = browser.evaluate(
        """(() => { const {width, height} = answer, wide = document.getElementById("canvas");
             const drawn = wide.getContext("2d").getImageData(0, 0, width, height).data;
             const plain = new Uint8ClampedArray(frame.pixels);
             const inside = (one, x, y) => one.mask.data[(y - one.mask.y) * one.mask.width + x - one.mask.x]
               && x >= one.mask.x && y >= one.mask.y && x < one.mask.x + one.mask.width;
             let wrong = 0;
             for (let i = 0; i < width * height; i++) {
               const owners = answer.detections.filter(one => inside(one, i % width, Math.floor(i / width)));
               if (owners.length > 1) continue;
               for (let c = 0; c < 3; c++) {
                 const wanted = owners.length ? (plain[4 * i + c] + owners[0].rgb[c]) / 2 : plain[4 * i + c];
                 wrong += Math.abs(drawn[4 * i + c] - wanted) > 1;
               }
             }
             return [wide.width - width, wrong]; })()"""
    )
    assert wrong == [0, 0]


def test_another_threshold(browser: chromium.Chromium, page: str, demo_onnx: Path) -> None:
    image = render(3).image
    loaded(browser, page)
    look_at(browser, encoded(image, ".png"))
    browser.evaluate("$('threshold').value = 0.95; $('threshold').dispatchEvent(new Event('change'))")
    with load(demo_onnx, tail="graph", score_threshold=0.95) as model:
        expected = model(image)
    wait_for(browser, "status", lambda words: words.startswith(f"{len(expected)} "))
    assert_same(answered(browser), expected)


@pytest.mark.slow  # half precision takes this browser ten seconds a picture
def test_another_model(browser: chromium.Chromium, page: str, demo_fp16: Path) -> None:
    image = render(3).image
    seen = browser.open(f"{page}/", 1280)
    ready(browser)
    look_at(browser, encoded(image, ".png"))
    browser.evaluate("$('model').selectedIndex = 1; $('model').dispatchEvent(new Event('change'))")
    wait_for(browser, "engine", lambda words: "in FP16." in words)
    wait_for(browser, "status", lambda words: "pixels" in words)
    # ONNX Runtime computes this file in FP16 in the browser, and in FP32 with rounding in between in Python.
    with load(demo_fp16, tail="graph") as model:
        expected = model(image)
    found = answered(browser)
    assert [one["label"] for one in found] == expected.labels.tolist()
    np.testing.assert_allclose([one["score"] for one in found], expected.scores, atol=0.01)
    assert_clean(browser, seen, page)


def test_what_is_no_picture(browser: chromium.Chromium, page: str) -> None:
    loaded(browser, page)
    drop(browser, b"hello")
    assert "is not a picture that this browser can show" in wait_for(browser, "status", bool)
    assert browser.evaluate("$('status').className") == "wrong"
    drop(browser, b"hello", "video/webm")
    assert "cannot be played" in wait_for(browser, "status", lambda words: "played" in words)
    assert "objects in 320 x 240 pixels" in look_at(browser, encoded(render(3).image, ".png"))
    assert browser.evaluate("$('status').className") == ""


def test_a_model_that_is_not_there(browser: chromium.Chromium, demo_onnx: Path, ort_web: Path, tmp_path: Path) -> None:
    web.write(source_of(demo_onnx, ort_web), tmp_path)
    (tmp_path / "model_fp32.onnx").unlink()
    with folder_served(tmp_path) as address:
        browser.open(f"{address}/", 400)
        assert wait_for(browser, "status", lambda words: "cannot" in words) == (
            "The model cannot be loaded: model_fp32.onnx cannot be loaded: the server answers 404"
        )


@pytest.mark.slow
def test_clip(browser: chromium.Chromium, page: str, tmp_path: Path) -> None:
    """Frames of a clip: fps is shown, and the last picture stays."""
    av = pytest.importorskip("av")
    path = tmp_path / "clip.webm"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(30):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(render(3).image, "bgr24")))
        file.mux(stream.encode(None))
    seen = browser.open(f"{page}/", 1280)
    ready(browser)
    drop(browser, path.read_bytes(), "video/webm")
    shown = wait_for(browser, "status", lambda words: " fps, " in words)
    browser.screenshot(tmp_path / "clip.png")
    print(tmp_path)
    assert float(shown.partition(" ")[0]) > 0
    assert wait_for(browser, "status", lambda words: "ended" in words).startswith("The clip has ended")
    assert {one["name"] for one in answered(browser)} >= {"triangle", "star", "square", "ring"}
    assert_clean(browser, seen, page)


def test_camera(browser: chromium.Chromium, page: str) -> None:
    """The browser's test picture comes from a camera until another picture is wanted."""
    seen = browser.open(f"{page}/", 1280)
    ready(browser)
    browser.evaluate("$('camera').click()")
    wait_for(browser, "status", lambda words: " fps, " in words)
    browser.evaluate("$('pause').click()")
    time.sleep(0.3)
    assert browser.evaluate("[$('video').paused, $('pause').textContent]") == [True, "Go on"]
    browser.evaluate("$('another').click()")
    assert browser.evaluate("[playing, $('video').srcObject, $('drop').hidden, $('status').textContent]") == [
        False, None, False, "",
    ]  # fmt: skip
    assert_clean(browser, seen, page)


@pytest.mark.slow
def test_one_file(browser: chromium.Chromium, demo_onnx: Path, ort_web: Path, tmp_path: Path) -> None:
    """Opened as a file, without a server, it requests nothing at all."""
    (path,) = html_file.write(source_of(demo_onnx, ort_web), tmp_path)
    seen = browser.open(path, 1280)
    assert ready(browser) == "Runs on the CPU (WebAssembly, 1 thread) in FP32."
    image = render(3).image
    look_at(browser, encoded(image, ".png"))
    with load(demo_onnx, tail="graph") as model:
        assert_same(answered(browser), model(image))
    browser.screenshot(tmp_path / "file.png")
    print(tmp_path)
    assert_clean(browser, seen, path.as_uri())


def test_folder_opened_as_a_file(browser: chromium.Chromium, demo_onnx: Path, ort_web: Path, tmp_path: Path) -> None:
    web.write(source_of(demo_onnx, ort_web), tmp_path)
    browser.open(tmp_path / "index.html", 400)
    assert "Run 'python -m http.server' in its folder" in wait_for(browser, "status", bool)


@pytest.mark.slow
def test_policy_forbids_requests_to_elsewhere(browser: chromium.Chromium, page: str) -> None:
    browser.open(f"{page}/", 400)
    ready(browser)
    with folder_served(Path(__file__).parent) as elsewhere:
        failed = f"fetch('{elsewhere}/test_web.py').then(() => 'done', error => error.name)"
        assert browser.evaluate(failed) == "TypeError"
        assert "Content Security Policy" in " ".join(browser.events_since_open().errors)


@pytest.mark.slow  # minutes: the GPU is emulated
def test_gpu(page: str, demo_onnx: Path) -> None:
    """WebGPU is taken once it has found what the CPU finds, if it is asked for; else not, because it is emulated."""
    image = render(3).image
    with chromium.Chromium("--enable-unsafe-webgpu") as browser:
        seen = browser.open(f"{page}/", 1280)
        ready(browser)
        if not browser.evaluate("navigator.gpu.requestAdapter().then(adapter => adapter !== null)"):
            pytest.skip("this chromium does not emulate a GPU")
        look_at(browser, encoded(image, ".png"))
        wait_for(browser, "engine", lambda words: "is emulated" in words)
        browser.evaluate("$('compute').value = 'webgpu'; $('compute').dispatchEvent(new Event('change'))")
        words = wait_for(browser, "engine", lambda words: "first picture" in words or "not used" in words, 600)
        assert words == "Runs on the GPU (WebGPU) in FP32. It found the same as the CPU on the first picture."
        browser.evaluate("answer = null; detect()")
        wait_for(browser, "status", lambda words: "pixels" in words and browser.evaluate("answer !== null"), 300)
        with load(demo_onnx, tail="graph") as model:
            expected = model(image)
        found = answered(browser)
        assert [one["label"] for one in found] == expected.labels.tolist()
        np.testing.assert_allclose([one["score"] for one in found], expected.scores, atol=0.01)
        assert_clean(browser, seen, page)
