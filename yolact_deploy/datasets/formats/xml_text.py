"""XML of other people, within limits: no document types and entities, which can fill the memory or read other files."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from yolact_deploy.datasets.formats.read_set import ReadSet
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import is_file

_MOST_BYTES = 1 << 31
_HEAD = 4096


class _DocumentTypeError(Exception):
    """A document type, the only place where entities are declared."""


class _PlainBuilder(ElementTree.TreeBuilder):
    """Builds the tree of a document without a document type, wherever and in whatever encoding it is."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _DocumentTypeError(name)


def read_xml(path: Path, result: ReadSet) -> ElementTree.Element:
    """The root element; raises :class:`DatasetError` if it is not XML."""
    if path.stat().st_size > _MOST_BYTES:
        raise DatasetError(f"{path} has more than {_MOST_BYTES >> 30} GB: split it")
    data = result.data(path, "XML file")
    try:
        root: ElementTree.Element = ElementTree.fromstring(data, ElementTree.XMLParser(target=_PlainBuilder()))
        return root
    except _DocumentTypeError as error:
        raise DatasetError(f"{path}: document types and entities are not read: remove <!DOCTYPE ...>") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DatasetError(f"{path} is not valid XML ({error}): export it again") from error


def starts_with(path: Path, *words: bytes) -> bool:
    """Whether the first bytes of a file have all of the words; a folder or pipe has none."""
    if not is_file(path):
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return all(word in head for word in words)
