"""What a test looks at in a printed table."""

from __future__ import annotations

#: sentences of unknown length about a busy machine, which a terminal wraps
_SENTENCES = ("note: ", "other programs used", "of this virtual machine's time")


def widest(text: str) -> int:
    """Length of the longest line, apart from notes."""
    return max(len(line) for line in text.splitlines() if not any(part in line for part in _SENTENCES))
