"""Tensors of the KServe v2 protocol (Open Inference Protocol): JSON, and the extension for binary data.

With the header ``Inference-Header-Content-Length`` a body is JSON of that length, then the bytes of each tensor that
has the parameter ``binary_data_size``. An element of a BYTES tensor is its length in 4 bytes, little-endian, and its
bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.serving.service_errors import MalformedError, RequestError, bad_request
from yolact_deploy.untrusted import parse_json, shown

#: dtype of NumPy by the protocol's name; BYTES tensors are lists of bytes
DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
_MOST_AXES, _LONGEST = 8, 1 << 32

Tensor = NDArray[Any] | list[bytes]


@dataclass(frozen=True)
class TensorSpec:
    """Name, datatype and shape (-1 for any length) of an input or output, as metadata states them."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass
class InferRequest:
    """A request.

    Attributes:
        inputs: arrays, and lists of bytes for BYTES
        shapes: of the inputs
        outputs: the wanted outputs and whether each is wanted as binary; empty for all
        binary_default: whether outputs that are not listed are wanted as binary
        parameters: of the request
    """

    id: str | None
    inputs: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    outputs: dict[str, bool] = field(default_factory=dict)
    binary_default: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


def read_request(body: bytes, header_length: str | None) -> InferRequest:
    """The request in a body.

    Args:
        header_length: value of Inference-Header-Content-Length

    Raises:
        RequestError: it is malformed.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 16):
            raise bad_request(f"Inference-Header-Content-Length: expected a number, got {shown(header_length)}")
        length = int(header_length)
        if length > len(body):
            raise bad_request(f"Inference-Header-Content-Length: {length} bytes, and the body has {len(body)}")
    message = parse_json(body[:length], "the request", MalformedError)
    if not isinstance(message, dict) or not isinstance(message.get("inputs"), list):
        raise bad_request("the request: expected an object with a list 'inputs'")
    request = InferRequest(id=_text(message.get("id"), "id"), inputs={}, shapes={})
    rest = memoryview(body)[length:]
    for given in message["inputs"]:
        name, shape, tensor, used = _read_input(given, rest)
        if name in request.inputs:
            raise bad_request(f"input {shown(name)} is there twice")
        request.inputs[name], request.shapes[name], rest = tensor, shape, rest[used:]
    if len(rest):
        raise bad_request(f"the body has {len(rest)} bytes after its last input: check binary_data_size")
    request.parameters = _parameters(message)
    request.binary_default = request.parameters.get("binary_data_output") is True
    for entry in _list(message.get("outputs", []), "outputs"):
        wanted = _text(entry.get("name") if isinstance(entry, dict) else None, "outputs: name", required=True)
        request.outputs[str(wanted)] = _parameters(entry).get("binary_data", request.binary_default) is True
    return request


def _read_input(entry: Any, rest: memoryview) -> tuple[str, tuple[int, ...], Tensor, int]:
    """Name, shape and value of an input, and how many bytes of ``rest`` it takes."""
    if not isinstance(entry, dict):
        raise bad_request(f"inputs: expected objects, got {shown(entry)}")
    name = str(_text(entry.get("name"), "inputs: name", required=True))
    shape, datatype = entry.get("shape"), entry.get("datatype")
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_AXES
        or not all(type(n) is int and 0 <= n < _LONGEST for n in shape)
        or math.prod(n for n in shape if n) >= 1 << 60  # NumPy counts the others where one axis has no element
    ):
        raise bad_request(f"input {shown(name)}: shape: expected a list of whole numbers, got {shown(shape)}")
    if datatype not in (*DTYPES, "BYTES"):
        raise bad_request(f"input {shown(name)}: datatype: expected one of {', '.join(DTYPES)}, BYTES, got "
                          f"{shown(datatype)}")  # fmt: skip
    count = math.prod(shape)
    size = _parameters(entry).get("binary_data_size")
    if size is None:
        return name, tuple(shape), _from_json(name, datatype, count, shape, entry.get("data")), 0
    if type(size) is not int or not 0 <= size <= len(rest):
        raise bad_request(f"input {shown(name)}: binary_data_size: {shown(size)}, and {len(rest)} bytes are left")
    return name, tuple(shape), _from_bytes(name, datatype, count, shape, rest[:size]), size


def _from_json(name: str, datatype: str, count: int, shape: Sequence[int], data: Any) -> Tensor:
    values = _flat(_list(data, f"input {shown(name)}: data"))
    if len(values) != count:
        raise bad_request(f"input {shown(name)}: shape {list(shape)} has {count} elements, got {len(values)}")
    if datatype == "BYTES":
        if not all(isinstance(value, str) for value in values):
            raise bad_request(f"input {shown(name)}: expected texts; send pictures as binary data")
        return [value.encode("utf-8", "surrogateescape") for value in values]
    try:
        array = np.array(values, dtype=DTYPES[datatype])
    except (ValueError, TypeError, OverflowError) as error:
        raise bad_request(f"input {shown(name)}: data are no {datatype} ({error})") from error
    return array.reshape(shape)


def _flat(values: list[Any]) -> list[Any]:
    """Nested lists, as the protocol allows them, row by row."""
    for _ in range(_MOST_AXES):
        if not any(isinstance(value, list) for value in values):
            return values
        values = [inner for value in values for inner in (value if isinstance(value, list) else [value])]
    raise bad_request(f"data: lists are nested deeper than {_MOST_AXES} levels")


def _from_bytes(name: str, datatype: str, count: int, shape: Sequence[int], data: memoryview) -> Tensor:
    if datatype != "BYTES":
        dtype = np.dtype(DTYPES[datatype])
        if count * dtype.itemsize != len(data):
            raise bad_request(
                f"input {shown(name)}: {datatype} {list(shape)} has {count * dtype.itemsize} bytes, got {len(data)}"
            )
        return np.frombuffer(data, dtype=dtype).reshape(shape)
    elements: list[bytes] = []
    at = 0
    while at < len(data) and len(elements) < count:
        (length,) = struct.unpack_from("<I", data, at) if at + 4 <= len(data) else (len(data),)
        if at + 4 + length > len(data):
            raise bad_request(f"input {shown(name)}: element {len(elements)} is cut off")
        elements.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    if len(elements) != count or at != len(data):
        raise bad_request(f"input {shown(name)}: expected {count} elements, got {len(elements)} or bytes behind them")
    return elements


def write_response(
    model: str,
    request: InferRequest,
    outputs: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if binary data follow it.

    Args:
        outputs: all that the model has
        shapes: of BYTES outputs; one axis by default

    Raises:
        RequestError: an output is wanted that the model does not have.
    """
    if unknown := set(request.outputs) - set(outputs):
        raise bad_request(f"unknown output {shown(min(unknown))}: the model has {', '.join(outputs)}", status=400)
    entries, chunks = [], []
    for name in request.outputs or outputs:
        value = outputs[name]
        entry: dict[str, Any] = {"name": name}
        if isinstance(value, list):
            entry |= {"datatype": "BYTES", "shape": list((shapes or {}).get(name, (len(value),)))}
        else:
            entry |= {"datatype": _NAMES[value.dtype], "shape": list(value.shape)}
        if request.outputs.get(name, request.binary_default):
            chunks.append(_to_bytes(value))
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            entry["data"] = _to_json(value)
        entries.append(entry)
    message: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": entries}
    if request.id is not None:
        message["id"] = request.id
    if parameters:
        message["parameters"] = dict(parameters)
    header = json.dumps(message).encode()
    return b"".join([header, *chunks]), len(header) if chunks else None


def _to_bytes(value: Tensor) -> bytes:
    if isinstance(value, list):
        return b"".join(struct.pack("<I", len(element)) + element for element in value)
    return np.ascontiguousarray(value).tobytes()


def _to_json(value: Tensor) -> list[Any]:
    if isinstance(value, list):
        return [element.decode("utf-8", "replace") for element in value]
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise bad_request("an output is not finite, which JSON cannot hold: ask for binary data", status=400)
    flat: list[Any] = value.ravel().tolist()
    return flat


def _parameters(entry: Any) -> dict[str, Any]:
    parameters = entry.get("parameters", {}) if isinstance(entry, dict) else {}
    if not isinstance(parameters, dict):
        raise bad_request(f"parameters: expected an object, got {shown(parameters)}")
    return parameters


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise bad_request(f"{what}: expected a list, got {shown(value)}")
    return value


def _text(value: Any, what: str, *, required: bool = False) -> str | None:
    if value is None and not required:
        return None
    if not isinstance(value, str):
        raise bad_request(f"{what}: expected a text, got {shown(value)}")
    return value


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a dtype."""
    return _NAMES[dtype]


def missing_input(wanted: Iterable[TensorSpec], request: InferRequest) -> RequestError | None:
    """What is wrong with the names of a request's inputs; None if they are those of the model."""
    names = [spec.name for spec in wanted]
    if sorted(names) == sorted(request.inputs):
        return None
    return bad_request(f"expected the inputs {', '.join(names)}, got {shown(sorted(request.inputs))}")
