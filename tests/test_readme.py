"""Runs what the README and Getting started print, in a folder with the samples of a checkout and one picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest
from markdown_blocks import ROOT, blocks, own_commands, shell_commands, text_of

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.shapes import render
from yolact_deploy.machine.nvidia import has_gpu

PAGES = ("README.md", "docs/getting-started.md")
#: commands that take long; a slow test runs them, and test_docs.py checks that they parse
SLOW = ("export", "bench", "doctor")
#: commands that name it need a download
DOWNLOADED = "yolact_resnet50"
#: commands of other programs; they change the environment or take minutes
FOREIGN = ("git", "cd", "make", "python")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the samples of a checkout and a picture."""
    cv2.imwrite(str(tmp_path / "street.jpg"), render(0).image)
    (tmp_path / "yolact_deploy").mkdir()
    (tmp_path / "yolact_deploy" / "samples").symlink_to(ROOT / "yolact_deploy" / "samples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_known(page: str) -> None:
    """No command escapes these tests: it runs here, or belongs to another program."""
    assert {words[0] for words in shell_commands(page)} <= {"yolact-deploy", *FOREIGN}
    assert len([words for words in own_commands(page) if words[0] not in SLOW]) >= 2


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, checkout: Path, demo_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page's commands and code, in their order, but for the slow ones; the exported model is there already."""
    shutil.copy(demo_onnx, checkout / "yolact.onnx")
    _run_commands(page, slow=False)
    _run_code(page)
    assert len(list((checkout / "predictions").glob("*_overlay.*"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page_with_slow_commands(page: str, checkout: Path) -> None:
    for module in ("torch", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(module)
    _run_commands(page, slow=True)
    _run_code(page)


def _run_commands(page: str, *, slow: bool) -> None:
    for words in shell_commands(page):
        if words[0] == "yolact-deploy" and (slow or words[1] not in SLOW) and DOWNLOADED not in " ".join(words):
            needs_gpu = any(word.endswith(".trt") for word in words) and not has_gpu()
            assert main(words[1:]) == (2 if needs_gpu else 0), " ".join(words)


def _run_code(page: str) -> None:
    """The page's Python, as one program."""
    names: dict[str, object] = {}
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), names)
    detections = names["detections"]
    assert len(detections) > 0  # type: ignore[arg-type]
    assert all(hasattr(detections, name) for name in ("boxes", "scores", "labels", "names", "masks"))


def test_readme_is_one_screen() -> None:
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 105
    assert sum("<!--" in line for line in lines) == 0


def test_pictures_are_small() -> None:
    """They are there, and the README loads quickly."""
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert all(picture.stat().st_size < 200_000 for picture in pictures)
