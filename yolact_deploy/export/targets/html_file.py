"""A web page in one HTML file that runs the model in the browser, without a web server: see :mod:`.web`."""

from __future__ import annotations

from pathlib import Path

from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.export.targets.web import single_page


def write(source: TargetSource, folder: Path) -> list[Path]:
    """Write STEM.html."""
    path = folder / f"{source.onnx_path.stem}.html"
    single_page(source, path)
    return [path]
