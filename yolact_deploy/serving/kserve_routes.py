"""The KServe v2 protocol (Open Inference Protocol) over HTTP.

Each model is there twice. ``NAME`` takes encoded pictures and returns detections. ``NAME_network`` is the network
alone: resized pictures in, its outputs out, for ``load("http://HOST:PORT/NAME")``.

Legend: N pictures, D most detections of one of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from yolact_deploy.artifact import METADATA_KEY
from yolact_deploy.detections import Detections
from yolact_deploy.runtime.remote_names import NETWORK_KEY, NETWORK_SUFFIX, network_metadata
from yolact_deploy.serving.answers import MASK_FORMS, AnswerForm, describe
from yolact_deploy.serving.body_reader import read_body
from yolact_deploy.serving.detection_tensors import detection_tensors
from yolact_deploy.serving.kserve_tensors import (
    InferRequest,
    Tensor,
    TensorSpec,
    missing_input,
    read_request,
    write_response,
)
from yolact_deploy.serving.model_pool import Job, ModelPool
from yolact_deploy.serving.pictures_in import picture_decoder
from yolact_deploy.serving.predict_routes import checked_threshold
from yolact_deploy.serving.served_models import ServedModels, models_of
from yolact_deploy.serving.service_errors import bad_request
from yolact_deploy.untrusted import shown
from yolact_deploy.version import __version__

router = APIRouter(prefix="/v2", tags=["KServe v2"])

_EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository")
#: what the model for pictures takes and gives
PICTURES = (TensorSpec("image", "BYTES", (-1,)),)
DETECTIONS = (
    TensorSpec("detections", "BYTES", (-1,)),
    TensorSpec("num_detections", "INT32", (-1,)),
    TensorSpec("boxes", "FP32", (-1, -1, 4)),
    TensorSpec("scores", "FP32", (-1, -1)),
    TensorSpec("labels", "INT32", (-1, -1)),
)


@dataclass(frozen=True)
class _ProtocolModel:
    """A model as the protocol shows it."""

    name: str
    pool: ModelPool
    network: bool
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": ["1"],
            "platform": "yolact_deploy",
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }

    def config(self) -> dict[str, Any]:
        """In the form of Triton's model configuration extension."""
        own = network_metadata(self.pool.metadata, self.pool.tail).to_json()
        parameters = {METADATA_KEY: own} if self.network else {NETWORK_KEY: self.name + NETWORK_SUFFIX}
        return {
            "name": self.name,
            "platform": "yolact_deploy",
            "max_batch_size": 0,
            "input": [_config_tensor(spec) for spec in self.inputs],
            "output": [_config_tensor(spec) for spec in self.outputs],
            "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        }


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape)}


def _model(request: Request, name: str, version: str | None) -> _ProtocolModel:
    models = models_of(request)
    if version not in (None, "1"):
        raise bad_request(f"model {shown(name)} has no version {shown(version)}: it has 1", status=404, reason="model")
    network = name not in models.pools and name.endswith(NETWORK_SUFFIX)
    pool = models.pool(name.removesuffix(NETWORK_SUFFIX) if network else name)
    if not network:
        return _ProtocolModel(name, pool, False, PICTURES, DETECTIONS)
    if not pool.network_outputs:
        raise bad_request(f"the network of {pool.name} cannot be called alone", status=404, reason="model")
    kind = {"uint8": "UINT8", "float32": "FP32"}[pool.metadata.input_dtype]
    sides = pool.config.input_shape if pool.metadata.sizes is None else (-1, -1)
    inputs = (TensorSpec("images", kind, (-1, *sides, 3)),)
    outputs = [TensorSpec(name, kind, (-1, *shape)) for name, (kind, shape) in pool.network_outputs.items()]
    return _ProtocolModel(name, pool, True, inputs, outputs)


@router.get("", summary="The server")
async def server_metadata() -> dict[str, Any]:
    return {"name": "yolact-deploy", "version": __version__, "extensions": list(_EXTENSIONS)}


@router.get("/health/live", summary="Whether the server runs")
async def live() -> Response:
    return Response()


@router.get("/health/ready", summary="Whether the server takes requests")
async def ready(request: Request) -> Response:
    models_of(request)
    return Response()


@router.post("/repository/index", summary="All models")
async def index(request: Request) -> JSONResponse:
    names = [name for own in models_of(request).pools for name in (own, own + NETWORK_SUFFIX)]
    return JSONResponse([{"name": name, "version": "1", "state": "READY", "reason": ""} for name in names])


@router.get("/models/{name}", summary="Inputs and outputs of a model")
@router.get("/models/{name}/versions/{version}", include_in_schema=False)
async def model_metadata(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    return _model(request, name, version).metadata()


@router.get("/models/{name}/ready", summary="Whether a model takes requests")
@router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    _model(request, name, version)
    return Response()


@router.get("/models/{name}/config", summary="A model's configuration, with the metadata of its network")
@router.get("/models/{name}/versions/{version}/config", include_in_schema=False)
async def model_config(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    return _model(request, name, version).config()


@router.post("/models/{name}/infer", summary="Run a model", response_class=Response)
@router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    model, models = _model(request, name, version), models_of(request)
    if encoding := request.headers.get("content-encoding", ""):
        raise bad_request(f"Content-Encoding: {shown(encoding)} is not supported", status=415, reason="type")
    body = await read_body(request, models.settings)
    message = read_request(body, request.headers.get("inference-header-content-length"))
    if (error := missing_input(model.inputs, message)) is not None:
        raise error
    run = _run_network if model.network else _run_pictures
    outputs, parameters = await run(request, models, model, message)
    content, header = write_response(model.name, message, outputs, parameters=parameters)
    headers = {} if header is None else {"Inference-Header-Content-Length": str(header)}
    kind = "application/json" if header is None else "application/octet-stream"
    return Response(content, media_type=kind, headers=headers)


_Outputs = tuple[Mapping[str, Tensor], Mapping[str, Any]]


async def _run_pictures(
    request: Request, models: ServedModels, model: _ProtocolModel, message: InferRequest
) -> _Outputs:
    pictures = message.inputs["image"]
    if not isinstance(pictures, list) or not pictures:
        raise bad_request("image: expected a BYTES tensor with the bytes of at least one picture")
    if len(pictures) > models.settings.queue:
        raise bad_request(f"image: at most {models.settings.queue} pictures in a request, got {len(pictures)}",
                          status=413, reason="body")  # fmt: skip
    form = _form(message, models)

    def encode(image: object, detections: Detections, spent: object) -> tuple[bytes, Detections]:
        wanted = form.select(detections)
        return json.dumps(describe(wanted, form.masks)).encode(), wanted

    deadline, most = models.deadline(), models.settings.max_pixels
    jobs = [Job(deadline, picture_decoder(content, most, f"image {i}"), encode) for i, content in enumerate(pictures)]
    answers = await models.answers(request, model.pool, jobs)
    outputs: dict[str, Tensor] = {
        "detections": [text for text, _ in answers],
        **detection_tensors([detections for _, detections in answers]),
    }
    return outputs, {}


def _form(message: InferRequest, models: ServedModels) -> AnswerForm:
    """From the parameters ``masks`` and ``score_threshold`` of a request."""
    masks = message.parameters.get("masks", MASK_FORMS[0])
    if masks not in MASK_FORMS:
        raise bad_request(f"masks: expected one of {', '.join(MASK_FORMS)}, got {shown(masks)}")
    threshold = message.parameters.get("score_threshold")
    if threshold is not None and not (type(threshold) in (int, float) and 0 <= threshold < 1):
        raise bad_request(f"score_threshold: expected 0 <= value < 1, got {shown(threshold)}")
    return AnswerForm(masks=masks, score_threshold=checked_threshold(threshold, models.settings.score_threshold))


async def _run_network(
    request: Request, models: ServedModels, model: _ProtocolModel, message: InferRequest
) -> _Outputs:
    images, pool = message.inputs["images"], model.pool
    (height, width), dtype, sizes = pool.config.input_shape, pool.metadata.input_dtype, pool.metadata.sizes
    expected = f"[N, {height}, {width}, 3]" if sizes is None else f"[N, height, width, 3] from {sizes}"
    fits = not isinstance(images, list) and images.dtype == dtype and images.shape[3:] == (3,)
    if isinstance(images, list) or not fits or not pool.takes(images.shape[1:3]):
        raise bad_request(f"images: expected {dtype} {expected}, got {_described(images)}")
    least = pool.network_batch if pool.fixed_batch else 1
    if not least <= len(images) <= pool.network_batch:
        raise bad_request(f"images: expected {least} to {pool.network_batch} pictures, got {len(images)}")
    job = Job(models.deadline(), tensors=images)
    ((outputs, spent),) = await models.answers(request, pool, [job])
    named = {name: value for name, value in outputs._asdict().items() if value is not None}
    compute = sum(ms for stage, ms in spent.items() if stage != "queue")
    return named, {"compute_ms": round(compute, 4)}


def _described(value: Tensor) -> str:
    return "BYTES" if isinstance(value, list) else f"{value.dtype} {list(value.shape)}"
