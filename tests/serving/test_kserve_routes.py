"""The KServe v2 routes, called as the protocol says."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded
from services import require_serving

import yolact_deploy
from yolact_deploy.artifact import Metadata
from yolact_deploy.datasets.shapes import render


def infer(client: Any, model: str, inputs: list[dict[str, Any]], binary: bytes = b"", **more: Any) -> Any:
    header = json.dumps({"inputs": inputs, **more}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))} if binary else {}
    return client.post(f"/v2/models/{model}/infer", content=header + binary, headers=headers)


def pictures_input(contents: list[bytes]) -> tuple[dict[str, Any], bytes]:
    packed = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    size = {"binary_data_size": len(packed)}
    return {"name": "image", "shape": [len(contents)], "datatype": "BYTES", "parameters": size}, packed


def test_pictures(demo_client: Any, demo_onnx: Path) -> None:
    images = [render(3).image, render(4).image[:100]]
    with yolact_deploy.load(f"{demo_onnx}@onnxruntime:threads=1") as model:
        expected = model(images)
    entry, packed = pictures_input([encoded(image, ".png") for image in images])
    values = infer(demo_client, "demo", [entry], packed, id="x").json()
    assert (values["id"], values["model_name"]) == ("x", "demo")
    outputs = {output["name"]: output for output in values["outputs"]}
    assert [json.loads(text) for text in outputs["detections"]["data"]] == [one.to_json() for one in expected]
    counts = [len(one) for one in expected]
    assert outputs["num_detections"]["data"] == counts
    boxes = np.array(outputs["boxes"]["data"], np.float32).reshape(outputs["boxes"]["shape"])
    for row, one in zip(boxes, expected, strict=True):
        assert np.array_equal(row[: len(one)], one.boxes)
        assert not row[len(one) :].any()


def test_parameters_of_a_request(demo_client: Any) -> None:
    entry, packed = pictures_input([encoded(render(3).image)])
    wanted = [{"name": "detections"}]
    answer = infer(demo_client, "demo", [entry], packed, outputs=wanted, parameters={"masks": "polygons"})
    (output,) = answer.json()["outputs"]
    assert "polygons" in json.loads(output["data"][0])["detections"][0]
    for parameters in ({"masks": "x"}, {"score_threshold": 0.01}, {"score_threshold": "x"}, {"score_threshold": True}):
        answer = infer(demo_client, "demo", [entry], packed, parameters=parameters)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_network(demo_client: Any, demo_onnx: Path) -> None:
    """The outputs of the network are those of the backend, to the bit, and so is what the metadata says of them."""
    images = np.stack([np.full((320, 320, 3), 90, np.uint8)])
    with yolact_deploy.load(f"{demo_onnx}@onnxruntime:threads=1") as model:
        expected = {k: v for k, v in model.backend.run(images)._asdict().items() if v is not None}
    size = {"binary_data_size": images.nbytes}
    entry = {"name": "images", "shape": list(images.shape), "datatype": "UINT8", "parameters": size}
    answer = infer(demo_client, "demo_network", [entry], images.tobytes(), parameters={"binary_data_output": True})
    header = int(answer.headers["Inference-Header-Content-Length"])
    values = json.loads(answer.content[:header])
    assert values["parameters"]["compute_ms"] > 0
    kinds = {output["name"]: output for output in demo_client.get("/v2/models/demo_network").json()["outputs"]}
    at = header
    for output in values["outputs"]:
        array = expected[output["name"]]
        assert output["shape"] == list(array.shape)
        assert output["datatype"] == kinds[output["name"]]["datatype"]
        assert [-1, *output["shape"][1:]] == kinds[output["name"]]["shape"]
        used = output["parameters"]["binary_data_size"]
        assert answer.content[at : at + used] == np.ascontiguousarray(array).tobytes()
        at += used
    assert {output["name"] for output in values["outputs"]} == set(expected)


def test_network_of_several_sizes(tmp_path: Path) -> None:
    """Each picture gets an input of its own ratio, so all of the range are taken and no others."""
    pytest.importorskip("onnxruntime")
    require_serving()
    from starlette.testclient import TestClient
    from tiny_onnx import CONFIG, write_model

    from yolact_deploy.serving.http_app import create_app
    from yolact_deploy.serving.served_models import ServedModels
    from yolact_deploy.serving.service_settings import ServiceSettings
    from yolact_deploy.size_range import SizeRange

    sizes = SizeRange.of(CONFIG, (64, 64), (96, 128))
    path = write_model(tmp_path / "tiny.onnx", tail="heads", sizes=sizes)
    settings = ServiceSettings(models={"tiny": str(path)}, predictors=1, threads=1)
    with TestClient(create_app(ServedModels(settings))) as client:
        model = client.get("/v2/models/tiny_network").json()
        assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
        assert {one["name"]: one["shape"] for one in model["outputs"]} == {
            "boxes": [-1, -1, 4], "scores": [-1, -1, 2], "coeff": [-1, -1, 3], "proto": [-1, -1, -1, 3],
        }  # fmt: skip
        config = client.get("/v2/models/tiny_network/config").json()
        text = config["parameters"]["yolact_deploy"]["string_value"]
        assert Metadata.from_json(text, "the answer").sizes == sizes
        statuses = {}
        for height, width in ((64, 64), (64, 128), (96, 64), (97, 64), (64, 160), (16, 16)):
            data = [7] * (height * width * 3)
            entry = {"name": "images", "datatype": "UINT8", "shape": [1, height, width, 3], "data": data}
            answer = infer(client, "tiny_network", [entry])
            statuses[height, width] = answer.status_code
        assert [size for size, status in statuses.items() if status == 200] == [(64, 64), (64, 128), (96, 64)]
        assert set(statuses.values()) == {200, 400}
        assert "from 64x64 to 96x128" in answer.json()["error"]


def test_metadata(demo_client: Any, demo_onnx: Path) -> None:
    assert demo_client.get("/v2").json()["name"] == "yolact-deploy"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/demo/ready", "/v2/models/demo/versions/1/ready"):
        assert demo_client.get(path).status_code == 200
    model = demo_client.get("/v2/models/demo").json()
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert model["outputs"][0]["name"] == "detections"
    config = demo_client.get("/v2/models/demo/config").json()
    assert config["parameters"] == {"yolact_deploy_network": {"string_value": "demo_network"}}
    config = demo_client.get("/v2/models/demo_network/config").json()
    metadata = Metadata.from_json(config["parameters"]["yolact_deploy"]["string_value"], "the answer")
    assert metadata.config.image_size == 320
    names = [entry["name"] for entry in demo_client.post("/v2/repository/index").json()]
    assert names == ["demo", "demo_network"]


@pytest.mark.parametrize(
    "path", ["/v2/models/x", "/v2/models/x/ready", "/v2/models/demo/versions/2", "/v2/models/x_network/config"]
)
def test_unknown_models(demo_client: Any, path: str) -> None:
    answer = demo_client.get(path)
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_wrong_requests(demo_client: Any) -> None:
    entry, packed = pictures_input([b"no picture"])
    zero = {"name": "images", "datatype": "UINT8", "shape": [0, 320, 320, 3], "data": []}
    for model, inputs, binary in (
        ("demo", [entry], packed),
        ("demo", [{**entry, "name": "other"}], packed),
        ("demo", [], b""),
        ("demo", [{"name": "image", "datatype": "BYTES", "shape": [0], "data": []}], b""),
        ("demo", [{"name": "image", "datatype": "UINT8", "shape": [1], "data": [1]}], b""),
        ("demo_network", [zero], b""),
        ("demo_network", [{**zero, "shape": [1, 1], "data": [1]}], b""),
        ("demo_network", [{**zero, "datatype": "BYTES", "shape": [1], "data": ["x"]}], b""),
    ):
        answer = infer(demo_client, model, inputs, binary)
        assert 400 <= answer.status_code < 500, answer.text
        assert list(answer.json()) == ["error"]


def test_one_bad_picture_fails_its_request_alone(demo_client: Any, gray_jpeg: bytes) -> None:
    entry, packed = pictures_input([gray_jpeg, gray_jpeg[:-300], gray_jpeg])
    answer = infer(demo_client, "demo", [entry], packed)
    assert answer.status_code == 400
    assert "image 1" in answer.json()["error"]
    for _ in range(500):  # the last picture may still be at work
        if demo_client.get("/healthz").json()["waiting"] == {"demo": 0}:
            return
        time.sleep(0.02)
    pytest.fail("pictures of a refused request wait forever")
