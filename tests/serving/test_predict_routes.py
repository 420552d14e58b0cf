"""``POST /v1/predict`` and the routes around it, on the demo model."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pictures import decoded, encoded

import yolact_deploy
from yolact_deploy.datasets.rle import decode
from yolact_deploy.datasets.shapes import render


@pytest.fixture(scope="module")
def picture() -> Any:
    return render(3).image


@pytest.fixture(scope="module")
def expected(demo_onnx: Path, picture: Any) -> Any:
    """The detections of the picture as PNG, which loses nothing."""
    with yolact_deploy.load(f"{demo_onnx}@onnxruntime:threads=1") as model:
        detections = model(picture)
    assert len(detections) >= 2, "a test without detections proves nothing"
    return detections


def post(client: Any, content: bytes, kind: str = "image/png", query: str = "", **headers: str) -> Any:
    return client.post(f"/v1/predict{query}", content=content, headers={"Content-Type": kind, **headers})


def png_header(width: int, height: int) -> bytes:
    """A PNG of this size without pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_same_detections_as_the_library(demo_client: Any, picture: Any, expected: Any) -> None:
    answer = post(demo_client, encoded(picture, ".png"))
    assert answer.status_code == 200
    values = answer.json()
    assert values.pop("model") == "demo"
    timings = values.pop("timings_ms")
    assert {"queue", "decode"} <= set(timings)
    assert values == expected.to_json()


def test_polygons_and_png(demo_client: Any, picture: Any, expected: Any) -> None:
    content = encoded(picture, ".png")
    polygons = post(demo_client, content, query="?masks=polygons").json()["detections"]
    for item, outlines in zip(polygons, expected.polygons(), strict=True):
        assert item["polygons"] == [outline.ravel().tolist() for outline in outlines]
    pictures = post(demo_client, content, query="?masks=png").json()["detections"]
    for item, mask in zip(pictures, expected.masks, strict=True):
        assert np.array_equal(decoded(base64.b64decode(item["png"]), cv2.IMREAD_GRAYSCALE) > 0, mask)
    bare = post(demo_client, content, query="?masks=none").json()["detections"]
    assert all(set(item) == {"name", "label", "score", "box"} for item in bare)


def test_masks_as_runs(demo_client: Any, picture: Any, expected: Any) -> None:
    items = post(demo_client, encoded(picture, ".png")).json()["detections"]
    for item, mask in zip(items, expected.masks, strict=True):
        assert np.array_equal(decode(item["mask"]["counts"].encode(), *mask.shape), mask)


@pytest.mark.parametrize(
    ("accept", "mark"),
    [("image/png", b"\x89PNG"), ("image/jpeg, text/html;q=0.5", b"\xff\xd8"), ("image/*", b"\xff\xd8")],
)
def test_drawn_picture(demo_client: Any, picture: Any, expected: Any, accept: str, mark: bytes) -> None:
    answer = post(demo_client, encoded(picture, ".png"), Accept=accept)
    assert answer.headers["content-type"].startswith("image/")
    assert answer.content.startswith(mark)
    if mark == b"\x89PNG":
        assert np.array_equal(decoded(answer.content), expected.draw(picture))


@pytest.mark.parametrize(
    ("accept", "status", "kind"),
    [
        ("*/*", 200, "application/json"),
        ("application/json, image/png;q=0.9", 200, "application/json"),
        ("application/json;q=0.1, image/webp", 200, "image/webp"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", 200, "application/json"),
        ("text/html", 406, "application/json"),
        ("application/json;q=0", 406, "application/json"),
        ("application/json;q=x", 406, "application/json"),
    ],
)
def test_accept(demo_client: Any, gray_jpeg: bytes, accept: str, status: int, kind: str) -> None:
    answer = post(demo_client, gray_jpeg, "image/jpeg", Accept=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (status, kind)


def test_selection(demo_client: Any, picture: Any, expected: Any) -> None:
    content = encoded(picture, ".png")
    least = float(np.sort(expected.scores)[-2])
    kept = post(demo_client, content, query=f"?score_threshold={least}").json()["detections"]
    assert [item["score"] for item in kept] == [float(score) for score in expected.scores if score > np.float32(least)]
    name = expected.names[0]
    kept = post(demo_client, content, query=f"?class={name}").json()["detections"]
    assert [item["name"] for item in kept] == [own for own in expected.names if own == name]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_forms_and_kinds(demo_client: Any, picture: Any, suffix: str) -> None:
    content = encoded(picture, suffix)
    plain = post(demo_client, content, "application/octet-stream").json()
    form = demo_client.post("/v1/predict", files={"anything": ("x", content, "image/x")}).json()
    assert plain["detections"] == form["detections"]
    assert plain["detections"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?model=x", "no model 'x': this service has demo"),
        ("?masks=x", "masks: Input should be 'rle', 'polygons', 'png' or 'none'"),
        ("?score_threshold=x", "score_threshold: Input should be a valid number"),
        ("?score_threshold=nan", "score_threshold: "),
        ("?score_threshold=2", "score_threshold: "),
        ("?score_threshold=0.1", "score_threshold: 0.1 is below 0.15"),
        ("?class=x", "class: the model has no class 'x'; it has "),
    ],
)
def test_wrong_parameters(demo_client: Any, gray_jpeg: bytes, query: str, message: str) -> None:
    answer = post(demo_client, gray_jpeg, query=query)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"].startswith(message)


def damaged() -> list[tuple[str, bytes, str, int]]:
    """What it is, its bytes, its type as stated, and the status."""
    jpeg, png = encoded(render(0).image), encoded(render(0).image, ".png")
    webp = encoded(render(0).image, ".webp")
    wide = encoded(np.zeros((1, 1), np.uint8), ".png")
    return [
        ("empty", b"", "image/jpeg", 400),
        ("half a JPEG", jpeg[: len(jpeg) // 2], "image/jpeg", 400),
        ("a JPEG without its last bytes", jpeg[:-200], "image/jpeg", 400),
        ("the header of a JPEG", jpeg[:20], "image/jpeg", 400),
        ("half a PNG", png[: len(png) // 2], "image/png", 400),
        ("the mark of a PNG", png[:8], "image/png", 400),
        ("half a WebP", webp[: len(webp) // 2], "image/webp", 400),
        ("a header of 60000 x 60000", png_header(60000, 60000), "image/png", 413),
        ("a header of 0 x 10", png_header(0, 10), "image/png", 400),
        ("a header of 2**31 x 2**31", png_header(2**31 - 1, 2**31 - 1), "image/png", 413),
        ("1001 x 1000", encoded(np.zeros((1001, 1000), np.uint8), ".png"), "image/png", 413),
        ("text", b"hello", "image/jpeg", 415),
        ("text as text", b"hello", "text/plain", 415),
        ("a PNG as text", wide, "text/plain", 415),
        ("a GIF", b"GIF89a" + bytes(30), "image/gif", 415),
        ("a BMP", encoded(np.zeros((2, 2, 3), np.uint8), ".bmp"), "image/jpeg", 415),
        ("an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", 415),
        ("a PDF", b"%PDF-1.7", "application/octet-stream", 415),
        ("more than a MiB", b"\xff\xd8\xff" + bytes(1 << 20), "image/jpeg", 413),
        ("JSON", b'{"url": "http://192.0.2.1/x.jpg"}', "application/json", 403),
        ("a form without a boundary", b"x", "multipart/form-data", 400),
        (
            "a form that ends early",
            b"--b\r\nContent-Disposition: form-data; name=f",
            "multipart/form-data; boundary=b",
            400,
        ),
        ("a form without a file", b"--b--\r\n", "multipart/form-data; boundary=b", 400),
    ]


@pytest.mark.parametrize(("what", "content", "kind", "status"), damaged(), ids=lambda value: str(value)[:20])
def test_damaged_pictures(demo_client: Any, what: str, content: bytes, kind: str, status: int) -> None:
    answer = post(demo_client, content, kind)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert answer.json()["error"]


def test_two_files(demo_client: Any, gray_jpeg: bytes) -> None:
    answer = demo_client.post("/v1/predict", files=[("a", ("a", gray_jpeg)), ("b", ("b", gray_jpeg))])
    assert answer.status_code == 400
    assert "form" in answer.json()["error"]


def test_random_damage(demo_client: Any) -> None:
    """Flipped bytes give a picture or a 4xx, whatever they hit."""
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".webp"):
        good = np.frombuffer(encoded(render(1, height=64, width=80).image, suffix), np.uint8)
        for _ in range(30):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 4)] = rng.integers(0, 256, 4)
            answer = post(demo_client, bad[: rng.integers(1, len(bad) + 1)].tobytes())
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text


def test_other_routes(demo_client: Any) -> None:
    assert demo_client.get("/healthz").json() == {"status": "ok", "waiting": {"demo": 0}}
    (model,) = demo_client.get("/v1/models").json()["models"]
    assert model["name"] == "demo"
    assert model["classes"]
    for path, status in (("/nothing", 404), ("/v1/predict", 405)):
        answer = demo_client.get(path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_metrics(demo_client: Any, gray_jpeg: bytes) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def values() -> dict[tuple[str, ...], float]:
        text = demo_client.get("/metrics").text
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = values()
    post(demo_client, gray_jpeg)
    post(demo_client, b"x")
    demo_client.get("/never/heard/of")
    after = values()

    def risen(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert risen("yolact_deploy_requests_total", "/v1/predict", "200") == 1
    assert risen("yolact_deploy_requests_total", "/v1/predict", "415") == 1
    assert risen("yolact_deploy_requests_total", "other", "404") == 1
    assert risen("yolact_deploy_pictures_total", "demo") == 1
    assert risen("yolact_deploy_refused_total", "type") == 1
    assert risen("yolact_deploy_batch_size_count", "demo") == 1
    assert risen("yolact_deploy_stage_seconds_count", "demo", "decode") == 1
    assert after["yolact_deploy_waiting", "demo"] == 0


def test_openapi_describes_the_route(demo_client: Any) -> None:
    schema = demo_client.get("/openapi.json").json()
    route = schema["paths"]["/v1/predict"]["post"]
    assert {"image/jpeg", "multipart/form-data"} <= set(route["requestBody"]["content"])
    assert {"200", "400", "413", "415", "429", "503"} <= set(route["responses"])
    assert "422" not in route["responses"], "wrong parameters are answered with 400"
    page = demo_client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page, "its assets come from this server"
