"""What needs tritonclient or a real Triton; runs in a Python that has them, and prints JSON.

python triton_child.py parse FILE ...                     config.pbtxt by the official protobuf
python triton_child.py call ADDRESS NAME PICTURE ...      a server that runs
python triton_child.py serve REPOSITORY NAME PICTURE ...  nvidia-pytriton's server on a repository
python triton_child.py commands MODEL DATA ADDRESS NAME   eval, bench and compare on a server that runs
python triton_child.py commands MODEL DATA REPOSITORY NAME    the same on nvidia-pytriton's server
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = 120.0


def parse(paths: list[str]) -> Any:
    text_format = importlib.import_module("google.protobuf.text_format")
    json_format = importlib.import_module("google.protobuf.json_format")
    pb2 = importlib.import_module("tritonclient.grpc.model_config_pb2")
    return [
        json_format.MessageToDict(
            text_format.Parse(Path(path).read_text(encoding="utf-8"), pb2.ModelConfig()),
            preserving_proto_field_name=True,
        )
        for path in paths
    ]


def infer(protocol: str, address: str, name: str, contents: list[bytes]) -> Any:
    """The JSON of each picture, and the error of a request with a damaged one."""
    import numpy as np

    client = importlib.import_module(f"tritonclient.{protocol}")
    server = client.InferenceServerClient(address)
    wait_until_ready(server, name)

    def call(pictures: list[bytes]) -> Any:
        tensor = client.InferInput("image", [len(pictures)], "BYTES")
        tensor.set_data_from_numpy(np.array(pictures, dtype=np.object_))
        return server.infer(name, [tensor])

    result = call(contents)
    texts = [json.loads(text) for text in result.as_numpy("detections")]
    counts = result.as_numpy("num_detections").tolist()
    assert result.as_numpy("boxes").shape == (len(contents), max(counts), 4)
    error = ""
    try:
        call([contents[0][:200]])
    except Exception as failure:
        error = str(failure)
    again = [json.loads(text) for text in call(contents[:1]).as_numpy("detections")]
    return {"detections": texts, "counts": counts, "error": error, "again": again}


def remote(url: str, paths: list[str]) -> Any:
    """Detections through load(URL), with the stages."""
    import yolact_deploy

    with yolact_deploy.load(url) as model:
        detections = [one.to_json() for one in model(paths)]
        return {"detections": detections, "stages": list(model.timings), "timings": model.timings}


def call(address: str, name: str, paths: list[str]) -> Any:
    contents = [Path(path).read_bytes() for path in paths]
    return {"http": infer("http", address, name, contents), "remote": remote(f"http://{address}/{name}", paths)}


def serve(repository: str, name: str, paths: list[str]) -> Any:
    contents = [Path(path).read_bytes() for path in paths]
    with server(repository) as (http, grpc):
        return {
            "http": infer("http", http, name, contents),
            "grpc": infer("grpc", grpc, name, contents),
            "remote_http": remote(f"http://{http}/{name}", paths),
            "remote_grpc": remote(f"grpc://{grpc}/{name}", paths),
        }


def commands(model: str, data: str, target: str, name: str) -> Any:
    """What eval, bench and compare print about a model on a server, and eval about its file."""
    with contextlib.ExitStack() as stack:
        addresses = [f"http://{target}"]
        if Path(target).is_dir():
            http, grpc = stack.enter_context(server(target))
            wait_until_ready(importlib.import_module("tritonclient.http").InferenceServerClient(http), name)
            addresses = [f"http://{http}", f"grpc://{grpc}"]
        last = f"{addresses[-1]}/{name}"
        compared = printed("compare", "--reference", model, "--engine", last, "--images", data, "--layer-images", "0")
        return {
            "file": printed("eval", "--engine", model, "--data", data),
            "eval": [printed("eval", "--engine", f"{one}/{name}", "--data", data) for one in addresses],
            "bench": printed("bench", "--engine", last, "--limit", "2", "--warmup", "1"),
            "compare": compared,
        }


def printed(*words: str) -> Any:
    """The JSON that a command prints."""
    from yolact_deploy.cli.main import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = main([*words, "--json"])
    assert code == 0, words
    return json.loads(text.getvalue())


def wait_until_ready(client: Any, name: str) -> None:
    end = time.monotonic() + SECONDS
    while not client.is_model_ready(name):
        assert time.monotonic() < end
        time.sleep(0.2)


@contextlib.contextmanager
def server(repository: str) -> Iterator[tuple[str, str]]:
    """nvidia-pytriton's tritonserver; its Python backend wants the stub of this Python beside it."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    home, version = package / "tritonserver", f"{sys.version_info[0]}.{sys.version_info[1]}"
    ports = [str(free_port()) for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        backends = Path(folder) / "backends"
        shutil.copytree(home / "backends", backends)
        shutil.copy(home / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        own = [str(package.parent), *os.environ["PYTHONPATH"].split(os.pathsep)]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(package.parent / "nvidia_pytriton.libs"),
            "YOLACT_DEPLOY_PYTHONPATH": os.pathsep.join(own),
        }
        command = [str(home / "bin" / "tritonserver"), f"--model-repository={repository}",
                   f"--backend-directory={backends}", "--exit-on-error=true"]  # fmt: skip
        for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True):
            command += [f"--{kind}-address=127.0.0.1", f"--{kind}-port={port}"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=sys.stderr) as process:
            try:
                wait_for(int(ports[0]), process)
                yield f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
            finally:
                process.terminate()
                process.wait(SECONDS)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start (exit code {process.poll()})")


def main() -> None:
    what, *words = sys.argv[1:]
    calls: dict[str, Callable[[], Any]] = {
        "parse": lambda: parse(words),
        "call": lambda: call(words[0], words[1], words[2:]),
        "serve": lambda: serve(words[0], words[1], words[2:]),
        "commands": lambda: commands(*words),
    }
    print(json.dumps(calls[what]()))


if __name__ == "__main__":
    main()
