"""Text and values from other people's files: read within limits, shown within limits.

JSON is read here only. What errors quote of a file goes through :func:`shown`, and commands print through
:class:`SafeStream`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import reprlib
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_LONGEST_QUOTE = 200
#: bytes that an archive may unpack to, whatever its size, and times its size
_UNPACKED, _TIMES_UNPACKED = 64 << 20, 20

# C0 and C1 without tab and line feed, marks that turn the direction of writing, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def read_json(path: str | os.PathLike[str], what: str, error_type: type[Exception]) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark, or in UTF-16; errors name ``what`` and the path."""
    return parse_json(read_bytes(path, what, error_type), f"{what} {path}", error_type)


def parse_json(text: str | bytes, source: str, error_type: type[Exception]) -> Any:
    """The value of a JSON text; whatever is wrong with it is an ``error_type`` that begins with ``source``."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise error_type(f"{source} is not valid JSON (line {error.lineno}: {error.msg})") from error
    except UnicodeDecodeError as error:
        raise error_type(f"cannot read {source}: it is not text in UTF-8 ({error})") from error
    except RecursionError as error:
        raise error_type(f"{source} is nested too deeply to be read") from error
    except ValueError as error:  # Python converts integers of at most 4300 digits
        raise error_type(f"{source} has a number with thousands of digits") from error


def read_bytes(path: str | os.PathLike[str], what: str, error_type: type[Exception]) -> bytes:
    """The content of a file or pipe. A device is refused, because it may have no end."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise error_type(f"cannot read {what} {path}: it is a device and not a file")
            return file.read()
    except FileNotFoundError as error:
        raise error_type(f"no such {what}: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise error_type(f"cannot read {what} {path}: {getattr(error, 'strerror', None) or error}") from error


def require_packed_size(path: str | os.PathLike[str], what: str, error_type: type[Exception]) -> None:
    """Refuse an archive that unpacks to many times its size; .pth and .npz files are archives. Other files pass."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        size = Path(path).stat().st_size
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # what reads the file says it better
        return
    if unpacked > max(_UNPACKED, _TIMES_UNPACKED * size):
        raise error_type(
            f"{what} {path} unpacks to {unpacked:,} bytes, {unpacked // size} times its size: "
            "it would fill the memory. Save it again without compression, if it is no forgery"
        )


def exists(path: Path | None) -> bool:
    """Whether there is such a path; also False for names that the system cannot have."""
    try:
        return path is not None and path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path | None) -> bool:
    """Whether there is such a file; also False for names that the system cannot have."""
    return path is not None and exists(path) and path.is_file()


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 3, 4, 6, 6
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of more than 4300 digits.
        return repr(x) if x.bit_length() < 200 else f"an integer of {x.bit_length()} bits"


def shown(value: object) -> str:
    """A value of a file as a message quotes it: at most 200 characters, however large or nested the value is.

    >>> shown([1, "two", {"three": None}])
    "[1, 'two', {'three': None}]"
    >>> shown(["x"] * 1_000_000)
    "['x', 'x', 'x', 'x', 'x', 'x', ...]"
    """
    text = _ShortRepr().repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[: _LONGEST_QUOTE - 3]}..."


def printable(text: str) -> str:
    r"""The text with escapes in place of what would steer a terminal, for example in names from a file.

    >>> print(printable("class\x1b[31m \udcff"))
    class\x1b[31m \udcff
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class SafeStream:
    """A text stream that escapes what would steer a terminal, and what its encoding lacks.

    Args:
        stream: receives the text
        styled: let control characters pass, for colors and progress bars of our own
    """

    def __init__(self, stream: Any, *, styled: bool = False) -> None:
        self.stream, self._styled = stream, styled

    def write(self, text: str) -> int:
        shown_text = text if self._styled else printable(text)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(shown_text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def protect_output() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` a :class:`SafeStream`, unless they are."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), SafeStream):
            setattr(sys, name, SafeStream(stream))


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Print through :class:`SafeStream` inside the block."""
    before = sys.stdout, sys.stderr
    protect_output()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def styled(stream: Any) -> Any:
    """The same output for text with our own control characters; names in it must be :func:`printable`."""
    return SafeStream(stream.stream, styled=True) if isinstance(stream, SafeStream) else stream
