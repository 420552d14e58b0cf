"""ncnn on the CPU: the folder that ``export --format ncnn`` writes, as a phone or a board runs it.

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
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.tails import HeadOutputs, Outputs, numpy_tail


class NcnnBackend(Backend):
    """``model.ncnn.param`` with ``model.ncnn.bin`` and ``metadata.json`` beside it, in FP32.

    Args:
        path: the file that ends in .param
        threads: by default as many as there are cores
        size: must be the input of the file

    Raises:
        ArtifactError: one of the three files is missing or damaged.
        InputError: another size.
        MissingDependencyError: ncnn is not installed.
    """

    name = "ncnn"
    precision = "fp32"

    def __init__(self, path: Path, *, threads: int | None = None, size: Size | None = None) -> None:
        self._ncnn = import_optional("ncnn", "ncnn", "Running a model in ncnn")
        self.metadata = read_metadata_beside(path).at_size(size, path)
        self.tail = numpy_tail(self.metadata.config, heads=True)
        self._net = open_net(self._ncnn, path, path.with_suffix(".bin"), threads)

    def run(self, images: NDArray[Any]) -> Outputs:
        return self.tail.outputs(*run_net(self._ncnn, self._net, images))

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "version": self._ncnn.__version__,
            "precision": self.precision,
            "threads": self._net.opt.num_threads,
            "tail": self.tail.name,
        }

    def close(self) -> None:
        self._net.clear()


def open_net(ncnn: Any, param: Path, weights: Path, threads: int | None = None) -> Any:
    """A network of ncnn that computes in single precision.

    Raises:
        ArtifactError: ncnn cannot read the files.
    """
    net = ncnn.Net()
    options = net.opt
    options.use_vulkan_compute = False
    options.use_fp16_storage = options.use_fp16_packed = options.use_fp16_arithmetic = False
    options.use_bf16_storage = False
    if threads is not None:
        options.num_threads = threads
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise ArtifactError(f"ncnn cannot read {param}: export it again with --format ncnn")
    return net


def run_net(ncnn: Any, net: Any, images: NDArray[Any]) -> HeadOutputs:
    """The heads of images [N, H, W, 3], values 0 to 255, one image at a time.

    Raises:
        BackendError: ncnn has failed.
    """
    results = []
    for image in images:
        with net.create_extractor() as extractor:
            pixels = np.ascontiguousarray(image, np.float32)  # lives as long as the Mat, which does not copy it
            extractor.input("in0", ncnn.Mat(pixels))
            outputs = []
            for place in range(len(HeadOutputs._fields)):
                code, values = extractor.extract(f"out{place}")
                if code:
                    raise BackendError(f"ncnn failed with code {code} at output out{place}")
                outputs.append(np.array(values)[None])
        results.append(outputs)
    return HeadOutputs(*(np.concatenate(same) for same in zip(*results, strict=True)))
