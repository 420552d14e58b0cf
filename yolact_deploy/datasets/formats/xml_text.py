"""XML of other people, within limits: no document types and entities, which can fill the memory or read other files."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from yolact_deploy.datasets.formats.read_set import ReadSet
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import read_bytes

_MOST_BYTES = 1 << 31
_HEAD = 4096


def read_xml(path: Path, result: ReadSet) -> ElementTree.Element:
    """The root element; raises :class:`DatasetError` if it is not XML."""
    if path.stat().st_size > _MOST_BYTES:
        raise DatasetError(f"{path} has more than {_MOST_BYTES >> 30} GB: split it")
    data = result.data(path, "XML file")
    if re.search(rb"<!(DOCTYPE|ENTITY)", data[: 1 << 16], re.IGNORECASE):
        raise DatasetError(f"{path}: document types and entities are not read: remove <!DOCTYPE ...>")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DatasetError(f"{path} is not valid XML ({error}): export it again") from error


def starts_with(path: Path, *words: bytes) -> bool:
    """Whether the first bytes of a file have all of the words."""
    head = read_bytes(path, "file", DatasetError)[:_HEAD] if path.stat().st_size < _MOST_BYTES else b""
    return all(word in head for word in words)
