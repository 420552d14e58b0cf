"""LoadGen's settings of each scenario: its own standard in the full mode, less of everything in the short mode.

The standard, including seeds, is the configuration built into LoadGen, so it follows the installed version.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from yolact_deploy.errors import BackendError, InputError

_log = logging.getLogger(__name__)

#: our name of each scenario, and LoadGen's
SCENARIOS = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "offline": "Offline",
    "server": "Server",
}
MODES = ("short", "full")
SHORT_SECONDS = 5.0

#: not a model that MLPerf lists, so the general values apply
_MODEL = "yolact"
#: default latency bound of the server scenario, as a multiple of the slowest single image
_BOUND_IN_IMAGES = 5
_SIMULATED_QUERIES = 20_000
#: an offline run may be this many times as fast as the calls timed before it without ending too early; the effect of
#: other programs changes within seconds but averages out over ten minutes, where a larger reserve would cost minutes
_OFFLINE_RESERVE = {"short": 2.0, "full": 1.25}
#: the default rate may use this share of a server's time; a higher load would react to every disturbance
_MAX_LOAD = 0.5


class _Short(NamedTuple):
    """The short mode of a scenario: the number of queries that early stopping requires at this percentile."""

    percentile: float
    queries: int


_SHORT = {
    "single-stream": _Short(0.9, 64),
    "multi-stream": _Short(0.5, 11),
    "offline": _Short(0.9, 1),
    "server": _Short(0.9, 64),
}


@dataclass(frozen=True, kw_only=True)
class LoadgenOptions:
    """Options of the user.

    Attributes:
        mode: "short", or "full" for LoadGen's standard durations and query counts
        seconds: least duration of a scenario in the short mode
        rate: queries per second of the server scenario; by default as the latency bound allows, see ``server_rate``
        latency_ms: latency bound of the server scenario; by default five times the slowest single image
        from_files: decode the images inside the measured time
        memory_mib: for decoded images
    """

    mode: str = "short"
    seconds: float | None = None
    rate: float | None = None
    latency_ms: float | None = None
    from_files: bool = False
    memory_mib: int = 1024

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode: expected one of {', '.join(MODES)}, got {self.mode!r}")
        if self.mode == "full" and self.seconds is not None:
            raise InputError("seconds requires the short mode: the full mode uses LoadGen's own duration")
        for name in ("seconds", "rate", "latency_ms", "memory_mib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name}: expected more than 0, got {value}")


def make_settings(
    loadgen: ModuleType, scenario: str, options: LoadgenOptions, call_ms: Sequence[float], images_per_call: int
) -> Any:
    """LoadGen's ``TestSettings``.

    Args:
        scenario: one of :data:`SCENARIOS`
        call_ms: times of calls with ``images_per_call`` images, from which LoadGen derives the number of queries
    """
    settings = loadgen.TestSettings()
    if settings.FromConfig("", _MODEL, SCENARIOS[scenario], 0):  # 0: the configuration built into it
        raise BackendError("LoadGen has no built-in configuration: install mlcommons-loadgen 6.0 or newer")
    settings.scenario = getattr(loadgen.TestScenario, SCENARIOS[scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    if options.mode == "short":
        settings.min_duration_ms = round((options.seconds or SHORT_SECONDS) * 1e3)
        settings.min_query_count = _SHORT[scenario].queries
        settings.single_stream_target_latency_percentile = _SHORT[scenario].percentile
        settings.multi_stream_target_latency_percentile = _SHORT[scenario].percentile
        settings.server_target_latency_percentile = _SHORT[scenario].percentile
    # A run that is faster than LoadGen expects ends too early to be valid.
    fastest_ms = min(call_ms)
    settings.single_stream_expected_latency_ns = fastest_ms * 1e6 / 2
    settings.multi_stream_expected_latency_ns = fastest_ms * 1e6 / 2
    settings.offline_expected_qps = _OFFLINE_RESERVE[options.mode] * images_per_call * 1e3 / fastest_ms
    if scenario == "server":
        bound_ms = options.latency_ms or _BOUND_IN_IMAGES * max(call_ms)
        settings.server_target_latency_ns = round(bound_ms * 1e6)
        late = 1 - settings.server_target_latency_percentile
        settings.server_target_qps = options.rate or server_rate(call_ms, bound_ms, late / 10)
    return settings


def server_rate(service_ms: Sequence[float], bound_ms: float, late_share: float) -> float:
    """The highest rate, up to half the capacity of one server and in steps of 5 %, at which few queries miss the bound.

    Simulated: queries arrive as a Poisson process, wait for their turn, and take a time drawn from the measured ones.
    If even 10 % is too much, it logs a warning and returns half.

    Args:
        service_ms: measured times of single queries
        late_share: share of queries that may take longer than ``bound_ms``, including their wait
    """
    random = np.random.default_rng(0)
    gaps = random.exponential(size=_SIMULATED_QUERIES)
    services = random.choice(np.asarray(service_ms), _SIMULATED_QUERIES)
    mean = float(services.mean())
    for share in np.arange(_MAX_LOAD, 0.09, -0.05):
        # Lindley's recursion: the wait is the remaining work ahead, a random walk above its lowest point.
        walk = np.concatenate([[0.0], np.cumsum(services[:-1] - gaps[1:] * mean / share)])
        waits = walk - np.minimum.accumulate(walk)
        if np.mean(waits + services > bound_ms) <= late_share:
            return float(share * 1e3 / mean)
    _log.warning(
        "a latency bound of %g ms leaves no useful rate, because a single image takes %.1f ms on average and %.1f ms "
        "at worst: raise the bound",
        bound_ms,
        mean,
        max(service_ms),
    )
    return _MAX_LOAD * 1e3 / mean
