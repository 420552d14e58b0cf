"""Bodies of requests, read within limits of size and time: plain, or the one file of a form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from yolact_deploy.serving.service_errors import RequestError, bad_request
from yolact_deploy.serving.service_settings import ServiceSettings


async def read_body(request: Request, settings: ServiceSettings) -> bytes:
    """The whole body.

    Raises:
        RequestError: it is too large, or does not arrive in time.
    """
    return await _in_time(_read(request, settings), settings)


async def read_file(request: Request, settings: ServiceSettings) -> bytes:
    """The content of the one file in a body of ``multipart/form-data``.

    Raises:
        RequestError: it is malformed, too large, does not arrive in time, or has another number of files.
    """
    return await _in_time(_read_file(request, settings), settings)


async def _in_time(reading: Coroutine[Any, Any, bytes], settings: ServiceSettings) -> bytes:
    try:
        return await asyncio.wait_for(reading, settings.body_timeout_s)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise RequestError(
            408, f"the body did not arrive within {settings.body_timeout_s:g} s", reason="slow_body"
        ) from error
    except ClientDisconnect as error:
        raise RequestError(400, "the client went away", reason="disconnected") from error


async def _read(request: Request, settings: ServiceSettings) -> bytes:
    content = bytearray()
    async for chunk in _limited(request, settings.max_body_bytes):
        content += chunk
    return bytes(content)


async def _read_file(request: Request, settings: ServiceSettings) -> bytes:
    parser = MultiPartParser(request.headers, _limited(request, settings.max_body_bytes), max_files=1, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise bad_request(f"the form: {error.message}") from error
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        raise bad_request("the form is malformed: send multipart/form-data with one file") from error
    try:
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        if len(files) != 1:
            raise bad_request(f"the form: expected one file, got {len(files)}")
        return await files[0].read()
    finally:
        await form.close()


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The chunks of a body; what is too large is refused before it is read, where its length is stated."""
    too_large = RequestError(413, f"the body is larger than {most:,} bytes", reason="body")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > most:
        if request.headers.get("expect", "").lower() != "100-continue":
            await _drain(request, most)
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            await _drain(request, most)
            raise too_large
        yield chunk


async def _drain(request: Request, most: int) -> None:
    """Read on for a while: a client that is cut off while it sends may never see the answer."""
    size = 0
    while size <= most:
        message = await request.receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
