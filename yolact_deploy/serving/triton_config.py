"""``config.pbtxt`` of a Triton model: plain values written as protobuf text, and what each model's file says.

Legend: N pictures, S input side, D detection slots, h x w prototypes, P priors, C classes, K coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.runtime.remote_names import NETWORK_KEY, NETWORK_SUFFIX

Fields = Sequence[tuple[str, Any]]

#: how Triton names the backends, and the file of each
TRITON_BACKENDS = {
    "onnxruntime": "model.onnx",
    "openvino": "model.xml",
    "tensorrt": "model.plan",
    "python": "model.py",
}
#: the parameter of the command that the pictures' model passes on
THRESHOLD_KEY = "score_threshold"
#: name of the file of a network that runs in the Python backend, as a parameter
FILE_KEY = "yolact_deploy_file"

_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32"}


class Word(str):
    """A name of an enumeration, which stands without quotes."""

    __slots__ = ()


@dataclass(frozen=True)
class TritonSettings:
    """How Triton is to run a model.

    Attributes:
        backend: one of :data:`TRITON_BACKENDS`
        gpu: whether the network runs on a GPU
        instances: copies of the network, which work at the same time
        max_delay_us: microseconds that a request waits for its batch
        queue: requests that may wait; others are refused
        score_threshold: of the model for pictures
    """

    backend: str
    gpu: bool
    instances: int
    max_delay_us: int = 2000
    queue: int = 64
    score_threshold: float = 0.15


def to_pbtxt(fields: Fields, indent: str = "") -> str:
    """Protobuf text: a list of pairs is a message, any other list a repeated field in brackets."""
    lines = []
    for name, value in fields:
        if _is_message(value):
            lines += [f"{indent}{name} {{", to_pbtxt(value, indent + "  ").rstrip("\n"), f"{indent}}}"]
        elif isinstance(value, (list, tuple)):
            lines.append(f"{indent}{name}: [{', '.join(map(_scalar, value))}]")
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}")
    return "\n".join(filter(None, lines)) + "\n"


def _is_message(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, tuple) for item in value) and value != []


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Word) or not isinstance(value, str):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def network_config(name: str, metadata: Metadata, settings: TritonSettings, extra: dict[str, str]) -> str:
    """The file of the network alone.

    Args:
        extra: further parameters
    """
    config, python = metadata.config, settings.backend == "python"
    (height, width), (least, best, most) = config.input_shape, metadata.batch
    batched = least < most or (python and most == 1)
    kind = _TYPES[metadata.input_dtype]
    fields: list[tuple[str, Any]] = [
        ("name", name),
        ("backend", settings.backend),
        ("default_model_filename", TRITON_BACKENDS[settings.backend]),
        ("max_batch_size", most if batched and most > 1 else 0),
        ("input", _tensor("images", kind, [height, width, 3], most, batched and most > 1)),
    ]
    for output, dtype, shape in metadata.output_shapes:
        fields.append(("output", _tensor(output, _TYPES[dtype], shape, most, batched and most > 1)))
    fields.append(("instance_group", _instances(settings.instances, gpu=settings.gpu)))
    if batched and most > 1:
        fields.append(("dynamic_batching", _batching(best, most, settings)))
    warm = [
        ("key", "images"),
        ("value", [("data_type", Word(kind)), ("dims", [height, width, 3]), ("zero_data", True)]),
    ]
    if not (batched and most > 1):
        warm[1] = ("value", [("data_type", Word(kind)), ("dims", [most, height, width, 3]), ("zero_data", True)])
    fields.append(("model_warmup", [("name", "zeros"), ("batch_size", 1), ("inputs", warm)]))
    fields += _parameters({METADATA_KEY: metadata.to_json(), **extra, **_backend_parameters(settings)})
    return to_pbtxt(fields)


def pictures_config(name: str, metadata: Metadata, settings: TritonSettings, instances: int) -> str:
    """The file of the model that takes encoded pictures: a Python step that calls the network.

    It has no warm-up: Triton loads models side by side and does not know that this one needs the other.
    """
    outputs = (("detections", "STRING", [-1]), ("num_detections", "INT32", [-1]), ("boxes", "FP32", [-1, -1, 4]),
               ("scores", "FP32", [-1, -1]), ("labels", "INT32", [-1, -1]))  # fmt: skip
    fields: list[tuple[str, Any]] = [
        ("name", name),
        ("backend", "python"),
        ("max_batch_size", 0),
        ("input", [("name", "image"), ("data_type", Word("TYPE_STRING")), ("dims", [-1])]),
        *(
            ("output", [("name", output), ("data_type", Word(f"TYPE_{kind}")), ("dims", dims)])
            for output, kind, dims in outputs
        ),
        ("instance_group", _instances(instances, gpu=False)),
    ]
    parameters = {
        NETWORK_KEY: name + NETWORK_SUFFIX,
        METADATA_KEY: metadata.to_json(),
        THRESHOLD_KEY: str(settings.score_threshold),
    }
    return to_pbtxt([*fields, *_parameters(parameters)])


def _tensor(name: str, kind: str, shape: list[int], most: int, batched: bool) -> Fields:
    own: list[tuple[str, Any]] = [("name", name), ("data_type", Word(kind))]
    if not batched:
        return [*own, ("dims", [most, *shape])]
    if not shape:  # one number per picture: Triton wants at least one axis
        return [*own, ("dims", [1]), ("reshape", [("shape", [])])]
    return [*own, ("dims", shape)]


def _instances(count: int, *, gpu: bool) -> Fields:
    return [("count", count), ("kind", Word("KIND_GPU" if gpu else "KIND_CPU"))]


def _batching(best: int, most: int, settings: TritonSettings) -> Fields:
    return [
        ("preferred_batch_size", sorted({best, most})),
        ("max_queue_delay_microseconds", settings.max_delay_us),
        ("default_queue_policy", [("max_queue_size", settings.queue)]),
    ]


def _parameters(values: dict[str, str]) -> list[tuple[str, Any]]:
    return [("parameters", [("key", key), ("value", [("string_value", value)])]) for key, value in values.items()]


def _backend_parameters(settings: TritonSettings) -> dict[str, str]:
    """One thread for each instance on the CPU, where several instances share the cores."""
    if settings.gpu or settings.backend in ("tensorrt", "python"):
        return {}
    if settings.backend == "openvino":
        return {"INFERENCE_NUM_THREADS": "1"}
    return {"intra_op_thread_count": "1"}
