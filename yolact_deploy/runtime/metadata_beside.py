"""The metadata of model files that have no place for it: metadata.json in the folder that ``export --format`` wrote."""

from __future__ import annotations

from pathlib import Path

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import ArtifactError
from yolact_deploy.untrusted import read_bytes
from yolact_deploy.vocabulary import NCNN_SUFFIXES, TFLITE_SUFFIXES

_FORMATS = {**dict.fromkeys(NCNN_SUFFIXES, "ncnn"), **dict.fromkeys(TFLITE_SUFFIXES, "tflite")}


def has_metadata_beside(path: Path) -> bool:
    """Whether files of this kind have their metadata beside them."""
    return path.suffix.lower() in _FORMATS


def read_metadata_beside(path: Path) -> Metadata:
    """The metadata of an ncnn or TFLite file.

    Raises:
        ArtifactError: a file of the folder is missing, or the metadata are damaged.
    """
    name = _FORMATS[path.suffix.lower()]
    described = path.with_name("metadata.json")
    for needed in (*([path.with_suffix(".bin")] if name == "ncnn" else []), described):
        if not needed.is_file():
            raise ArtifactError(
                f"{path}: {needed.name} is not beside it: copy the whole folder that 'export --format {name}' wrote"
            )
    text = read_bytes(described, "metadata", ArtifactError).decode("utf-8", "replace")
    return Metadata.from_json(text, str(described))
