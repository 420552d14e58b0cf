"""The applications under test: one with the demo model, and one whose network waits for permission."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gated_predictor import GatedPredictor
from pictures import encoded

NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "python_multipart", "httpx2")


def require_serving() -> None:
    """Skip where the extra ``serve`` or the client of the tests is not installed."""
    for module in NEEDED:
        pytest.importorskip(module)


@pytest.fixture(scope="session")
def gray_jpeg() -> bytes:
    return encoded(np.full((48, 64, 3), 128, np.uint8))


@pytest.fixture(scope="session")
def demo_client(demo_onnx: Path) -> Iterator[Any]:
    """The application with the demo model, called without a network connection."""
    require_serving()
    from starlette.testclient import TestClient

    from yolact_deploy.serving.http_app import create_app
    from yolact_deploy.serving.served_models import ServedModels
    from yolact_deploy.serving.service_settings import ServiceSettings

    settings = ServiceSettings(
        models={"demo": str(demo_onnx)}, predictors=1, threads=1, max_body_bytes=1 << 20, max_pixels=1_000_000
    )
    with TestClient(create_app(ServedModels(settings)), raise_server_exceptions=False) as client:
        yield client


Gated = tuple[Any, GatedPredictor]


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Gated]]:
    """``gated(predictor, **settings)``: a client of an application whose network waits for ``predictor.gate``."""
    require_serving()
    from starlette.testclient import TestClient

    from yolact_deploy.serving import model_pool
    from yolact_deploy.serving.http_app import create_app
    from yolact_deploy.serving.served_models import ServedModels
    from yolact_deploy.serving.service_settings import ServiceSettings

    with contextlib.ExitStack() as stack:

        def make(predictor: GatedPredictor, **settings: Any) -> Gated:
            monkeypatch.setattr(model_pool, "_load_all", lambda spelling, settings: [predictor])
            stack.callback(predictor.gate.set)
            models = ServedModels(ServiceSettings(**{"models": {"gated": "gated.onnx"}, **settings}))
            client = stack.enter_context(TestClient(create_app(models), raise_server_exceptions=False))
            stack.callback(predictor.gate.set)
            return client, predictor

        yield make
