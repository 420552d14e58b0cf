"""An ONNX file for the DNN module of OpenCV 5, which runs it whole: NMS and masks included.

OpenCV has no file format of its own; the folder holds the ONNX file without functions, and our metadata as JSON, since
OpenCV does not give access to that of an ONNX file. OpenCV 4 lacks operators of the tail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import BackendError, ExportError, import_optional
from yolact_deploy.export.targets.agreement_check import check_agreement
from yolact_deploy.export.targets.target_metadata import write_metadata
from yolact_deploy.export.targets.target_source import TargetSource


def write(source: TargetSource, folder: Path) -> list[Path]:
    """Write STEM.onnx and metadata.json; runs the file in OpenCV and compares it with the original.

    Raises:
        BackendError: the OpenCV installed here is older than 5, so that the file cannot be checked.
    """
    if int(cv2.__version__.partition(".")[0]) < 5:
        raise BackendError(
            f"the format opencv is for OpenCV 5, and {cv2.__version__} is installed: "
            "pip install 'opencv-python-headless>=5'. OpenCV 4 lacks operators that the file needs"
        )
    onnx = import_optional("onnx", "onnx", "Writing the format opencv")
    path = folder / f"{source.onnx_path.stem}.onnx"
    onnx.save(source.portable, str(path))
    try:
        net = cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise ExportError(f"OpenCV {cv2.__version__} rejects the file: {' '.join(str(error).split())[:300]}") from error

    def run(images: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        outputs = []
        for image in images:
            net.setInput(image[None], "images")
            outputs.append([np.asarray(output) for output in net.forward(list(source.metadata.outputs))])
        return tuple(np.concatenate(same) for same in zip(*outputs, strict=True))

    check_agreement(source, run, target="opencv")
    return [path, write_metadata(source.metadata, folder)]
