"""Of what a command prints."""

from __future__ import annotations


def widest(text: str) -> int:
    """Length of the longest line, apart from a note that other programs were busy."""
    return max(len(line) for line in text.splitlines() if not line.startswith("note: other programs"))
