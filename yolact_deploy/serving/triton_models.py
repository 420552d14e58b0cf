"""What runs inside Triton's Python backend: the step for pictures, and a network for servers without its runtime.

Triton gives this process its module `triton_python_backend_utils`; outside a server there is none.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.detections import Detections
from yolact_deploy.errors import BackendError, YolactDeployError
from yolact_deploy.loading import load
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.remote_names import NETWORK_KEY
from yolact_deploy.runtime.tails import Outputs, numpy_tail
from yolact_deploy.serving.detection_tensors import detection_tensors
from yolact_deploy.serving.pictures_in import picture_decoder
from yolact_deploy.serving.service_errors import RequestError
from yolact_deploy.serving.triton_config import FILE_KEY, THRESHOLD_KEY

_MOST_PIXELS = 50_000_000

Image = NDArray[np.uint8]


def _utils() -> Any:
    return importlib.import_module("triton_python_backend_utils")


def _parameters(args: dict[str, str]) -> dict[str, str]:
    parameters = json.loads(args["model_config"])["parameters"]
    return {key: value["string_value"] for key, value in parameters.items()}


class ServerNetwork(Backend):
    """The network of another model of the same server."""

    name = "triton"

    def __init__(self, model: str, metadata: Metadata) -> None:
        self._utils, self._model = _utils(), model
        self.metadata, self.precision = metadata, metadata.precision
        self.tail = numpy_tail(metadata.config, heads=metadata.tail == "heads")

    def run(self, images: NDArray[Any]) -> Outputs:
        utils = self._utils
        request = utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=list(self.metadata.outputs),
            inputs=[utils.Tensor("images", images)],
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise BackendError(f"{self._model}: {response.error().message()}")
        tensors = (utils.get_output_tensor_by_name(response, name) for name in self.metadata.outputs)
        return self.tail.outputs(*(tensor.as_numpy() for tensor in tensors))

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "model": self._model, "precision": self.precision, "tail": self.tail.name}


class PicturesModel:
    """Encoded pictures in, detections out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called once by Triton."""
        parameters = _parameters(args)
        metadata = Metadata.from_json(parameters[METADATA_KEY], args["model_name"])
        network = ServerNetwork(parameters[NETWORK_KEY], metadata)
        self._predictor = Predictor(network, score_threshold=float(parameters[THRESHOLD_KEY]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by Triton; a request that fails is answered with its error and does not touch the others."""
        utils = _utils()
        decoded = [_decoded(utils, request) for request in requests]
        images = [image for one in decoded if isinstance(one, list) for image in one]
        try:
            detections = iter(self._predictor(images) if images else [])
        except YolactDeployError as error:
            return [_error(utils, f"the network failed: {error}") for _ in requests]
        return [
            _error(utils, one) if isinstance(one, str) else _answer(utils, [next(detections) for _ in one])
            for one in decoded
        ]


def _decoded(utils: Any, request: Any) -> list[Image] | str:
    """The pictures of a request, or what is wrong with one of them."""
    contents = utils.get_input_tensor_by_name(request, "image").as_numpy().ravel().tolist()
    if not contents:
        return "image: expected at least one picture"
    try:
        return [picture_decoder(bytes(content), _MOST_PIXELS, f"image {i}")() for i, content in enumerate(contents)]
    except (RequestError, YolactDeployError) as error:
        return str(error)


def _error(utils: Any, message: str) -> Any:
    return utils.InferenceResponse(output_tensors=[], error=utils.TritonError(message))


def _answer(utils: Any, detections: Sequence[Detections]) -> Any:
    texts = np.array([json.dumps(one.to_json()).encode() for one in detections], dtype=np.object_)
    arrays = {"detections": texts, **detection_tensors(detections)}
    return utils.InferenceResponse(output_tensors=[utils.Tensor(name, array) for name, array in arrays.items()])


class NetworkModel:
    """A network in this package's own runtime, for servers that have only the Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called once by Triton."""
        parameters = _parameters(args)
        path = Path(args["model_repository"]) / args["model_version"] / parameters[FILE_KEY]
        metadata = Metadata.from_json(parameters[METADATA_KEY], args["model_name"])
        on_gpu = args["model_instance_kind"] == "GPU"
        options: dict[str, Any] = {"device": f"cuda:{args['model_instance_device_id']}"} if on_gpu else {"threads": 1}
        if path.suffix == ".onnx" and not on_gpu:
            options["tail"] = "graph" if metadata.tail == "functions" else "host"
        self._backend, self._names = load(path, **options).backend, metadata.outputs
        self._most = metadata.batch[2]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by Triton with as many requests as its batch has."""
        utils = _utils()
        inputs = [utils.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        try:
            outputs = self._backend.run(np.concatenate(inputs))
        except YolactDeployError as error:
            return [_error(utils, str(error)) for _ in requests]
        values = {name: value for name, value in outputs._asdict().items() if value is not None}
        responses, first = [], 0
        for images in inputs:
            rows = slice(first, first + len(images))
            tensors = [utils.Tensor(name, np.ascontiguousarray(value[rows])) for name, value in values.items()]
            responses.append(utils.InferenceResponse(output_tensors=tensors))
            first += len(images)
        return responses
