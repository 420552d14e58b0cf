"""A stream that says it is a terminal and keeps what is drawn."""

from __future__ import annotations

import io
import re


class Terminal(io.StringIO):
    """In place of ``sys.stderr`` or ``sys.stdout``."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What was drawn, without colors and empty lines."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
