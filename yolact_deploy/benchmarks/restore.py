"""A results file as the object it was written from, so that what works on a fresh result works on an old one, too.

Pictures of the worst images are not in the file, and so not in what is restored.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from yolact_deploy.benchmarks.latency import Latency
from yolact_deploy.benchmarks.measure import BenchResult
from yolact_deploy.benchmarks.result_file import StoredResult, StoredRow
from yolact_deploy.errors import DatasetError


def restore(stored: StoredResult) -> BenchResult:
    """The result without its worst images.

    Raises:
        DatasetError: the file is from before the times of single calls were kept.
    """
    content = {**stored.content, "rows": [_row_values(stored.name, row) for row in stored.rows.values()], "worst": []}
    result: BenchResult = _build(BenchResult, content)
    return result


def _row_values(file: str, row: StoredRow) -> dict[str, Any]:
    if row.samples is None:
        raise DatasetError(f"{file} has no times of single calls: measure again with bench --output FILE")
    encoded = row.latency.get("encode_mean_ms")
    latency = Latency(
        samples=tuple(row.samples.tolist()),
        stages=row.stages,
        stages_p50=dict(row.latency.get("stages_p50_ms", {})),
        encode_samples=() if encoded is None else (encoded,),
    )
    return {**row.values, "latency": latency}


def _build(kind: Any, value: Any) -> Any:
    """A value of JSON as a value of the annotated type; keys that a dataclass does not have are passed over."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if value is None or isinstance(value, Latency):
        return value
    if origin in (types.UnionType, typing.Union):
        return _build(next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = typing.get_type_hints(kind)
        names = [f.name for f in dataclasses.fields(kind) if f.name in value]
        return kind(**{name: _build(hints[name], value[name]) for name in names})  # type: ignore[operator]
    if origin is tuple:
        return tuple(_build(arguments[0], item) for item in value)
    if origin is dict:
        return {key: _build(arguments[1], item) for key, item in value.items()}
    return value
