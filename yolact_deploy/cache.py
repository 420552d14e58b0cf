"""The cache folder (engines, timing caches, compiled kernels) and file locks.

The root is ``$YOLACT_DEPLOY_CACHE``, else ``$XDG_CACHE_HOME/yolact-deploy``, else ``~/.cache/yolact-deploy``. Its
contents can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from yolact_deploy.artifact import try_lock
from yolact_deploy.errors import OutputError

#: built engines; timing caches of TensorRT; compiled CUDA kernels; kernels that RTX compiled at load; states of INT8
#: calibrations; digests of downloaded weights; ONNX Runtime Web; datasets of other formats as COCO files
KINDS = ("engines", "timing", "kernels", "rtx", "calibration", "weights", "web", "datasets")


def cache_root() -> Path:
    """The root; it may not exist."""
    chosen = os.environ.get("YOLACT_DEPLOY_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification ignores relative paths.
    return (Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()) / "yolact-deploy"


def cache_folder(kind: str) -> Path:
    """The folder of one of :data:`KINDS`; created if missing.

    What is in it is loaded as it is, engines and kernels above all. So nobody else may own or change any of it.

    Raises:
        OutputError: it cannot be created, or somebody else has put files there or could do so.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of cache {kind!r}, expected one of {', '.join(KINDS)}")
    folder = cache_root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(os, "geteuid"):  # Windows has other permissions
            _refuse_others(folder)
    except OSError as error:
        raise OutputError(
            f"cannot create the cache folder {folder}: {error.strerror or error}. "
            "Set YOLACT_DEPLOY_CACHE to another folder"
        ) from error
    return folder


def _refuse_others(folder: Path) -> None:
    trusted = (os.geteuid(), 0)
    for place in (folder.parent, folder, *folder.iterdir()):
        # Of a link in the folder counts who made it, and not what it leads to.
        status = place.lstat() if place.parent == folder else place.stat()
        if status.st_uid not in trusted:
            raise OutputError(
                f"{place} in the cache belongs to another user, so what is in it is not used: remove it, or set "
                "YOLACT_DEPLOY_CACHE to another folder"
            )
        # A group with the number of the user is the user's own. In a sticky folder nobody can replace our folder.
        others = stat.S_IWOTH | (0 if status.st_gid == status.st_uid else stat.S_IWGRP)
        sticky = place == folder.parent and status.st_mode & stat.S_ISVTX
        if stat.S_ISDIR(status.st_mode) and status.st_mode & others and not sticky:
            raise OutputError(
                f"others may write to the cache folder {place}, so what is in it is not used: empty it and run "
                f"chmod go-w {place}, or set YOLACT_DEPLOY_CACHE to another folder"
            )


_SECONDS_BETWEEN_TRIES = 0.1


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], wait: float, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold a lock file, so that one process or thread at a time does some work; yields whether the lock is held.

    The kernel releases the lock when a process ends, so a leftover file locks nothing. On systems and file systems
    without locks, every caller holds it.

    Args:
        path: the lock file, in an existing folder; it is removed afterwards
        wait: seconds to wait for another holder
        waiting: called once if there is another holder

    Raises:
        OSError: the file cannot be created.
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
        # In a folder that others can write to, a link would have us create or lock a file elsewhere.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        self.handle = os.open(self.path, flags, 0o666)
        locked = try_lock(self.handle)
        # The previous holder may have removed the file between opening and locking.
        held = locked is None or (locked and _is_same(self.handle, self.path))
        if not held:
            os.close(self.handle)
        return held

    def release(self) -> None:
        """Remove the file while it is locked: other waiters then notice and open it again."""
        with contextlib.suppress(PermissionError):  # Windows keeps open files
            self.path.unlink(missing_ok=True)
        os.close(self.handle)


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False
