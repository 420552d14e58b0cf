"""Compiles CUDA C to machine code with NVRTC and caches it on disk, so that each kernel is compiled once per machine.

NVRTC needs no driver and no GPU. Sources are in ``kernels/``; our headers are passed in memory, and ``cuda_fp16.h``
comes with NVIDIA's wheels or a CUDA toolkit. If a kernel must reproduce NumPy bit for bit, its source uses unfused
operations (``__fmul_rn``), or a line ``// nvrtc: -fmad=false``, which adds a compiler option.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import write_bytes
from yolact_deploy.cache import cache_folder
from yolact_deploy.errors import BackendError, MissingDependencyError, OutputError, import_optional
from yolact_deploy.runtime.cuda.plans.launch import Defines

KERNELS = Path(__file__).parent / "kernels"

_OPTIONS = ("--std=c++17",)
#: compiler options in a line of the source
_OWN_OPTIONS = re.compile(r"^// nvrtc: (.+)$", re.MULTILINE)
_SUFFIX = {"sm": ".cubin", "compute": ".ptx"}
_DIGEST_BYTES = hashlib.sha256().digest_size
_CURE = (
    "install NVRTC and the CUDA headers of your driver's CUDA: python -m pip install nvidia-cuda-nvrtc "
    "nvidia-cuda-runtime (CUDA 12: nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12), or set CUDA_HOME to a CUDA toolkit"
)


def compile_source(source: str, arch: str, defines: Defines = ()) -> bytes:
    """Machine code of a file in ``kernels/``, from the cache if possible.

    Args:
        source: the file's name, such as "fast_nms.cu"
        arch: "sm_90" gives a cubin for compute capability 9.0, "compute_75" gives PTX for 7.5 and later
        defines: names and values for the preprocessor

    Raises:
        MissingDependencyError: cuda-python, NVRTC or the CUDA headers are not installed.
        BackendError: the source does not compile.
    """
    text = (KERNELS / source).read_text(encoding="utf-8")
    return compile_text(text, source, arch, defines)


def compile_text(text: str, name: str, arch: str, defines: Defines = ()) -> bytes:
    """:func:`compile_source` for any source text; it may include our headers."""
    kind = arch.partition("_")[0]
    if kind not in _SUFFIX or not re.fullmatch(r"(sm|compute)_\d+[af]?", arch):
        raise ValueError(f"arch: expected a value such as 'sm_90' or 'compute_75', got {arch!r}")
    own = " ".join(_OWN_OPTIONS.findall(text)).split()
    options = [*_OPTIONS, *own, f"--gpu-architecture={arch}", *(f"-D{key}={value}" for key, value in defines)]
    key = hashlib.sha256()
    for part in (text, *_headers().values(), *options, str(version())):
        key.update(hashlib.sha256(part.encode()).digest())
    entry = f"{Path(name).stem}-{arch}-{key.hexdigest()[:32]}{_SUFFIX[kind]}"
    image = _read_cache(entry)
    if image is None:
        image = _compile(text, name, options, kind)
        _write_cache(entry, image)
    return image


def best_arch(capability: tuple[int, int]) -> str:
    """The architecture to compile for: the GPU's own, or PTX of the newest one that this NVRTC supports.

    Raises:
        MissingDependencyError: as :func:`compile_source`.
        BackendError: the GPU is older than all architectures of this NVRTC.
    """
    wanted = capability[0] * 10 + capability[1]
    known = _known_archs()
    if wanted in known:
        return f"sm_{wanted}"
    older = [arch for arch in known if arch < wanted]
    if not older:
        least, has = divmod(min(known), 10), ".".join(map(str, capability))
        raise BackendError(
            f"NVRTC {_version_text()} supports compute capability {least[0]}.{least[1]} and later, this GPU has {has}: "
            "install an older NVRTC with python -m pip install 'cuda-python<13' nvidia-cuda-nvrtc-cu12 "
            "nvidia-cuda-runtime-cu12"
        )
    return f"compute_{max(older)}"  # the driver compiles the PTX


@cache
def version() -> tuple[int, int]:
    """Version of NVRTC."""
    major, minor = _call("nvrtcVersion")
    return int(major), int(minor)


def _version_text() -> str:
    return ".".join(map(str, version()))


@cache
def _known_archs() -> tuple[int, ...]:
    return tuple(int(arch) for arch in _call("nvrtcGetSupportedArchs"))


@cache
def _headers() -> dict[str, str]:
    """Our headers by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.cuh"))}


# -- NVRTC ------------------------------------------------------------------------------------------------------------


@cache
def _bindings() -> Any:
    return import_optional("cuda.bindings.nvrtc", "cuda", "Compiling CUDA kernels")


def _call(name: str, *arguments: Any) -> Any:
    """Call NVRTC and return its result, or raise :class:`BackendError`."""
    nvrtc = _bindings()
    try:
        code, *values = getattr(nvrtc, name)(*arguments)
    except (RuntimeError, OSError) as error:  # the first call loads the library
        why = " ".join(str(error).split())[:200]
        raise MissingDependencyError(f"NVRTC cannot be loaded ({why}): {_CURE}") from error
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"{name} failed with {code.name}")
    return values[0] if len(values) == 1 else tuple(values)


def _compile(text: str, name: str, options: Sequence[str], kind: str) -> bytes:
    headers = _headers()
    program = _call(
        "nvrtcCreateProgram",
        text.encode(),
        name.encode(),
        len(headers),
        [header.encode() for header in headers.values()],
        [header.encode() for header in headers],
    )
    try:
        # Only CUDA's headers use angle brackets; a source without them needs no folder.
        folder = [f"--include-path={_include_folder()}"] if "#include <" in "".join((text, *headers.values())) else []
        all_options = [option.encode() for option in (*options, *folder)]
        try:
            _call("nvrtcCompileProgram", program, len(all_options), all_options)
        except BackendError as error:
            log = _buffer(program, "nvrtcGetProgramLog").decode(errors="replace").strip("\0\n ")
            raise BackendError(f"{name} does not compile with NVRTC {_version_text()}:\n{log}") from error
        return _buffer(program, "nvrtcGetCUBIN" if kind == "sm" else "nvrtcGetPTX")
    finally:
        with contextlib.suppress(BackendError):
            _call("nvrtcDestroyProgram", program)


def _buffer(program: Any, call: str) -> bytes:
    """Bytes that NVRTC writes into a buffer of the size it reports."""
    data = b" " * int(_call(f"{call}Size", program))
    _call(call, program, data)
    return data


@lru_cache
def _include_folder() -> Path:
    """The folder with ``cuda_fp16.h``."""
    for folder in _include_candidates():
        if (folder / "cuda_fp16.h").is_file():
            return folder
    raise MissingDependencyError(f"the CUDA headers (cuda_fp16.h) are missing: {_CURE}")


def _include_candidates() -> Iterator[Path]:
    """First the wheels of this NVRTC's version, because headers and compiler should match; then toolkits."""
    spec = importlib.util.find_spec("nvidia")
    for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        yield root / f"cu{version()[0]}" / "include"
        yield root / "cuda_runtime" / "include"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "include"
    yield from sorted(Path(sys.prefix).glob("targets/*/include"))  # conda
    yield Path("/usr/local/cuda/include")
    yield Path("/usr/include")


# -- the cache: each entry is the SHA-256 of the image, then the image ------------------------------------------------


def _read_cache(entry: str) -> bytes | None:
    try:
        data = (cache_folder("kernels") / entry).read_bytes()
    except (OSError, OutputError):
        return None
    digest, image = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return image if hashlib.sha256(image).digest() == digest else None


def _write_cache(entry: str, image: bytes) -> None:
    # A read-only cache only costs time.
    with contextlib.suppress(OutputError):
        write_bytes(cache_folder("kernels") / entry, hashlib.sha256(image).digest() + image)
