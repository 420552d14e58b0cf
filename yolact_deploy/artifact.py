"""What this package writes into its files, and how it writes files at all.

The metadata is one JSON object under the key ``yolact_deploy``: in an ONNX file among ``metadata_props``, in a
safetensors file in the header, in a TensorRT engine as the network's name. Files are written to a temporary name in
the target folder and renamed, so that an interrupted run leaves no half file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ArtifactError, OutputError
from yolact_deploy.vocabulary import HEAD_OUTPUTS

METADATA_KEY = "yolact_deploy"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a file says about the network inside it."""

    config: YolactConfig
    #: trunk precision: fp32, fp16, bf16, int8
    precision: str = "fp32"
    #: "functions" ends in detections and masks, "heads" in boxes, scores, coefficients and prototypes
    tail: str = "functions"
    #: Fast NMS over all classes together
    cross_class: bool = False
    #: dtype of the input images: uint8, or float32 in 0..255 for resizing without rounding
    input_dtype: str = "uint8"
    #: smallest, usual and largest batch
    batch: tuple[int, int, int] = (1, 1, 1)
    weights_sha256: str = ""
    #: layers of the trunk that are in FP32 whatever ``precision`` says
    keep_fp32: tuple[str, ...] = ()
    #: why, for those of them that the export found by itself
    keep_reasons: dict[str, str] = field(default_factory=dict)
    #: of an INT8 file: ``target`` (form of its Q/DQ nodes), ``method`` of the calibration, its number of ``images`` and
    #: ``images_sha256``
    quantization: dict[str, Any] | None = None
    #: versions of the tools that made the file
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def has_zero_points(self) -> bool:
        """Whether it is INT8 in the form of ONNX Runtime, whose zero points TensorRT does not take."""
        return self.quantization is not None and self.quantization["target"] == "onnxruntime"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's outputs, in their order."""
        if self.tail == "heads":
            return HEAD_OUTPUTS
        found = ("num_detections", "boxes", "scores", "labels", "masks")
        return (*found, "mask_scores") if self.config.mask_iou else found

    def to_json(self) -> str:
        values = {"schema": SCHEMA_VERSION, **dataclasses.asdict(self), "config": self.config.to_dict()}
        return json.dumps(values, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str) -> Metadata:
        """Read the metadata of the file ``source``; raises :class:`ArtifactError` when it is not ours."""
        try:
            values: dict[str, Any] = json.loads(text)
            schema = values.pop("schema")
            if schema != SCHEMA_VERSION:
                raise ArtifactError(
                    f"{source} has metadata of schema {schema}, this version reads {SCHEMA_VERSION}: "
                    "update yolact-deploy, or export the file again"
                )
            config = YolactConfig.from_dict(values.pop("config"))
            values["batch"], values["keep_fp32"] = tuple(values["batch"]), tuple(values.get("keep_fp32", ()))
            return cls(config=config, **values)
        except ArtifactError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{source} has unreadable yolact-deploy metadata ({error}): export it again") from error


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, suffix: str | None = None) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it there on success, remove it on any failure.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=suffix or target.suffix)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}. Choose another place with -o") from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; give the permissions of an ordinary one
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}. Free some space or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write JSON atomically, readable and with a final newline; lists of numbers or words stand on one line."""
    text = _PLAIN_LIST.sub(lambda found: f"[{_NEXT_ITEM.sub(', ', found[1])}]", json.dumps(value, indent=1))
    write_bytes(path, f"{text}\n".encode())


# JSON's strings hold no line breaks, and those with brackets are left as they are.
_PLAIN_LIST = re.compile(r"\[\n\s+([^\[\]{}]+?)\n\s*\]")
_NEXT_ITEM = re.compile(r",\n\s+")


def read_json(path: str | os.PathLike[str], what: str, error_type: type[Exception]) -> Any:
    """Read a JSON file; ``what`` and the path go into the message of ``error_type``."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise error_type(f"no such {what}: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise error_type(f"cannot read {what} {path}: {error}") from error
    except json.JSONDecodeError as error:
        raise error_type(f"{what} {path} is not valid JSON (line {error.lineno}: {error.msg})") from error
