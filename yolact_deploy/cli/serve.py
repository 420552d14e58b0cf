"""Serve models over HTTP: pictures in, detections out.

POST /v1/predict takes a JPEG, PNG or WebP picture. /v2 speaks the KServe v2 protocol. A page at / shows the masks of a
picture that is dropped on it, /docs describes all requests, /healthz and /metrics are for monitoring. The service
listens on this machine only, unless --host says otherwise, and has no authentication: see docs/serving.md.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from yolact_deploy.console import print_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from yolact_deploy.scale.serving_ray import Replicas
    from yolact_deploy.serving.service_settings import ServiceSettings

_EXAMPLES = """examples:
  yolact-deploy serve yolact.onnx@openvino
  yolact-deploy serve day=yolact.trt night=other.trt --max-batch 8 --host 0.0.0.0
  yolact-deploy serve yolact.onnx@openvino --ray --replicas 1:4
  curl --data-binary @street.jpg -H "Content-Type: image/jpeg" http://127.0.0.1:8000/v1/predict"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="model to serve, FILE[@BACKEND...]; NAME=MODEL gives it a name"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port to listen on, 0 for any (default 8000)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.15, metavar="X", help="drop detections below (default 0.15)"
    )
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--predictors", type=int, default=0, metavar="N",
        help="networks of each model in a process (default: one per core on the CPU, one on a GPU)",
    )  # fmt: skip
    networks.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads of each network")
    networks.add_argument(
        "--max-batch", type=int, default=0, metavar="N",
        help="pictures of one call of the network (default: 1 on the CPU, as exported on a GPU)",
    )  # fmt: skip
    networks.add_argument(
        "--max-delay-ms", type=float, default=2.0, metavar="MS",
        help="how long a picture waits for its batch (default 2)",
    )  # fmt: skip
    networks.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--ray", metavar="ADDRESS", nargs="?", const="",
        help="run in replicas under Ray Serve, on a cluster or on this machine; Ray listens on all interfaces",
    )  # fmt: skip
    cluster.add_argument(
        "--replicas", metavar="N|MIN:MAX",
        help="with --ray: replicas of the service, each with all models; between MIN and MAX by load (default 1)",
    )  # fmt: skip
    _add_limits(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue",
        type=int,
        default=64,
        metavar="N",
        help="pictures that may wait; others are refused with 429 (default 64)",
    )
    limits.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that a request may take once it is read (default 30)",
    )
    limits.add_argument(
        "--body-timeout",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds in which a request must arrive (default 10)",
    )
    limits.add_argument(
        "--shutdown-timeout", type=float, default=30.0, metavar="S",
        help="seconds for accepted requests after SIGTERM (default 30)",
    )  # fmt: skip
    limits.add_argument("--max-body-mib", type=float, default=32.0, metavar="M", help="largest body (default 32)")
    limits.add_argument(
        "--max-megapixels",
        type=float,
        default=50.0,
        metavar="M",
        help="largest picture, in millions of pixels (default 50)",
    )
    limits.add_argument(
        "--allow-urls", action="store_true", help="also fetch pictures from public addresses for clients"
    )


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.errors import import_optional

    for module in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "python_multipart"):
        import_optional(module, "serve", "Serving models")
    from yolact_deploy.loading import ModelSpec
    from yolact_deploy.serving.http_server import listen, serve

    settings = _settings(args)
    for spelling in settings.models.values():
        spec = ModelSpec.parse(spelling)
        spec.check_file()
        spec.check_gpu()
    replicas = _replicas(args)
    if replicas is not None:
        from yolact_deploy.scale.serving_ray import serve_on_ray

        host, port = _address_on_ray(args)
        serve_on_ray(args.ray or None, settings, host, port, replicas, _ready(args, settings, host, port))
        return 0
    listener = listen(args.host, args.port)
    # uvicorn finishes all requests, then repeats the signal that ended it.
    with listener, contextlib.suppress(KeyboardInterrupt):
        serve(settings, listener, _ready(args, settings, *listener.getsockname()[:2]))
    return 0


def _ready(args: argparse.Namespace, settings: ServiceSettings, host: str, port: int) -> Callable[[], None]:
    """What says that requests are taken."""
    from yolact_deploy.console import print_json

    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    output = sys.stdout

    def ready() -> None:
        with contextlib.redirect_stdout(output):  # Ray's own messages go elsewhere
            if args.json:
                print_json({"address": address, "models": list(settings.models)})
            elif not args.quiet:
                print_text(f"serving {', '.join(settings.models)} at {address} (Ctrl-C ends)")

    return ready


def _address_on_ray(args: argparse.Namespace) -> tuple[str, int]:
    """Where Ray's proxy is to listen."""
    from yolact_deploy.serving.http_server import listen

    if args.ray and 0 < args.port < 65536:
        return args.host, args.port  # the proxy of a cluster may listen there already, for other applications
    with listen(args.host, args.port) as listener:  # shows that it can
        host, port = listener.getsockname()[:2]
        return host, port


def _replicas(args: argparse.Namespace) -> Replicas | None:
    """What --ray runs, None without it."""
    from yolact_deploy.errors import InputError, import_optional

    if args.ray is None:
        if args.replicas is not None:
            raise InputError("--replicas requires --ray; without it, --workers sets the number of processes")
        return None
    if args.workers != 1:
        raise InputError("--ray runs replicas, not workers: use --replicas instead of --workers")
    import_optional("ray.serve", "ray", "serve --ray")
    from yolact_deploy.scale.serving_ray import Replicas

    return Replicas.parse(args.replicas or "1")


def _settings(args: argparse.Namespace) -> ServiceSettings:
    from yolact_deploy.serving.service_settings import ServiceSettings, named_models

    return ServiceSettings(
        models=named_models(args.models),
        score_threshold=args.score_threshold,
        predictors=args.predictors,
        threads=args.threads,
        max_batch=args.max_batch,
        max_delay_ms=args.max_delay_ms,
        queue=args.queue,
        timeout_s=args.timeout,
        body_timeout_s=args.body_timeout,
        shutdown_s=args.shutdown_timeout,
        max_body_bytes=round(args.max_body_mib * (1 << 20)),
        max_pixels=round(args.max_megapixels * 1e6),
        allow_urls=args.allow_urls,
        workers=args.workers,
    )
