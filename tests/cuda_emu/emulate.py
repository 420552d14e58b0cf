"""Runs launch plans on the CPU: compiles an unmodified kernel source with g++ and cuda_emu.h, and calls it.

    run_plan(plan, arrays)                  # arrays by buffer name; outputs are written in place
    run_plan(plan, arrays, seed=3)          # threads and blocks in another order for each number
    run_plan(plan, arrays, mode="race")     # in a child process, with real threads under ThreadSanitizer
    library = compile_source("fast_nms.cu", defines)       # a shared library with the C entries below

A compiled library has these C entries; ``params`` are the addresses of the arguments, as for cuLaunchKernel:

    int emu_launch(const char* kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                   void** params);          // 0: done, 1: no kernel of that name, 2: failed, see emu_error()
    int emu_parameters(const char* kernel, unsigned* bytes, int capacity);    // count and sizes; -1: no such kernel
    void emu_seed(unsigned number);         // 0: threads and blocks in their order
    const char* emu_error(void);

It detects threads of a block that wait at different barriers or warp functions, results that depend on the order of
threads or blocks, uninitialized shared memory and scratch (poisoned), and writes outside buffers. ``race`` detects
accesses that no barrier orders, ``address`` every access outside a buffer or to a misaligned address.

Needs g++ (C++20) and NumPy.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import yolact_deploy
from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan, Offset

HERE = Path(__file__).resolve().parent
KERNELS = Path(yolact_deploy.__file__).resolve().parent / "runtime" / "cuda" / "kernels"

Defines = tuple[tuple[str, str | int], ...]

_COMMON = ["-std=c++20", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Wno-attributes"]
_LIBRARY = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"]
_PROGRAM = ["-O1", "-g", "-DEMU_PROGRAM", "-pthread"]
MODES = {
    "fibers": _LIBRARY,
    "race": [*_PROGRAM, "-DEMU_THREADS", "-fsanitize=thread", "-Wno-tsan"],
    "address": [*_PROGRAM, "-fsanitize=address,alignment,shift,signed-integer-overflow", "-fno-sanitize-recover=all"],
}

#: bytes before and after every buffer that no kernel may write
_GUARD = 256
POISON = 0xCD

_KERNEL_NAME = re.compile(
    r'extern\s+"C"\s+(?:__global__\s+void|void\s+__global__)\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\('
)


class EmulationError(Exception):
    """A kernel that breaks a rule or does not compile."""


@functools.cache
def available(mode: str = "fibers") -> bool:
    """Whether there is a compiler for kernels with the features that the mode needs; remembered for each compiler."""
    if shutil.which("g++") is None:
        return False
    digest = hashlib.sha256("\0".join([*MODES[mode], _compiler_version()]).encode()).hexdigest()[:24]
    note = _build_folder() / f"available-{mode}-{digest}"
    if not note.exists():
        note.with_suffix(f".{os.getpid()}").write_text("yes" if _works(mode) else "no")
        note.with_suffix(f".{os.getpid()}").replace(note)
    return note.read_text() == "yes"


def _works(mode: str) -> bool:
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "program.cpp"
        program.write_text("#if __cplusplus < 202002L\n#error\n#endif\nint main() { return 0; }\n")
        options = [option for option in MODES[mode] if option.startswith(("-fsanitize", "-shared", "-fPIC"))]
        command = ["g++", "-std=c++20", *options, "-o", f"{name}/program", str(program)]
        built = subprocess.run(command, capture_output=True, check=False).returncode == 0
        return built and (mode == "fibers" or _sanitized([f"{name}/program"]).returncode == 0)


# -- compiling --------------------------------------------------------------------------------------------------------


def compile_source(
    source: str, defines: Defines = (), *, mode: str = "fibers", edits: Mapping[str, str] | None = None
) -> Path:
    """The shared library (or, for the sanitizers, the program) of a source in ``kernels/``, built once and cached.

    Args:
        edits: replacement texts for files of ``kernels/``, by name

    Raises:
        EmulationError: it does not compile; the message includes the output of the compiler.
    """
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.cu*"))} | dict(edits or {})
    own = [path.read_text(encoding="utf-8") for path in sorted(HERE.rglob("*.h"))]
    options = [*_COMMON, *MODES[mode], *(f"-D{name}={value}" for name, value in defines)]
    # Any source may include headers, but not other .cu files.
    used = [f"{name}\n{text}" for name, text in texts.items() if name == source or name.endswith("h")]
    digest = hashlib.sha256("\0".join([source, *options, *used, *own, _compiler_version()]).encode()).hexdigest()[:24]
    made = _build_folder() / f"{Path(source).stem}-{mode}-{digest}{'.so' if mode == 'fibers' else ''}"
    if not made.exists():
        _compile(source, texts, options, made, edited=bool(edits))
    return made


def _compile(source: str, texts: Mapping[str, str], options: list[str], made: Path, *, edited: bool) -> None:
    with tempfile.TemporaryDirectory(dir=made.parent) as name:
        folder = Path(name)
        if edited:
            for file, text in texts.items():
                (folder / file).write_text(text, encoding="utf-8")
        kernels = " ".join(f"EMU_KERNEL({kernel})" for kernel in _KERNEL_NAME.findall(texts[source]))
        wrapper = folder / "wrapper.cpp"
        wrapper.write_text(
            f'#include "cuda_emu.h"\n#include "{(folder if edited else KERNELS) / source}"\n#include "entry.h"\n'
            f'EMU_ENTRIES({kernels})\n#ifdef EMU_PROGRAM\n#include "job.h"\n#endif\n'
        )
        result = folder / "result"
        folders = [f"-I{HERE}", f"-I{HERE / 'include'}"]
        run = subprocess.run(
            ["g++", *options, *folders, "-o", str(result), str(wrapper)], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise EmulationError(f"{source} does not compile:\n{run.stderr}")
        result.replace(made)


@functools.cache
def _compiler_version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def _build_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"yolact-deploy-cuda-emu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def load_library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.emu_error.restype = ctypes.c_char_p
    return library


# -- running ----------------------------------------------------------------------------------------------------------


class GuardedBuffer:
    """Memory aligned like device memory, with a guard on each side."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.name = name
        self._all = np.full(nbytes + 2 * _GUARD + 256, POISON, np.uint8)
        start = -self._all.ctypes.data % 256 + _GUARD
        self.bytes = self._all[start : start + nbytes]
        self._guards = self._all[:start], self._all[start + nbytes :]

    @property
    def pointer(self) -> int:
        return self.bytes.ctypes.data

    def check(self) -> None:
        for guard, where in zip(self._guards, ("before", "behind"), strict=True):
            if (guard != POISON).any():
                raise EmulationError(f"a write {where} the buffer {self.name}")


def run_plan(
    plan: LaunchPlan,
    arrays: Mapping[str, NDArray[Any]],
    *,
    seed: int = 0,
    mode: str = "fibers",
    edits: Mapping[str, str] | None = None,
) -> dict[str, GuardedBuffer]:
    """Runs a plan on C-contiguous arrays by buffer name; the kernels write into them.

    Args:
        seed: 0 runs threads and blocks in order; any other number gives another order
        mode: one of `MODES`
        edits: replacement texts for files of ``kernels/``, by name

    Returns:
        All buffers, including scratch.

    Raises:
        EmulationError: see the top of this file.
    """
    if missing := [name for name in plan.buffers if name not in arrays]:
        raise EmulationError(f"no arrays for the buffers {', '.join(missing)}")
    buffers = {name: GuardedBuffer(name, size) for name, size in plan.scratch.items()}
    for name in plan.buffers:
        buffers[name] = GuardedBuffer(name, arrays[name].nbytes)
        buffers[name].bytes[:] = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
    for launch in plan.launches:
        made = compile_source(launch.source, launch.defines, mode=mode, edits=edits)
        if mode == "fibers":
            _call(load_library(made), launch, buffers, seed)
        else:
            _run_program(made, launch, buffers, seed)
        for buffer in buffers.values():
            buffer.check()
    for name in plan.buffers:
        result = buffers[name].bytes.view(arrays[name].dtype).reshape(arrays[name].shape)
        if arrays[name].flags.writeable:
            arrays[name][...] = result
        elif result.tobytes() != arrays[name].tobytes():
            raise EmulationError(f"a write to the buffer {name}, whose array is read-only")
    return buffers


def _call(library: ctypes.CDLL, launch: Launch, buffers: Mapping[str, GuardedBuffer], seed: int) -> None:
    held = [_argument_bytes(argument, buffers) for argument in launch.arguments]
    params = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
    library.emu_seed(ctypes.c_uint(seed))
    code = library.emu_launch(
        launch.kernel.encode(),
        (ctypes.c_uint * 3)(*launch.grid),
        (ctypes.c_uint * 3)(*launch.block),
        ctypes.c_uint(launch.shared_bytes),
        params,
    )
    if code != 0:
        reason = "no kernel of that name" if code == 1 else library.emu_error().decode()
        raise EmulationError(f"{launch.source}, {launch.kernel}: {reason}")


def _argument_bytes(argument: Any, buffers: Mapping[str, GuardedBuffer]) -> NDArray[Any]:
    if isinstance(argument, str):
        return np.array([buffers[argument].pointer], np.uint64)
    if isinstance(argument, Offset):
        return np.array([buffers[argument.buffer].pointer + argument.bytes], np.uint64)
    return np.array([argument])


def _run_program(program: Path, launch: Launch, buffers: Mapping[str, GuardedBuffer], seed: int) -> None:
    """One launch in a child process; buffers are passed in files."""
    with tempfile.TemporaryDirectory() as name:
        files = {buffer: Path(name) / str(i) for i, buffer in enumerate(launch.buffers)}
        lines = [f"seed {seed}"]
        for buffer, file in files.items():
            buffers[buffer].bytes.tofile(file)
            lines.append(f"buffer {buffers[buffer].bytes.size} {file}")
        numbers = [*launch.grid, *launch.block, launch.shared_bytes, len(launch.arguments)]
        lines.append(f"launch {launch.kernel} {' '.join(map(str, numbers))}")
        lines += [_argument_line(argument, list(files)) for argument in launch.arguments]
        job = Path(name) / "job"
        job.write_text("\n".join(lines) + "\n")
        run = _sanitized([str(program), str(job)])
        if run.returncode != 0:
            raise EmulationError(f"{launch.source}, {launch.kernel}:\n{run.stderr[:6000]}")
        for buffer, file in files.items():
            buffers[buffer].bytes[:] = np.fromfile(file, np.uint8)


def _argument_line(argument: Any, names: list[str]) -> str:
    if isinstance(argument, str):
        return f"at {names.index(argument)} 0"
    if isinstance(argument, Offset):
        return f"at {names.index(argument.buffer)} {argument.bytes}"
    return f"value {int.from_bytes(np.array([argument]).tobytes(), 'little'):x}"


def _sanitized(command: list[str]) -> subprocess.CompletedProcess[str]:
    options = {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66", "ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | options, timeout=600)
    if "unexpected memory mapping" in run.stderr and shutil.which("setarch"):  # addresses too random for the sanitizer
        run = subprocess.run(
            ["setarch", os.uname().machine, "-R", *command],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | options,
            timeout=600,
        )
    return run
