"""Tensors of the KServe v2 protocol, read and written; the wrong ones are refused."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")

from yolact_deploy.serving.kserve_tensors import DTYPES, InferRequest, Tensor, read_request, write_response
from yolact_deploy.serving.service_errors import RequestError


def body(inputs: list[dict[str, Any]], binary: bytes = b"", **more: Any) -> tuple[bytes, str]:
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + binary, str(len(header))


@pytest.mark.parametrize("datatype", DTYPES)
def test_numbers(datatype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]], DTYPES[datatype])
    entry = {"name": "x", "shape": [2, 3], "datatype": datatype}
    content, length = body([{**entry, "parameters": {"binary_data_size": values.nbytes}}], values.tobytes())
    for request in (
        read_request(content, length),
        read_request(body([{**entry, "data": values.tolist()}])[0], None),
        read_request(body([{**entry, "data": values.ravel().tolist()}])[0], None),
    ):
        array = request.inputs["x"]
        assert isinstance(array, np.ndarray)
        assert array.dtype == values.dtype
        assert np.array_equal(array, values)


def test_bytes() -> None:
    elements = [b"\xff\xd8", b"", b"abc"]
    packed = b"".join(struct.pack("<I", len(e)) + e for e in elements)
    entry = {"name": "x", "shape": [3], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    assert read_request(*body([entry], packed)).inputs["x"] == elements
    texts = {"name": "x", "shape": [2], "datatype": "BYTES", "data": ["a", "é"]}
    assert read_request(body([texts])[0], None).inputs["x"] == [b"a", "é".encode()]


def test_several_inputs_share_the_binary_part() -> None:
    one = {"name": "a", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}
    two = {"name": "b", "shape": [1], "datatype": "INT32", "parameters": {"binary_data_size": 4}}
    request = read_request(*body([one, two], b"\x01\x02" + struct.pack("<i", -5), id="7"))
    assert request.id == "7"
    assert [np.asarray(request.inputs[name]).tolist() for name in "ab"] == [[1, 2], [-5]]


ENTRY = {"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 2]}
NESTED = (
    b'{"inputs": [{"name": "x", "shape": [1], "datatype": "UINT8", "data": ' + b"[" * 20 + b"1" + b"]" * 20 + b"}]}"
)
BINARY = {"name": "x", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}


def bytes_entry(count: int, size: int) -> dict[str, Any]:
    return {**BINARY, "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": size}}


@pytest.mark.parametrize(
    ("entry", "binary", "message"),
    [
        (3, b"", "inputs: expected objects"),
        ({**ENTRY, "name": 3}, b"", "name: expected a text"),
        ({**ENTRY, "shape": [-1]}, b"", "shape: expected"),
        ({**ENTRY, "shape": [True]}, b"", "shape: expected"),
        ({**ENTRY, "shape": "2"}, b"", "shape: expected"),
        ({**ENTRY, "shape": [1] * 9}, b"", "shape: expected"),
        ({**ENTRY, "shape": [1 << 40]}, b"", "shape: expected"),
        ({**ENTRY, "shape": [0, *[(1 << 32) - 1] * 3], "data": []}, b"", "shape: expected"),
        ({**BINARY, "shape": [*[(1 << 31)] * 2, 0]}, b"", "shape: expected"),
        ({**BINARY, "shape": [(1 << 32) - 1] * 8}, b"", "shape: expected"),
        ({**ENTRY, "datatype": "COMPLEX"}, b"", "datatype: expected"),
        ({**ENTRY, "datatype": None}, b"", "datatype: expected"),
        ({**ENTRY, "data": [1]}, b"", "has 2 elements, got 1"),
        ({**ENTRY, "data": 1}, b"", "data: expected a list"),
        ({**ENTRY, "data": ["a", "b"]}, b"", "data are no UINT8"),
        ({**ENTRY, "data": [1, 256]}, b"", "data are no UINT8"),
        ({**ENTRY, "datatype": "BYTES"}, b"", "expected texts"),
        ({**ENTRY, "parameters": 3}, b"", "parameters: expected an object"),
        ({**BINARY, "parameters": {"binary_data_size": 3}}, b"\0\0", "binary_data_size: 3, and 2 bytes are left"),
        ({**BINARY, "parameters": {"binary_data_size": -1}}, b"\0\0", "binary_data_size"),
        ({**BINARY, "parameters": {"binary_data_size": "2"}}, b"\0\0", "binary_data_size"),
        (BINARY, b"\0\0\0", "1 bytes after its last input"),
        ({**BINARY, "shape": [3]}, b"\0\0", "has 3 bytes, got 2"),
        (bytes_entry(1, 2), b"\0\0", "is cut off"),
        (bytes_entry(1, 5), b"\2\0\0\0a", "cut off"),
        (bytes_entry(2, 5), b"\1\0\0\0a", "2 elements"),
        (bytes_entry(0, 5), b"\1\0\0\0a", "0 elements"),
    ],
)  # fmt: skip
def test_wrong_inputs(entry: Any, binary: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        read_request(*body([entry], binary))
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"[]", None, "expected an object"),
        (b"{}", None, "expected an object with a list 'inputs'"),
        (b'{"inputs": {}}', None, "expected an object with a list 'inputs'"),
        (b'{"inputs": [], "outputs": [3]}', None, "outputs: name"),
        (b'{"inputs": [], "outputs": 3}', None, "outputs: expected a list"),
        (b'{"inputs": [], "id": 3}', None, "id: expected a text"),
        (b"{}", "x", "expected a number"),
        (b"{}", "-1", "expected a number"),
        (b"{}", "3", "3 bytes, and the body has 2"),
        (b"[" * 100_000, None, "nested too deeply"),
        (NESTED, None, "nested deeper"),
    ],
)  # fmt: skip
def test_wrong_bodies(content: bytes, length: str | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_request(content, length)


def test_the_same_input_twice() -> None:
    with pytest.raises(RequestError, match="there twice"):
        read_request(body([ENTRY, ENTRY])[0], None)


def test_response() -> None:
    outputs: dict[str, Tensor] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [b"\xff", b"xy"]}
    request = InferRequest(id="7", inputs={}, shapes={}, outputs={"b": True, "a": False})
    content, header = write_response("m", request, outputs, parameters={"compute_ms": 1.5})
    assert header is not None
    values = json.loads(content[:header])
    assert values["id"] == "7"
    assert values["parameters"] == {"compute_ms": 1.5}
    b, a = values["outputs"]
    assert a == {"name": "a", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]}
    assert b["parameters"]["binary_data_size"] == len(content) - header
    assert content[header:] == b"\1\0\0\0\xff\2\0\0\0xy"
    content, header = write_response("m", InferRequest(None, {}, {}), outputs)
    assert header is None
    assert [output["name"] for output in json.loads(content)["outputs"]] == ["a", "b"]
    with pytest.raises(RequestError, match="unknown output 'c'"):
        write_response("m", InferRequest(None, {}, {}, outputs={"c": True}), outputs)
    with pytest.raises(RequestError, match="not finite"):
        write_response("m", InferRequest(None, {}, {}), {"a": np.array([np.nan], np.float32)})
