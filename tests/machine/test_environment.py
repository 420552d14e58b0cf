"""The fingerprint of a measurement: machine, settings and code, and nothing that tells whose."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_machine import FakeNvml, gpu, memory, write

import yolact_deploy
from yolact_deploy.machine.environment import code_sha256, commit, environment

ONE, TWO = "1" * 40, "2" * 40


def test_a_machine_of_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "sys/devices/system/cpu/intel_pstate/no_turbo": 1,
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/cpu.max": "400000 100000",
        },
    )
    found = environment(root=tmp_path, nvml=FakeNvml(), variables={"OMP_NUM_THREADS": "3", "HOME": "/home/me"})
    assert (found["cpu"], found["cpu_instructions"]) == ("Some CPU", ["avx2", "avx512_vnni"])
    assert (found["governor"], found["turbo"], found["cpu_quota"]) == ("powersave", False, 4.0)
    assert found["threads"]["OMP_NUM_THREADS"] == "3"
    assert "/home/me" not in json.dumps(found)
    assert "gpus" not in found
    assert "driver" not in found


def test_what_is_not_told_is_left_out(tmp_path: Path) -> None:
    found = environment(root=tmp_path, nvml=FakeNvml(), package=tmp_path)
    assert found.keys().isdisjoint({"governor", "turbo", "cpu_quota", "commit", "jetpack", "gpus"})


def test_gpus_without_their_numbers(tmp_path: Path) -> None:
    answers = gpu(
        "NVIDIA L4",
        "GPU-secret",
        MemoryInfo=memory(0, 24 << 30),
        CudaComputeCapability=(8, 9),
        MaxClockInfo=2040,
        EnforcedPowerLimit=72_000,
    )
    found = environment(
        root=tmp_path, nvml=FakeNvml(answers, gpu(uuid="GPU-b")), variables={"CUDA_VISIBLE_DEVICES": "GPU-s"}
    )
    expected = {
        "name": "NVIDIA L4",
        "memory_gib": 24.0,
        "capability": "8.9",
        "max_clock_mhz": 2040,
        "power_limit_w": 72,
    }
    assert (found["gpus"], found["driver"]) == ([expected], "570.86.10")
    assert "secret" not in json.dumps(found)


def test_a_jetson(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1",
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        },
    )
    found = environment(root=tmp_path, nvml=FakeNvml())
    assert found["cpu"].startswith("NVIDIA Jetson Orin Nano")
    assert "\0" not in found["cpu"]
    assert (found["jetpack"], found["l4t"]) == ("6.2", "36.4.3")


def test_commit_of_a_branch(tmp_path: Path) -> None:
    write(tmp_path, {".git/HEAD": "ref: refs/heads/some/branch", ".git/refs/heads/some/branch": ONE})
    assert commit(tmp_path) == ONE


def test_commit_of_a_packed_branch(tmp_path: Path) -> None:
    packed = f"# pack-refs with: peeled fully-peeled sorted\n{TWO} refs/heads/main-old\n{ONE} refs/heads/main\n^{TWO}"
    write(tmp_path, {".git/HEAD": "ref: refs/heads/main", ".git/packed-refs": packed})
    assert commit(tmp_path) == ONE


def test_commit_without_a_branch(tmp_path: Path) -> None:
    write(tmp_path, {".git/HEAD": TWO})
    assert commit(tmp_path) == TWO


@pytest.mark.parametrize("packed", [True, False])
def test_commit_of_a_worktree(tmp_path: Path, packed: bool) -> None:
    tree = tmp_path / "tree"
    write(
        tmp_path,
        {
            "tree/.git": "gitdir: ../main/.git/worktrees/tree",
            "main/.git/worktrees/tree/HEAD": "ref: refs/heads/topic",
            "main/.git/worktrees/tree/commondir": "../..",
        },
    )
    name = "packed-refs" if packed else "refs/heads/topic"
    write(tmp_path, {f"main/.git/{name}": f"{ONE} refs/heads/topic" if packed else ONE})
    assert commit(tree) == ONE


@pytest.mark.parametrize("head", ["", "ref: refs/heads/none", "ref: refs/heads/.invalid", "nonsense"])
def test_no_commit(tmp_path: Path, head: str) -> None:
    assert commit(tmp_path) is None
    write(tmp_path, {".git/HEAD": head})
    assert commit(tmp_path) is None


def test_commit_is_what_git_says() -> None:
    checkout = Path(yolact_deploy.__file__).parents[1]
    try:
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "-C", checkout, "rev-parse", "HEAD", "--show-toplevel"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git, or not run from a checkout")
    head, top = done.stdout.split("\n")[:2]
    if Path(top).resolve() != checkout.resolve():
        pytest.skip("the package lies within another repository")
    assert commit(checkout) == head


def test_code_hash_sees_every_change_of_the_sources_only(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "x = 1", "sub/kernel.cu": "int x;"})
    first = code_sha256(tmp_path)
    write(tmp_path, {"results/new.json": "{}", "__pycache__/a.pyc": "junk"})
    assert code_sha256(tmp_path) == first
    write(tmp_path, {"sub/kernel.cu": "int y;"})
    second = code_sha256(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, code_sha256(tmp_path), hashlib.sha256().hexdigest()}) == 4


def test_no_runtime_is_imported() -> None:
    code = (
        "import sys; from yolact_deploy.machine.environment import environment; environment(); "
        "print({'torch', 'onnxruntime', 'openvino'} & set(sys.modules))"
    )
    root = Path(yolact_deploy.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
