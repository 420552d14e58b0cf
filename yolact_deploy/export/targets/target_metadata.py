"""Our metadata as a file, for formats that have no place for it."""

from __future__ import annotations

import json
from pathlib import Path

from yolact_deploy.artifact import Metadata, write_json


def write_metadata(metadata: Metadata, folder: Path) -> Path:
    """Write metadata.json: the object that ONNX files carry under ``yolact_deploy``."""
    path = folder / "metadata.json"
    write_json(path, json.loads(metadata.to_json()))
    return path
