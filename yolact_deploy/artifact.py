"""The metadata inside the files of this package, and atomic writes.

The metadata is one JSON object under the key ``yolact_deploy``: in ``metadata_props`` of an ONNX file, in the header of
a safetensors file, and as the network name of a TensorRT engine. Files are written under a temporary name in the target
folder and renamed, so an interrupted run leaves no partial file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact_deploy.config import (
    Size,
    YolactConfig,
    both_sides,
    check_field,
    get_config,
    list_configs,
    size_text,
    whole,
)
from yolact_deploy.errors import ArtifactError, ConfigError, InputError, OutputError
from yolact_deploy.size_range import SizeRange, config_for_picture
from yolact_deploy.untrusted import parse_json, read_bytes, read_json, shown
from yolact_deploy.vocabulary import (
    EXPORT_TAILS,
    HALF_PRECISIONS,
    HEAD_OUTPUTS,
    INPUT_DTYPES,
    INT8_RESTS,
    NCNN_SUFFIXES,
    PRECISIONS,
    QUANTIZATION_FORMS,
    TFLITE_SUFFIXES,
)

METADATA_KEY = "yolact_deploy"
#: names of the tensors around our two nodes, beside the metadata in an ONNX file
TAIL_KEY = "yolact_deploy_tail"
SCHEMA_VERSION = 1
_LARGEST_BATCH = 65_536
#: characters of a file's name in its temporary name
_TEMPORARY_STEM = 40


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of the network in a file."""

    #: the network, at its usual input if ``sizes`` allows others
    config: YolactConfig
    #: trunk precision: fp32, tf32 (in an engine), fp16, bf16, int8
    precision: str = "fp32"
    #: "functions" ends in detections and masks, "heads" in boxes, scores, coefficients and prototypes
    tail: str = "functions"
    #: Fast NMS over all classes together
    cross_class: bool = False
    #: dtype of the input images: uint8, or float32 in 0..255, which avoids rounding after resizing
    input_dtype: str = "uint8"
    #: smallest, optimal and largest batch
    batch: tuple[int, int, int] = (1, 1, 1)
    weights_sha256: str = ""
    #: layers of the trunk in FP32 regardless of ``precision``
    keep_fp32: tuple[str, ...] = ()
    #: reasons for the layers that the export chose
    keep_reasons: dict[str, str] = field(default_factory=dict)
    #: for INT8: ``target`` (form of the Q/DQ nodes), ``method`` of the calibration, number of ``images`` and
    #: ``images_sha256``, and ``rest`` if the remainder of the trunk is in half precision ("fp16")
    quantization: dict[str, Any] | None = None
    #: versions of the tools that wrote the file
    versions: dict[str, str] = field(default_factory=dict)
    #: the inputs that it takes; None is that of ``config`` alone
    sizes: SizeRange | None = None

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("tail", EXPORT_TAILS), ("input_dtype", INPUT_DTYPES)):
            value = getattr(self, name)
            check_field(value in known, name, f"one of {', '.join(known)}", value)
        check_field(isinstance(self.cross_class, bool), "cross_class", "True or False", self.cross_class)
        batch = self.batch
        sizes = isinstance(batch, tuple) and len(batch) == 3 and all(whole(n, 1, _LARGEST_BATCH) for n in batch)
        check_field(sizes and sorted(batch) == list(batch), "batch", "three rising sizes from 1", batch)
        check_field(_is_text(self.weights_sha256), "weights_sha256", "a text", self.weights_sha256)
        keep = self.keep_fp32
        check_field(isinstance(keep, tuple) and all(map(_is_text, keep)), "keep_fp32", "names of layers", keep)
        for name in ("keep_reasons", "versions"):
            texts = getattr(self, name)
            items = isinstance(texts, dict) and all(_is_text(word) for item in texts.items() for word in item)
            check_field(items, name, "an object of texts", texts)
        how = self.quantization
        if how is not None:
            check_field(isinstance(how, dict), "quantization", "an object", how)
            form = how.get("target")
            check_field(form in QUANTIZATION_FORMS, "quantization: target", " or ".join(QUANTIZATION_FORMS), form)
            rest = how.get("rest", INT8_RESTS[0])
            check_field(rest in INT8_RESTS, "quantization: rest", " or ".join(INT8_RESTS), rest)
            plain = all(value is None or isinstance(value, (str, int, float)) for value in how.values())
            check_field(plain, "quantization", "an object of texts and numbers", how)
        usual = self.config.input_shape
        inside = self.sizes is None or self.sizes.holds(usual)
        check_field(inside, "config: image_size", f"a size from {self.sizes}", size_text(usual))

    def config_for(self, height: int, width: int) -> YolactConfig:
        """The network at the input that a picture of this height and width gets."""
        return self.config if self.sizes is None else config_for_picture(self.config, self.sizes, height, width)

    def at_size(self, size: Size | None, source: object) -> Metadata:
        """The metadata of the network at one of its inputs.

        Args:
            size: None is the usual input
            source: the file, for the message

        Raises:
            InputError: the file does not take this input.
        """
        shape = self.config.input_shape if size is None else both_sides(size)
        if self.sizes is None:
            if shape != self.config.input_shape:
                raise InputError(
                    f"{source} takes inputs of {size_text(self.config.image_size)} only, not {size_text(shape)}: "
                    "export it for a range of sizes, --size MIN:MAX"
                )
            return self
        if not self.sizes.holds(shape):
            raise InputError(f"{source} takes inputs from {self.sizes}, not {size_text(shape)}")
        return dataclasses.replace(self, config=self.sizes.config_at(self.config, shape), sizes=None)

    @property
    def profile_sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
        """Smallest, usual, and largest height and width of an optimization profile; None where there is one size."""
        return None if self.sizes is None else (self.sizes.low, self.config.input_shape, self.sizes.high)

    @property
    def has_zero_points(self) -> bool:
        """Whether it is INT8 in the form of ONNX Runtime, whose zero points TensorRT does not support."""
        return self.quantization is not None and self.quantization["target"] == "onnxruntime"

    @property
    def half(self) -> str:
        """The half precision in the trunk, "fp16" or "bf16"; empty if it has none."""
        if self.precision in HALF_PRECISIONS:
            return self.precision
        rest = "" if self.quantization is None else str(self.quantization.get("rest", ""))
        return rest if rest in HALF_PRECISIONS else ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network outputs in order."""
        if self.tail == "heads":
            return HEAD_OUTPUTS
        names = ("num_detections", "boxes", "scores", "labels", "masks")
        return (*names, "mask_scores") if self.config.mask_iou else names

    @property
    def output_shapes(self) -> list[tuple[str, str, list[int]]]:
        """Name, dtype and shape behind the batch axis of each output, at the input of ``config``."""
        config, (rows, columns) = self.config, self.config.prototype_shape
        if self.tail == "heads":
            priors, count = config.num_priors, config.num_prototypes
            shapes = {"boxes": [priors, 4], "scores": [priors, config.num_classes], "coeff": [priors, count],
                      "proto": [rows, columns, count]}  # fmt: skip
            return [(name, "float32", shape) for name, shape in shapes.items()]
        slots = config.top_k if self.cross_class else config.max_detections
        masks = "float32" if self.precision == "fp32" else "float16"
        outputs: list[tuple[str, str, list[int]]] = [
            ("num_detections", "int32", []),
            ("boxes", "float32", [slots, 4]),
            ("scores", "float32", [slots]),
            ("labels", "int32", [slots]),
            ("masks", masks, [slots, rows, columns]),
        ]
        return [*outputs, ("mask_scores", "float32", [slots])] if config.mask_iou else outputs

    def to_json(self) -> str:
        values = {"schema": SCHEMA_VERSION, **dataclasses.asdict(self), "config": self.config.to_dict()}
        if self.sizes is None:  # earlier versions do not know it
            del values["sizes"]
        return json.dumps(values, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str) -> Metadata:
        """Read the metadata of the file ``source``; raises :class:`ArtifactError` if it is invalid."""
        try:
            values = parse_json(text, "it", ConfigError)
            schema = values.pop("schema")
            if schema != SCHEMA_VERSION:
                raise ArtifactError(
                    f"{source} has metadata of schema {shown(schema)}, this version reads {SCHEMA_VERSION}: "
                    "update yolact-deploy or export the file again"
                )
            config = YolactConfig.from_dict(values.pop("config"))
            if "sizes" in values:
                values["sizes"] = SizeRange.from_dict(values["sizes"])
            lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            return cls(config=config, batch=lists.pop("batch", values.pop("batch")), **{**values, **lists})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{source} has unreadable yolact-deploy metadata ({error}): export it again") from error


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, suffix: str | None = None) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; rename it to ``path`` on success, remove it on failure.

    What processes that were killed have left in the folder is removed first.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(path)
    _refuse_device(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent.resolve())
        # The temporary name must not be too long where the name itself is not.
        prefix = f".{target.stem[:_TEMPORARY_STEM]}{_WRITING}"
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=suffix or target.suffix)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}. Choose another place with -o") from error
    temporary = Path(name)
    locked = try_lock(handle)  # until it has its final name
    if not locked:
        os.close(handle)  # Windows would not rename an open file
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp creates private files; set the permissions of an ordinary file
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}. "
            + ("Shorten the name" if error.errno == errno.ENAMETOOLONG else "Free some space or choose another place")
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        if locked:
            os.close(handle)


def _refuse_device(target: Path) -> None:
    """Raise :class:`OutputError` for a device or pipe: renaming would replace it by a file, for every program."""
    try:
        mode = target.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or target.absolute().parent == Path("/dev"):
        raise OutputError(f"cannot write {target}: it is a device or pipe, which a file would replace: name a file")


_WRITING = ".writing-"
_ABANDONED = re.compile(rf"\..*{re.escape(_WRITING)}[a-z0-9_]{{8}}(\..*)?")


@functools.lru_cache(maxsize=1024)  # a folder may receive thousands of files
def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files that no process holds, once for each folder."""
    for path in folder.iterdir():
        if not _ABANDONED.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if try_lock(handle):
                    path.unlink()
            finally:
                os.close(handle)


def try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed; False if it is locked elsewhere, None if there are no locks here."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, or a file system without locks
        return None
    return True


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write indented JSON atomically, with a final newline; lists of numbers or words are on one line."""
    text = _PLAIN_LIST.sub(lambda match: f"[{_NEXT_ITEM.sub(', ', match[1])}]", json.dumps(value, indent=1))
    write_bytes(path, f"{text}\n".encode())


# Strings in JSON have no line breaks; lists with brackets in them stay as they are.
_PLAIN_LIST = re.compile(r"\[\n\s+([^\[\]{}]+?)\n\s*\]")
_NEXT_ITEM = re.compile(r",\n\s+")


def read_config(name: str) -> YolactConfig:
    """The configuration that ``--config`` names: a published one, or a JSON file of fields.

    Fields that the file omits are those of the published configuration that its ``name`` names, else of yolact_base;
    the number of classes follows from ``class_names``.

    Raises:
        ConfigError: no such name or file, or fields that are no configuration.
    """
    if not name.endswith(".json") and not Path(name).is_file():
        return get_config(name)
    values = read_json(name, "configuration", ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected a JSON object with the fields of a configuration")
    base = get_config(values["name"]) if values.get("name") in list_configs() else YolactConfig()
    try:
        fields = base.with_size(values.get("image_size", base.image_size)).to_dict()
        if {"class_names", "num_classes"} & set(values):
            fields |= {"class_names": (), "category_ids": ()}
        if isinstance(values.get("class_names"), list):
            fields["num_classes"] = len(values["class_names"])
        return YolactConfig.from_dict({**fields, **values})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


# -- model files that have no place for metadata ---------------------------------------------------------------------

_FORMATS_OF_FILES = {**dict.fromkeys(NCNN_SUFFIXES, "ncnn"), **dict.fromkeys(TFLITE_SUFFIXES, "tflite")}


def has_metadata_beside(path: Path) -> bool:
    """Whether files of this kind have their metadata beside them."""
    return path.suffix.lower() in _FORMATS_OF_FILES


def read_metadata_beside(path: Path) -> Metadata:
    """The metadata of an ncnn or TFLite file.

    Raises:
        ArtifactError: a file of the folder is missing, or the metadata are damaged.
    """
    name = _FORMATS_OF_FILES[path.suffix.lower()]
    described = path.with_name("metadata.json")
    for needed in (*([path.with_suffix(".bin")] if name == "ncnn" else []), described):
        if not needed.is_file():
            raise ArtifactError(
                f"{path}: {needed.name} is not beside it: copy the whole folder that 'export --format {name}' wrote"
            )
    text = read_bytes(described, "metadata", ArtifactError).decode("utf-8", "replace")
    return Metadata.from_json(text, str(described))
