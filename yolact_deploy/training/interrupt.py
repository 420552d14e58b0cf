"""Ctrl-C, SIGTERM and SIGHUP as a request to stop after the current step."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import stat
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from torch.utils.data import DataLoader

#: None where the system has no such signal
_HANGUP = getattr(signal, "SIGHUP", None)
_SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, _HANGUP)))


class StopRequest:
    """Inside the context, the first signal sets :attr:`wanted`; a second Ctrl-C or SIGTERM interrupts at once.

    Outside the main thread, it leaves signals alone, and at any place those that are ignored, as nohup ignores SIGHUP.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == _HANGUP:  # often comes twice, and with the terminal gone, every output would fail
            _silence_terminal()
        elif self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


def _silence_terminal() -> None:
    """Discard what is written to standard output and error from now on, if they are a terminal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


def spare_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Shield the workers from signals to the whole process group, which would end them in the middle of a batch."""
    loader.worker_init_fn = functools.partial(_begin_apart, loader.worker_init_fn)
    return loader


def _begin_apart(begin: Callable[[int], None] | None, worker: int) -> None:
    os.setpgid(0, 0)
    if begin is not None:
        begin(worker)
