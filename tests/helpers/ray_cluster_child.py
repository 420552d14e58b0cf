"""Runs in a Python that has Ray, in a network of its own: MODEL PICTURES OUTPUT; a cluster of two nodes with one token.

Prints JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from yolact_deploy.progress import SILENT
from yolact_deploy.scale.prediction_ray import predict_on_ray
from yolact_deploy.scale.ray_rows import ParquetFolder, made_with, running_ray

ADDRESS = "127.0.0.1:6379"


def ray_start(*options: str) -> None:
    """A node; a head that is not there would be tried for ever."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=1", "--object-store-memory=500000000",
               "--disable-usage-stats", *options]  # fmt: skip
    subprocess.run(["timeout", "-s", "KILL", "120", *command], check=True, stdout=sys.stderr, stderr=sys.stderr)


def main() -> None:
    model, folder, output = sys.argv[1:]
    pictures = sorted(Path(folder).iterdir())
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    # "ray start" notes the cluster in this folder, for every later program of the machine that uses Ray.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray")
    ray_start("--head", "--port=6379", "--include-dashboard=false")
    ray_start(f"--address={ADDRESS}")
    options = {"score_threshold": 0.15, "threads": 1}
    with running_ray(ADDRESS) as ray:
        nodes = len([node for node in ray.nodes() if node["Alive"]])
    facts = predict_on_ray(ADDRESS, model, options, pictures, Path(output), workers=2, progress=SILENT)
    rows = list(ParquetFolder(Path(output), made_with(model, options)).rows())
    print(json.dumps({"nodes": nodes, "predicted": facts, "rows": rows}))


if __name__ == "__main__":
    main()
