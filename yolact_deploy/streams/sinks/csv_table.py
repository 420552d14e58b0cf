"""``csv``: one table of all detections of a run."""

from __future__ import annotations

from pathlib import Path

from yolact_deploy.artifact import atomic_write
from yolact_deploy.streams.sinks.sink import Sink, SinkItem


class CsvSink(Sink):
    """``csv/detections.csv``, a row a detection; ``frame`` and ``time`` are empty for pictures."""

    name = "csv"

    def __init__(self, folder: Path, category_ids: tuple[int, ...], *, overwrite: bool = False) -> None:
        super().__init__(folder, category_ids, overwrite=overwrite)
        self._path = self.folder / "detections.csv"
        self._rows: list[str] = []

    def write(self, item: SinkItem) -> None:
        text = item.detections.to_csv(
            source=item.source, frame="" if item.frame is None else item.frame,
            time="" if item.seconds is None else round(item.seconds, 4),
        )  # fmt: skip
        header, _, rows = text.partition("\n")
        if not self._rows:
            self._rows.append(header + "\n")
        self._rows.append(rows)

    def finish(self) -> None:
        if self._rows:
            with atomic_write(self._path) as temporary:
                temporary.write_text("".join(self._rows), encoding="utf-8", newline="")
            self.paths.append(self._path)
