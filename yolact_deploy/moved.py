"""Import paths of earlier versions: a moved module can still be imported under its old name, with a warning.

This package itself uses none of them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

#: new places of modules that scripts are likely to import
MOVED = {
    "benchmarks.accuracy": "evaluation.accuracy",
    "benchmarks.agreement": "evaluation.agreement",
    "benchmarks.bench": "benchmarks.measure",
    "benchmarks.coco": "datasets.image_sets",
    "benchmarks.gpu_golden": "benchmarks.gpu.gpu_golden",
    "benchmarks.gpu_kernels": "benchmarks.gpu.gpu_kernels",
    "benchmarks.gpu_models": "benchmarks.gpu.gpu_models",
    "benchmarks.scene": "benchmarks.scenarios.scene",
    "class_names": "config",
    "coco": "datasets.annotations",
    "export.tensorrt": "export.engine",
    "model.pretrained": "samples.pretrained",
    "runtime.cuda.backend": "runtime.cuda.cuda_backend",
    "runtime.cuda.network": "runtime.cuda.device_network",
    "runtime.cuda.pipeline": "runtime.cuda.frame_pipeline",
    "runtime.cuda.plan_masks": "runtime.cuda.plans.plan_masks",
    "runtime.cuda.plan_nms": "runtime.cuda.plans.plan_nms",
    "runtime.cuda.plan_paste": "runtime.cuda.plans.plan_paste",
    "runtime.cuda.plan_resize": "runtime.cuda.plans.plan_resize",
    "runtime.cuda.stream": "runtime.cuda.driver.stream",
    "runtime.torch.network": "runtime.torch.torch_network",
    "runtime.torch.ops": "model.torch_ops",
    "runtime.video": "streams.video",
    "training.checkpoint": "model.checkpoint",
    "training.model": "model",
    "training.pretrained": "samples.pretrained",
}
_PACKAGE = __name__.partition(".")[0]


class _MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module from its new place and registers it under the old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or name not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = f"{_PACKAGE}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} has moved to {new}", DeprecationWarning, stacklevel=2)
        self._own_spec = importlib.import_module(new).__spec__
        return sys.modules[new]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec  # the import system has set the spec of the old name


def find_moved_modules() -> None:
    """Make old import paths work; calling it again does nothing."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
