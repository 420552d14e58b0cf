"""Queue, batches, time limits and the end of a pool, on a network that waits for permission."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gated_predictor import GatedPredictor

pytest.importorskip("prometheus_client")

from yolact_deploy.serving import model_pool
from yolact_deploy.serving.model_pool import Job, ModelPool
from yolact_deploy.serving.pictures_in import picture_decoder
from yolact_deploy.serving.service_errors import RequestError
from yolact_deploy.serving.service_metrics import ServiceMetrics
from yolact_deploy.serving.service_settings import ServiceSettings

LONG = 60.0


def make_pool(monkeypatch: pytest.MonkeyPatch, predictor: GatedPredictor, **settings: Any) -> ModelPool:
    monkeypatch.setattr(model_pool, "_load_all", lambda spelling, settings: [predictor])
    models = {"models": {"m": "m.onnx"}, "shutdown_s": LONG}
    return ModelPool("m", "m.onnx", ServiceSettings(**{**models, **settings}), ServiceMetrics())


def make_job(content: bytes, seconds: float = LONG) -> Job:
    decode = picture_decoder(content, 10**6)
    return Job(time.monotonic() + seconds, decode, lambda image, detections, spent: image.shape)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("max_batch", [1, 4])
def test_finishes_what_it_accepted(monkeypatch: pytest.MonkeyPatch, gray_jpeg: bytes, max_batch: int) -> None:
    predictor = GatedPredictor(max_batch)
    pool = make_pool(monkeypatch, predictor, max_batch=max_batch, max_delay_ms=50)
    jobs = [make_job(gray_jpeg) for _ in range(9)]
    pool.submit(*jobs)
    assert predictor.entered.wait(LONG)
    closing = threading.Thread(target=pool.close)
    closing.start()
    wait_until(lambda: pool._closed)
    with pytest.raises(RequestError, match="shutting down"):
        pool.submit(make_job(gray_jpeg))
    predictor.gate.set()
    closing.join(LONG)
    assert [job.answer.result(0) for job in jobs] == [(48, 64, 3)] * 9
    assert sum(predictor.batches) == 9
    assert max(predictor.batches) <= max_batch
    assert predictor.closed
    assert pool.waiting == 0


def test_batches_fill_while_the_network_works(monkeypatch: pytest.MonkeyPatch, gray_jpeg: bytes) -> None:
    predictor = GatedPredictor(4)
    pool = make_pool(monkeypatch, predictor, max_batch=4, max_delay_ms=10_000)
    jobs = [make_job(gray_jpeg) for _ in range(8)]
    pool.submit(*jobs)
    predictor.gate.set()
    for job in jobs:
        job.answer.result(LONG)
    assert predictor.batches == [4, 4], "nothing else is full within the delay"
    pool.close()


def test_a_lone_picture_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, gray_jpeg: bytes) -> None:
    predictor = GatedPredictor(4)
    predictor.gate.set()
    pool = make_pool(monkeypatch, predictor, max_batch=4, max_delay_ms=1)
    job = make_job(gray_jpeg)
    pool.submit(job)
    job.answer.result(LONG)
    assert predictor.batches == [1]
    pool.close()


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch, gray_jpeg: bytes) -> None:
    predictor = GatedPredictor()
    pool = make_pool(monkeypatch, predictor, queue=2)
    jobs = [make_job(gray_jpeg) for _ in range(3)]  # one at work, two that wait
    pool.submit(*jobs)
    with pytest.raises(RequestError, match="queue is full") as error:
        pool.submit(make_job(gray_jpeg))
    assert (error.value.status, error.value.retry_after) == (429, 1)
    predictor.gate.set()
    for job in jobs:
        job.answer.result(LONG)
    wait_until(lambda: pool.waiting == 0)
    with pytest.raises(RequestError, match="queue is full"):
        pool.submit(*(make_job(gray_jpeg) for _ in range(4)))  # all or none
    assert pool.waiting == 0
    pool.submit(job := make_job(gray_jpeg))
    job.answer.result(LONG)
    pool.close()


def test_jobs_that_are_not_wanted_any_more(monkeypatch: pytest.MonkeyPatch, gray_jpeg: bytes) -> None:
    predictor = GatedPredictor()
    pool = make_pool(monkeypatch, predictor)
    pool.submit(make_job(gray_jpeg))
    assert predictor.entered.wait(LONG)
    late, canceled, wanted = make_job(gray_jpeg, -1), make_job(gray_jpeg), make_job(gray_jpeg)
    pool.submit(late, canceled, wanted)
    assert canceled.answer.cancel()
    predictor.gate.set()
    with pytest.raises(RequestError, match="not finished within") as error:
        late.answer.result(LONG)
    assert error.value.status == 503
    wanted.answer.result(LONG)
    wait_until(lambda: pool.waiting == 0)
    assert predictor.batches == [1, 1]
    pool.close()


@pytest.mark.parametrize("max_batch", [1, 4])
def test_a_damaged_picture_fails_alone(monkeypatch: pytest.MonkeyPatch, gray_jpeg: bytes, max_batch: int) -> None:
    predictor = GatedPredictor(max_batch)
    predictor.gate.set()
    pool = make_pool(monkeypatch, predictor, max_batch=max_batch)
    jobs = [make_job(gray_jpeg), make_job(gray_jpeg[:-300]), make_job(gray_jpeg)]
    broken = Job(time.monotonic() + LONG, lambda: 1 / 0, None)  # type: ignore[arg-type,return-value]
    pool.submit(*jobs, broken)
    assert jobs[0].answer.result(LONG) == jobs[2].answer.result(LONG)
    with pytest.raises(RequestError, match="damaged") as error:
        jobs[1].answer.result(LONG)
    assert error.value.status == 400
    with pytest.raises(ZeroDivisionError):
        broken.answer.result(LONG)
    wait_until(lambda: pool.waiting == 0)
    pool.close()


def test_a_failing_network(gated: Any, gray_jpeg: bytes) -> None:
    client, predictor = gated(GatedPredictor(broken=True))
    predictor.gate.set()
    for _ in range(2):  # the thread lives on
        answer = client.post("/v1/predict", content=gray_jpeg)
        assert (answer.status_code, answer.json()) == (500, {"error": "the network failed"})
    predictor.broken = False
    assert client.post("/v1/predict", content=gray_jpeg).status_code == 200


def test_429_and_503_over_http(gated: Any, gray_jpeg: bytes) -> None:
    client, predictor = gated(GatedPredictor(), queue=1, timeout_s=0.5)

    def post() -> Any:
        return client.post("/v1/predict", content=gray_jpeg)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(post)
        assert predictor.entered.wait(LONG)
        second = threads.submit(post)
        wait_until(lambda: client.get("/healthz").json()["waiting"]["gated"] == 2)
        refused = post()
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert list(refused.json()) == ["error"]
        for late in (first, second):
            assert late.result().status_code == 503
    predictor.gate.set()
    wait_until(lambda: client.get("/healthz").json()["waiting"]["gated"] == 0)
    assert post().status_code == 200
    assert predictor.batches == [1, 1], "the one whose time was over in the queue was not run"
