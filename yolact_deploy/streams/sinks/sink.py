"""What a sink is: it receives each picture and frame once, in order, and writes files into a folder of its own.

A marker file in the folder says that its files are ours, so that a later run may replace them.
"""

from __future__ import annotations

import abc
import re
from pathlib import Path
from typing import NamedTuple

import cv2

from yolact_deploy.artifact import write_bytes, write_json
from yolact_deploy.detections import Detections
from yolact_deploy.errors import OutputError
from yolact_deploy.streams.marks import JSON_MARK, is_marked
from yolact_deploy.streams.timed_frames import Image

_MARKER = ".written_by.json"


class SinkItem(NamedTuple):
    """A picture or a frame, and what was detected in it."""

    name: str  #: of the source's outputs, without a suffix; may contain folders
    source: str  #: as messages name it
    image: Image  #: uint8 BGR [H, W, 3]
    detections: Detections
    frame: int | None = None  #: from 0; None for a picture
    seconds: float | None = None  #: None for a picture

    @property
    def stem(self) -> str:
        """The name of the files of this picture or frame, without a suffix."""
        return self.name if self.frame is None else f"{self.name}/{self.frame:06d}"


class Sink(abc.ABC):
    """Writes into ``folder / self.name``.

    Args:
        folder: the output folder of the run
        overwrite: replace files of others
        category_ids: the dataset's id of each class index

    Raises:
        OutputError: the folder has files of others.
    """

    #: as ``--format`` names it
    name: str

    def __init__(self, folder: Path, category_ids: tuple[int, ...], *, overwrite: bool = False) -> None:
        self.folder = folder / self.name
        self.category_ids = category_ids
        self.paths: list[Path] = []
        marker = self.folder / _MARKER
        if not overwrite and not is_marked(marker) and self.folder.is_dir() and any(self.folder.iterdir()):
            raise OutputError(
                f"{self.folder} exists, and no earlier run wrote it: choose another folder with -o, or add to it with "
                "--overwrite"
            )
        self.claimed = False

    def take(self, item: SinkItem) -> None:
        """:meth:`write`, after the folder has been marked as ours."""
        if not self.claimed:
            self.claimed = True
            write_json(self.folder / _MARKER, JSON_MARK)
        self.write(item)

    @abc.abstractmethod
    def write(self, item: SinkItem) -> None:
        """Take one picture or frame.

        Raises:
            OutputError: a file cannot be written.
        """

    def finish(self) -> None:  # noqa: B027  # most write as they go
        """Write what covers the whole run; called once, also after an error or an interrupt."""

    def _write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        write_bytes(path, data)
        self.paths.append(path)
        return path

    def _write_image(self, name: str, image: Image) -> None:
        ok, data = cv2.imencode(Path(name).suffix, image)
        if not ok:
            raise OutputError(f"cannot encode {self.folder / name}: the picture is too large for this format")
        self._write(name, data.tobytes())


def safe_name(text: str) -> str:
    """A class name as part of a path.

    >>> safe_name("traffic light/red")
    'traffic_light_red'
    """
    return re.sub(r"[^\w.-]+", "_", text).strip(".") or "_"
