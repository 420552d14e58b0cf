"""What can be chosen for the build of an engine, and what is told of it afterwards."""

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
    """How to build; none of it changes what the network computes.

    Attributes:
        workspace_mib: limit of the scratch memory; TensorRT's default is the whole device
        optimization_level: 0 (fast build) to 5 (fast engine); TensorRT's default is 3
        targets: compute capabilities to build for, such as "8.9" (RTX only); by default portable from 8.0 on
        profiles: (smallest, usual, largest) batches to optimize for, where the file's batch is dynamic; by default as
            exported
        plugin: "auto", "on", "off", "v3" or "aot", see :func:`yolact_deploy.runtime.plugins.prepare`
        cache: take the engine from the cache folder if it was built before, and else keep it there
        timing_cache: file with the timings of earlier builds (TensorRT only), made where there is none; by default one
            in the cache folder for this version and GPU
        use_timing_cache: False measures everything anew
        wait: seconds to wait for another build of the same engine
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    targets: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    plugin: str = "auto"
    cache: bool = False
    timing_cache: str | os.PathLike[str] | None = None
    use_timing_cache: bool = True
    wait: float = 1800.0


@dataclass(frozen=True)
class EngineReport:
    """What a build made.

    Attributes:
        plugin: how FastNMS and MaskAssembly got into the engine: "none" (as functions), "aot" or "v3"
        plugin_reason: why
        profiles: batches that the engine is optimized for
        target: the GPU or the compute capabilities that it runs on
        cached: it was not built but copied from the cache
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
    """The profiles of an engine: those that are wanted, or the one of the ONNX file.

    Args:
        batch: what the file was exported for; equal numbers mean that it is fixed

    Raises:
        ExportError: the file's batch is fixed, or a batch between the smallest and the largest fits no profile.
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
                f"no profile takes a batch of {covered + 1}: let the profiles touch, from the smallest to the largest"
            )
        covered = max(covered, high)
    return wanted
