"""Metrics of a service in the format of Prometheus.

With several worker processes, each writes to the files of ``PROMETHEUS_MULTIPROC_DIR``, and any of them answers for
all. That variable has to be set before prometheus_client is imported, as :mod:`yolact_deploy.serving.http_server` does.
"""

from __future__ import annotations

import os
from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class _Common(TypedDict):
    namespace: str
    registry: CollectorRegistry


class ServiceMetrics:
    """The metrics of one process of a service."""

    def __init__(self) -> None:
        self._shared = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        self._registry = CollectorRegistry()
        common = _Common(namespace="yolact_deploy", registry=self._registry)
        self.requests = Counter("requests", "Requests by route and HTTP status", ("route", "status"), **common)
        self.refused = Counter("refused", "Requests that were refused, by reason", ("reason",), **common)
        self.request_seconds = Histogram(
            "request_seconds", "From the header of a request to its answer", ("route",), buckets=_SECONDS, **common
        )
        self.pictures = Counter("pictures", "Pictures through a model", ("model",), **common)
        self.detections = Counter("detections", "Objects detected", ("model",), **common)
        self.failures = Counter("failures", "Pictures on which the network failed", ("model",), **common)
        self.stage_seconds = Histogram(
            "stage_seconds", "Time of a picture in each stage", ("model", "stage"), buckets=_SECONDS, **common
        )
        self.batch_size = Histogram(
            "batch_size", "Pictures in one call of the network", ("model",), buckets=_BATCHES, **common
        )
        self.waiting = Gauge(
            "waiting", "Accepted pictures that are not finished", ("model",), multiprocess_mode="livesum", **common
        )

    def exposition(self) -> bytes:
        """All metrics as text."""
        if not self._shared:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
