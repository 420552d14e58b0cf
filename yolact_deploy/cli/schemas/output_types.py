"""The types of the JSON that ``predict``, ``eval``, ``doctor`` and ``inspect`` print or write."""

from __future__ import annotations

from typing import Any, Final, Literal, TypedDict

from yolact_deploy.cli.schemas import DETECTIONS, DOCTOR, EVAL, INSPECT, PREDICT, RAY
from yolact_deploy.evaluation.accuracy import AveragePrecision, Curves
from yolact_deploy.evaluation.bootstrap import Interval
from yolact_deploy.runtime.checks import Finding

# -- predict --------------------------------------------------------------------------------------------------------


class FailedSource(TypedDict):
    """A picture or stream that could not be read or written."""

    source: str
    error: str


class _Stream(TypedDict):
    source: str


class StreamSummary(_Stream, total=False):
    """What happened to a video, camera or network stream; counts that are zero are left out.

    Attributes:
        damaged: packets or frames that could not be decoded
        dropped: frames of a live source that were too late
        reconnects: times that a network stream was opened again
        counts: of each line (left, right) and zone (inside, total)
    """

    damaged: int
    dropped: int
    reconnects: int
    counts: list[dict[str, Any]]


class PredictSummary(TypedDict):
    """What `predict --json` prints.

    Attributes:
        images: pictures and frames
        mean_ms: mean of each stage per image
        outputs: files written
        left_out: what folders have besides pictures, by reason
        interrupted: whether Ctrl-C ended the run early
    """

    schema: Literal["predict-v1"]
    images: int
    detections: int
    seconds: float
    images_per_second: float
    mean_ms: dict[str, float]
    outputs: list[str]
    failed: list[FailedSource]
    left_out: dict[str, list[str]]
    streams: list[StreamSummary]
    interrupted: bool


class RaySummary(TypedDict):
    """What `predict --ray --json` prints.

    Attributes:
        skipped: pictures of an earlier run
        output: folder of the Parquet files
    """

    schema: Literal["predict-ray-v1"]
    images: int
    detections: int
    failed: list[FailedSource]
    skipped: int
    seconds: float
    output: str


class MaskRle(TypedDict):
    """A mask as COCO encodes it: height and width, and compressed run lengths in column order."""

    size: list[int]
    counts: str


class _Object(TypedDict):
    name: str
    label: int
    score: float
    box: list[float]
    mask: MaskRle


class DetectedObject(_Object, total=False):
    """An object.

    Attributes:
        label: class index, from 0
        score: 0..1
        box: x1, y1, x2, y2 in pixels of the image
        mask_score: of networks that predict the IoU of their masks
        track: id over the frames of a video, from 1; null until it has one
    """

    mask_score: float
    track: int | None


class _Detections(TypedDict):
    written_by: Literal["yolact-deploy"]
    schema: Literal["detections-v1"]
    width: int
    height: int
    detections: list[DetectedObject]


class DetectionsFile(_Detections, total=False):
    """The JSON file that `predict` writes for a picture, or the line for a frame of a video; best detections first.

    Attributes:
        width: of the image in pixels
        height: of the image in pixels
        image: path of the picture
        frame: number of the frame, from 0
        time: of the frame in seconds
    """

    image: str
    frame: int
    time: float


# -- eval -----------------------------------------------------------------------------------------------------------


class EvalTimes(TypedDict):
    """Where the time went, in seconds.

    Attributes:
        images_run: images that the model ran on
        images_stored: images whose detections were read from --cache
        stages_s: of all processes
        unaccounted_s: outside all stages
        network_stage: the stage that includes the network
        outside_network: share of the time outside that stage, 0..1
    """

    images_run: int
    images_stored: int
    load_s: float
    whole_s: float
    workers: int
    stages_s: dict[str, float]
    unaccounted_s: float
    network_stage: str | None
    outside_network: float | None


class EvalResult(TypedDict):
    """What `eval --json` prints; average precisions are 0..1, null where there is nothing to compute them from.

    Attributes:
        model: name of the model or of the results file
        curves: precision over recall of "box" and "mask"
        max_detections: detections per image and class that count
        evaluator: what computed the figures
        time: null if results were read from a file
        reference: what --reference named
        difference: AP of "box" and "mask" minus the reference's
    """

    schema: Literal["eval-v1"]
    model: str
    box: AveragePrecision | None
    mask: AveragePrecision | None
    images: int
    detections: int
    curves: dict[str, Curves]
    max_detections: int
    evaluator: str
    time: EvalTimes | None
    reference: str | None
    difference: dict[str, Interval] | None


# -- doctor ---------------------------------------------------------------------------------------------------------


class _MachineBase(TypedDict):
    yolact_deploy: str
    system: str
    processor: str
    cores: int | None
    instructions: list[str]
    python: str


class MachineFacts(_MachineBase, total=False):
    """The computer.

    Attributes:
        yolact_deploy: version of this package
        instructions: sets that matter for speed
        jetpack: of a Jetson
        power_mode: of a Jetson
    """

    jetpack: str
    power_mode: str


class DoctorReport(TypedDict):
    """What `doctor --json` prints."""

    schema: Literal["doctor-v1"]
    machine: MachineFacts
    findings: list[Finding]


# -- inspect --------------------------------------------------------------------------------------------------------


class TensorInfo(TypedDict):
    """An input or output; names and "?" stand for sizes that are not fixed."""

    name: str
    dtype: str
    shape: list[int | str]


class FunctionInfo(TypedDict):
    """A local function of an ONNX file."""

    name: str
    nodes: int


class TensorCount(TypedDict):
    """Tensors of one dtype."""

    values: int
    bytes: int


class _File(TypedDict):
    schema: Literal["inspect-v1"]
    path: str
    kind: str
    bytes: int
    sha256: str
    metadata: dict[str, Any] | None


class FileFacts(_File, total=False):
    """What `inspect --json` prints.

    Attributes:
        kind: such as ONNX, safetensors, PyTorch checkpoint, TensorRT engine
        metadata: what this package wrote into the file; null in files of other programs
        metadata_error: why it cannot be read
        inferred_config: configuration of a checkpoint without one
        config_error: why there is none
        origin: implementation that a checkpoint comes from
        nodes: nodes of each type
        parameters: by dtype
        layers: with --layers, a node (ONNX) or tensor (weights) each
        profile: with --profile
    """

    metadata_error: str
    builder_version: str
    note: str
    producer: str
    ir_version: int
    opsets: dict[str, int]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    nodes: dict[str, int]
    functions: list[FunctionInfo]
    parameters: dict[str, TensorCount]
    other_properties: list[str]
    origin: str
    inferred_config: dict[str, Any]
    config_error: str
    tensors: int
    layers: list[dict[str, Any]]
    profile: dict[str, Any]


#: the type of each schema
OUTPUTS: Final[dict[str, type]] = {
    PREDICT: PredictSummary,
    RAY: RaySummary,
    DETECTIONS: DetectionsFile,
    EVAL: EvalResult,
    DOCTOR: DoctorReport,
    INSPECT: FileFacts,
}
