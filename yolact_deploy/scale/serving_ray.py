"""`serve --ray`: the HTTP application in replicas under Ray Serve, which starts more of them under load.

Each replica is the application of one process of ``serve``: it loads the models, makes batches, and refuses what its
queue has no room for. Ray's proxy hands requests to the replica with the fewest of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from yolact_deploy.errors import BackendError, InputError, import_optional
from yolact_deploy.loading import ModelSpec
from yolact_deploy.scale.ray_rows import running_ray
from yolact_deploy.serving.service_settings import ServiceSettings
from yolact_deploy.untrusted import shown

_NAME = "yolact-deploy"
#: requests beyond the queue that a replica still answers, with 429, on /healthz and on /metrics
_SPARE_REQUESTS = 32
#: seconds in which a signal is noticed
_SIGNALS_S = 0.5
#: seconds in which Ray's proxy has to name its applications
_PROXY_S = 30.0
#: how long load has to last until a replica is added, and its absence until one ends; Ray's own 600 seconds for the
#: latter suit models that load for minutes
_PACE = {"upscale_delay_s": 10.0, "downscale_delay_s": 120.0}
#: Ray's proxy and its controller import for many seconds on a busy machine; the defaults end them after 5
_PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}


@dataclass(frozen=True)
class Replicas:
    """How many copies of the application run.

    Attributes:
        least, most: Ray Serve chooses between them by the requests in flight
    """

    least: int = 1
    most: int = 1

    @classmethod
    def parse(cls, text: str) -> Replicas:
        """From "N" or "MIN:MAX".

        Raises:
            InputError: neither, or a number out of range.
        """
        parts = text.split(":")
        if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts) or len(parts) > 2:
            raise InputError(f"--replicas: expected N or MIN:MAX, such as 1:4, got {text!r}")
        least, most = int(parts[0]), int(parts[-1])
        if not 1 <= least <= most <= 4096:
            raise InputError(f"--replicas: expected 1 <= MIN <= MAX <= 4096, got {text}")
        return cls(least, most)


def serve_on_ray(
    address: str | None,
    settings: ServiceSettings,
    host: str,
    port: int,
    replicas: Replicas,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted are finished.

    Args:
        address: of a cluster; None starts one on this machine
        settings: of each replica; ``predictors`` 0 is one
        host, port: where Ray's proxy listens
        on_ready: called once requests are taken

    Raises:
        BackendError: the cluster cannot be used, has too little room, or a replica cannot load its models.
        InputError: Ray Serve runs there already, and listens elsewhere or has another application at ``/``.
    """
    for name, seconds in _PATIENCE.items():
        os.environ.setdefault(name, seconds)  # read when ray.serve is imported
    serve = import_optional("ray.serve", "ray", "serve --ray")
    settings = replace(_with_absolute_paths(settings), predictors=settings.predictors or 1, workers=1)
    with running_ray(address) as ray, _ending() as ended:  # in this order: Ray takes SIGTERM for itself when it starts
        resources = _resources(settings)
        _require_room(ray, resources, replicas.least)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        if address is not None and serve.status().proxies:
            _require_free(address, host, port)
        serve.start(http_options={"host": host, "port": port})
        application = _deployment(serve, settings, resources, replicas).bind()
        try:
            try:
                serve.run(application, name=_NAME, route_prefix="/")
            except RuntimeError as error:
                raise BackendError(f"a replica did not start: {_reason(serve, error)}") from error
            on_ready()
            while not ended.wait(_SIGNALS_S):  # a signal just before a wait without end would be lost
                pass
        finally:
            serve.delete(_NAME)  # each replica finishes what it has accepted
            if address is None:
                serve.shutdown()


def _require_free(address: str, host: str, port: int) -> None:
    """Check that Ray Serve, which runs already with applications of others, can take one more at host and port."""
    where = f"{host}:{port}"
    connection = http.client.HTTPConnection(host, port, timeout=_PROXY_S)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/-/routes")
            routes = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(
            f"Ray Serve runs at {address} already and listens at another address than {where}, which only its start "
            "decides: give that one with --host and --port"
        ) from error
    if isinstance(routes, dict) and "/" in routes:
        raise InputError(
            f"Ray Serve at {address} has the application {shown(routes['/'])} at / of {where} already: end that one "
            "first"
        )


def _deployment(serve: Any, settings: ServiceSettings, resources: dict[str, float], replicas: Replicas) -> Any:
    values = settings.to_json()

    def build() -> Any:
        """In the replica, where the models are loaded."""
        from yolact_deploy.serving.http_app import create_app
        from yolact_deploy.serving.served_models import ServedModels
        from yolact_deploy.serving.service_settings import ServiceSettings

        return create_app(ServedModels(ServiceSettings.from_json(values)))

    busy = settings.predictors * max(1, settings.max_batch)
    if replicas.least == replicas.most:
        scaling: dict[str, Any] = {"num_replicas": replicas.least}
    else:
        # As many requests in flight as keep the networks of a replica busy while the next ones are decoded.
        bounds = {"min_replicas": replicas.least, "max_replicas": replicas.most}
        scaling = {"autoscaling_config": {**bounds, **_PACE, "target_ongoing_requests": 2 * busy}}
    return serve.deployment(
        serve.ingress(build)(),
        name=_NAME,
        ray_actor_options=resources,
        max_ongoing_requests=settings.queue + busy + _SPARE_REQUESTS,
        graceful_shutdown_timeout_s=settings.shutdown_s,
        **scaling,
    )


def _resources(settings: ServiceSettings) -> dict[str, float]:
    """What a replica takes of a machine: a core for each thread of a network on the CPU, a GPU for those on one."""
    specs = [ModelSpec.parse(spelling) for spelling in settings.models.values()]
    on_cpu = [spec for spec in specs if not spec.on_gpu]
    threads = sum(settings.predictors * (settings.threads or spec.threads or 1) for spec in on_cpu)
    return {"num_cpus": max(1, threads), "num_gpus": 1 if len(on_cpu) < len(specs) else 0}


def _require_room(ray: Any, resources: dict[str, float], replicas: int) -> None:
    have = ray.cluster_resources()
    for kind, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        wanted, there = resources[kind] * replicas, have.get(name, 0)
        if wanted > there:
            raise BackendError(
                f"{replicas} replicas take {wanted:g} {name}s, and the cluster has {there:g}: choose fewer --replicas, "
                "or smaller --predictors and --threads"
            )


def _with_absolute_paths(settings: ServiceSettings) -> ServiceSettings:
    """Replicas have working directories of their own."""
    models = {}
    for name, spelling in settings.models.items():
        spec = ModelSpec.parse(spelling)
        rest = spelling.removeprefix(str(spec.path))
        models[name] = spelling if spec.url else f"{spec.path.resolve()}{rest}"
    return replace(settings, models=models)


def _reason(serve: Any, error: Exception) -> str:
    """The last line of what the replica said, if it said anything."""
    deployments = [one for app in serve.status().applications.values() for one in app.deployments.values()]
    messages = [one.message for one in deployments if one.message] or [str(error)]
    lines = [line.strip() for line in messages[0].splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__


@contextlib.contextmanager
def _ending() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    ended = threading.Event()
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.signal(kind, lambda *_: ended.set()) for kind in kinds}
    try:
        yield ended
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
