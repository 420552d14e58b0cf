"""What a target is made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import InputError
from yolact_deploy.graph.onnx_graph import read_onnx
from yolact_deploy.graph.portable import make_portable

if TYPE_CHECKING:
    from yolact_deploy.model import YolactModel


@dataclass(frozen=True, kw_only=True)
class TargetSource:
    """An exported ONNX file, and the network in PyTorch that it was made from.

    Attributes:
        onnx_path: the file, checked against the network
        metadata: as in the file
        model: the network, for targets that are converted from PyTorch; None if only the file is there
        ort_web: folder with the files of ONNX Runtime Web; None takes those in the cache, or fetches them with npm
    """

    onnx_path: Path
    metadata: Metadata
    model: YolactModel | None = None
    ort_web: Path | None = None

    @cached_property
    def portable(self) -> Any:
        """The file as an ``onnx.ModelProto`` in standard operators, see :mod:`yolact_deploy.graph.portable`."""
        return make_portable(read_onnx(self.onnx_path))

    def require_model(self, target: str) -> YolactModel:
        """The network in PyTorch; raises :class:`InputError` if it is not there."""
        if self.model is None:
            raise InputError(f"the format {target} is converted from the checkpoint: give --weights")
        return self.model
