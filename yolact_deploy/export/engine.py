"""Builds a TensorRT engine from an exported ONNX file. Needs no torch, so it also runs on a Jetson.

Networks are strongly typed: the ONNX file decides the precision, and one path serves TensorRT 10, 11 and TensorRT for
RTX. The metadata of the file becomes the name of the network, so that the engine is a plain plan that any tool can
load. TensorRT for RTX builds without a GPU; TensorRT builds for the GPU it runs on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from yolact_deploy.artifact import Metadata, atomic_write, write_bytes
from yolact_deploy.cache import cache_folder, file_lock
from yolact_deploy.engine_file import PLUGINS_KEY, network_name, sidecar_path
from yolact_deploy.errors import EngineBuildError, ExportError, MissingDependencyError, OutputError
from yolact_deploy.export.build_options import PORTABLE, BuildOptions, EngineReport, choose_profiles
from yolact_deploy.export.engine_cache import EngineCache, cache_key
from yolact_deploy.export.tensorrt_build import Build, BuildPlan, Profile, Progress
from yolact_deploy.graph.onnx_graph import inline_functions, onnx_metadata, read_onnx
from yolact_deploy.machine import nvidia
from yolact_deploy.runtime import plugins, tensorrt_api
from yolact_deploy.runtime.tensorrt_api import available_flavour, import_tensorrt
from yolact_deploy.version import __version__

__all__ = [
    "BuildOptions",
    "EngineReport",
    "Profile",
    "Progress",
    "available_flavour",
    "build_engine",
    "import_tensorrt",
]


def build_engine(
    onnx_path: str | os.PathLike[str],
    engine_path: str | os.PathLike[str],
    *,
    flavour: str = "auto",
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> EngineReport:
    """Build the engine of an ONNX file that this package exported.

    Args:
        flavour: "tensorrt", "rtx" or "auto"
        progress: called after each step
        tell: called with notes for the user, a line each

    Raises:
        ArtifactError: the file was not exported by this package.
        BackendError: TensorRT needs a GPU and there is none.
        MissingDependencyError: no TensorRT of that flavour.
        ExportError: TensorRT cannot parse or build the network (the message names the node), the options do not fit,
            or another build of the engine takes too long.
        OutputError: the engine cannot be written.
    """
    target, start = Path(engine_path), time.perf_counter()
    if target.resolve() == Path(onnx_path).resolve():
        raise OutputError(f"the engine would overwrite {onnx_path}: give it another name with -o")
    job = _Job(onnx_path, _choose(flavour), options or BuildOptions(), tell)
    with _alone(target, job.options.wait, tell):
        cached = job.make(target, progress)
    return job.report(target, time.perf_counter() - start, cached)


def _choose(flavour: str) -> str:
    chosen = available_flavour() if flavour == "auto" else flavour
    if chosen is None:
        raise MissingDependencyError(
            "no TensorRT is installed. For RTX cards: python -m pip install 'yolact-deploy[rtx]'; "
            "for servers: 'yolact-deploy[tensorrt]'; on a Jetson it comes with JetPack"
        )
    return chosen


class _Job:
    """A build, ready but for the question whether the cache has its engine."""

    def __init__(
        self, onnx_path: str | os.PathLike[str], flavour: str, options: BuildOptions, tell: Callable[[str], None]
    ) -> None:
        self.source = str(onnx_path)
        self.flavour = flavour
        self.options = options
        self.tell = tell
        model = read_onnx(onnx_path)
        metadata = onnx_metadata(model, onnx_path)
        if metadata.has_zero_points:
            raise ExportError(
                f"{self.source} is in the INT8 form of ONNX Runtime, whose zero points TensorRT does not support: "
                "export it with --int8 --target tensorrt"
            )
        self.profiles = choose_profiles(metadata.batch, options.profiles, self.source)
        if options.targets and flavour != "rtx":
            raise ExportError("--target-sm requires TensorRT for RTX: TensorRT builds for the GPU it runs on")
        if options.plugin == "on" and flavour == "rtx":
            raise ExportError("plugins are untested on TensorRT for RTX: leave --plugin out, or try --plugin v3")
        self.trt = import_tensorrt(flavour)
        self.targets = tensorrt_api.target_names(self.trt, options.targets) if flavour == "rtx" else ()
        self.gpu = _gpu(flavour, self.targets)
        self._file = model, metadata
        self._use(plugins.prepare(model, self.trt, flavour, options.plugin))

    def _use(self, choice: plugins.PluginChoice) -> None:
        """Prepare the model and the metadata of the engine for a choice of plugins."""
        self.choice = choice
        self.onnx_bytes: bytes = inline_functions(choice.model).SerializeToString()  # see export.functions
        self.metadata = self._describe(self._file[1])
        self.name, self.sidecar = network_name(self.metadata)

    @property
    def target(self) -> str:
        return self.gpu or ", ".join(self.targets) or PORTABLE

    def _describe(self, metadata: Metadata) -> Metadata:
        """The metadata of the engine, with its batches and its builder."""
        versions = {**metadata.versions, self.flavour: self.trt.__version__}
        if self.choice.kind != "none":
            versions[PLUGINS_KEY] = self.choice.kind
        low, high = min(p[0] for p in self.profiles), max(p[2] for p in self.profiles)
        precision = "tf32" if self.options.tf32 and metadata.precision == "fp32" else metadata.precision
        batch = low, self.profiles[0][1], high
        return dataclasses.replace(metadata, versions=versions, batch=batch, precision=precision)

    def report(self, path: Path, seconds: float, cached: bool) -> EngineReport:
        return EngineReport(
            path=path,
            flavour=self.flavour,
            version=self.trt.__version__,
            bytes=path.stat().st_size,
            seconds=seconds,
            plugin=self.choice.kind,
            plugin_reason=self.choice.reason,
            profiles=self.profiles,
            target=self.target,
            cached=cached,
        )

    def make(self, target: Path, progress: Progress | None) -> bool:
        """Write the engine, without plugins if it only builds so; returns whether it came from the cache."""
        try:
            return self._make(target, progress)
        except EngineBuildError as error:
            if self.options.plugin != "auto" or self.choice.kind == "none":
                raise
            self.tell(f"{error}. Building again without plugins")
            reason = f"NMS and masks are TensorRT's own layers, because the build with plugins failed: {error}"
            self._use(plugins.PluginChoice(self._file[0], "none", reason))
            return self._make(target, progress)

    def _make(self, target: Path, progress: Progress | None) -> bool:
        if not self.options.cache:
            self._build(target, progress)
            return False
        cache = EngineCache(self.key())
        with cache.locked(self.options.wait, lambda: self.tell("the same engine is being built elsewhere: waiting")):
            if cache.fetch(target):
                self._write_sidecar(target)
                return True
            self._build(target, progress)
            try:
                cache.store(target)
            except OutputError as error:
                self.tell(f"the engine was not kept in the cache: {error}")
        return False

    def key(self) -> str:
        """Key in the cache: a hash of all that the engine depends on."""
        return cache_key(
            {
                "onnx": hashlib.sha256(self.onnx_bytes).hexdigest(),
                "metadata": self.metadata.to_json(),
                "package": __version__,
                "flavour": self.flavour,
                "version": self.trt.__version__,
                "gpu": self.gpu,
                "targets": self.targets,
                "profiles": self.profiles,
                "workspace": self.options.workspace_mib,
                "level": self.options.optimization_level,
                "tf32": self.options.tf32,
                "layer_details": self.options.layer_details,
                "plugin": [self.choice.kind, *self.choice.names, plugins_hash() if self.choice.names else ""],
            }
        )

    def _build(self, target: Path, progress: Progress | None) -> None:
        timing = self._timing_cache()
        plan = BuildPlan(
            network_name=self.name,
            workspace_mib=self.options.workspace_mib,
            optimization_level=self.options.optimization_level,
            tf32=self.options.tf32,
            targets=self.targets,
            profiles=self.profiles,
            sizes=self.metadata.profile_sizes,
            ahead_of_time=self.choice.kind == "aot",
            layer_details=self.options.layer_details,
            timings=None if timing is None else _read_timings(timing),
        )
        with atomic_write(target) as temporary:  # first, so that an unwritable place is known before the work
            made = Build(self.trt, self.flavour, plan, progress).run(self.onnx_bytes, self.source)
            temporary.write_bytes(made.data)
            self._write_sidecar(target)
        if timing is not None and made.timings is not None:
            self._keep_timings(timing, made.timings)

    def _write_sidecar(self, target: Path) -> None:
        """Write the metadata beside the engine if the engine cannot hold it."""
        if self.sidecar is not None:
            beside = sidecar_path(target)
            self.tell(f"the metadata is too long for an engine and is in {beside}: keep the two files together")
            write_bytes(beside, self.sidecar)

    def _timing_cache(self) -> Path | None:
        """The file of the timing cache, if one is used."""
        if self.flavour == "rtx":
            if self.options.timing_cache is not None:
                raise ExportError("--timing-cache requires TensorRT: TensorRT for RTX measures nothing during a build")
            return None
        if not self.options.use_timing_cache:
            return None
        if self.options.timing_cache is not None:
            return Path(self.options.timing_cache)
        name = re.sub(r"[^\w.]+", "-", f"{self.trt.__version__}-{self.gpu}").strip("-")
        with contextlib.suppress(OutputError):  # optional: without it the build only takes longer
            return cache_folder("timing") / f"{name}.cache"
        return None

    def _keep_timings(self, path: Path, timings: bytes) -> None:
        try:
            write_bytes(path, timings)
        except OutputError as error:
            if self.options.timing_cache is not None:
                raise
            self.tell(f"the timing cache was not kept: {error}")


def _gpu(flavour: str, targets: tuple[str, ...]) -> str:
    """The GPU that the engine is for; empty if it is for compute capabilities."""
    if flavour == "rtx" and targets != ("CURRENT",):
        return ""
    return str(nvidia.require_gpu())


@contextlib.contextmanager
def _alone(target: Path, wait: float, tell: Callable[[str], None]) -> Iterator[None]:
    """Allow one build of ``target`` at a time, on this machine and those that share its disk."""

    def waiting() -> None:
        tell(f"another build of {target} is running: waiting for it")

    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(file_lock(target.with_name(f".{target.name}.lock"), wait, waiting))
        except OSError as error:
            raise OutputError(
                f"cannot write {target}: {error.strerror or error}. Choose another place with -o"
            ) from error
        if not held:
            raise ExportError(f"another build of {target} has been running for more than {wait:g} s: raise --wait")
        yield


def _read_timings(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise OutputError(f"cannot read the timing cache {path}: {error.strerror or error}") from error


def plugins_hash() -> str:
    """SHA-256 of the sources of the plugins, which go into an engine but not into the ONNX file."""
    digest = hashlib.sha256()
    runtime = Path(plugins.__file__).parents[1]
    for folder in ("plugins", "cuda"):
        for path in sorted((runtime / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
