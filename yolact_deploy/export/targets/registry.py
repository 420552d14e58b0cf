"""The list of targets, and how their folders are written."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from yolact_deploy.errors import InputError, OutputError, import_optional
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.vocabulary import check_word

Write = Callable[[TargetSource, Path], list[Path]]


@dataclass(frozen=True)
class ExportTarget:
    """A form of the model for another runtime.

    Attributes:
        folder_suffix: what follows the stem of the ONNX file in the name of the folder
        module: in this package, with the function ``write``
        needs: modules that it imports, each with the extra that installs it
    """

    folder_suffix: str
    module: str
    needs: tuple[tuple[str, str], ...] = ()

    def folder(self, onnx_path: Path) -> Path:
        """Where the files go: beside the ONNX file."""
        return onnx_path.with_name(onnx_path.stem + self.folder_suffix)

    @property
    def write(self) -> Write:
        """The function that writes the files."""
        return cast(Write, importlib.import_module(f"yolact_deploy.export.targets.{self.module}").write)


_ONNX = ("onnx", "onnx")

TARGETS = {
    "openvino": ExportTarget("_openvino_model", "openvino_ir", (("openvino", "openvino"), _ONNX)),
    "opencv": ExportTarget("_opencv_model", "opencv_dnn", (_ONNX,)),
    "ncnn": ExportTarget("_ncnn_model", "ncnn_param", (("ncnn", "ncnn"), ("pnnx", "ncnn"), _ONNX)),
    "coreml": ExportTarget(".mlpackage", "coreml_package", (("coremltools", "coreml"),)),
    "tflite": ExportTarget(
        "_tflite_model", "litert_flatbuffer", (("litert_torch", "litert"), ("ai_edge_litert", "litert"))
    ),
    "web": ExportTarget("_web", "web"),
    "html": ExportTarget("_html", "html_file"),
}


def check_available(name: str) -> ExportTarget:
    """The target of this name, once everything that it needs is installed.

    Raises:
        InputError: no such target.
        MissingDependencyError: something is not installed.
    """
    check_word("format", name, TARGETS)
    target = TARGETS[name]
    for module, extra in target.needs:
        import_optional(module, extra, f"Writing the format {name}")
    return target


def write_target(name: str, source: TargetSource) -> list[Path]:
    """Write one target beside the ONNX file; returns the paths of its files.

    Files of an earlier export are replaced once the new ones are complete and checked; other files in the folder stay.

    Raises:
        ExportError: what was written disagrees with the ONNX file; nothing is left of it.
        InputError: the target does not exist, or cannot represent this model.
        OutputError: the folder cannot be written.
    """
    target = check_available(name)
    if source.metadata.sizes is not None:
        raise InputError(f"the format {name} is for one input size: export it with one --size instead of a range")
    folder = target.folder(source.onnx_path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is in the way: it must be a folder, or not exist")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:40]}.writing-") as temporary:
            written = [path.relative_to(temporary) for path in target.write(source, Path(temporary))]
            return [_move(Path(temporary) / path, folder / path) for path in written]
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}. Choose another place with -o") from error


def _move(source: Path, destination: Path) -> Path:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.is_dir():
        shutil.rmtree(destination)
    source.replace(destination)
    return destination
