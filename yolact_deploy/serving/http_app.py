"""The HTTP application: routes, health, metrics, errors as JSON, and the page at ``/``."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolact_deploy.errors import BackendError
from yolact_deploy.serving import kserve_routes, predict_routes
from yolact_deploy.serving.served_models import ServedModels, models_of
from yolact_deploy.serving.service_errors import RequestError
from yolact_deploy.serving.service_metrics import ServiceMetrics
from yolact_deploy.serving.service_settings import ServiceSettings
from yolact_deploy.version import __version__

_log = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/favicon.svg": "favicon.svg"}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
#: statuses after which the rest of the body is not read
_CLOSING = (408, 413)


def create_app(models: ServedModels) -> FastAPI:
    """The application of loaded models, which are closed when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(models.close)

    app = FastAPIOffline(
        title="yolact-deploy",
        version=__version__,
        description="Instance segmentation with YOLACT.",
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # it would ask another host
        lifespan=lifespan,
    )
    app.state.models = models
    app.include_router(predict_routes.router)
    app.include_router(kserve_routes.router)
    app.add_api_route("/healthz", _health, summary="Whether the service runs, and how many pictures wait")
    app.add_api_route("/metrics", _metrics, summary="Metrics for Prometheus", response_class=Response)
    for path in _FILES:
        app.add_api_route(path, _page, include_in_schema=False)
    for kind, handler in (
        (RequestError, _refused),
        (BackendError, _network_failed),
        (HTTPException, _http_error),
        (RequestValidationError, _invalid),
        (Exception, _internal),
    ):
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]
    app.add_middleware(_Observed, metrics=models.metrics)
    for route in (method for path in app.openapi()["paths"].values() for method in path.values()):
        route["responses"].pop("422", None)  # FastAPI's own answer to wrong parameters, here 400
    return app


def app_from_environment() -> FastAPI:
    """The application of a worker process."""
    return create_app(ServedModels(ServiceSettings.from_environment()))


async def _health(request: Request) -> dict[str, Any]:
    pools = models_of(request).pools
    return {"status": "ok", "waiting": {name: pool.waiting for name, pool in pools.items()}}


async def _metrics(request: Request) -> Response:
    text = await run_in_threadpool(models_of(request).metrics.exposition)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _page(request: Request) -> Response:
    return FileResponse(_PAGE / _FILES[request.url.path], headers=_PAGE_HEADERS)


# -- errors ---------------------------------------------------------------------------------------------------------


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    closing = {"Connection": "close"} if status in _CLOSING else {}
    return JSONResponse({"error": message}, status, headers={**(headers or {}), **closing})


async def _refused(request: Request, error: RequestError) -> JSONResponse:
    models_of(request).metrics.refused.labels(error.reason).inc()
    retry = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return _error(error.status, str(error), retry)


async def _network_failed(request: Request, error: BackendError) -> JSONResponse:
    _log.error("%s: %s", request.url.path, error)
    return _error(500, "the network failed")


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return _error(error.status_code, str(error.detail), dict(error.headers or {}))


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    models_of(request).metrics.refused.labels("malformed").inc()
    first = error.errors()[0]
    return _error(400, f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}")


async def _internal(request: Request, error: Exception) -> JSONResponse:
    return _error(500, "internal error")


# -- metrics --------------------------------------------------------------------------------------------------------


class _Observed:
    """Counts and times requests, by route."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            # A path that is no route could be anything, and each would be a new time series.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - start)
