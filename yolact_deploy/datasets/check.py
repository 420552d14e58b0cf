"""Checks a whole dataset before a training starts: every split, and with ``deep`` every picture."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.datasets.annotations import ImageRecord
from yolact_deploy.datasets.dataset_file import DatasetSpec
from yolact_deploy.datasets.findings import Findings, Problem, refuse
from yolact_deploy.datasets.resolve import Split
from yolact_deploy.datasets.scan import scan_file
from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress

_THREADS = 4


@dataclass(frozen=True)
class SplitReport:
    """The content of a split and its problems."""

    split: Split
    images: int
    objects: int  #: trainable ones, without crowds
    crowds: int
    objects_of_class: dict[str, int]
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "split": self.split.name,
            "annotations": str(self.split.annotations),
            "images_dir": str(self.split.images),
            "images": self.images,
            "objects": self.objects,
            "crowds": self.crowds,
            "objects_of_class": self.objects_of_class,
            "problems": [problem.to_json() for problem in self.problems],
        }


@dataclass(frozen=True)
class DataReport:
    """The reports of all splits of a dataset."""

    path: Path
    splits: tuple[SplitReport, ...]
    deep: bool

    @property
    def errors(self) -> list[Problem]:
        return [problem for split in self.splits for problem in split.problems if problem.is_error]

    def raise_errors(self) -> None:
        """Raise :class:`DatasetError` with the list of errors, if there are any."""
        refuse(self.path, self.errors)

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": str(self.path),
            "deep": self.deep,
            "errors": sum(problem.count for problem in self.errors),
            "splits": [split.to_json() for split in self.splits],
        }


def check_dataset(spec: DatasetSpec, *, deep: bool = False, progress: Progress = SILENT) -> DataReport:
    """Check all splits of a dataset.

    Args:
        deep: also read every picture
        progress: shows the progress of the reading

    Raises:
        DatasetError: a file is not a COCO file; problems of its records are in the report instead.
    """
    reports, seen = [], set[str]()
    for split in spec.splits.values():
        scan = scan_file(split.annotations, split.images, spec.classes, sizes=not deep)
        records, table, findings = scan.images, scan.table, scan.findings
        if deep:
            _read_all(split, records, findings, progress)
        files = {str((split.images / record.file_name).resolve()) for record in records}
        for file in sorted(files & seen):
            findings.add("image in several splits", Path(file).name)
        seen |= files
        per_class = dict(zip(spec.names, scan.objects_of_class.tolist(), strict=True))
        for name, count in per_class.items():
            if not count and split.name == "train":
                findings.add("class without objects", name)
        crowds = int(table.iscrowd.sum())
        reports.append(
            SplitReport(split, len(records), len(table.boxes) - crowds, crowds, per_class, tuple(findings.problems))
        )
    return DataReport(spec.path, tuple(reports), deep)


def _read_all(split: Split, records: list[ImageRecord], findings: Findings, progress: Progress) -> None:
    """Read the pictures; OpenCV lets other threads run while it decodes."""
    with ThreadPoolExecutor(_THREADS) as pool:
        read: Iterable[tuple[str, str] | None] = pool.map(lambda record: _read(split.images, record), records)
        for problem in progress.track(read, f"reading {split.name}", len(records)):
            if problem:
                findings.add(*problem)


def _read(folder: Path, record: ImageRecord) -> tuple[str, str] | None:
    """(kind, example) of the problem with a picture; None if there is none."""
    try:
        height, width = read_image(folder / record.file_name).shape[:2]
    except InputError:
        return "unreadable image", record.file_name
    if (height, width) == (record.height, record.width):
        return None
    return "image of another size", f"{record.file_name}: {width} x {height}, not {record.width} x {record.height}"
