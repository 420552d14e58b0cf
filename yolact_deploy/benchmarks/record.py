"""The record of a benchmark: the one type that `bench` makes and that files, gates, tables, diffs and the report use.

msgspec converts between a record and JSON: it takes the frozen dataclasses of every room as they are, checks types and
ranges strictly, derives the JSON schema from the types, and is one small wheel without dependencies.

    python -m yolact_deploy.benchmarks.record > yolact_deploy/benchmarks/schema/bench-v1.schema.json
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_json
from yolact_deploy.benchmarks.described_schema import described_schema
from yolact_deploy.benchmarks.limits import MachineLimits, Roofline
from yolact_deploy.errors import DatasetError, InputError, OutputError, import_optional
from yolact_deploy.evaluation.accuracy import Accuracy
from yolact_deploy.evaluation.agreement import Agreement
from yolact_deploy.evaluation.bootstrap import Interval
from yolact_deploy.machine.conditions import QUIET_SHARE, Conditions
from yolact_deploy.machine.energy import Energy
from yolact_deploy.machine.peak_memory import PeakMemory
from yolact_deploy.machine.yardstick import YardstickTimes
from yolact_deploy.untrusted import read_json, shown

try:
    from msgspec import Meta
except ImportError:  # measuring needs no record on disk, such as gpu_check on a machine that has only PyTorch

    def Meta(**bounds: Any) -> Any:  # type: ignore[no-redef]  # noqa: N802  # stands in for the class
        return bounds


SCHEMA: Final = "bench-v1"
SCHEMA_FILE = Path(__file__).parent / "schema" / f"{SCHEMA}.schema.json"

NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
#: height and width; msgspec cannot tell a pair of fixed length from a number with a limit
Sides = Annotated[tuple[Positive, ...], Meta(min_length=2, max_length=2)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

CURE = "measure again with bench --output FILE"
#: decimals of a stored sample in ms: a tenth of a microsecond
_SAMPLE_DECIMALS = 4
#: a float; integers beyond it, which JSON can hold, would fail in arithmetic
_LARGEST = sys.float_info.max
#: first words of the warning about a busy machine
_OTHERS = "other programs used"
#: keys of the environment that change from run to run
_NOT_COMPARED = ("date",)
#: agreement figures that are shares
_SHARES = ("matched_share", "matched_share_90", "agreed_share", "box_ap", "mask_ap")


class _Machine(TypedDict):
    cpu: str
    cores: Positive
    os: str
    python: str
    versions: dict[str, str | None]
    yolact_deploy: str
    date: str


class Environment(_Machine, total=False):
    """The machine and what is installed.

    Attributes:
        cores: that the process could use
        driver: of the GPUs
        power_mode: of a Jetson
        governor: of the processor's clock
        cpu_quota: cores that the container may use
        threads: settings in environment variables, and threads of the loaded libraries
        versions: installed versions of the libraries that matter
        yolact_deploy: version of this package
        commit: of the checkout that the package runs from
        code_sha256: hash of the package's sources as they ran
        date: when it was measured, ISO 8601 with time zone
    """

    cpu_instructions: list[str]
    memory_gib: float | None
    gpus: list[dict[str, Any]]
    driver: str | None
    jetpack: str
    l4t: str
    power_mode: str
    governor: str
    turbo: bool
    cpu_quota: float
    threads: dict[str, str | int]
    commit: str
    code_sha256: Sha256 | None


@dataclass(frozen=True, kw_only=True)
class MeasuredImages:
    """The images of a run.

    Attributes:
        annotations: file name of the ground truth
        images: number of images measured
        available: number of images they were chosen from
        image_ids: COCO ids in measuring order; null without annotations
        fingerprint: hash of ids, file names and file sizes in order: equal where two runs saw the same images
    """

    annotations: str | None
    images: Positive
    available: Count
    image_ids: tuple[int, ...] | None
    fingerprint: Sha256 | None = None


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How a run was measured.

    Attributes:
        warmup: calls of each engine before measuring
        repeats: rounds over the images
        score_threshold: detections below it are dropped
        agreement_score_threshold: agreement judges detections above it
        cores_used_by_others: mean over the measurement
        measured: what a time covers, in words
    """

    warmup: Count
    repeats: Positive
    batch: Positive = 1
    score_threshold: float = 0.0
    agreement_score_threshold: float
    cores_used_by_others: NotNegative
    measured: str = "image file to pasted masks, models in turns on each image"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one engine at one image per call, from the image file to pasted masks.

    Attributes:
        stages_mean_ms: mean of each stage, in order
        stages_p50_ms: median of each stage
        unaccounted_ms: mean time of a call outside all stages
        encode_mean_ms: encoding masks as COCO RLE, after the call and not part of it
        samples_ms: every call: round after round, each with the images in the order of dataset.image_ids; empty in
            files older than this key
    """

    p50_ms: NotNegative
    p90_ms: NotNegative
    p99_ms: NotNegative
    mean_ms: NotNegative
    images_per_s: NotNegative
    calls: Positive
    stages_mean_ms: dict[str, float]
    stages_p50_ms: dict[str, float] = field(default_factory=dict)
    unaccounted_ms: float = field(init=False, default=0.0)
    encode_mean_ms: float | None = None
    samples_ms: tuple[NotNegative, ...] = ()

    def __post_init__(self) -> None:
        if self.samples_ms and len(self.samples_ms) != self.calls:
            raise ValueError(f"{len(self.samples_ms)} samples of {self.calls} calls")
        object.__setattr__(self, "unaccounted_ms", self.mean_ms - sum(self.stages_mean_ms.values()))

    @classmethod
    def of(
        cls,
        samples_ms: tuple[float, ...],
        stages_mean_ms: dict[str, float],
        stages_p50_ms: dict[str, float] | None = None,
        encode_mean_ms: float | None = None,
    ) -> Latency:
        """The figures of measured calls, at least one."""
        samples_ms = tuple(round(sample, _SAMPLE_DECIMALS) for sample in samples_ms)
        p50, p90, p99 = (float(value) for value in np.percentile(samples_ms, (50, 90, 99)))
        mean = sum(samples_ms) / len(samples_ms)
        return cls(
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            mean_ms=mean,
            images_per_s=1e3 / mean,
            calls=len(samples_ms),
            stages_mean_ms=stages_mean_ms,
            stages_p50_ms=stages_p50_ms or {},
            encode_mean_ms=encode_mean_ms,
            samples_ms=samples_ms,
        )

    @property
    def usual_stages_ms(self) -> dict[str, float]:
        """Median of each stage; the mean in files older than medians."""
        return self.stages_p50_ms or self.stages_mean_ms


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One engine; null where a figure could not be measured or was not asked for.

    Attributes:
        image_size: the network's input in pixels: the side of a square, or height and width
        runtime: what the backend reports about itself; its keys are its own
        file_sha256: hash of the model file
        weights_sha256: hash of the checkpoint that it was made from
        memory_mib: growth of the process at its peak while the engine was loaded and warmed up
        memory: process and GPUs while the engine was loaded and warmed up
        energy: of the engine running alone
        speedup: p50 of the reference divided by this engine's
        ap_difference: AP of "box" and "mask" minus the reference's, 0..1; empty for the reference and without ground
            truth
        warnings: what makes the comparison with the reference unfair
        diagnosis: what is probably wrong with an engine that disagrees with the reference
    """

    name: Annotated[str, Meta(min_length=1)]
    backend: str
    precision: str
    image_size: Positive | Sides
    runtime: dict[str, Any]
    file_mib: NotNegative
    memory_mib: float
    latency: Latency
    speedup: NotNegative
    accuracy: Accuracy | None
    agreement: Agreement | None
    warnings: tuple[str, ...]
    file_sha256: Sha256 | None = None
    weights_sha256: Sha256 | None = None
    memory: PeakMemory | None = None
    energy: Energy | None = None
    diagnosis: str | None = None
    ap_difference: dict[str, Interval] = field(default_factory=dict)
    roofline: Roofline | None = None

    def __post_init__(self) -> None:
        for name in _SHARES:
            share = getattr(self.agreement, name, None)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"agreement.{name}: expected 0 to 1, got {share:g}")

    @property
    def samples(self) -> NDArray[np.float64]:
        """Milliseconds of every call; empty in files without them."""
        return np.asarray(self.latency.samples_ms, np.float64)

    @property
    def on_gpu(self) -> bool:
        """Whether it ran on a GPU, whose speed the yardstick of the processor does not show."""
        return str(self.runtime.get("device", "cpu")) != "cpu"

    def ap_points(self, kind: str) -> float | None:
        """COCO AP x 100 of "box" or "mask"; None where it was not measured."""
        figures = getattr(self.accuracy, kind, None)
        return None if figures is None or figures.ap is None else 100 * figures.ap


@dataclass(frozen=True)
class ImageErrors:
    """How one engine differs from the reference on one image.

    Attributes:
        badness: wrong detections count 1, lost overlap a fraction
    """

    missed: Count
    extra: Count
    label_flips: Count
    badness: NotNegative


@dataclass(frozen=True)
class WorstImage:
    """An image on which engines disagree with the reference."""

    image_id: int
    file_name: str
    engines: dict[str, ImageErrors]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Result of yolact-deploy bench, version 1.

    Within version 1 keys are only added: what is not required may be absent from older files, and readers skip keys
    that they do not know. Times are milliseconds, sizes MiB, average precisions and shares 0..1. null: it could not be
    measured.

    Attributes:
        reference: name of the engine that the others are compared with
        engines: in measuring order, the reference first
        worst_images: the images on which the engines disagree most, worst first
        conditions: state of the machine while latency was measured
        limits: what each device ("cpu", "cuda:0") can do at best, where it was measured
        yardstick: speed of the processor during the run
        name: what messages call the record: its file; not stored
    """

    schema: Literal["bench-v1"] = SCHEMA
    environment: Environment
    dataset: MeasuredImages
    settings: BenchSettings
    reference: str
    engines: Annotated[tuple[EngineRecord, ...], Meta(min_length=1)]
    worst_images: tuple[WorstImage, ...]
    conditions: Conditions | None = None
    limits: dict[str, MachineLimits] = field(default_factory=dict)
    yardstick: YardstickTimes | None = None
    name: str = field(default="this run", compare=False)

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.engines):
            raise ValueError("two engines of one name")
        if self.reference not in self.names:
            raise ValueError(f"no engine {self.reference!r}, its reference")

    @property
    def names(self) -> list[str]:
        return [engine.name for engine in self.engines]

    def engine(self, name: str) -> EngineRecord:
        """Raises :class:`InputError` if there is no such engine."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise InputError(f"{self.name} has no engine {name!r}: it has {', '.join(self.names)}")

    @property
    def was_busy(self) -> bool:
        """Whether other programs kept cores busy during the run."""
        return self.settings.cores_used_by_others > QUIET_SHARE * self.environment["cores"]

    @property
    def doubts(self) -> list[str]:
        """What was wrong with the machine during the run, one sentence each, with the cure."""
        warnings = list(self.conditions.warnings) if self.conditions else []
        if self.was_busy and not any(line.startswith(_OTHERS) for line in warnings):  # older files have no conditions
            warnings.append(
                f"{_OTHERS} {self.settings.cores_used_by_others:.1f} of {self.environment['cores']} cores: times are "
                "too long, and ratios to eager PyTorch, which suffers most, are too good; measure again on a quiet "
                "machine"
            )
        return warnings

    @property
    def flat_environment(self) -> dict[str, str]:
        """Machine and versions under flat names such as ``versions.numpy``."""
        return {key: value for key, value in _flat(self.environment, "") if key not in _NOT_COMPARED}

    def environment_differences(self, other: Record) -> list[str]:
        """A line for each difference between the machines or the installed versions."""
        ours, theirs = self.flat_environment, other.flat_environment
        return [
            f"{key}: {_brief(ours.get(key))} and {_brief(theirs.get(key))}"
            for key in dict.fromkeys((*ours, *theirs))
            if ours.get(key) != theirs.get(key)
        ]

    def has_images_of(self, other: Record) -> bool:
        """Whether both were measured on the same images in the same order."""
        ours, theirs = self.dataset, other.dataset
        if ours.fingerprint and theirs.fingerprint:
            return ours.fingerprint == theirs.fingerprint
        return ours.image_ids is not None and (ours.annotations, ours.image_ids) == (
            theirs.annotations,
            theirs.image_ids,
        )


# -- JSON -----------------------------------------------------------------------------------------------------------


def to_json(record: Record) -> dict[str, Any]:
    """The record as JSON values; raises :class:`OutputError` for a figure that is not finite."""
    content: dict[str, Any] = _msgspec().to_builtins(record)
    del content["name"]
    for place in _not_finite(content, "$"):
        raise OutputError(f"the record cannot be stored: {place} is not finite, which means a fault in the measurement")
    return content


def write_record(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a record as JSON; errors as :func:`to_json`, and :class:`OutputError` if the file cannot be written."""
    write_json(path, to_json(record))


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read and check a results file.

    Raises:
        DatasetError: no such file, not a result of this version, or values that contradict each other.
    """
    return from_json(read_json(path, "results file", DatasetError), str(path))


def from_json(content: Any, name: str) -> Record:
    """Check the content of the results file ``name``; raises :class:`DatasetError`."""
    version = content.get("schema") if isinstance(content, dict) else None
    if version != SCHEMA:
        actual = f"has schema {shown(version)}" if version else "names no schema"
        raise DatasetError(f"{name} {actual}, expected {SCHEMA!r}: give a file that bench --output wrote, or {CURE}")
    msgspec = _msgspec()
    try:
        for place in _not_finite(content, "$"):
            raise ValueError(f"Expected a finite number - at `{place}`")
        record: Record = msgspec.convert({**content, "name": name}, Record)
    except RecursionError as error:
        raise DatasetError(f"{name} is nested too deeply: {CURE}") from error
    except ValueError as error:  # msgspec's, with the place
        raise DatasetError(f"{name} is not a valid {SCHEMA} file: {error}: {CURE}") from error
    return record


def _msgspec() -> Any:
    return import_optional("msgspec", "bench", "Reading and writing benchmark records")


def find_record(text: str) -> tuple[str, str | None]:
    """File and engine named by ``FILE`` or ``FILE:ENGINE``; both may contain colons.

    Raises:
        InputError: no such file.
    """
    parts = text.split(":")
    for count in range(len(parts), 0, -1):
        file = ":".join(parts[:count])
        if Path(file).is_file():
            return file, ":".join(parts[count:]) or None
    raise InputError(f"no such results file: {text}")


def json_schema() -> dict[str, Any]:
    """JSON Schema of the files, derived from the types; descriptions come from their docstrings."""
    return described_schema(Record, leave_out=("name",))


# -- parts ----------------------------------------------------------------------------------------------------------


def _not_finite(value: Any, place: str) -> Iterator[str]:
    """Places of numbers that JSON or floats cannot hold."""
    if isinstance(value, (int, float)) and not abs(value) <= _LARGEST:  # NaN, too
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _not_finite(item, f"{place}[{number}]")


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Names and values of everything in a JSON value."""
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
    """The first characters of a hash are enough."""
    if value is None:
        return "unknown"
    return value[:12] if re.fullmatch(r"[0-9a-f]{40,64}", value) else value


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
