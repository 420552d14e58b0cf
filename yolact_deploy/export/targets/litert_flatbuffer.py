"""A TFLite file for LiteRT, on phones and boards: the heads of the network in FP32, from PyTorch; needs torch.

NMS and masks are left to the program, as for a file that ends in heads. Input args_0 is float32 [1, H, W, 3] BGR in
0..255, outputs output_0 to output_3 are boxes, scores, coeff and proto.
"""

from __future__ import annotations

from pathlib import Path

import torch

from yolact_deploy.errors import ExportError, import_optional
from yolact_deploy.export.onnx import heads_module
from yolact_deploy.export.targets.agreement_check import check_agreement
from yolact_deploy.export.targets.target_metadata import write_metadata
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.runtime.mobile.litert import open_runner, run_heads


def write(source: TargetSource, folder: Path) -> list[Path]:
    """Write model.tflite and metadata.json; runs the file in LiteRT and compares it with the ONNX file.

    Weights are in single precision, whatever half precision the file has.

    Raises:
        ExportError: the converter failed, or the file disagrees with the ONNX file.
        InputError: the checkpoint is not known.
    """
    litert_torch = import_optional("litert_torch", "litert", "Writing the format tflite")
    module = heads_module(source.require_model("tflite"), source.metadata)
    height, width = source.metadata.config.input_shape
    path = folder / "model.tflite"
    try:
        litert_torch.convert(module, (torch.zeros(1, height, width, 3),)).export(str(path))
    except Exception as error:  # of many types
        raise ExportError(f"litert-torch cannot convert the network: {' '.join(str(error).split())[:300]}") from error
    runner = open_runner(path)
    check_agreement(source, lambda images: run_heads(runner, images), target="tflite", heads=True)
    return [path, write_metadata(source.metadata, folder)]
