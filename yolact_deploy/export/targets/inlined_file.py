"""The exported file without functions, as STEM_inlined.onnx: for tools that know ONNX's own operators only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from yolact_deploy.artifact import atomic_write
from yolact_deploy.errors import import_optional
from yolact_deploy.export.targets.agreement_check import check_agreement
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.graph.cpu_session import open_cpu_session


def write_inlined(source: TargetSource) -> Path:
    """Write the file beside the other, and keep it only if ONNX Runtime computes the same with both.

    Raises:
        ExportError: they disagree.
        OutputError: the file cannot be written.
    """
    onnx = import_optional("onnx", "onnx", "Writing an ONNX file")
    path = source.onnx_path.with_name(f"{source.onnx_path.stem}_inlined.onnx")
    with atomic_write(path) as temporary:
        save_checked(onnx, source, temporary, target="inlined")
    return path


def save_checked(onnx: Any, source: TargetSource, path: Path, *, target: str) -> None:
    """Save the portable form of a file as ``path`` and run it as other programs do: as it is."""
    onnx.checker.check_model(source.portable, full_check=True)
    onnx.save(source.portable, str(path))
    session = open_cpu_session(path.read_bytes(), None, str(path))

    def run(images: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        return tuple(session.run(list(source.metadata.outputs), {"images": images}))

    check_agreement(source, run, target=target)
