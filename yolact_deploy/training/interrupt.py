"""Ctrl-C and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from torch.utils.data import DataLoader

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Inside the context, the first signal sets :attr:`wanted`; a second one interrupts at once.

    Outside the main thread, it leaves signals alone.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


def spare_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Shield the workers from signals to the whole process group, which would end them in the middle of a batch."""
    loader.worker_init_fn = functools.partial(_begin_apart, loader.worker_init_fn)
    return loader


def _begin_apart(begin: Callable[[int], None] | None, worker: int) -> None:
    os.setpgid(0, 0)
    if begin is not None:
        begin(worker)
