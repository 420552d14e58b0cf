"""Weights at an address: what is downloaded, what is checked, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from static_server import folder_served

from yolact_deploy import samples
from yolact_deploy.cli.main import main
from yolact_deploy.errors import DownloadError
from yolact_deploy.samples import weights_address
from yolact_deploy.samples.first_digests import store_digest
from yolact_deploy.samples.pretrained import resolve_weights
from yolact_deploy.samples.weights_address import download_weights

DIGEST = hashlib.sha256(samples.DEMO_MODEL.read_bytes()).hexdigest()
NAMED = f"demo-{DIGEST[:8]}.safetensors"


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "web"
    folder.mkdir()
    for name in (NAMED, "plain.safetensors", "demo-0123abcd.safetensors"):
        shutil.copy(samples.DEMO_MODEL, folder / name)
    with folder_served(folder) as address:
        yield folder, address


def test_a_digest_in_the_name(web: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, address = web
    assert main(["fetch", f"{address}/{NAMED}?key=1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sha256"] == DIGEST
    assert Path(result["path"]).read_bytes() == samples.DEMO_MODEL.read_bytes()
    (folder / NAMED).unlink()  # the second call needs no connection
    assert main(["fetch", f"{address}/{NAMED}?key=1"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == result["path"]
    assert "inspect" in printed.err
    assert str(resolve_weights(f"{address}/{NAMED}?key=1")) == result["path"]


def test_a_digest_of_the_user(web: tuple[Path, str], tmp_path: Path) -> None:
    _, address = web
    path = download_weights(f"{address}/plain.safetensors", tmp_path / "own", DIGEST.upper())
    assert path.is_relative_to(tmp_path / "own")
    for wrong in ("0" * 64, DIGEST[:10]):
        with pytest.raises(DownloadError, match="you said"):
            download_weights(f"{address}/plain.safetensors", tmp_path / "other", wrong)
    assert not [file for file in (tmp_path / "other").rglob("*") if file.is_file()]


def test_the_first_download_is_remembered(web: tuple[Path, str]) -> None:
    folder, address = web
    url = f"{address}/plain.safetensors"
    with pytest.raises(DownloadError, match="http:// does not prove who sends"):
        download_weights(url)
    store_digest(url, DIGEST)  # as https:// does
    path = download_weights(url)
    path.unlink()
    (folder / "plain.safetensors").write_bytes(b"another file")
    with pytest.raises(DownloadError, match="the first download here said"):
        download_weights(url)
    assert not path.exists()


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("demo-0123abcd.safetensors", None, "its name said 0123abcd"),
        ("gone-0123abcd.pth", None, "answers 404"),
        ("page-0123abcd.pth", b"\n<!DOCTYPE html>", "gives a page, not a file"),
        ("empty-0123abcd.pth", b"", "ended after 0 of 0 bytes"),
        ("readme.txt", b"text", "does not name a file of weights"),
        ("", None, "does not name a file of weights"),
        ("a%2f..%2f..%5c", None, "does not name a file of weights"),
    ],
)
def test_what_is_refused(
    web: tuple[Path, str], tmp_path: Path, place: str, content: bytes | None, message: str
) -> None:
    folder, address = web
    if content is not None:
        (folder / place).write_bytes(content)
    with pytest.raises(DownloadError, match=message):
        download_weights(f"{address}/{place}")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_a_name_stays_in_its_folder(web: tuple[Path, str], tmp_path: Path) -> None:
    _, address = web
    path = download_weights(f"{address}/x%2f..%2f..%2f{NAMED}".replace("x%2f..%2f..%2f", "%2e/"), tmp_path / "own")
    assert path.parent.parent == tmp_path / "own"


def test_limits_and_broken_addresses(web: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, address = web
    monkeypatch.setattr(weights_address, "_MOST_BYTES", 1000)
    with pytest.raises(DownloadError, match="larger than"):
        download_weights(f"{address}/{NAMED}")
    for broken in ("https://[::1/a.pth", "http://host:99999/a.pth", "https:///a.pth"):
        with pytest.raises(DownloadError, match=r"not an address|does not name"):
            download_weights(broken)
    with pytest.raises(DownloadError, match=r"cannot download http://\*\*\*@127.0.0.1:9/a-0123abcd.pth"):
        download_weights("http://user:secret@127.0.0.1:9/a-0123abcd.pth?key=secret")
