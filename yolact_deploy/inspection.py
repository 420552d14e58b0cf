"""The contents of a model file as a JSON-ready dictionary: ONNX, ncnn, TFLite, engines, safetensors and checkpoints.

Files of other programs are described as far as possible.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import METADATA_KEY, Metadata, read_metadata_beside, sha256_file
from yolact_deploy.config import whole
from yolact_deploy.engine_file import KINDS, read_engine_header, read_engine_metadata
from yolact_deploy.errors import ArtifactError, CheckpointError, InputError, import_optional
from yolact_deploy.untrusted import parse_json, read_bytes
from yolact_deploy.vocabulary import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES, NCNN_SUFFIXES, ONNX_SUFFIXES, TFLITE_SUFFIXES

Facts = dict[str, Any]

NO_LAYERS = "reading layers and bindings of an engine requires an NVIDIA driver: inspect --profile"
#: a frame runs directly, is captured, and runs from its graph, in each of two slots
_WARM_UP_FRAMES = 6


def inspect_file(path: str | os.PathLike[str], *, layers: bool = False) -> Facts:
    """Describe a model file.

    Returns:
        JSON-ready facts: always ``path``, ``kind``, ``bytes``, ``sha256`` and ``metadata`` (None for files of other
        programs); the rest depends on the kind. With ``layers``, also a list of nodes or tensors under ``layers``.

    Raises:
        ArtifactError: the file is missing, empty, truncated, or of an unknown kind.
        CheckpointError: a ``.pth`` file is not a state dict.
        MissingDependencyError: the package that reads this kind is not installed.
    """
    path = Path(path)
    describe = _DESCRIBERS[_kind(path)]
    facts = {"path": str(path), "kind": "", "bytes": path.stat().st_size, "metadata": None, **describe(path, layers)}
    return {**facts, "sha256": sha256_file(path)}


def profile_file(path: str | os.PathLike[str], *, device: str = "cuda", runs: int = 30) -> Facts:
    """Run an engine: its layers with times, and the stages of a frame of 640 x 480.

    Raises:
        InputError: not an engine.
        ArtifactError, BackendError: the engine does not run here.
    """
    import numpy as np

    from yolact_deploy.loading import ModelSpec, load

    spec = ModelSpec(Path(path), "tensorrt", device=device)
    if _kind(spec.path) != "engine":
        raise InputError(f"--profile requires an engine, {path} is none: build one with 'yolact-deploy build'")
    spec.check_gpu()
    from yolact_deploy.runtime.tensorrt_profile import profile_engine

    profile = profile_engine(spec.path, device=spec.gpu or 0, runs=runs).to_json()
    frame, spent = np.zeros((480, 640, 3), np.uint8), list[dict[str, float]]()
    with load(spec, lazy_masks=False) as model:
        model.stage_times = True
        for _ in range(_WARM_UP_FRAMES):
            model(frame)
        for _ in range(runs):
            model(frame)
            spent.append(model.timings)
    profile["stages_mean_ms"] = {stage: sum(one[stage] for one in spent) / runs for stage in spent[0]}
    return profile


def _kind(path: Path) -> str:
    if not path.exists():
        raise ArtifactError(f"no such file: {path}. Check the path")
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder: name the model file in it")
    if not path.is_file():
        raise ArtifactError(f"{path} is a device and not a file: name a model file")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}. Check its permissions") from error
    if not start:
        raise ArtifactError(f"{path} is empty: export, build or copy it again")
    if start[:4] in KINDS:
        return "engine"
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ArtifactError(
            f"{path}: unknown file type {path.suffix or 'without suffix'}; expected one of {', '.join(_SUFFIXES)}"
        )
    return kind


def _read_metadata(text: str | None, path: Path) -> Facts:
    if text is None:
        return {"metadata": None}
    try:
        return {"metadata": json.loads(Metadata.from_json(text, str(path)).to_json())}
    except ArtifactError as error:
        return {"metadata": None, "metadata_error": str(error)}


# -- ONNX -----------------------------------------------------------------------------------------------------------


def _describe_onnx(path: Path, layers: bool) -> Facts:
    onnx = import_optional("onnx", "export", "describing an ONNX file")
    try:
        model = onnx.load_model_from_string(read_bytes(path, "ONNX file", ArtifactError))
    except ArtifactError:
        raise
    except Exception as error:  # each protobuf implementation raises its own errors
        raise ArtifactError(f"{path} is not an ONNX file or is truncated: export or copy it again") from error
    if not model.ir_version or not model.graph.output:
        raise ArtifactError(f"{path} has no ONNX graph: export or copy it again")
    graph = model.graph
    properties = {entry.key: entry.value for entry in model.metadata_props}
    facts: Facts = {
        "kind": "ONNX",
        **_read_metadata(properties.get(METADATA_KEY), path),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_value_info(onnx, value) for value in graph.input],
        "outputs": [_value_info(onnx, value) for value in graph.output],
        "nodes": dict(Counter(_op_name(node) for node in graph.node).most_common()),
        "functions": [
            {"name": f"{function.domain}::{function.name}", "nodes": len(function.node)} for function in model.functions
        ],
        "parameters": _count_tensors(
            (_onnx_dtype(onnx, tensor.data_type), _product(tensor.dims)) for tensor in graph.initializer
        ),
        "other_properties": sorted(set(properties) - {METADATA_KEY}),
    }
    if layers:
        facts["layers"] = [
            {
                "name": node.name,
                "type": _op_name(node),
                "inputs": list(node.input),
                "outputs": list(node.output),
            }
            for node in graph.node
        ]
    return facts


def _op_name(node: Any) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else str(node.op_type)


def _onnx_dtype(onnx: Any, number: int) -> str:
    try:
        name = str(onnx.TensorProto.DataType.Name(number)).lower()
    except ValueError:  # of a newer or damaged file
        return f"type {number}"
    return {"float": "float32", "double": "float64"}.get(name, name)


def _value_info(onnx: Any, value: Any) -> Facts:
    tensor = value.type.tensor_type
    shape = [d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim]
    return {"name": value.name, "dtype": _onnx_dtype(onnx, tensor.elem_type), "shape": shape}


# -- engines --------------------------------------------------------------------------------------------------------


def _describe_engine(path: Path, layers: bool) -> Facts:
    header = read_engine_header(path)
    facts: Facts = {"kind": f"{header.kind} engine", "builder_version": header.version, "note": NO_LAYERS}
    try:
        return {**facts, "metadata": json.loads(read_engine_metadata(path).to_json())}
    except ArtifactError as error:
        return {**facts, "metadata_error": str(error)}


# -- ncnn and TFLite ------------------------------------------------------------------------------------------------

_NCNN_MAGIC = "7767517"


def _describe_ncnn(path: Path, layers: bool) -> Facts:
    """The layers, as text in one file, and the size of the weights in the other."""
    lines = read_bytes(path, "ncnn file", ArtifactError).decode("utf-8", "replace").splitlines()
    rows = [words for line in lines[2:] if (words := line.split())]
    damaged = ArtifactError(f"{path} is not ncnn's text of layers, or is truncated: export or copy it again")
    counts = lines[1].split() if len(lines) > 1 else []
    if lines[0].strip() != _NCNN_MAGIC or counts[:1] != [str(len(rows))]:
        raise damaged
    listed = []
    for words in rows:
        kind, name, *rest = words if len(words) > 3 else ("", "")
        if not rest or not all(word.isdecimal() and len(word) < 6 for word in rest[:2]):
            raise damaged
        reads, writes = int(rest[0]), int(rest[1])
        tensors = rest[2 : 2 + reads + writes]
        listed.append({"name": name, "type": kind, "inputs": tensors[:reads], "outputs": tensors[reads:]})
    weights = path.with_suffix(".bin")
    facts: Facts = {
        "kind": "ncnn",
        "bytes": path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0),
        "nodes": dict(Counter(layer["type"] for layer in listed).most_common()),
    }
    facts |= _metadata_beside(path)
    return {**facts, "layers": listed} if layers else facts


def _describe_tflite(path: Path, layers: bool) -> Facts:
    if read_bytes(path, "TFLite file", ArtifactError)[4:8] != b"TFL3":
        raise ArtifactError(f"{path} is not a TFLite file or is truncated: export or copy it again")
    return {"kind": "TFLite", **_metadata_beside(path)}


def _metadata_beside(path: Path) -> Facts:
    try:
        return {"metadata": json.loads(read_metadata_beside(path).to_json())}
    except ArtifactError as error:
        return {"metadata": None, "metadata_error": str(error)}


# -- weights --------------------------------------------------------------------------------------------------------

_SAFETENSORS_HEADER_LIMIT = 100_000_000
_MOST_DIMENSIONS = 64


def _describe_safetensors(path: Path, layers: bool) -> Facts:
    start, header = _safetensors_header(path)
    damaged = ArtifactError(f"{path} has a damaged safetensors header: save or copy it again")
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(map(_is_tensor_entry, header.values())):
        raise damaged
    tensors = [(name, entry["dtype"].lower(), entry["shape"]) for name, entry in header.items()]
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if start + end > path.stat().st_size:
        raise ArtifactError(
            f"{path} is truncated: it has {path.stat().st_size:,} of {start + end:,} bytes. Save or copy it again"
        )
    return {"kind": "safetensors", **_read_metadata(texts.get(METADATA_KEY), path), **_tensor_facts(tensors, layers)}


def _is_tensor_entry(entry: Any) -> bool:
    def sizes(value: Any, count: int | None = None) -> bool:
        if not isinstance(value, list) or count not in (None, len(value)):
            return False
        return all(whole(size, 0, 2**63 - 1) for size in value)

    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    return sizes(entry.get("shape")) and sizes(entry.get("data_offsets"), 2)


def _safetensors_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and the JSON before them."""
    damaged = ArtifactError(f"{path} is not a safetensors file or is truncated: save or copy it again")
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        text = file.read(length) if 2 <= length <= _SAFETENSORS_HEADER_LIMIT else b""
    try:
        header = parse_json(text, str(path), ArtifactError)
    except ArtifactError as error:
        raise damaged from error
    if not isinstance(header, dict):
        raise damaged
    return 8 + length, header


def _describe_checkpoint(path: Path, layers: bool) -> Facts:
    import_optional("torch", "train", "describing a checkpoint")
    from yolact_deploy.model.checkpoint import config_of
    from yolact_deploy.model.weights_file import read_weights

    weights = read_weights(path)
    state = weights.state
    tensors = [(name, re.sub(r"^torch\.", "", str(tensor.dtype)), list(tensor.shape)) for name, tensor in state.items()]
    facts: Facts = {"kind": "PyTorch checkpoint", **_tensor_facts(tensors, layers)}
    if weights.origin is not None:
        facts["origin"] = weights.origin.name
    try:
        return {**facts, "inferred_config": config_of(weights, path).to_dict()}
    except CheckpointError as error:  # initial weights of a backbone, or another network
        return {**facts, "config_error": str(error)}


def _tensor_facts(tensors: list[tuple[str, str, list[int]]], layers: bool) -> Facts:
    facts: Facts = {
        "tensors": len(tensors),
        "parameters": _count_tensors((dtype, _product(shape)) for _, dtype, shape in tensors),
    }
    if layers:
        facts["layers"] = [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in tensors]
    return facts


def _count_tensors(tensors: Iterable[tuple[str, int]]) -> dict[str, dict[str, int]]:
    """Number of values and bytes per dtype."""
    values: Counter[str] = Counter()
    for dtype, count in tensors:
        values[dtype] += count
    return {dtype: {"values": count, "bytes": count * _bits(dtype) // 8} for dtype, count in values.most_common()}


def _product(shape: Sequence[int]) -> int:
    if len(shape) > _MOST_DIMENSIONS:
        raise ArtifactError(f"the file has a tensor of {len(shape)} dimensions: it is damaged. Save or copy it again")
    return math.prod(shape)


def _bits(dtype: str) -> int:
    """Bits per value of a dtype of ONNX, torch or safetensors, by its name.

    >>> [_bits(name) for name in ("float32", "f16", "bfloat16", "int4", "bool", "float8_e4m3fn")]
    [32, 16, 16, 4, 8, 8]
    """
    words = {"bool": 8, "string": 8, "complex64": 64, "complex128": 128}
    number = re.match(r"[a-z]+(\d{1,4})", dtype)
    return words.get(dtype) or (int(number[1]) if number else 8)


_SUFFIXES = {
    **dict.fromkeys(ONNX_SUFFIXES, "onnx"),
    **dict.fromkeys(ENGINE_SUFFIXES, "engine"),
    **dict.fromkeys(CHECKPOINT_SUFFIXES, "checkpoint"),
    ".safetensors": "safetensors",
    **dict.fromkeys(NCNN_SUFFIXES, "ncnn"),
    **dict.fromkeys(TFLITE_SUFFIXES, "tflite"),
}
_DESCRIBERS: dict[str, Callable[[Path, bool], Facts]] = {
    "onnx": _describe_onnx,
    "engine": _describe_engine,
    "safetensors": _describe_safetensors,
    "checkpoint": _describe_checkpoint,
    "ncnn": _describe_ncnn,
    "tflite": _describe_tflite,
}
