"""Options for the build of an engine, and the report about it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.errors import ExportError
from yolact_deploy.export.tensorrt_build import Profile

PORTABLE = "compute capability 8.0 and later"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build an engine. No option but ``tf32`` changes what the network computes.

    Attributes:
        workspace_mib: limit of the scratch memory; TensorRT's default is the whole device
        optimization_level: 0 (fast build) to 5 (fast engine); TensorRT's default is 3
        tf32: round the factors of FP32 products to TF32: faster, with a mantissa of 10 bits instead of 23. The trunk of
            an FP32 file is then in the precision "tf32"; in other files this concerns the parts in FP32
        targets: compute capabilities to build for, such as "8.9" (RTX only); by default portable from 8.0 on
        profiles: (smallest, usual, largest) batches to optimize for, if the batch of the file is dynamic; by default
            as exported
        plugin: "auto", "on", "off", "v3" or "aot", see :func:`yolact_deploy.runtime.plugins.prepare`
        cache: reuse an engine of an earlier identical build from the cache folder, and keep new ones there
        timing_cache: file with the timings of earlier builds (TensorRT only), created if it does not exist; by default
            one in the cache folder for this version and GPU
        use_timing_cache: False measures everything again
        layer_details: keep what ``inspect --profile`` shows of layers in the engine, which does not slow it down
        wait: seconds to wait for another build of the same engine
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    targets: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    plugin: str = "auto"
    cache: bool = False
    timing_cache: str | os.PathLike[str] | None = None
    use_timing_cache: bool = True
    layer_details: bool = False
    wait: float = 1800.0


@dataclass(frozen=True)
class EngineReport:
    """The result of a build.

    Attributes:
        plugin: how FastNMS and MaskAssembly are in the engine: "none" (as functions), "aot" or "v3"
        plugin_reason: why
        profiles: batches that the engine is optimized for
        target: the GPU or the compute capabilities that it runs on
        cached: whether it was copied from the cache instead of built
    """

    path: Path
    flavour: str
    version: str
    bytes: int
    seconds: float
    plugin: str
    plugin_reason: str
    profiles: tuple[Profile, ...]
    target: str
    cached: bool

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 2),
            "tensorrt": self.flavour,
            "version": self.version,
            "plugin": self.plugin,
            "plugin_reason": self.plugin_reason,
            "profiles": [list(profile) for profile in self.profiles],
            "target": self.target,
            "cached": self.cached,
        }


def choose_profiles(batch: Profile, wanted: tuple[Profile, ...], source: str) -> tuple[Profile, ...]:
    """The profiles of an engine: those wanted, or the one of the ONNX file.

    Args:
        batch: of the file; equal numbers mean that it is fixed

    Raises:
        ExportError: the batch of the file is fixed, or a batch between the smallest and the largest fits no profile.
    """
    if not wanted:
        return (batch,)
    if batch[0] == batch[2]:
        raise ExportError(
            f"{source} has a fixed batch of {batch[0]}, which --profile cannot change: "
            "export it with --batch MIN:OPT:MAX"
        )
    covered = 0
    for low, _, high in sorted(wanted):
        if covered and low > covered + 1:
            raise ExportError(
                f"no profile covers a batch of {covered + 1}: cover all batches from the smallest to the largest"
            )
        covered = max(covered, high)
    return wanted
