"""What every benchmark does beside its engines, done quickly: it would take most of the time of their tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

#: tests of what is replaced here
OWN = ("test_yardstick", "test_environment")


@pytest.fixture(autouse=True)
def quick_bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time a small workload as the yardstick, and hash the sources of the package once."""
    if any(name in request.node.nodeid for name in OWN):
        return
    if (yardstick := sys.modules.get("yolact_deploy.machine.yardstick")) is not None:
        monkeypatch.setattr(yardstick, "_SIDE", 64)
        monkeypatch.setattr(yardstick, "_COPY_BYTES", 1 << 20)
    if (environment := sys.modules.get("yolact_deploy.machine.environment")) is not None:
        monkeypatch.setattr(environment, "code_sha256", _once(environment.code_sha256))


@cache
def _once(compute: Callable[[Path], str]) -> Callable[[Path], str]:
    return cache(compute)
