"""NVRTC compiles all kernels for all GPUs, and the cache keeps them; without GPU and driver."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.cache import cache_folder
from yolact_deploy.errors import BackendError, MissingDependencyError
from yolact_deploy.runtime.cuda import nvrtc
from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan, Offset
from yolact_deploy.runtime.cuda.plans.plan_masks import mask_assembly
from yolact_deploy.runtime.cuda.plans.plan_nms import fast_nms
from yolact_deploy.runtime.cuda.plans.plan_paste import paste
from yolact_deploy.runtime.cuda.plans.plan_resize import resize

pytest.importorskip("cuda.bindings.nvrtc")

#: as they are before any test replaces them
REMEMBERED = (nvrtc.version, nvrtc._known_archs, nvrtc._headers, nvrtc._bindings, nvrtc._include_folder)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty kernel cache, and no cached facts about this machine."""
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    forget()
    yield
    forget()


def forget() -> None:
    for remembered in REMEMBERED:
        remembered.cache_clear()


@pytest.fixture
def needs_library() -> None:
    try:
        nvrtc.version()
    except BackendError as error:
        pytest.skip(str(error))


def nms(classes: int, *, cross_class: bool = False) -> LaunchPlan:
    limits = {"top_k": 200, "max_detections": 100, "score_threshold": 0.05, "iou_threshold": 0.5}
    return fast_nms(1, 19248, classes, 32, cross_class=cross_class, **limits)  # type: ignore[arg-type]


def masks(proto: str, mask: str, *, zero_outside: bool, coefficients: int = 32) -> LaunchPlan:
    return mask_assembly(1, 100, 138, 138, coefficients, proto_dtype=proto, mask_dtype=mask, zero_outside=zero_outside)


#: plans of a typical network on a GPU
USUAL = {
    "fast_nms": nms(80),
    "mask_assembly": masks("float16", "float16", zero_outside=False),
    "paste": paste(1, 100, 138, 138, mask_dtype="float16", capacity_words=70000),
    "resize": resize(480, 640, 1920, 550),
    "paste with mask scores": paste(1, 100, 138, 138, capacity_words=70000, rescored=True),
}
PLANS = USUAL | {
    "fast_nms of 21 classes": nms(21),
    "fast_nms of 22 classes": nms(22),
    "fast_nms cross-class": nms(80, cross_class=True),
    "mask_assembly float32": masks("float32", "float32", zero_outside=True),
    "mask_assembly float32 inside": masks("float32", "float32", zero_outside=False),
    "mask_assembly mixed": masks("float32", "float16", zero_outside=True),
    "mask_assembly of 33": masks("float16", "float32", zero_outside=True, coefficients=33),
    "mask_assembly of 128": masks("float32", "float32", zero_outside=True, coefficients=128),
    "paste float32": paste(1, 100, 138, 138, capacity_words=70000),
    "resize float32": resize(480, 640, 1920, 550, output_dtype="float32"),
}
#: whose kernels take what those of fast_nms take, and compile in a second
ALIKE = ("fast_nms of 21 classes", "fast_nms of 22 classes")
ARCHS = (75, 80, 86, 87, 89, 90, 100, 120)


def compiled(plan: LaunchPlan, arch: int) -> dict[str, bytes]:
    """The machine code that must contain each kernel of a plan."""
    if arch not in nvrtc._known_archs():
        pytest.skip(f"NVRTC {nvrtc.version()} does not know sm_{arch}")
    return {
        launch.kernel: nvrtc.compile_source(launch.source, f"sm_{arch}", launch.defines) for launch in plan.launches
    }


# -- our kernels ------------------------------------------------------------------------------------------------------


def test_all_sources_are_among_the_plans() -> None:
    there = {path.name for path in nvrtc.KERNELS.glob("*.cu")}
    assert there == {launch.source for plan in PLANS.values() for launch in plan.launches}


@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize("arch", [*(pytest.param(arch, marks=pytest.mark.slow) for arch in (75, 87)), 120])
@pytest.mark.parametrize("name", USUAL)
def test_usual_kernels_compile(name: str, arch: int) -> None:
    for kernel, image in compiled(USUAL[name], arch).items():
        assert image.startswith(b"\x7fELF")
        assert f".text.{kernel}\0".encode() in image


@pytest.mark.slow
@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", PLANS)
def test_all_kernels_compile_for_all_gpus(name: str, arch: int) -> None:
    for kernel, image in compiled(PLANS[name], arch).items():
        assert f".text.{kernel}\0".encode() in image


def parameter_sizes(ptx: str, kernel: str) -> list[int]:
    """Bytes of each parameter of a kernel."""
    entry = re.search(rf"\.entry {kernel}\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    return [int(bits) // 8 for bits in re.findall(r"\.param (?:\.align \d+ )?\.[a-z](\d+)", entry.group(1))]


def argument_sizes(launch: Launch) -> list[int]:
    return [8 if isinstance(each, (str, Offset)) else np.asarray(each).itemsize for each in launch.arguments]


@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in PLANS])
def test_plans_pass_what_the_kernels_take(name: str) -> None:
    """The driver does not detect missing arguments or arguments of another size."""
    for launch in PLANS[name].launches:
        ptx = nvrtc.compile_source(launch.source, "compute_75", launch.defines).decode()
        assert ".target sm_75" in ptx
        assert parameter_sizes(ptx, launch.kernel) == argument_sizes(launch)


def test_products_are_fused_unless_a_source_says_otherwise(needs_library: None) -> None:
    kernel = 'extern "C" __global__ void k(float* x) { x[0] = x[1] * x[2] + x[3]; }\n'
    assert b"fma.rn.f32" in nvrtc.compile_text(kernel, "k.cu", "compute_75")
    unfused = nvrtc.compile_text(
        f"// About this.\n// nvrtc: -fmad=false -DOTHER=1\n#if OTHER\n{kernel}#endif\n", "k.cu", "compute_75"
    )
    assert b"fma.rn" not in unfused
    assert b"mul.f32" in unfused or b"mul.rn.f32" in unfused


def test_resize_is_not_fused(needs_library: None) -> None:
    """With fused multiply-add, its positions would differ from OpenCV's."""
    for dtype in ("uint8", "float32"):
        (launch,) = resize(480, 640, 1920, 550, output_dtype=dtype).launches
        ptx = nvrtc.compile_source(launch.source, "compute_75", launch.defines)
        assert b"mul.f64" in ptx or b"mul.rn.f64" in ptx
        assert b"fma" not in ptx


# -- options and errors -----------------------------------------------------------------------------------------------

TINY = '#include "common.cuh"\nextern "C" __global__ void k(int* x) { x[0] = VALUE; }\n'


def tiny(value: int = 1, *, text: str = TINY, arch: str = "compute_75") -> bytes:
    return nvrtc.compile_text(text, "tiny.cu", arch, (("VALUE", value),))


def test_defines_and_our_own_headers(needs_library: None) -> None:
    assert b"12345" in tiny(12345)
    assert b"54321" in tiny(54321)


def test_an_error_shows_nvrtcs_words(needs_library: None) -> None:
    with pytest.raises(
        BackendError, match=r"(?s)tiny.cu does not compile with NVRTC \d+\.\d+:.*tiny\.cu\(2\).*nonsense"
    ):
        tiny(text=TINY.replace("VALUE", "nonsense"))
    with pytest.raises(BackendError, match=r"(?s)tiny\.cu does not compile.*other\.cuh"):
        tiny(text='#include "other.cuh"\n')


@pytest.mark.parametrize("arch", ["sm90", "90", "lto_90", "sm_", "sm_90 --evil", "compute_90b"])
def test_unknown_spellings_of_architectures(arch: str) -> None:
    with pytest.raises(ValueError, match="expected a value such as 'sm_90' or 'compute_75'"):
        tiny(arch=arch)


def test_an_architecture_that_nvrtc_does_not_know(needs_library: None) -> None:
    with pytest.raises(BackendError, match=r"(?s)does not compile.*gpu-architecture"):
        tiny(arch="sm_20")


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((7, 5), "sm_75"), ((8, 7), "sm_87"), ((9, 0), "sm_90"), ((12, 0), "sm_120"), ((10, 3), "compute_100"),
     ((12, 1), "compute_120"), ((13, 0), "compute_120"), ((8, 8), "compute_87")],
)  # fmt: skip
def test_best_arch(capability: tuple[int, int], arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU newer than NVRTC gets PTX, which its driver compiles."""
    monkeypatch.setattr(nvrtc, "_known_archs", lambda: (75, 80, 86, 87, 89, 90, 100, 120))
    assert nvrtc.best_arch(capability) == arch


def test_a_gpu_older_than_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_known_archs", lambda: (75, 80))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 2))
    with pytest.raises(BackendError, match=r"NVRTC 13\.2 supports compute capability 7\.5 .* has 7\.2: .*cu12"):
        nvrtc.best_arch((7, 2))


# -- what is missing --------------------------------------------------------------------------------------------------


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(MissingDependencyError, match=r"Compiling CUDA kernels.*pip install 'yolact-deploy\[cuda\]'"):
        tiny()


def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Failure finding\n  libnvrtc.so")

    monkeypatch.setattr(nvrtc, "_bindings", lambda: types.SimpleNamespace(nvrtcVersion=fail))
    with pytest.raises(
        MissingDependencyError, match=r"\(Failure finding libnvrtc\.so\): .*pip install nvidia-cuda-nvrtc"
    ):
        tiny()


WITH_HALF = "#include <cuda_fp16.h>\n" + TINY


def test_without_cuda_headers(needs_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sources that include them need them."""
    monkeypatch.setattr(nvrtc, "_include_candidates", lambda: iter([Path("/nowhere")]))
    assert b"VALUE" not in tiny()
    with pytest.raises(MissingDependencyError, match=r"cuda_fp16\.h.*are missing: .*nvidia-cuda-runtime.*CUDA_HOME"):
        tiny(text=WITH_HALF)


@pytest.mark.parametrize("place", ["cu13", "cu12", "home", "path"])
def test_where_cuda_headers_are_looked_for(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels of CUDA 13 and 12, then toolkits; a folder without the header is skipped."""
    wheels, home, path = tmp_path / "nvidia", tmp_path / "home", tmp_path / "path"
    folders = {
        "cu13": wheels / "cu13" / "include",
        "cu12": wheels / "cuda_runtime" / "include",
        "home": home / "include",
        "path": path / "include",
    }
    names = list(folders)
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        if names.index(name) >= names.index(place):
            (folder / "cuda_fp16.h").touch()
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 2))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: types.SimpleNamespace(submodule_search_locations=[str(wheels)])
    )
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("CUDA_PATH", str(path))
    assert nvrtc._include_folder() == folders[place]


def test_without_any_wheel_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 6))
    assert Path("/usr/local/cuda/include") in list(nvrtc._include_candidates())


# -- the cache --------------------------------------------------------------------------------------------------------


def entries() -> list[Path]:
    folder = cache_folder("kernels")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]  # temporary files
    return sorted(folder.iterdir())


@pytest.fixture
def compilations(needs_library: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that were really compiled."""
    seen: list[str] = []
    compile_really = nvrtc._compile

    def compile_and_tell(text: str, name: str, *others: Any) -> bytes:
        seen.append(name)
        return compile_really(text, name, *others)

    monkeypatch.setattr(nvrtc, "_compile", compile_and_tell)
    return seen


def test_the_second_time_is_from_the_cache(compilations: list[str]) -> None:
    assert tiny() == tiny()
    assert compilations == ["tiny.cu"]
    (entry,) = entries()
    assert entry.name.startswith("tiny-compute_75-")
    assert entry.suffix == ".ptx"


def test_whatever_changes_the_outcome_has_its_own_entry(
    compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(1)
    tiny(2)
    tiny(1, arch="compute_80")
    tiny(1, arch="sm_75")
    tiny(1, text=TINY + "\n")
    headers = nvrtc._headers()
    monkeypatch.setattr(nvrtc, "_headers", lambda: headers | {"common.cuh": headers["common.cuh"] + "\n"})
    tiny(1)
    monkeypatch.setattr(nvrtc, "version", lambda: (99, 0))
    tiny(1)
    assert len(compilations) == len(entries()) == 7


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 5000])
def test_a_damaged_entry_is_made_again(damage: bytes, compilations: list[str]) -> None:
    image = tiny()
    (entry,) = entries()
    whole = entry.read_bytes()
    entry.write_bytes(damage)
    assert tiny() == image
    assert entry.read_bytes() == whole
    entry.write_bytes(whole[:-1])
    assert tiny() == image
    entry.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert tiny() == image
    assert tiny() == image
    assert len(compilations) == 4


def test_an_entry_that_cannot_be_read(compilations: list[str]) -> None:
    image = tiny()
    (entry,) = entries()
    entry.unlink()
    entry.mkdir()
    assert tiny() == image
    assert len(compilations) == 2


def test_a_cache_that_cannot_be_made(compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "file" / "cache"))
    assert tiny() == tiny()
    assert len(compilations) == 2


def test_a_cache_that_cannot_be_written(compilations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert tiny() == tiny()
    assert len(compilations) == 2
    assert entries() == []


@pytest.mark.slow
def test_two_processes_at_once(needs_library: None) -> None:
    code = (
        "from yolact_deploy.runtime.cuda import nvrtc\n"
        "import hashlib\n"
        "images = [nvrtc.compile_source('resize.cu', 'compute_75', (('TILE_WIDTH', n),)) for n in (16, 32, 64)]\n"
        "print(hashlib.sha256(b''.join(images)).hexdigest())"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(answers) == 1
    assert len(entries()) == 3
