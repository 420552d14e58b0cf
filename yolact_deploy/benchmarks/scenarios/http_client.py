"""A small HTTP client for loads: prepared requests over kept connections, with as little work as possible."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_ENDED = (ConnectionError, asyncio.IncompleteReadError)


@dataclass
class Load:
    """What came of a load: the number of answers by status, and the seconds of those with status 200.

    Status 0 stands for a connection that ended without an answer.

    Attributes:
        answers: number by place of the request and status
    """

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    answers: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers of status 200 per second."""
        return self.statuses[200] / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the pictures was answered; 0 without any."""
        ordered = sorted(self.latencies)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def picture_request(
    content: bytes, kind: str = "image/jpeg", path: str = "/v1/predict", *, accept: str = "*/*"
) -> bytes:
    """A whole request as bytes."""
    headers = {"Host": "localhost", "Content-Type": kind, "Content-Length": len(content), "Accept": accept}
    lines = (f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + content


async def _answer(reader: asyncio.StreamReader) -> int:
    """The status of an answer, which is read to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


async def send_once(port: int, request: bytes, *, end: bool = False) -> int:
    """The status of one request over a connection of its own; 0 if the server ends it without an answer.

    Args:
        end: send nothing more, as a client does that goes away in the middle
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        if end:
            writer.write_eof()
        return await _answer(reader)
    except _ENDED:
        return 0
    finally:
        writer.close()


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Clients that each send their next request when they have the answer to the last one."""
    load, end = Load(), time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        at = number
        while (start := time.perf_counter()) < end:
            writer.write(requests[at % len(requests)])
            status = await _answer(reader)
            load.statuses[status] += 1
            load.answers[at % len(requests), status] += 1
            if status == 200:
                load.latencies.append(time.perf_counter() - start)
            at += clients
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    load.seconds = time.perf_counter() - start
    return load


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Requests at a fixed rate, whether or not the earlier ones are answered, each over a connection of its own."""
    load, tasks = Load(), []

    async def one(request: bytes) -> None:
        start = time.perf_counter()
        try:
            status = await send_once(port, request)
        except OSError:  # no connection at all
            status = 0
        load.statuses[status] += 1
        if status == 200:
            load.latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one(requests[number % len(requests)])))
    load.seconds = time.perf_counter() - start
    await asyncio.gather(*tasks)
    return load
