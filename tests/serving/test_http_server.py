"""The service as a process: slow clients, several workers, and its end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pictures import encoded
from served import Served, served
from services import require_serving

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.shapes import render

require_serving()


@pytest.fixture(scope="module")
def service(demo_onnx: Path) -> Iterator[Served]:
    limits = ("--body-timeout", "1", "--max-body-mib", "1", "--predictors", "1")
    with served(f"demo={demo_onnx}", *limits) as running:
        yield running
        assert running.end() == 0, "SIGTERM is the regular end"


def read_all(connection: socket.socket) -> bytes:
    content = b""
    while data := connection.recv(1 << 16):
        content += data
    return content


def test_predicts(service: Served) -> None:
    status, body = service.request("POST", "/v1/predict", encoded(render(3).image, ".png"))
    assert status == 200
    assert json.loads(body)["detections"]


def test_a_slow_body_is_refused(service: Served) -> None:
    with service.open() as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n\xff\xd8\xff")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].startswith("the body did not arrive")


@pytest.mark.parametrize("start", [b"", b"POST /v1/predict HTT", b"POST / HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_slow_header_is_cut_off(service: Served, start: bytes) -> None:
    with service.open() as connection:
        connection.sendall(start)
        assert read_all(connection) == b""


def test_a_slow_second_header_is_cut_off(service: Served) -> None:
    with service.open() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /heal")
        assert read_all(connection).count(b"HTTP/1.1 200 ") == 1


def test_requests_on_one_connection(service: Served) -> None:
    with service.open() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        assert read_all(connection).count(b"HTTP/1.1 200 ") == 3


def test_bodies_that_are_too_large(service: Served) -> None:
    for headers in (
        b"Content-Length: 99999999999999999999999\r\nExpect: 100-continue\r\n",
        b"Content-Length: 5000000\r\nExpect: 100-continue\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 5, 6\r\n",
    ):
        with service.open() as connection:
            connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
            status = int(read_all(connection).split()[1])
            assert 400 <= status < 500, headers
    assert service.request("POST", "/v1/predict", b"\xff\xd8\xff" + bytes(1_500_000))[0] == 413


def test_a_chunked_body_is_counted(service: Served) -> None:
    chunks = iter([b"\xff\xd8\xff" + bytes(700_000)] * 2)
    assert service.request("POST", "/v1/predict", chunks)[0] == 413
    content = encoded(render(3).image)
    assert service.request("POST", "/v1/predict", iter([content[:100], content[100:]]))[0] == 200


def test_no_http_at_all(service: Served) -> None:
    with service.open() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01 no http\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    assert service.request("GET", "/healthz")[0] == 200


def test_sigterm_finishes_what_was_accepted(demo_onnx: Path) -> None:
    content, answers = encoded(render(3).image), []
    with served(demo_onnx, "--predictors", "1") as running:

        def post() -> None:
            answers.append(running.request("POST", "/v1/predict", content)[0])

        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        while json.loads(running.request("GET", "/healthz")[1])["waiting"]["shapes_demo"] + len(answers) < 8:
            pass
        assert running.end() == 0
        for thread in threads:
            thread.join()
    assert answers == [200] * 8


@pytest.mark.slow
def test_several_workers_count_together(demo_onnx: Path) -> None:
    content = encoded(render(3).image)
    with served(f"demo={demo_onnx}", "--workers", "2", "--predictors", "1") as running:
        assert [running.request("POST", "/v1/predict", content)[0] for _ in range(6)] == [200] * 6
        for _ in range(3):
            text = running.request("GET", "/metrics")[1].decode()
            assert 'yolact_deploy_pictures_total{model="demo"} 6.0' in text
        assert running.end() == 0


def test_errors_of_the_command(demo_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (["missing.onnx"], "no such model file: missing.onnx"),
            ([str(demo_onnx), str(demo_onnx)], "two models are called"),
            ([str(demo_onnx), "--port", port], f"cannot listen on 127.0.0.1 port {port}: Address already in use"),
            ([str(demo_onnx), "--port", "99999"], "port: expected 0 to 65535, got 99999"),
            (
                [str(demo_onnx), "--host", "no.such.host.invalid", "--port", "0"],
                "cannot listen on no.such.host.invalid",
            ),
            ([str(demo_onnx), "--queue", "0"], "queue: expected 1 to"),
            ([str(tmp_path / "broken.onnx"), "--port", "0"], "broken.onnx"),
            ([str(tmp_path / "broken.onnx"), "--port", "0", "--workers", "2"], "broken.onnx"),
        ):
            assert main(["serve", *arguments]) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1
