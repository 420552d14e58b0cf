"""A network on a server that speaks the KServe v2 protocol: ``yolact-deploy serve`` or Triton, over HTTP or gRPC.

The server resizes nothing and pastes nothing: resized pictures go there, and what the network makes of them comes back.
What that costs is a stage of its own, "transfer": the time of the whole call without what the server reports as its
own.

Legend: N pictures, S input side.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from numpy.typing import NDArray

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.errors import ArtifactError, BackendError, import_optional
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.remote_names import NETWORK_KEY, remote_url
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import Outputs, numpy_tail
from yolact_deploy.untrusted import shown

_SECONDS = 60.0
_DATATYPES = {"uint8": "UINT8", "float32": "FP32"}


class RemoteBackend(Backend):
    """The network of a served model.

    Args:
        url: ``http://HOST:PORT/NAME``, ``https://``, ``grpc://`` or ``grpcs://``

    Raises:
        BackendError: the server cannot be reached.
        ArtifactError: the model is none of ours.
    """

    name = "remote"

    def __init__(self, url: str) -> None:
        parts = remote_url(url)
        assert parts is not None
        protocol, host, model = parts
        kind = "grpc" if protocol.startswith("grpc") else "http"
        self._triton = import_optional(f"tritonclient.{kind}", "triton", "Calling a model on a server")
        self.url, self._grpc = f"{protocol}://{host}/{model}", kind == "grpc"
        self._host, self._tls, self._local = host, protocol.endswith("s"), threading.local()
        parameters = self._parameters(model)
        self._model = parameters.get(NETWORK_KEY, model)
        if self._model != model:
            parameters = self._parameters(self._model)
        if METADATA_KEY not in parameters:
            raise ArtifactError(
                f"{self.url} is no model of yolact-deploy, or its configuration was changed: make its repository with "
                "'yolact-deploy triton', or serve it with 'yolact-deploy serve'"
            )
        self.metadata = Metadata.from_json(parameters[METADATA_KEY], self.url)
        self.precision = self.metadata.precision
        self.tail = numpy_tail(self.metadata.config, heads=self.metadata.tail == "heads")
        self._statistics: tuple[float, int] | None = self._server_time()

    @property
    def _client(self) -> Any:
        """The client of this thread: the one for HTTP belongs to the thread that made it."""
        if not hasattr(self._local, "client"):
            limits = {} if self._grpc else {"connection_timeout": _SECONDS, "network_timeout": _SECONDS}
            self._local.client = self._triton.InferenceServerClient(self._host, ssl=self._tls, **limits)
        return self._local.client

    @property
    def run_stages(self) -> tuple[str, ...]:
        return ("transfer", *super().run_stages)

    def run(self, images: NDArray[Any]) -> Outputs:
        return self._infer(images)[0]

    def run_timed(self, images: NDArray[Any], timer: StageTimer) -> Outputs:
        start = time.perf_counter()
        outputs, server_ms = self._infer(images)
        total = (time.perf_counter() - start) * 1e3
        if server_ms is None:
            server_ms = self._since_last()
        server_ms = min(server_ms, total)
        _, network = self.run_stages
        timer.add({"transfer": total - server_ms, network: server_ms})
        return outputs

    def _infer(self, images: NDArray[Any]) -> tuple[Outputs, float | None]:
        """The outputs, and the milliseconds that the server reports with them."""
        tensor = self._triton.InferInput("images", list(images.shape), _DATATYPES[self.metadata.input_dtype])
        tensor.set_data_from_numpy(images)
        try:
            result = self._client.infer(self._model, [tensor])
        except Exception as error:  # InferenceServerException, and those of the connection
            raise self._failure(error) from error
        values = [result.as_numpy(name) for name in self.metadata.outputs]
        if any(value is None for value in values):
            raise ArtifactError(f"{self.url}: expected the outputs {', '.join(self.metadata.outputs)}")
        return self.tail.outputs(*values), None if self._grpc else _compute_ms(result.get_response())

    def _parameters(self, model: str) -> dict[str, str]:
        try:
            if self._grpc:
                config = self._client.get_model_config(model, as_json=True, client_timeout=_SECONDS)["config"]
            else:
                config = self._client.get_model_config(model)
        except Exception as error:
            raise self._failure(error) from error
        parameters = config.get("parameters", {})
        if not isinstance(parameters, dict):
            raise ArtifactError(f"{self.url}: the server's configuration has parameters {shown(parameters)}")
        return {key: str(value.get("string_value", "")) for key, value in parameters.items()}

    def _since_last(self) -> float:
        """Milliseconds of a request on the server since the last call, by its own statistics; 0 without any."""
        before, after = self._statistics, self._server_time()
        self._statistics = after
        if before is None or after is None or after[1] <= before[1]:
            return 0.0
        return (after[0] - before[0]) / (after[1] - before[1])

    def _server_time(self) -> tuple[float, int] | None:
        """Milliseconds that the server has spent on all requests of this model, and their number; None if unknown."""
        with contextlib.suppress(Exception):  # an extension of the protocol
            options = {"as_json": True} if self._grpc else {}
            answer = self._client.get_inference_statistics(self._model, **options)
            entry = answer["model_stats"][0]["inference_stats"]
            parts = (entry[key].get("ns", 0) for key in ("queue", "compute_input", "compute_infer", "compute_output"))
            return sum(map(int, parts)) / 1e6, int(entry["success"].get("count", 0))
        return None

    def _failure(self, error: Exception) -> BackendError:
        message = " ".join(str(error).split())[:500] or type(error).__name__
        return BackendError(f"{self.url}: {message}: check that the server runs and has the model")

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "url": self.url, "model": self._model, "precision": self.precision,
                "tail": self.tail.name}  # fmt: skip

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the other end may be gone
            self._client.close()


def _compute_ms(response: dict[str, Any]) -> float | None:
    value = response.get("parameters", {}).get("compute_ms")
    return float(value) if isinstance(value, (int, float)) else None
