"""All errors for users, and the import of optional dependencies.

A message says what is wrong, in which file or option, and what to do. The command line prints it in one line and exits
with ``exit_code``; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import errno
import importlib
from types import ModuleType

_SYSTEM_CURES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some of your quota or choose another place",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another place",
    errno.EACCES: "check the permissions or choose another place",
    errno.EPERM: "check the permissions or choose another place",
    errno.EROFS: "choose a writable place",
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def system_reason(error: OSError) -> str:
    """Why the system refused something, and what to do where that is known."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    cure = _SYSTEM_CURES.get(error.errno or 0)
    return f"{reason}: {cure}" if cure else reason


class YolactDeployError(Exception):
    """Base of all errors that this package raises."""

    exit_code = 2


class ConfigError(YolactDeployError, ValueError):
    """A configuration value out of range, or an unknown configuration name."""


class CheckpointError(YolactDeployError):
    """Weights that cannot be read or do not fit the configuration."""


class ArtifactError(YolactDeployError):
    """An ONNX or engine file that cannot be read or is not from this package."""


class ExportError(YolactDeployError):
    """An export failed; no files are left behind."""


class EngineBuildError(ExportError):
    """TensorRT cannot parse or build a network."""


class BackendError(YolactDeployError):
    """A runtime cannot run here, or failed while running."""


class MissingDependencyError(BackendError, ImportError):
    """An optional package that is not installed; the message names the extra."""


class InputError(YolactDeployError, ValueError):
    """An image, video, folder or array that cannot be used."""


class DatasetError(YolactDeployError):
    """Annotations or results that are missing, malformed or do not fit the model."""


class OutputError(YolactDeployError):
    """An output that cannot be written."""


class DownloadError(YolactDeployError):
    """Weights that cannot be downloaded, or have the wrong checksum."""


class GateError(YolactDeployError):
    """A measured value misses the limit that the user set."""

    exit_code = 1


#: the extra that brings each optional package, and packages that are no option
_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "safetensors", "onnxscript"), "export"),
    **dict.fromkeys(("torchinfo", "yaml"), "train"),
    "tensorboard": "tensorboard",
    "matplotlib": "plots",
    "scipy": "sbd",
    **dict.fromkeys(("pycocotools", "msgspec", "psutil", "pynvml"), "bench"),
    **dict.fromkeys(("onnx", "onnxruntime"), "onnx"),
    "openvino": "openvino",
    **dict.fromkeys(("fastapi", "fastapi_offline", "uvicorn", "starlette", "prometheus_client"), "serve"),
    "av": "video",
    "lap": "track",
    "tritonclient": "triton",
    **dict.fromkeys(("ray", "pyarrow"), "ray"),
    **dict.fromkeys(("cv2", "numpy", "rich"), ""),
}


def describe_import_error(error: ImportError) -> str | None:
    """What to install for an import that failed in the middle of some work; None if it is a module of this package."""
    package = (error.name or "").partition(".")[0]
    if package == "yolact_deploy":
        return None
    extra = f"[{_EXTRAS[package]}]" if _EXTRAS.get(package) else ""
    return (
        f"this needs the Python package '{package}' ({error}). Install it with: "
        f"python -m pip install 'yolact-deploy{extra}'"
        if package
        else f"a Python package cannot be imported ({error}): 'yolact-deploy doctor' shows what is missing"
    )


def import_optional(module: str, extra: str, purpose: str) -> ModuleType:
    """Import ``module``; if it is missing, :class:`MissingDependencyError` names the extra to install.

    >>> import_optional("json", extra="onnx", purpose="reading metadata").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the Python package '{module.partition('.')[0]}' ({error}). "
            f"Install it with: python -m pip install 'yolact-deploy[{extra}]'"
        ) from error
