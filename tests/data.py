"""Where the shared test data are: real COCO images and dumps that do not ship with the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


def data_dir(*parts: str) -> Path:
    """A file or folder of the shared data; skips the test, with the reason, where it is absent.

    The data are looked for in the environment variable YOLACT_DATA, by default in ../shared/data beside the repository.
    """
    path = Path(os.environ.get("YOLACT_DATA", _DEFAULT)).resolve().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no test data at {'/'.join(parts) or 'YOLACT_DATA'}: set YOLACT_DATA to the shared data folder")
    return path
