"""NVTX ranges around what the host enqueues, for Nsight Systems; none where the package ``nvtx`` is not installed."""

from __future__ import annotations

import contextlib
import importlib
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

#: of all ranges of this package
DOMAIN = "yolact-deploy"


def named(name: str) -> AbstractContextManager[Any]:
    """A range from the start to the end of a ``with`` statement."""
    nvtx = _nvtx()
    return contextlib.nullcontext() if nvtx is None else nvtx.annotate(name, domain=DOMAIN)


@cache
def _nvtx() -> Any:
    try:
        return importlib.import_module("nvtx")
    except ImportError:
        return None
