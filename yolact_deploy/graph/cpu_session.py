"""ONNX graphs in ONNX Runtime's CPU provider."""

from __future__ import annotations

from typing import Any

from yolact_deploy.errors import ArtifactError, import_optional
from yolact_deploy.machine.cpu import overflows_bytes


def open_cpu_session(data: bytes, threads: int | None, source: str, *, arena: bool = True) -> Any:
    """Open a serialized ONNX model in ONNX Runtime's CPU provider.

    Args:
        threads: per operator; by default one per core
        source: what errors call the model
        arena: keep memory for the next call in pieces that double in size: a little faster, up to half more memory

    Raises:
        ArtifactError: ONNX Runtime rejects the model.
    """
    ort = import_optional("onnxruntime", "onnx", "Running an ONNX file")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    if overflows_bytes():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise ArtifactError(f"ONNX Runtime rejects {source}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
