"""Where this package keeps what it can make again: engines, timing caches, compiled kernels; and locks on files.

The root is ``$YOLACT_DEPLOY_CACHE``, else ``$XDG_CACHE_HOME/yolact-deploy``, else ``~/.cache/yolact-deploy``. Whatever
lies in it may be removed at any time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from yolact_deploy.errors import OutputError

#: engines of finished builds; timing caches of TensorRT; compiled CUDA kernels; kernels that RTX compiled at load; what
#: calibrations for INT8 have gathered
KINDS = ("engines", "timing", "kernels", "rtx", "calibration")


def cache_root() -> Path:
    """The root, which need not exist."""
    chosen = os.environ.get("YOLACT_DEPLOY_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says to ignore relative paths.
    return (Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()) / "yolact-deploy"


def cache_folder(kind: str) -> Path:
    """The folder of one kind, made where it does not exist.

    Raises:
        OutputError: it cannot be made.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of cache {kind!r}, expected one of {', '.join(KINDS)}")
    folder = cache_root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the cache folder {folder}: {error.strerror or error}. "
            "Set YOLACT_DEPLOY_CACHE to another place"
        ) from error
    return folder


_SECONDS_BETWEEN_TRIES = 0.1


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], wait: float, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold a lock file, so that one process or thread at a time does some work; gives whether it could be had.

    The kernel drops the lock when a process ends in whatever way, so a file left behind locks nothing. On a file system
    without locks it is had at once.

    Args:
        path: the lock file, in a folder that exists; it is removed afterwards
        wait: seconds to wait for another holder
        waiting: called once when there is one

    Raises:
        OSError: the file cannot be made.
    """
    lock = _LockFile(Path(path))
    end = time.monotonic() + wait
    held = lock.acquire()
    if not held and wait > 0:
        waiting()
    while not held and time.monotonic() < end:
        time.sleep(min(_SECONDS_BETWEEN_TRIES, wait))
        held = lock.acquire()
    try:
        yield held
    finally:
        if held:
            lock.release()


class _LockFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = -1

    def acquire(self) -> bool:
        import fcntl  # Linux and the like; where there is none, this module is still of use

        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between our opening and our locking it.
            held = _is_same(self.handle, self.path)
        except BlockingIOError:
            held = False
        except OSError:  # a file system without locks: better no lock than no work
            held = True
        if not held:
            os.close(self.handle)
        return held

    def release(self) -> None:
        """Remove the file while it is still locked: who opened it before sees that it is gone, and opens anew."""
        self.path.unlink(missing_ok=True)
        os.close(self.handle)


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
