"""Values from /sys and /proc: None if a file is missing, unreadable or holds something else.

Everything that reads the state of the machine takes ``root``, which replaces ``/`` in tests.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def read_text(path: Path) -> str | None:
    """The stripped text of a file; also None for a sleeping sensor, which answers with an error."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The number at the start of the file."""
    return first_int(read_text(path))


def first_int(text: str | None) -> int | None:
    """The number at the start of a text: 32760 for ``"32760 ma"``."""
    try:
        return int((text or "").split()[0])
    except (IndexError, ValueError):
        return None


def first_line_int(path: Path, key: str) -> int | None:
    """The number after ``key`` in a file with lines like ``key 12`` or ``key: 12 kB``."""
    for line in (read_text(path) or "").splitlines():
        name, _, rest = line.replace(":", " ", 1).partition(" ")
        if name == key:
            return first_int(rest)
    return None
