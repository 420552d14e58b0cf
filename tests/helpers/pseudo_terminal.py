"""Run a program in a pseudo-terminal of a given width, and what it then shows."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def shown_lines(command: Sequence[str], columns: int, folder: Path, timeout: float = 240) -> list[str]:
    """The lines of both output streams as written, without colors; fails if the program does."""
    if sys.platform == "win32":
        pytest.skip("Windows has no pseudo-terminals")
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    hidden = ("COLUMNS", "LINES", "NO_COLOR")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables |= {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=variables)
    os.close(theirs)
    data = b""
    try:
        while chunk := _read(ours):
            data += chunk
        code = child.wait(timeout)
    finally:
        child.kill()
        os.close(ours)
    text = _CONTROL.sub("", data.decode("utf-8", "replace"))
    assert code == 0, text
    return [line.rstrip() for line in re.split(r"[\r\n]+", text)]


def typed(command: Sequence[str], text: str, expected: str, folder: Path, variables: dict[str, str]) -> str:
    """What an interactive program shows once ``text`` is typed, until ``expected`` is there, or for half a minute."""
    if sys.platform == "win32":
        pytest.skip("Windows has no pseudo-terminals")
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **variables}
    setsid = shutil.which("setsid")
    if setsid is None:
        pytest.skip("no setsid here")
    controlling = [setsid, "--ctty", *command]  # without a terminal of their own, shells do not edit lines
    child = subprocess.Popen(controlling, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    shown, sent, end = "", False, time.monotonic() + 30
    try:
        while expected not in shown and time.monotonic() < end:
            if select.select([ours], [], [], 0.2)[0]:
                shown += _CONTROL.sub("", _read(ours).decode("utf-8", "replace"))
            elif not sent and "ready" in shown:
                os.write(ours, text.encode())
                sent = True
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    return shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports the end so
        return b""
