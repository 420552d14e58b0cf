"""A Core ML package for Apple's devices: the heads of the network in FP16, converted from PyTorch; needs torch.

Core ML runs on macOS and iOS only, so elsewhere the package is converted and its inputs and outputs are checked; what
it computes is not. NMS and masks are left to the program, as for a file that ends in heads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolact_deploy.errors import ExportError, import_optional
from yolact_deploy.export.onnx import heads_module
from yolact_deploy.export.targets.agreement_check import check_agreement
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.vocabulary import HEAD_OUTPUTS


def write(source: TargetSource, folder: Path) -> list[Path]:
    """Write the contents of the package: Manifest.json and Data/. Input ``images`` is float32 [1, H, W, 3] BGR, 0..255.

    Raises:
        ExportError: the converter failed, the package lacks an input or output, or on macOS, disagrees with the ONNX
            file.
        InputError: the checkpoint is not known.
    """
    ct = import_optional("coremltools", "coreml", "Writing the format coreml")
    module = heads_module(source.require_model("coreml"), source.metadata)
    height, width = source.metadata.config.input_shape
    images = torch.zeros(1, height, width, 3)
    try:
        program = torch.export.export(module, (images,)).run_decompositions({})
        package = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS16,
            inputs=[ct.TensorType(name="images", shape=tuple(images.shape))],
            outputs=[ct.TensorType(name=name) for name in HEAD_OUTPUTS],
        )
    except Exception as error:  # of many types
        raise ExportError(f"coremltools cannot convert the network: {' '.join(str(error).split())[:300]}") from error
    package.user_defined_metadata["yolact_deploy"] = source.metadata.to_json()
    place = folder / "model.mlpackage"
    package.save(str(place))
    _check_spec(package)
    if sys.platform == "darwin":
        check_agreement(source, lambda images: _run(package, images), target="coreml", heads=True, precision="fp16")
    written = []
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        moved = folder / path.relative_to(place)
        moved.parent.mkdir(parents=True, exist_ok=True)
        written.append(path.replace(moved))
    return written


def _check_spec(package: Any) -> None:
    description = package.get_spec().description
    names = [value.name for value in description.output]
    if [value.name for value in description.input] != ["images"] or names != list(HEAD_OUTPUTS):
        raise ExportError(f"coremltools has written other outputs: {', '.join(names)}")


def _run(package: Any, images: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    results = package.predict({"images": images.astype(np.float32)})
    return tuple(np.asarray(results[name]) for name in HEAD_OUTPUTS)
