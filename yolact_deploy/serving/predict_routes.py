"""``POST /v1/predict``: a picture in, detections or the drawn picture out."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from yolact_deploy.serving.answers import AnswerForm, choose_media_type
from yolact_deploy.serving.body_reader import read_body, read_file
from yolact_deploy.serving.fetch_url import fetch_picture
from yolact_deploy.serving.model_pool import Job, ModelPool
from yolact_deploy.serving.pictures_in import MEDIA_TYPES, picture_decoder
from yolact_deploy.serving.served_models import ServedModels, models_of
from yolact_deploy.serving.service_errors import MalformedError, RequestError, bad_request
from yolact_deploy.untrusted import parse_json, shown

router = APIRouter()

#: media types of bodies that are a picture
_PLAIN = (*MEDIA_TYPES, "image/jpg", "application/octet-stream", "binary/octet-stream", "")
_FORM = "multipart/form-data"
#: at most so many pictures are fetched at once for clients
_FETCHES = asyncio.Semaphore(8)

_ERROR = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **dict.fromkeys(MEDIA_TYPES, _BINARY),
            _FORM: {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}},
            "application/json": {"schema": {"type": "object", "properties": {"url": {"type": "string"}}}},
        },
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Detections, or the picture with the detections drawn on it if Accept names its type",
        "content": {
            "application/json": {
                "example": {
                    "model": "demo",
                    "width": 640,
                    "height": 480,
                    "detections": [
                        {
                            "name": "circle",
                            "label": 0,
                            "score": 0.98,
                            "box": [12.5, 30.0, 110.2, 128.4],
                            "mask": {"size": [480, 640], "counts": "..."},
                        }
                    ],
                    "timings_ms": {"queue": 0.1, "decode": 1.2, "network": 15.0},
                }
            },
            "image/png": {},
            "image/jpeg": {},
            "image/webp": {},
        },
    },
    **{
        status: {"description": text, "content": _ERROR}
        for status, text in (
            (400, "The picture or a parameter is wrong"),
            (404, "No such model"),
            (406, "None of the accepted types can be given"),
            (408, "The body did not arrive in time"),
            (413, "The body or the picture is too large"),
            (415, "Not a JPEG, PNG or WebP picture"),
            (429, "The queue is full: try again after the seconds of Retry-After"),
            (503, "Not finished in time, or the service is shutting down"),
        )
    },
}


@router.post(
    "/v1/predict", response_class=Response, openapi_extra=_OPENAPI, responses=_RESPONSES, summary="Detect objects"
)
async def predict(
    request: Request,
    model: Annotated[str | None, Query(description="name of the model, if there are several")] = None,
    masks: Annotated[Literal["rle", "polygons", "png", "none"], Query(description="form of the masks in JSON")] = "rle",
    score_threshold: Annotated[float | None, Query(description="drop detections below", ge=0, lt=1)] = None,
    classes: Annotated[list[str] | None, Query(alias="class", description="keep only this class; repeatable")] = None,
) -> Response:
    """Send a JPEG, PNG or WebP picture as the body, or as the one file of a form."""
    models = models_of(request)
    pool = models.pool(model)
    form = AnswerForm(
        media_type=choose_media_type(request.headers.get("accept", "")),
        masks=masks,
        score_threshold=checked_threshold(score_threshold, models.settings.score_threshold),
        classes=class_labels(pool, classes),
    )
    content = await _content(request, models)
    job = Job(
        models.deadline(),
        picture_decoder(content, models.settings.max_pixels),
        lambda image, detections, spent: form.encode(pool.name, image, detections, spent),
    )
    (body,) = await models.answers(request, pool, [job])
    return Response(body, media_type=form.media_type)


@router.get("/v1/models", summary="The models of this service and their classes")
async def list_models(request: Request) -> dict[str, Any]:
    models = models_of(request)
    return {
        "models": [
            {
                "name": name,
                "classes": list(pool.config.class_names),
                "image_size": pool.config.image_size,
                "score_threshold": models.settings.score_threshold,
                "predictors": pool.predictors,
                "max_batch": pool.max_batch,
            }
            for name, pool in models.pools.items()
        ]
    }


def checked_threshold(value: float | None, least: float) -> float | None:
    """A request's score threshold; raises :class:`RequestError` below that of the service."""
    if value is not None and value < least:
        raise bad_request(f"score_threshold: {value:g} is below {least:g}, under which this service drops detections")
    return value


def class_labels(pool: ModelPool, names: list[str] | None) -> frozenset[int] | None:
    """Labels of class names; raises :class:`RequestError` for one that the model does not have."""
    if not names:
        return None
    known = pool.config.class_names
    for name in names:
        if name not in known:
            raise bad_request(f"class: the model has no class {shown(name)}; it has {', '.join(known)}")
    return frozenset(known.index(name) for name in names)


async def _content(request: Request, models: ServedModels) -> bytes:
    """The picture of a request, still encoded."""
    settings = models.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM:
        return await read_file(request, settings)
    if kind == "application/json":
        return await _fetched(await read_body(request, settings), models)
    if kind not in _PLAIN:
        raise bad_request(
            f"Content-Type: expected {', '.join(MEDIA_TYPES)} or {_FORM}, got {shown(kind)}", status=415, reason="type"
        )
    return await read_body(request, settings)


async def _fetched(body: bytes, models: ServedModels) -> bytes:
    """The picture at the URL of a JSON body."""
    settings = models.settings
    if not settings.allow_urls:
        raise RequestError(403, "this service fetches no URLs (serve --allow-urls): send the picture", reason="url")
    message = parse_json(body, "the body", MalformedError)
    url = message.get("url") if isinstance(message, dict) else None
    if not isinstance(url, str) or len(url) > 4096:
        raise bad_request("the body: expected an object with a text 'url' of at most 4096 characters")
    async with _FETCHES:
        return await asyncio.to_thread(
            fetch_picture, url, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
        )
