"""The notebooks run from top to bottom and are committed without outputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


def notebook(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def outputs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a notebook in ``folder`` with this interpreter; the text that each code cell printed."""
    scripts = str(Path(sys.executable).parent)  # where the command yolact-deploy is
    monkeypatch.setenv("PATH", os.pathsep.join([scripts, os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # more threads wait for one another on a busy machine
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # or jupyter_core warns about the old folders
    run = nbclient.NotebookClient(
        notebook(name), timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    cells = [cell for cell in run.cells if cell.cell_type == "code"]
    return ["".join(_text(output) for output in cell.outputs) for cell in cells]


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return "".join(f"<{kind}>" if kind != "text/plain" else text for kind, text in output.data.items())


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_without_outputs(path: Path) -> None:
    content = notebook(path.stem)
    nbformat.validate(content)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None and not cell.metadata for cell in code)
    assert set(content.metadata) == {"kernelspec", "language_info"}
    assert content.metadata.language_info == {"name": "python"}  # no version, which changes with each machine


@pytest.mark.slow  # CI runs it; tests/test_examples.py runs much of it
def test_try_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(module)
    texts = outputs("try_it", tmp_path, monkeypatch)
    assert "wrote demo/model.onnx" in texts[1]
    assert "Detections(" in texts[3]
    assert "<image/png>" in texts[3]
    assert "<image/png>" in texts[4]
    assert "masks: bool (" in texts[5]
    assert "ms per picture" in texts[6]
    assert float(texts[6].split()[-1]) > 0.95


@pytest.mark.slow  # a minute: four commands, each of which imports PyTorch
def test_train_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "onnxscript", "onnxruntime", "pycocotools", "yaml"):
        pytest.importorskip(module)
    texts = outputs("train_your_own", tmp_path, monkeypatch)
    assert "names: [" in texts[1]
    assert "nothing wrong" in texts[2]
    assert "loss" in texts[3]
    assert "runs/tiny/last.safetensors" in texts[3]
    assert "wrote runs/tiny/model.onnx" in texts[4]
    assert "Detections(" in texts[5]
    assert "<image/png>" in texts[5]
