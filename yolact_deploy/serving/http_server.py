"""Runs the HTTP application with uvicorn: one process or several, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.serving.service_settings import SETTINGS_VARIABLE, ServiceSettings

_FACTORY = "yolact_deploy.serving.http_app:app_from_environment"
#: open connections of a process; each takes a file descriptor
_MOST_CONNECTIONS = 512
#: seconds in which a worker has to load its models
_START_S = 600.0
_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        InputError: the address cannot be used.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port: expected 0 to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on {host} port {port}: {reason}. Choose others with --host and --port"
        ) from error


def serve(settings: ServiceSettings, listener: socket.socket, on_ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted is finished.

    Args:
        listener: of :func:`listen`; closed at the end
        on_ready: called once requests are taken

    Raises:
        YolactDeployError: a model cannot be loaded.
    """
    if settings.workers == 1:
        _serve_here(settings, listener, on_ready)
        return
    _check_models(settings)
    config = uvicorn.Config(_FACTORY, factory=True, workers=settings.workers, **_options(settings))
    with _worker_environment(settings):
        _Workers(config, [listener], on_ready).run()


def _serve_here(settings: ServiceSettings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    from yolact_deploy.serving.http_app import create_app
    from yolact_deploy.serving.served_models import ServedModels

    models = ServedModels(settings)
    try:
        _Server(uvicorn.Config(create_app(models), **_options(settings)), on_ready).run([listener])
    finally:
        models.close()


def _check_models(settings: ServiceSettings) -> None:
    """Load each model once: a worker that fails at its start would be started again and again."""
    from yolact_deploy.loading import load

    for spelling in settings.models.values():
        load(spelling, score_threshold=settings.score_threshold).close()


def _options(settings: ServiceSettings) -> dict[str, Any]:
    return {
        "http": _TimedProtocol,
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "log_level": "error",  # a client could fill the log with warnings
        "access_log": False,
        "server_header": False,
        "limit_concurrency": _MOST_CONNECTIONS,
        "timeout_keep_alive": max(1, round(settings.body_timeout_s)),
        "timeout_graceful_shutdown": max(1, round(settings.shutdown_s)),
    }


@contextlib.contextmanager
def _worker_environment(settings: ServiceSettings) -> Iterator[None]:
    """What the worker processes find in their environment: the settings, and a folder for their metrics."""
    with tempfile.TemporaryDirectory(prefix="yolact-deploy-metrics-") as folder:
        added = {SETTINGS_VARIABLE: settings.to_json(), _METRICS_VARIABLE: folder}
        before = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


class _Workers(Multiprocess):
    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], on_ready: Callable[[], None]) -> None:
        super().__init__(config, sockets)
        self._on_ready = on_ready

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(_START_S, self.should_exit) for process in self.processes):
            self._on_ready()
            return
        self.terminate_all()
        self.join_all()
        raise BackendError("a worker process ended at its start: run with --workers 1 to see why")


class _TimedProtocol(H11Protocol):
    """Closes a connection on which the header of a request does not arrive in time; uvicorn would wait for ever."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # a header is complete
            self._stop_timer()
        elif self.cycle is None or self.cycle.response_complete:
            self._await_header()

    def _await_header(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.timeout_keep_alive, self._expire)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _expire(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()
