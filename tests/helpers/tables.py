"""Of what a command prints."""

from __future__ import annotations


def widest(text: str) -> int:
    """Length of the longest line, apart from notes, which are sentences: of other programs that were busy, for one."""
    return max(len(line) for line in text.splitlines() if not line.startswith("note: "))
