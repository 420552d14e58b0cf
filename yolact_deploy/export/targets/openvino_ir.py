"""OpenVINO's own files (IR), for programs that use OpenVINO without ONNX, in C++ for instance.

Weights are written as the ONNX file has them: the converter of OpenVINO halves them unless it is told not to. IR has no
place for the metadata of ONNX; it is written into ``rt_info``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import METADATA_KEY
from yolact_deploy.errors import import_optional
from yolact_deploy.export.targets.agreement_check import check_agreement
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.runtime.openvino import HINTS, cpu_properties, shared_core


def write(source: TargetSource, folder: Path) -> list[Path]:
    """Write STEM.xml and STEM.bin; reads them back and compares them with the ONNX file."""
    ov = import_optional("openvino", "openvino", "Writing the format openvino")
    core = shared_core()
    model = core.read_model(source.portable.SerializeToString())
    model.set_rt_info(source.metadata.to_json(), METADATA_KEY)
    labels = " ".join(name.replace(" ", "_") for name in source.metadata.config.class_names)
    model.set_rt_info(labels, ["model_info", "labels"])  # where OpenVINO's Model API looks for them
    path = folder / f"{source.onnx_path.stem}.xml"
    ov.save_model(model, path, compress_to_fp16=False)
    compiled = core.compile_model(core.read_model(path), "CPU", cpu_properties(HINTS["fp32"], None))
    request = compiled.create_infer_request()

    def run(images: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        results = request.infer({"images": images})
        return tuple(np.asarray(results[name]) for name in source.metadata.outputs)

    check_agreement(source, run, target="openvino")
    return [path, path.with_suffix(".bin")]
