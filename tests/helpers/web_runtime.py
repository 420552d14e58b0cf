"""What the tests of web pages share: the files of ONNX Runtime Web, which come from npm, and one browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromium
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


@pytest.fixture(scope="session")
def browser() -> Iterator[chromium.Chromium]:
    """A browser without a GPU, whose camera shows a test picture. Its tab is where the test before left it."""
    with chromium.Chromium(
        "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    ) as running:
        yield running
