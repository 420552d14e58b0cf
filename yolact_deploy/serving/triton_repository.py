"""A model repository for NVIDIA's Triton Inference Server: the network, and a step that takes encoded pictures.

    REPOSITORY/NAME/             pictures in, detections out: a Python step that decodes, calls the network, and pastes
    REPOSITORY/NAME_network/     the network alone
    REPOSITORY/model_analyzer.yaml

Triton takes the folders of a repository as models and leaves files beside them alone.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.artifact import Metadata
from yolact_deploy.engine_file import read_engine_header, read_engine_metadata
from yolact_deploy.errors import ArtifactError, InputError, OutputError, import_optional
from yolact_deploy.graph.onnx_graph import load_graph, onnx_metadata, read_onnx
from yolact_deploy.runtime.remote_names import NETWORK_SUFFIX
from yolact_deploy.serving.triton_config import (
    FILE_KEY,
    TRITON_BACKENDS,
    TritonSettings,
    network_config,
    pictures_config,
)
from yolact_deploy.untrusted import shown
from yolact_deploy.vocabulary import ENGINE_SUFFIXES, ONNX_SUFFIXES

#: where the Python step looks for packages besides those of its interpreter: Triton's stub ignores PYTHONPATH
PATH_VARIABLE = "YOLACT_DEPLOY_PYTHONPATH"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

_STEP = '''"""{purpose} Written by yolact-deploy."""

import os
import sys

# Triton's Python backend ignores PYTHONPATH.
sys.path[:0] = filter(None, os.environ.get("{variable}", "").split(os.pathsep))

from yolact_deploy.serving.triton_models import {model} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_ANALYZER = """\
# model-analyzer profile -f model_analyzer.yaml --model-repository .
# It searches instances, batch sizes and concurrency of the network within these bounds.
profile_models:
  {network}:
    objectives: [perf_throughput]
    constraints:
      perf_latency_p99:
        max: 1000
run_config_search_min_concurrency: 1
run_config_search_max_concurrency: 64
run_config_search_max_instance_count: {instances}
run_config_search_max_model_batch_size: {batch}
client_protocol: grpc
override_output_model_repository: true
"""


@dataclass(frozen=True)
class Repository:
    """What was written.

    Attributes:
        models: names of the models
        files: below the repository, in order
    """

    folder: Path
    models: tuple[str, str]
    files: tuple[Path, ...]
    settings: TritonSettings


def read_model(path: Path) -> Metadata:
    """The metadata of an ONNX file or an engine.

    Raises:
        ArtifactError: another kind of file, or one that this package did not write.
    """
    suffix = path.suffix.lower()
    if suffix in ONNX_SUFFIXES:
        return onnx_metadata(read_onnx(path), path).at_size(None, path)
    if suffix in ENGINE_SUFFIXES:
        return read_engine_metadata(path).at_size(None, path)
    raise ArtifactError(f"{path}: Triton runs ONNX files and engines: export it first with 'yolact-deploy export'")


def choose_backend(path: Path, backend: str | None) -> str:
    """Triton's backend for a file.

    Raises:
        InputError: the backend cannot run such a file.
    """
    engine = path.suffix.lower() in ENGINE_SUFFIXES
    if engine and read_engine_header(path).kind != "TensorRT":
        raise InputError(f"{path}: Triton runs engines of TensorRT, not of TensorRT for RTX: build it with TensorRT")
    chosen = backend or ("tensorrt" if engine else "onnxruntime")
    fits = ("tensorrt", "python") if engine else ("onnxruntime", "openvino", "python")
    if chosen not in fits:
        raise InputError(f"{path}: backend {chosen!r} does not run such a file; expected one of {', '.join(fits)}")
    return chosen


def write_repository(
    path: Path, folder: Path, name: str, settings: TritonSettings, *, steps: int, overwrite: bool = False
) -> Repository:
    """Write both models.

    Args:
        path: an ONNX file or an engine
        folder: the repository, which may have other models
        name: of the model for pictures
        steps: instances of the Python step
        overwrite: replace models of these names

    Raises:
        ArtifactError, InputError: the file, its name or the settings do not fit.
        OutputError: a model of this name is there, or the repository cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"model name {shown(name)}: expected letters, digits, '.', '_' and '-': give one with --name")
    metadata, network = read_model(path), name + NETWORK_SUFFIX
    for model in (name, network):
        if (folder / model).exists() and not overwrite:
            raise OutputError(f"{folder / model} exists: choose another --name, or replace it with --overwrite")
    with _new_models(folder) as work:
        _write_network(work / network, network, path, metadata, settings)
        _write_pictures(work / name, name, metadata, settings, steps)
        for model in (name, network):
            (work / model / "labels.txt").write_text("".join(f"{label}\n" for label in metadata.config.class_names))
        analyzer = _ANALYZER.format(network=network, instances=max(4, settings.instances), batch=metadata.batch[2])
        (work / "model_analyzer.yaml").write_text(analyzer)
        for entry in sorted(work.iterdir()):
            target = folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            entry.replace(target)
    written = [folder / "model_analyzer.yaml"]
    written += [file for model in (name, network) for file in sorted((folder / model).rglob("*")) if file.is_file()]
    return Repository(folder, (name, network), tuple(file.relative_to(folder) for file in written), settings)


@contextlib.contextmanager
def _new_models(folder: Path) -> Iterator[Path]:
    """A folder beside the models, from which they are moved when all are complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as work:
            Path(work).chmod(0o755)
            yield Path(work)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}. Choose another -o") from error


def _write_network(folder: Path, name: str, path: Path, metadata: Metadata, settings: TritonSettings) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    extra = {}
    target = version / TRITON_BACKENDS[settings.backend]
    if settings.backend == "python":
        target.write_text(_STEP.format(purpose="The network.", variable=PATH_VARIABLE, model="NetworkModel"))
        extra[FILE_KEY] = f"model{path.suffix.lower()}"
        shutil.copyfile(path, version / extra[FILE_KEY])
    elif settings.backend == "openvino":
        _write_openvino(path, target)
    else:
        shutil.copyfile(path, target)
    (folder / "config.pbtxt").write_text(network_config(name, metadata, settings, extra), encoding="utf-8")


def _write_openvino(path: Path, target: Path) -> None:
    """OpenVINO's own format, from the graph without local functions."""
    openvino = import_optional("openvino", "openvino", "Writing a model for Triton's OpenVINO backend")
    from yolact_deploy.runtime.openvino import shared_core

    graph = load_graph(path, "graph", half="fp32")
    openvino.save_model(shared_core().read_model(graph.data), target, compress_to_fp16=False)


def _write_pictures(folder: Path, name: str, metadata: Metadata, settings: TritonSettings, steps: int) -> None:
    (folder / "1").mkdir(parents=True)
    step = _STEP.format(purpose="Pictures in, detections out.", variable=PATH_VARIABLE, model="PicturesModel")
    (folder / "1" / "model.py").write_text(step)
    (folder / "config.pbtxt").write_text(pictures_config(name, metadata, settings, steps), encoding="utf-8")


def start_commands(repository: Repository) -> list[str]:
    """How to start the server: in a container of NVIDIA's with this package installed, and bare."""
    folder = repository.folder.resolve()
    gpus = "--gpus all " if repository.settings.gpu else ""
    return [
        f"docker run --rm {gpus}--shm-size 1g -p 127.0.0.1:8000-8002:8000-8002 -v {folder}:/models:ro IMAGE "
        "tritonserver --model-repository=/models",
        f"tritonserver --model-repository={folder} --http-address=127.0.0.1 --grpc-address=127.0.0.1 "
        "--metrics-address=127.0.0.1",
    ]
