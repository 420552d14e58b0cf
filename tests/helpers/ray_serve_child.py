"""Runs in a Python that has Ray, in a network of its own: MODEL PICTURE; prints what the service under Ray answered."""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from served import served


def main() -> None:
    model, picture = sys.argv[1], Path(sys.argv[2]).read_bytes()
    with served(f"demo={model}", "--ray", "--replicas", "1:2", "--queue", "2", "--threads", "1") as service:
        status, body = service.request("POST", "/v1/predict", picture)
        assert status == 200, body
        malformed, _ = service.request("POST", "/v1/predict", picture[:100])
        with ThreadPoolExecutor(24) as clients:
            asked = [clients.submit(service.request, "POST", "/v1/predict", picture) for _ in range(72)]
            statuses = Counter(str(one.result()[0]) for one in asked)
        health, _ = service.request("GET", "/healthz")
        with ThreadPoolExecutor(1) as client:
            last = client.submit(service.request, "POST", "/v1/predict", picture)
            code = service.end()
            final = last.result()[0]
    print(
        json.dumps({
            "answer": json.loads(body), "malformed": malformed, "statuses": statuses, "health": health, "code": code,
            "final": final,
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
