"""LiteRT on the CPU: the folder that ``export --format tflite`` writes, as a phone or a board runs it.

The file has the heads of the network; NMS and masks run in NumPy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import read_metadata_beside
from yolact_deploy.config import Size
from yolact_deploy.errors import ArtifactError, BackendError, import_optional
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.tails import HeadOutputs, Outputs, numpy_tail


class LiteRtBackend(Backend):
    """``model.tflite`` with ``metadata.json`` beside it, in FP32.

    Args:
        path: the file that ends in .tflite
        threads: by default as many as there are cores
        size: must be the input of the file

    Raises:
        ArtifactError: one of the two files is missing or damaged.
        InputError: another size.
        MissingDependencyError: LiteRT is not installed.
    """

    name = "litert"
    precision = "fp32"

    def __init__(self, path: Path, *, threads: int | None = None, size: Size | None = None) -> None:
        self.metadata = read_metadata_beside(path).at_size(size, path)
        self.tail = numpy_tail(self.metadata.config, heads=True)
        self._threads = threads or usable_cores()
        self._runner = open_runner(path, self._threads)

    def run(self, images: NDArray[Any]) -> Outputs:
        return self.tail.outputs(*run_heads(self._runner, images))

    def describe(self) -> dict[str, Any]:
        litert = import_optional("ai_edge_litert", "litert", "Running a model in LiteRT")
        return {
            "backend": self.name,
            "version": litert.__version__,
            "precision": self.precision,
            "threads": self._threads,
            "tail": self.tail.name,
        }

    def close(self) -> None:
        del self._runner


def open_runner(path: Path, threads: int | None = None) -> Any:
    """The function of a TFLite file that ``export --format tflite`` wrote.

    Raises:
        ArtifactError: LiteRT cannot read the file, or its inputs and outputs are others.
        MissingDependencyError: LiteRT is not installed.
    """
    interpreter = import_optional("ai_edge_litert.interpreter", "litert", "Running a model in LiteRT")
    try:
        runner = interpreter.Interpreter(model_path=str(path), num_threads=threads).get_signature_runner()
        names = [*runner.get_input_details()], sorted(runner.get_output_details())
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"LiteRT cannot read {path}: export it again with --format tflite") from error
    if names != (["args_0"], [f"output_{i}" for i in range(len(HeadOutputs._fields))]):
        raise ArtifactError(f"{path} has other inputs or outputs: export it again with --format tflite")
    return runner


def run_heads(runner: Any, images: NDArray[Any]) -> HeadOutputs:
    """The heads of images [N, H, W, 3], values 0 to 255, one image at a time.

    Raises:
        BackendError: LiteRT has failed.
    """
    try:
        results = [runner(args_0=image[None].astype(np.float32)) for image in images]
    except (ValueError, RuntimeError) as error:
        raise BackendError(f"LiteRT failed: {' '.join(str(error).split())[:300]}") from error
    heads = (f"output_{i}" for i in range(len(HeadOutputs._fields)))
    return HeadOutputs(*(np.concatenate([np.asarray(one[name]) for one in results]) for name in heads))
