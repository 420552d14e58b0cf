"""Monitors of a running training: a log of JSON lines, the progress display and TensorBoard.

Each takes records, which are dictionaries with ``event`` and ``step``:

- ``start``: ``iterations``, ``recipe``, ``initial`` (the weights), ``images`` of the dataset, ``environment``
- ``step``: ``losses`` and their sum ``loss``, means since the last record; ``lr``, ``gradient`` (norm), ``skipped``
  (steps since the last record that were not finite), ``images_per_second``, ``eta`` in seconds
- ``pace``: after each step, ``images_per_second`` and ``eta``; for the display alone
- ``evaluation``: ``box`` and ``mask``, each with the figures of `AveragePrecision`; ``is_best``
- ``saved``: ``path``
- ``end``: ``seconds``, ``stopped`` (before the last iteration)
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes
from yolact_deploy.errors import OutputError
from yolact_deploy.progress import Progress, ReportStep, describe_pace

Record = Mapping[str, Any]

#: the event of every step, which is shown and not stored
PACE = "pace"


class TrainingMonitor(Protocol):
    """Takes the records of a training."""

    def write(self, record: Record) -> None: ...
    def close(self) -> None: ...


class JsonLog:
    """A file with one JSON object per line. When a training resumes, records beyond its state are removed.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, resume_at: int | None) -> None:
        self._path = path
        with _as_output_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [] if resume_at is None else _up_to(path, resume_at)
            write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
            # Without a buffer, nothing is left to write, and to fail, in close().
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed in close)

    def write(self, record: Record) -> None:
        if record["event"] == PACE:
            return
        with _as_output_error(self._path):
            self._file.write(f"{json.dumps(_finite(record))}\n".encode())

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    """Errors of the system while ``path`` is written, such as a full disk, as :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}. Choose another --output") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; an incomplete last line is left out."""
    return [json.loads(line) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _up_to(path: Path, step: int) -> list[str]:
    return [line for line in _lines(path) if json.loads(line)["step"] <= step and '"event": "end"' not in line]


def _finite(value: Any) -> Any:
    """The value with None for numbers that are not finite, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ProgressMonitor:
    """Shows the losses, the speed and the remaining time on a :class:`Progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._stack, self._total = progress, contextlib.ExitStack(), 0
        self._report: ReportStep = lambda phase, done, total: None
        self._losses = ""  # of the last record, since reading them waits for the GPU

    def write(self, record: Record) -> None:
        if record["event"] == "start":
            self._total = record["iterations"]
            self._progress.note(f"{record['recipe']['name']}: {record['images']} images, {record['initial']}")
            self._report = self._stack.enter_context(self._progress.steps("training"))
            self._report("waiting for the first images", record["step"], self._total)
        elif record["event"] == PACE:
            self._report(f"{_pace(record)}{self._losses}", record["step"], self._total)
        elif record["event"] == "step":
            self._losses = f" {describe_losses(record)}"
            self._report(f"{_pace(record)}{self._losses}", record["step"], self._total)
            if record["skipped"]:
                self._progress.note(
                    f"iteration {record['step']}: skipped {record['skipped']} steps that were not finite"
                )
        elif record["event"] == "evaluation":
            best = " (best)" * record["is_best"]
            self._progress.note(f"iteration {record['step']}: {describe_accuracy(record)}{best}")

    def close(self) -> None:
        self._stack.close()


def _pace(record: Record) -> str:
    return describe_pace(record["images_per_second"], "images", record["eta"])


def describe_losses(record: Record) -> str:
    """The losses and the learning rate.

    >>> describe_losses({"losses": {"box": 1.5}, "loss": 1.5, "lr": 1e-3})
    'loss 1.500 (box 1.500) lr 0.001'
    """
    terms = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
    loss = f"loss {record['loss']:.3f} ({terms})" if record["losses"] else "all steps skipped"
    return f"{loss} lr {record['lr']:.3g}"


def describe_accuracy(record: Record) -> str:
    """Box and mask AP in one line, x 100."""
    parts = [
        f"{kind} AP {_figure(record[kind]['ap'])} (AP50 {_figure(record[kind]['ap50'])})"
        for kind in ("box", "mask")
        if record.get(kind)
    ]
    return ", ".join(parts) or "no detections"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


#: draws predictions, uint8 BGR [H, W, 3]; None if there are none
DrawPredictions = Callable[[], NDArray[np.uint8] | None]


class TensorBoard:
    """Scalars and pictures of predictions for TensorBoard; made by :func:`tensorboard`."""

    def __init__(self, writer: Any, predictions: DrawPredictions | None = None) -> None:
        self._writer, self._predictions = writer, predictions

    def write(self, record: Record) -> None:
        with _as_output_error(Path(self._writer.log_dir)):
            for name, value in scalars(record).items():
                self._writer.add_scalar(name, value, record["step"])
            sheet = self._predictions() if self._predictions and record["event"] == "evaluation" else None
            if sheet is not None:
                self._writer.add_image("predictions", sheet[..., ::-1].copy(), record["step"], dataformats="HWC")

    def close(self) -> None:
        with _as_output_error(Path(self._writer.log_dir)):
            self._writer.close()


def tensorboard(folder: Path, predictions: DrawPredictions | None = None) -> TensorBoard | None:
    """A monitor that writes TensorBoard files into ``folder``; None if TensorBoard is not installed.

    Args:
        predictions: draws those of the last evaluation
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return TensorBoard(SummaryWriter(str(folder)), predictions)


def scalars(record: Record) -> dict[str, float]:
    """The values of a record to plot, by the name of their curve."""
    values: dict[str, float] = {}
    if record["event"] == "step":
        values = {f"loss/{name}": value for name, value in record["losses"].items()}
        values |= {f"train/{name}": record[name] for name in ("loss", "lr", "gradient", "skipped", "images_per_second")}
    elif record["event"] == "evaluation":
        kinds = [kind for kind in ("box", "mask") if record.get(kind)]
        figures = {f"{kind}/{name}": value for kind in kinds for name, value in record[kind].items()}
        values = {name: value for name, value in figures.items() if not isinstance(value, dict)}  # too many classes
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


@contextlib.contextmanager
def closing(monitors: list[TrainingMonitor]) -> Iterator[None]:
    """Close all monitors at the end, whatever happens."""
    try:
        yield
    finally:
        for monitor in monitors:
            monitor.close()
