"""A web page that runs the model in the browser."""

from __future__ import annotations

from pathlib import Path

from yolact_deploy.errors import ExportError
from yolact_deploy.export.targets.target_source import TargetSource


def write(source: TargetSource, folder: Path) -> list[Path]:
    """Write the page into ``folder``."""
    raise ExportError("the format web is not there yet")
