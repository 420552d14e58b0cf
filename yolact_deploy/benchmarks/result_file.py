"""Results of `bench --output` read back: checked against the schema, and as rows that can be compared.

The schema (``schema/bench-v1.schema.json``) documents every key. Versions: see its description.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import read_json
from yolact_deploy.benchmarks.measure import SCHEMA, BenchResult
from yolact_deploy.errors import DatasetError, InputError, import_optional
from yolact_deploy.machine.conditions import QUIET_SHARE

SCHEMA_FILE = Path(__file__).parent / "schema" / f"{SCHEMA}.schema.json"

_CURE = "measure again with bench --output FILE"
_POINTS = 100.0
#: how the warning of a busy machine begins
_OTHERS = "other programs used"
#: changes from run to run, or is no property of the machine
_NOT_COMPARED = ("date",)


@dataclass(frozen=True)
class StoredRow:
    """One engine of a results file.

    Attributes:
        samples: ms of every call, round after round; None in files that were written before they were kept
        values: the engine's JSON object
    """

    name: str
    samples: NDArray[np.float64] | None
    values: Mapping[str, Any]

    @property
    def latency(self) -> Mapping[str, Any]:
        latency: Mapping[str, Any] = self.values["latency"]
        return latency

    @property
    def stages(self) -> dict[str, float]:
        """Mean ms of each stage."""
        return dict(self.latency["stages_mean_ms"])

    @property
    def usual_stages(self) -> dict[str, float]:
        """Median ms of each stage; the mean in files from before medians were kept."""
        return dict(self.latency.get("stages_p50_ms") or self.stages)

    @property
    def on_gpu(self) -> bool:
        """Whether it ran on a GPU, of whose speed the processor's yardstick tells nothing."""
        return str(self.values["runtime"].get("device", "cpu")) != "cpu"

    def ap_points(self, kind: str) -> float | None:
        """COCO AP x 100 of "box" or "mask"; None where it was not measured."""
        figures = (self.values["accuracy"] or {}).get(kind)
        return None if figures is None or figures["ap"] is None else _POINTS * figures["ap"]


@dataclass(frozen=True)
class StoredResult:
    """A whole results file; ``name`` is what messages call it."""

    name: str
    content: Mapping[str, Any]
    rows: Mapping[str, StoredRow]

    def row(self, name: str) -> StoredRow:
        """Raises :class:`InputError` where there is no such engine."""
        if name not in self.rows:
            raise InputError(f"{self.name} has no engine {name!r}: it has {', '.join(self.rows)}")
        return self.rows[name]

    @property
    def environment(self) -> dict[str, str]:
        """Machine and versions under flat names such as ``versions.numpy``."""
        return {key: value for key, value in _flat(self.content["environment"], "") if key not in _NOT_COMPARED}


def read_result(path: str | os.PathLike[str]) -> StoredResult:
    """Read and check a results file.

    Raises:
        DatasetError: no such file, no results of this version, or values that contradict each other.
    """
    return result_from_json(read_json(path, "results file", DatasetError), str(path))


def stored(result: BenchResult, name: str = "this run") -> StoredResult:
    """A result that was just measured, as if it had been written and read."""
    content = json.loads(json.dumps(result.to_json()))  # tuples become lists, as in a file
    return StoredResult(name, content, {row["name"]: _row(row) for row in content["engines"]})


def result_from_json(content: Any, source: str) -> StoredResult:
    """Check the content of the file ``source``; raises :class:`DatasetError`."""
    version = content.get("schema") if isinstance(content, dict) else None
    if version != SCHEMA:
        said = f"is of schema {version!r}" if version else "names no schema"
        raise DatasetError(f"{source} {said}, expected {SCHEMA!r}: give what bench --output wrote, or {_CURE}")
    error = next(iter(sorted(_validator().iter_errors(content), key=lambda e: len(e.absolute_path))), None)
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the top"
        raise DatasetError(f"{source} is no valid {SCHEMA} file: at {where}: {_short(error.message)}: {_CURE}")
    rows = [_row(row) for row in content["engines"]]
    by_name = {row.name: row for row in rows}
    if len(by_name) < len(rows):
        raise DatasetError(f"{source} has two engines of one name: {_CURE}")
    if content["reference"] not in by_name:
        raise DatasetError(f"{source} has no engine {content['reference']!r}, its reference: {_CURE}")
    for row in rows:
        if row.samples is not None and len(row.samples) != row.latency["calls"]:
            raise DatasetError(
                f"{source}: {row.name} has {len(row.samples)} samples of {row.latency['calls']} calls: {_CURE}"
            )
    return StoredResult(source, content, by_name)


def find_row(text: str) -> tuple[str, str | None]:
    """File and engine that ``FILE`` or ``FILE:ENGINE`` name; both may have colons of their own.

    Raises:
        InputError: no such file.
    """
    parts = text.split(":")
    for count in range(len(parts), 0, -1):
        file = ":".join(parts[:count])
        if Path(file).is_file():
            return file, ":".join(parts[count:]) or None
    raise InputError(f"no such results file: {text}")


def environment_differences(a: StoredResult, b: StoredResult) -> list[str]:
    """A line for each thing in which the machines or the installed versions differ."""
    ours, theirs = a.environment, b.environment
    return [
        f"{key}: {_brief(ours.get(key))} and {_brief(theirs.get(key))}"
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    ]


def same_images(a: StoredResult, b: StoredResult) -> bool:
    """Whether both were measured on the same images in the same order."""
    first, second = a.content["dataset"], b.content["dataset"]
    if first.get("fingerprint") and second.get("fingerprint"):
        return bool(first["fingerprint"] == second["fingerprint"])
    keys = ("annotations", "image_ids")
    return first["image_ids"] is not None and all(first[key] == second[key] for key in keys)


def doubts(content: Mapping[str, Any]) -> list[str]:
    """What was wrong with the machine while a result was measured, a sentence each with the cure."""
    found = list((content.get("conditions") or {}).get("warnings", ()))
    others, cores = content["settings"]["cores_used_by_others"], content["environment"]["cores"]
    if was_busy(content) and not any(
        line.startswith(_OTHERS) for line in found
    ):  # files of before may not tell it as a warning
        found.append(
            f"{_OTHERS} {others:.1f} of {cores} cores meanwhile: times are too long, and ratios to eager PyTorch, "
            "which suffers most, too good; measure again on a quiet machine"
        )
    return found


def was_busy(content: Mapping[str, Any]) -> bool:
    """Whether other programs were at work while a result was measured."""
    others, cores = content["settings"]["cores_used_by_others"], content["environment"]["cores"]
    return bool(others > QUIET_SHARE * cores)


def _row(values: Mapping[str, Any]) -> StoredRow:
    samples = values["latency"].get("samples_ms")
    return StoredRow(values["name"], None if samples is None else np.asarray(samples, np.float64), values)


@functools.cache
def _validator() -> Any:
    module = import_optional("jsonschema", "bench", "Checking a results file")
    return module.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Names and values of all that lies in a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{name}.{number}")
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, str(value)


def _brief(value: str | None) -> str:
    """The beginning of a hash is enough."""
    if value is None:
        return "not told"
    return value[:12] if re.fullmatch(r"[0-9a-f]{40,64}", value) else value


def _short(message: str, most: int = 160) -> str:
    """jsonschema puts the whole value into its message, however long."""
    return message if len(message) <= most else f"...{message[-most:]}"
