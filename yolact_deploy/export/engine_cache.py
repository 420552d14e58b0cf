"""Keeps finished engines in the cache folder, under a hash of all that they were built from.

An entry is the engine and a JSON file with its hash, written last. An engine that does not match its hash is ignored
and built again. When all entries together exceed the limit, those used longest ago are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from yolact_deploy.artifact import atomic_write, sha256_file, write_json
from yolact_deploy.cache import cache_folder, file_lock
from yolact_deploy.errors import ExportError
from yolact_deploy.untrusted import read_json

#: bytes of all entries together
LIMIT = 8 << 30


def cache_key(parts: Mapping[str, object]) -> str:
    """Hexadecimal SHA-256 of JSON-ready values; the order of the keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class EngineCache:
    """The entry of one key."""

    def __init__(self, key: str, limit: int = LIMIT) -> None:
        self.limit = limit
        self.folder = cache_folder("engines")
        self.engine = self.folder / f"{key}.trt"
        self.record = self.folder / f"{key}.json"

    @contextlib.contextmanager
    def locked(self, wait: float, waiting: Callable[[], None]) -> Iterator[None]:
        """Let other builds of the same engine wait, so that they can take the finished one."""
        with file_lock(self.folder / f".{self.engine.stem}.lock", wait, waiting) as held:
            if not held:
                raise ExportError(f"another build of the same engine takes more than {wait:g} s: raise --wait")
            yield

    def fetch(self, target: Path) -> bool:
        """Copy the engine to ``target`` atomically; returns whether the cache has an intact one."""
        try:
            expected = read_json(self.record, "record of an engine", ValueError)["sha256"]
            whole = sha256_file(self.engine) == expected
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            self.remove()
            return False
        with atomic_write(target) as temporary:
            shutil.copyfile(self.engine, temporary)
        os.utime(self.record)  # the last use, by which entries age
        return True

    def store(self, source: Path) -> None:
        """Keep a copy of a finished engine."""
        self.remove()
        with atomic_write(self.engine) as temporary:
            shutil.copyfile(source, temporary)
        write_json(self.record, {"sha256": sha256_file(self.engine), "bytes": self.engine.stat().st_size})
        self._trim()

    def remove(self) -> None:
        """Delete the entry."""
        self.record.unlink(missing_ok=True)
        self.engine.unlink(missing_ok=True)

    def _trim(self) -> None:
        """Delete the entries used longest ago until the rest fits, engines without a record first."""
        engines = [path for path in self.folder.glob("[!.]*.trt") if path != self.engine]
        engines.sort(key=_last_use)
        total = sum(_size(path) for path in (*engines, self.engine))
        for path in engines:
            if total <= self.limit:
                return
            total -= _size(path)
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _last_use(engine: Path) -> float:
    try:
        return engine.with_suffix(".json").stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
