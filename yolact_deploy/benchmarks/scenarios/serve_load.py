"""`serve` under load: throughput against the library's own, overload, malformed requests, memory, and its end.

    python -m yolact_deploy.benchmarks.scenarios.serve_load --engine yolact.onnx@openvino -o result.json

Starts the service on loopback and sends generated pictures from this process, on the same cores. The library's own
throughput is measured before and after each load, in this process, with one network on all cores: from JPEG bytes to
JSON, as the service does. Each phase takes --seconds. CPU milliseconds per picture, of the service's processes alone,
depend less on what else runs than pictures per second. ``--soak 20000`` also sends that many requests of every kind by
eight clients, JSON, drawn pictures and errors, and notes the memory at each tenth.

Exit code 1 if a malformed request gets anything but 4xx, if an overload gives anything but 200 and 429, if an accepted
request is lost at the end, or if memory grows by more than 1 % from the first tenth of a soak to its last.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import cv2

from yolact_deploy.benchmarks.command import command_parser, run_command
from yolact_deploy.benchmarks.scenarios.http_client import Load, closed_loop, open_loop, picture_request, send_once
from yolact_deploy.console import print_table
from yolact_deploy.datasets.shapes import render
from yolact_deploy.errors import BackendError, import_optional
from yolact_deploy.loading import load
from yolact_deploy.machine.environment import environment
from yolact_deploy.preprocess import decode_image

CLIENTS = (8, 64)
_PICTURES = 32
_OVERLOAD = 3.0
_BODY_TIMEOUT = 2.0
_SOAK_CLIENTS = 8
#: how much memory may grow from the first tenth of a soak to its last
_GROWTH = 1.01


class Service:
    """The service as a process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        psutil = import_optional("psutil", "bench", "Measuring the service")
        self.process, self.port = process, port
        self._processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]

    def cpu_seconds(self) -> float:
        return float(sum(sum(process.cpu_times()[:2]) for process in self._processes))

    def rss_mib(self) -> float:
        return float(sum(process.memory_info().rss for process in self._processes)) / 2**20


@contextlib.contextmanager
def running_service(engine: str, *options: str) -> Iterator[Service]:
    """Start the service and wait until it takes requests; it is ended in any case."""
    command = [sys.executable, "-m", "yolact_deploy", "serve", f"model={engine}", "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            text = ""
            while not text.rstrip().endswith("}"):
                if not (line := process.stdout.readline()):
                    raise BackendError("the service did not start: see the message above")
                text += line
            yield Service(process, int(json.loads(text)["address"].rpartition(":")[2]))
        finally:
            if process.poll() is None:
                process.kill()


def own_throughput(engine: str, contents: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Pictures per second and CPU milliseconds per picture of a plain loop, from JPEG bytes to JSON."""
    with load(engine) as model:
        model.warm_up(2)
        count, start, cpu = 0, time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - start) < seconds:
            json.dumps(model(decode_image(contents[count % len(contents)], "picture")).to_json())
            count += 1
        return {"rate": count / elapsed, "cpu_ms": 1e3 * (time.process_time() - cpu) / count}


def measure(
    engine: str, seconds: float, malformed: int, options: Sequence[str] = (), *, soak: int = 0
) -> dict[str, Any]:
    """All phases; a JSON-ready result.

    Args:
        soak: requests of a last phase, 0 for none
    """
    contents = [cv2.imencode(".jpg", render(i).image)[1].tobytes() for i in range(_PICTURES)]
    requests = [picture_request(content) for content in contents]
    own = [own_throughput(engine, contents, seconds)]
    loads = {}
    with running_service(engine, "--body-timeout", str(_BODY_TIMEOUT), *options) as service:
        asyncio.run(closed_loop(service.port, requests, 8, min(2.0, seconds)))  # warm
        rss = {"warm": service.rss_mib()}
        for clients in CLIENTS:
            loads[clients] = _load(service, requests, clients, seconds)
            own.append(own_throughput(engine, contents, seconds))
            loads[clients] |= _ratios(loads[clients], own[-2:])
        rss["loaded"] = service.rss_mib()
        overload = _overload(service, requests, loads[CLIENTS[0]]["rate"], seconds)
        rss["overload"] = service.rss_mib()
        statuses = asyncio.run(send_malformed(service.port, contents[0], malformed))
        rss["malformed"] = service.rss_mib()
        soaked = _soak(service, contents, soak, seconds) if soak else None
        ended = asyncio.run(end_under_load(service, requests))
    return {
        "engine": engine.rpartition("/")[2], "seconds": seconds, "own": own, "loads": loads, "overload": overload,
        "malformed": {kind: dict(counts) for kind, counts in statuses.items()}, "end": ended, "rss_mib": rss,
        "soak": soaked,
        "environment": environment(),
    }  # fmt: skip


def facts(load: Load) -> dict[str, Any]:
    """A load in numbers."""
    return {
        "rate": load.rate,
        "p50_ms": load.percentile(0.5),
        "p99_ms": load.percentile(0.99),
        "statuses": dict(load.statuses),
    }


def _load(service: Service, requests: Sequence[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """A load, with the CPU milliseconds per picture of the service and of the clients in this process."""
    cpu, of_clients = service.cpu_seconds(), time.process_time()
    load = asyncio.run(closed_loop(service.port, requests, clients, seconds))
    count = max(1, load.statuses[200])
    return {
        **facts(load),
        "cpu_ms": 1e3 * (service.cpu_seconds() - cpu) / count,
        "clients_cpu_ms": 1e3 * (time.process_time() - of_clients) / count,
    }


def _ratios(load: Mapping[str, float], own: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Against the means of the two own measurements around a load."""
    means = {key: sum(one[key] for one in own) / len(own) for key in ("rate", "cpu_ms")}
    return {f"{key.partition('_')[0]}_ratio": load[key] / mean for key, mean in means.items()}


def _overload(service: Service, requests: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Three times the pictures that the service can take, and how long it is until it takes one again."""

    async def run() -> tuple[Load, float]:
        load = await open_loop(service.port, requests, _OVERLOAD * rate, seconds)
        start = time.perf_counter()
        while await send_once(service.port, requests[0]) != 200:
            await asyncio.sleep(0.02)
        return load, time.perf_counter() - start

    load, recovery = asyncio.run(run())
    return {**facts(load), "offered_rate": _OVERLOAD * rate, "recovery_s": recovery}


def soak_requests(contents: Sequence[bytes]) -> list[tuple[str, bytes, int]]:
    """Requests of every kind, one of each picture: what it is, the request, and the status that it has to get.

    Their order differs from picture to picture, so that each of as many clients as there are kinds sends all in turn.
    """
    forms = {f"masks as {form}": f"/v1/predict?masks={form}" for form in ("rle", "polygons", "png", "none")}
    kinds: list[tuple[str, Callable[[bytes], bytes], int]] = [
        *((kind, partial(picture_request, path=path), 200) for kind, path in forms.items()),
        ("drawn picture", partial(picture_request, accept="image/jpeg"), 200),
        ("truncated JPEG", lambda content: picture_request(content[: len(content) // 2]), 400),
        ("unknown model", partial(picture_request, path="/v1/predict?model=x"), 404),
        ("text", lambda content: picture_request(b"hello"), 415),
    ]
    return [
        (kind, make(content), status)
        for turn, content in enumerate(contents)
        for kind, make, status in (*kinds[turn % len(kinds) :], *kinds[: turn % len(kinds)])
    ]


def _soak(service: Service, contents: Sequence[bytes], count: int, seconds: float) -> dict[str, Any]:
    """So many requests, the memory each time that another tenth of them is answered, and wrong statuses by kind."""
    kinds = soak_requests(contents)
    statuses: Counter[int] = Counter()
    wrong: Counter[str] = Counter()
    rss: list[float] = []
    while statuses.total() < count:
        load = asyncio.run(closed_loop(service.port, [request for _, request, _ in kinds], _SOAK_CLIENTS, seconds))
        statuses += load.statuses
        for (place, status), times in load.answers.items():
            kind, _, expected = kinds[place]
            if status != expected:
                wrong[f"{kind}: {status}"] += times
        tenths = 10 * statuses.total() // count
        rss += [service.rss_mib()] * (min(10, tenths) - len(rss))
    return {"statuses": dict(statuses), "wrong": dict(wrong), "rss_mib": rss}


# -- malformed requests -----------------------------------------------------------------------------------------------


def malformed_requests(jpeg: bytes) -> dict[str, bytes]:
    """One request of each kind; of those whose body never ends, the server has to refuse the rest."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    slow = picture_request(jpeg)[: -len(jpeg) // 2]
    return {
        "truncated JPEG": picture_request(jpeg[: len(jpeg) // 2]),
        "60000 x 60000 PNG": picture_request(bomb, "image/png"),
        "empty body": picture_request(b""),
        "text": picture_request(b"hello"),
        "wrong type": picture_request(jpeg, "text/html"),
        "JSON": picture_request(b'{"url": 3}', "application/json"),
        "broken form": picture_request(b"--x\r\n", "multipart/form-data; boundary=x"),
        "unknown model": picture_request(jpeg, path="/v1/predict?model=x"),
        "unknown route": picture_request(jpeg, path="/v3/predict"),
        "KServe without inputs": picture_request(b"{}", "application/json", "/v2/models/model/infer"),
        "no HTTP": b"\x16\x03\x01 nothing\r\n\r\n",
        "stated length of 1 TB": b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n"
        b"Expect: 100-continue\r\n\r\n",
        "slow body": slow,
    }


async def send_malformed(port: int, jpeg: bytes, count: int) -> dict[str, Counter[int]]:
    """The statuses by kind; slow bodies are a tenth and wait side by side, others follow each other in eight lanes."""
    kinds = malformed_requests(jpeg)
    slow = kinds.pop("slow body")
    quick = list(kinds.items())
    statuses: dict[str, Counter[int]] = {name: Counter() for name in (*kinds, "slow body")}

    async def lane(number: int) -> None:
        for index in range(number, count - count // 10, 8):
            name, request = quick[index % len(quick)]
            statuses[name][await send_once(port, request)] += 1

    async def crawl() -> None:
        statuses["slow body"][await send_once(port, slow)] += 1

    await asyncio.gather(*map(lane, range(8)), *(crawl() for _ in range(count // 10)))
    return statuses


async def end_under_load(service: Service, requests: Sequence[bytes], clients: int = 16) -> dict[str, Any]:
    """SIGTERM while requests are at work: how each was answered, and the exit code."""
    tasks = [asyncio.ensure_future(send_once(service.port, requests[i % len(requests)])) for i in range(clients)]
    await asyncio.sleep(0.2)
    service.process.send_signal(signal.SIGTERM)
    statuses = Counter(await asyncio.gather(*tasks))
    return {"statuses": dict(statuses), "exit_code": await asyncio.to_thread(service.process.wait, 60)}


# -- the command ------------------------------------------------------------------------------------------------------


def problems(result: Mapping[str, Any]) -> list[str]:
    """What is wrong with a result of :func:`measure`, one sentence each."""
    sentences = [
        f"{kind}: status {status} {count} times, expected 4xx"
        for kind, counts in result["malformed"].items()
        for status, count in counts.items()
        if not 400 <= int(status) < 500
    ]
    for where, allowed in (("overload", {200, 429}), ("end", {200})):
        if other := {int(status) for status in result[where]["statuses"]} - allowed:
            sentences.append(f"{where}: statuses {sorted(other)}, expected {sorted(allowed)}")
    if soak := result["soak"]:
        sentences += [f"soak: {answer}, {times} times" for answer, times in soak["wrong"].items()]
        first, last = soak["rss_mib"][0], soak["rss_mib"][-1]
        if last > first * _GROWTH:
            sentences.append(f"soak: memory grew from {first:.1f} to {last:.1f} MiB, expected less than 1 %")
    if result["end"]["exit_code"]:
        sentences.append(f"end: exit code {result['end']['exit_code']}, expected 0")
    return sentences


def _print(result: Mapping[str, Any]) -> None:
    rows = [
        ("library, one network on all cores", *(f"{one[k]:.1f}" for k in ("rate", "cpu_ms"))) for one in result["own"]
    ]
    print_table(("", "images/s", "CPU ms/image"), rows)
    print_table(
        ("clients", "images/s", "of own", "CPU ms/image", "of own", "clients' own", "p50 ms", "p99 ms"),
        [
            (str(clients), f"{one['rate']:.1f}", f"{one['rate_ratio']:.2f}", f"{one['cpu_ms']:.1f}",
             f"{one['cpu_ratio']:.2f}", f"{one['clients_cpu_ms']:.1f}", f"{one['p50_ms']:.0f}", f"{one['p99_ms']:.0f}")
            for clients, one in result["loads"].items()
        ],
    )  # fmt: skip
    over = result["overload"]
    print(
        f"overload, {over['offered_rate']:.0f} offered: {over['rate']:.1f} images/s, statuses {over['statuses']}, p99 "
        f"{over['p99_ms']:.0f} ms; {over['recovery_s']:.2f} s later it answers again"
    )
    print_table(("malformed", "statuses"), [(kind, str(dict(counts))) for kind, counts in result["malformed"].items()])
    print(f"end: {result['end']['statuses']}, exit code {result['end']['exit_code']}")
    if soak := result["soak"]:
        print(f"soak: statuses {soak['statuses']}, MiB {', '.join(f'{mib:.1f}' for mib in soak['rss_mib'])}")
    print("MiB: " + ", ".join(f"{phase} {mib:.0f}" for phase, mib in result["rss_mib"].items()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("scenarios.serve_load", __doc__)
    parser.add_argument("--engine", metavar="SPEC", required=True, help="model to serve: FILE[@BACKEND...]")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="of each phase (8)")
    parser.add_argument("--malformed", type=int, default=1000, metavar="N", help="malformed requests (1000)")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="requests of the last phase (0: none)")
    parser.add_argument(
        "--predictors", metavar="N", default="0", help="networks of the service (default: one per core)"
    )
    return run_command(
        parser, argv,
        lambda args: measure(
            args.engine, args.seconds, args.malformed, ("--predictors", args.predictors), soak=args.soak
        ),
        show=_print, problems=problems,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
