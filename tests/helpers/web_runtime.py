"""The files of ONNX Runtime Web for the tests of web pages; they come from npm."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ort_web() -> Path:
    """The files of ONNX Runtime Web: from the cache, where npm has put them."""
    from yolact_deploy.errors import ExportError
    from yolact_deploy.export.targets.onnxruntime_web import find_onnxruntime_web

    try:
        return find_onnxruntime_web().folder
    except ExportError as error:
        if "npm cannot fetch" in str(error) or "no npm here" in str(error):
            pytest.skip(str(error).partition(". ")[0])
        raise
