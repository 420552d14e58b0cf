"""The cache folder, and locks on files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from yolact_deploy.cache import cache_folder, cache_root, file_lock
from yolact_deploy.errors import OutputError


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"YOLACT_DEPLOY_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"YOLACT_DEPLOY_CACHE": "~/b"}, "/home/me/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/yolact-deploy"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/yolact-deploy"),
        ({"YOLACT_DEPLOY_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/yolact-deploy"),
        ({}, "/home/me/.cache/yolact-deploy"),
    ],
)
def test_root(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("YOLACT_DEPLOY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


def test_folders_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache_folder("engines") == tmp_path / "deep" / "cache" / "engines"
    assert cache_folder("engines").is_dir()
    with pytest.raises(ValueError, match="unknown kind of cache 'engine', expected one of engines, "):
        cache_folder("engine")


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot create the cache folder .*file/kernels: .*Set YOLACT_DEPLOY_CACHE"):
        cache_folder("kernels")


def test_what_others_could_have_put_there_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    folder = cache_folder("engines")
    for place in (folder, folder.parent):
        for mode, readable in (
            (0o777, "others may write to the cache folder"),
            (0o772, "others may write"),
            (0o755, ""),
        ):
            place.chmod(mode)
            with pytest.raises(OutputError, match=f"{readable}.* chmod go-w ") if readable else nullcontext():
                cache_folder("engines")
    folder.parent.chmod(0o1777)  # as /tmp, where nobody can replace the folder of another
    assert cache_folder("engines") == folder
    folder.chmod(0o1777)
    with pytest.raises(OutputError, match="others may write"):
        cache_folder("engines")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("place", ["", "engines", "engines/a.trt", "engines/.a.lock", "engines/link"])
def test_files_of_other_users_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    folder = cache_folder("engines")
    for name in ("a.trt", ".a.lock"):
        (folder / name).touch()
    (folder / "link").symlink_to("a.trt")
    assert cache_folder("engines") == folder
    os.chown(tmp_path / "cache" / place, 12345, 12345, follow_symlinks=False)
    with pytest.raises(OutputError, match=r"belongs to another user.*YOLACT_DEPLOY_CACHE"):
        cache_folder("engines")


# -- locks ----------------------------------------------------------------------------------------------------------


def test_a_lock_is_exclusive_and_leaves_nothing(tmp_path: Path) -> None:
    path, waits = tmp_path / "lock", list[int]()
    with file_lock(path, 0) as first:
        assert path.exists()
        with file_lock(path, 0, lambda: waits.append(1)) as second:
            pass
        with file_lock(path, 0.2, lambda: waits.append(2)) as third:
            pass
        assert path.exists()  # a lock that was not acquired is not removed
    assert (first, second, third) == (True, False, False)
    assert waits == [2]
    assert list(tmp_path.iterdir()) == []
    with file_lock(path, 0) as again:
        assert again


def test_only_one_is_inside(tmp_path: Path) -> None:
    """Many threads, while the file is created and removed."""
    inside, most, rounds = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, rounds
        for _ in range(5):
            with file_lock(tmp_path / "lock", 60) as held:
                assert held
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1
                rounds += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, rounds) == (1, 30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("leads_to", ["victim", "none", "."])
def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "lock").symlink_to(leads_to)
    with pytest.raises(OSError, match="symbolic links"), file_lock(tmp_path / "lock", 0):
        pass
    assert (tmp_path / "victim").read_text() == "kept"
    assert not (tmp_path / "none").exists()


HOLD = """
import sys, time
from yolact_deploy.cache import file_lock
with file_lock(sys.argv[1], 0) as held:
    print(held, flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with file_lock(path, 0) as held:
            assert not held
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert path.exists()
    with file_lock(path, 0) as held:
        assert held
    assert not path.exists()


def test_the_work_of_the_holder_may_fail(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="work"), file_lock(tmp_path / "lock", 0):
        raise RuntimeError("work")
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with file_lock(tmp_path / "lock", 0) as held:
        assert held
    assert list(tmp_path.iterdir()) == []


def test_systems_without_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with file_lock(tmp_path / "lock", 0) as held:
        assert held
    assert list(tmp_path.iterdir()) == []
