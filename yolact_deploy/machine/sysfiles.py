"""Files of /sys and /proc as values: None where a file is missing, unreadable or holds something else.

All that reads the machine's state takes ``root``, the folder that stands for ``/``.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def read_text(path: Path) -> str | None:
    """The file's text without the white space around it; a sensor that is asleep answers with an error: None too."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The number with which the file begins."""
    return first_int(read_text(path))


def first_int(text: str | None) -> int | None:
    """The number with which a text begins: ``"32760 ma"`` is 32760."""
    try:
        return int((text or "").split()[0])
    except (IndexError, ValueError):
        return None


def first_line_int(path: Path, key: str) -> int | None:
    """The number behind ``key`` in a file of lines like ``key 12`` or ``key: 12 kB``."""
    for line in (read_text(path) or "").splitlines():
        name, _, rest = line.replace(":", " ", 1).partition(" ")
        if name == key:
            return first_int(rest)
    return None
