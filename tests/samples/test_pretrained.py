from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from yolact_deploy.cli.main import main
from yolact_deploy.errors import CheckpointError, DownloadError, MissingDependencyError
from yolact_deploy.samples.pretrained import OFFICIAL, Pin, fetch_weights, first_digest, resolve_weights

CONTENT = b"some weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Hub(ModuleType):
    """Stands in for huggingface_hub: one file, kept as the real cache keeps it, a link to a blob named by its etag."""

    def __init__(self, root: Path) -> None:
        super().__init__("huggingface_hub")
        self.root = root
        self.etag: str | None = f'"{DIGEST}"'
        self.blob = DIGEST
        self.download_error: Exception | None = None
        self.metadata_error: Exception | None = None
        self.calls: list[tuple[Any, ...]] = []

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str, cache_dir: Any = None) -> str:
        self.calls.append((repo_id, filename, revision, cache_dir))
        if self.download_error:
            raise self.download_error
        (self.root / self.blob).write_bytes(CONTENT)
        path = self.root / filename
        path.unlink(missing_ok=True)
        path.symlink_to(self.root / self.blob)
        return str(path)

    def hf_hub_url(self, repo_id: str, filename: str, *, revision: str) -> str:
        return f"https://hub/{repo_id}/{revision}/{filename}"

    def get_hf_file_metadata(self, url: str) -> Any:
        if self.metadata_error:
            raise self.metadata_error
        return SimpleNamespace(etag=self.etag)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "own-cache"))
    return hub


def test_fetching(hub: Hub) -> None:
    path = fetch_weights("yolact_plus_base", cache_dir="cache", sha256=DIGEST.upper())
    assert path.read_bytes() == CONTENT
    assert hub.calls == [("dbolya/yolact-plus-base", "yolact_plus_base_54_800000.pth", "main", "cache")]


@pytest.mark.parametrize("name", ["yolact_base", "yolact_im700"])
def test_pinned_weights(hub: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OFFICIAL, name, Pin(DIGEST, "5f2a"))
    fetch_weights(name)
    assert hub.calls[-1][2] == "5f2a"
    fetch_weights(name, revision="77aa")
    assert hub.calls[-1][2] == "77aa"
    monkeypatch.setitem(OFFICIAL, name, Pin("1" * 64))
    with pytest.raises(DownloadError, match=f"{DIGEST}, this version said {'1' * 64}"):
        fetch_weights(name)
    assert fetch_weights(name, sha256=DIGEST).read_bytes() == CONTENT


def test_pins_are_digests() -> None:
    assert all(pin.sha256 == "" or len(bytes.fromhex(pin.sha256)) == 32 for pin in OFFICIAL.values())


@pytest.mark.parametrize(("sha256", "notes"), [("", 1), (DIGEST, 0)])
def test_the_command(
    hub: Hub, sha256: str, notes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OFFICIAL, "yolact_base", Pin(sha256))
    assert main(["fetch", "yolact_base"]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).read_bytes() == CONTENT
    assert err.count(f"keep --sha256 {DIGEST}") == notes


@pytest.mark.parametrize("name", ["yolact_base", "yolact_plus_resnet50", "yolact_darknet53"])
def test_the_first_download_is_remembered(
    hub: Hub, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", name]) == 0
    assert "Only the hub vouches for the file; a later download that differs is refused" in capsys.readouterr().err
    assert first_digest(name) == DIGEST
    assert main(["fetch", name]) == 0
    assert "The file is that of the first download here" in capsys.readouterr().err
    # Another file, for which the hub vouches as well.
    monkeypatch.setattr(sys.modules[__name__], "CONTENT", b"other")
    hub.etag = hub.blob = hashlib.sha256(b"other").hexdigest()
    assert main(["fetch", name]) == 2
    assert re.search(rf"the first download here \(.*first_digests\.json\) said {DIGEST}", capsys.readouterr().err)
    assert fetch_weights(name, sha256=hub.etag).read_bytes() == b"other", "the user knows better"
    assert fetch_weights(name, revision="5f2a").read_bytes() == b"other", "another revision is another file"
    assert first_digest(name) == DIGEST
    (tmp_path / "own-cache/weights/first_digests.json").write_text("[1]")
    with pytest.raises(DownloadError, match=r"first_digests\.json is damaged: delete it"):
        fetch_weights(name)


@pytest.mark.parametrize(("folder", "option"), [("5f2a" * 10, f" --revision {'5f2a' * 10}"), ("main", ""), ("5F", "")])
def test_the_commit_is_printed_where_it_is_known(
    hub: Hub, folder: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.root = tmp_path / folder
    hub.root.mkdir()
    assert main(["fetch", "yolact_base"]) == 0
    assert capsys.readouterr().err.rstrip().endswith(f"keep --sha256 {DIGEST}{option}")


def test_without_a_cache_folder(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "file"))
    assert fetch_weights("yolact_base").read_bytes() == CONTENT
    assert "the SHA-256 of yolact_base is not kept for the next download" in caplog.text


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("def hf_hub_download(*names, **options): raise OSError('offline')\n")
    code = (
        "import sys; from yolact_deploy.cli.main import main\n"
        "assert main(['fetch', 'yolact_base']) == 2\n"
        "print(sorted({'torch', 'cv2', 'onnx', 'onnxruntime', 'rich'} & set(sys.modules)))"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr
    assert "no connection to the hub (offline)" in done.stderr


def test_a_wrong_checksum_of_the_hub(hub: Hub) -> None:
    hub.etag = "0" * 64
    with pytest.raises(DownloadError, match=f"{DIGEST}, the hub said {'0' * 64}: delete the file"):
        fetch_weights("yolact_base")


def test_a_wrong_checksum_of_the_user(hub: Hub) -> None:
    with pytest.raises(DownloadError, match="you said abc"):
        fetch_weights("yolact_base", sha256="ABC")


def test_without_a_connection_the_cache_serves(hub: Hub) -> None:
    hub.metadata_error = ConnectionError("offline")
    assert fetch_weights("yolact_base").read_bytes() == CONTENT
    hub.blob = "0" * 64
    with pytest.raises(DownloadError, match="the hub said 0000"):
        fetch_weights("yolact_base")


def test_a_file_without_a_declared_checksum(hub: Hub) -> None:
    hub.etag = None
    with pytest.raises(DownloadError, match="declares no SHA-256"):
        fetch_weights("yolact_base")
    assert fetch_weights("yolact_base", sha256=DIGEST).read_bytes() == CONTENT


class RepositoryNotFoundError(Exception):
    """Named as the error of huggingface_hub."""


class EntryNotFoundError(Exception):
    """Named as the error of huggingface_hub."""


class LocalEntryNotFoundError(EntryNotFoundError):
    """Named as the error of huggingface_hub for: not in the cache, and no connection."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LocalEntryNotFoundError("not in the cache\nmore"), r"no connection to the hub \(not in the cache\)"),
        (ConnectionError("name resolution failed"), r"no connection to the hub \(name resolution failed\)"),
        (OSError(), r"no connection to the hub \(OSError\)"),
        (RepositoryNotFoundError("404"), "no such file any more"),
        (EntryNotFoundError("404"), "no such file any more"),
    ],
)
def test_failures_say_how_to_place_the_file(hub: Hub, error: Exception, reason: str) -> None:
    hub.download_error = error
    with pytest.raises(DownloadError, match=reason) as caught:
        fetch_weights("yolact_im700")
    message = str(caught.value)
    assert "https://huggingface.co/dbolya/yolact-im700/resolve/main/yolact_im700_54_800000.pth" in message
    assert "Give the path of " in message
    assert "\n" not in message


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"yolact-deploy\[hub\]"):
        fetch_weights("yolact_base")


def test_fetching_an_unknown_name() -> None:
    with pytest.raises(DownloadError, match="no weights were published for 'yolact_im400'"):
        fetch_weights("yolact_im400")


# -- names ----------------------------------------------------------------------------------------------------------


def test_an_existing_path_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("yolact_base").write_bytes(b"mine")
    assert resolve_weights("yolact_base") == Path("yolact_base")
    assert hub.calls == []


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_are_fetched(hub: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OFFICIAL, name, Pin())
    assert resolve_weights(name).name == f"{name}_54_800000.pth"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gone.pth", "no such weights file: gone.pth"),
        ("folder/yolact_base", "no such weights file: folder/yolact_base"),
        ("yolact_im400", "no weights were published for yolact_im400"),
        ("yolact_bose", "did you mean yolact_base"),
    ],
)
def test_names_that_are_nothing(hub: Hub, name: str, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        resolve_weights(name)
    assert hub.calls == []
