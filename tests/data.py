"""Location of the shared test data: real COCO images and dumps that are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


def data_dir(*parts: str) -> Path:
    """A file or folder of the shared data; skips the test if it is missing.

    The environment variable YOLACT_DATA names the data folder; the default is ../shared/data next to the repository.
    """
    path = Path(os.environ.get("YOLACT_DATA", _DEFAULT)).resolve().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no test data at {'/'.join(parts) or 'YOLACT_DATA'}: set YOLACT_DATA to the shared data folder")
    return path
