"""What a web page is made of, without a browser: files, models of several precisions, errors."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from yolact_deploy.artifact import Metadata, sha256_file
from yolact_deploy.config import get_config
from yolact_deploy.errors import ExportError, InputError
from yolact_deploy.export.targets import html_file, web
from yolact_deploy.export.targets.onnxruntime_web import FILES, VERSION, find_onnxruntime_web
from yolact_deploy.export.targets.registry import write_target
from yolact_deploy.export.targets.target_source import TargetSource

METADATA = Metadata(config=get_config("yolact_base"), weights_sha256="ab" * 32)


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """A folder in which npm has installed something small of the right names."""
    package = tmp_path / "npm" / "node_modules" / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.30.7"}')
    for name in (name for pair in FILES.values() for name in pair):
        (package / "dist" / name).write_text(f"the content of {name}")
    return tmp_path / "npm"


def source(folder: Path, dist: Path, **changes: object) -> TargetSource:
    """A stand-in for an exported file: its content does not matter here."""
    path = folder / "model.onnx"
    path.write_bytes(repr(changes).encode())
    metadata = dataclasses.replace(METADATA, **changes)  # type: ignore[arg-type]
    return TargetSource(onnx_path=path, metadata=metadata, ort_web=dist)


def test_files(tmp_path: Path, dist: Path) -> None:
    written = write_target("web", source(tmp_path, dist))
    folder = tmp_path / "model_web"
    assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in written}
    runtime = [f"onnxruntime-web/{name}" for pair in FILES.values() for name in pair]
    assert names == {
        "index.html", "page.css", "page.js", "detector.js", "favicon.svg", "model.json", "README.txt",
        "model_fp32.onnx", "onnxruntime-web/LICENSE.txt", *runtime,
    }  # fmt: skip
    assert (folder / "model_fp32.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    settings = json.loads((folder / "model.json").read_text("utf-8"))
    assert settings["classes"] == list(METADATA.config.class_names)
    assert (settings["threshold"], settings["least"]) == (0.15, 0.05)
    assert settings["runtime"]["version"] == "1.30.7"
    (model,) = settings["models"]
    assert (model["shape"], model["dtype"], model["fit"]) == ([550, 550], "uint8", "stretch")
    file = folder / model["file"]
    assert (model["bytes"], model["sha256"]) == (file.stat().st_size, sha256_file(file))
    for way in FILES:
        assert all((folder / settings["runtime"][way][kind]).is_file() for kind in ("script", "binary"))
    readme = (folder / "README.txt").read_text("utf-8")
    assert "python -m http.server" in readme
    assert "model_fp32.onnx" in readme
    assert "MIT License" in (folder / "onnxruntime-web" / "LICENSE.txt").read_text("utf-8")


def test_nothing_names_another_host(tmp_path: Path, dist: Path) -> None:
    written = [*write_target("web", source(tmp_path, dist)), *write_target("html", source(tmp_path, dist))]
    for path in written:
        if path.suffix in (".html", ".css", ".js"):
            addresses = set(re.findall(r"https?://[\w.]+", path.read_text("utf-8")))
            assert addresses <= {"http://localhost"}, path  # in a message
            assert "{{" not in path.read_text("utf-8")


def test_a_second_precision_joins_the_first(tmp_path: Path, dist: Path) -> None:
    def files() -> list[str]:
        return [model["file"] for model in json.loads((tmp_path / "model_web/model.json").read_text())["models"]]

    write_target("web", source(tmp_path, dist, precision="fp16"))
    write_target("web", source(tmp_path, dist))
    assert files() == ["model_fp32.onnx", "model_fp16.onnx"]
    write_target("web", source(tmp_path, dist, precision="fp16"))
    assert files() == ["model_fp32.onnx", "model_fp16.onnx"]
    (tmp_path / "model_web" / "model_fp32.onnx").write_bytes(b"changed by somebody")
    write_target("web", source(tmp_path, dist, precision="fp16"))
    assert files() == ["model_fp16.onnx"]
    write_target("web", source(tmp_path, dist, weights_sha256="cd" * 32))
    assert files() == ["model_fp32.onnx"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"classes": 3, "models": [7]}', '{"models": "x", "classes": []}'])
def test_what_is_no_page_of_ours_is_replaced(tmp_path: Path, dist: Path, content: str) -> None:
    (tmp_path / "model_web").mkdir()
    (tmp_path / "model_web" / "model.json").write_text(content)
    write_target("web", source(tmp_path, dist))
    assert len(json.loads((tmp_path / "model_web" / "model.json").read_text())["models"]) == 1


def test_title_is_escaped(tmp_path: Path, dist: Path) -> None:
    made = source(tmp_path, dist)
    path = made.onnx_path.rename(tmp_path / "a & {{foot}} b.onnx")
    written = write_target("web", dataclasses.replace(made, onnx_path=path))
    assert "<title>a &amp; {{foot}} b</title>" in written[0].read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tail": "heads"}, "leave out --tail heads"),
        ({"precision": "bf16"}, "cannot run bf16 files"),
        ({"batch": (2, 4, 8)}, "the smallest batch of the file is 2"),
    ],
)
@pytest.mark.parametrize("name", ["web", "html"])
def test_files_that_a_browser_cannot_run(
    tmp_path: Path, dist: Path, changes: dict[str, object], words: str, name: str
) -> None:
    with pytest.raises(ExportError, match=words):
        write_target(name, source(tmp_path, dist, **changes))
    assert not (tmp_path / f"model_{name}").exists()


def test_where_onnxruntime_web_may_be(dist: Path) -> None:
    package = dist / "node_modules" / "onnxruntime-web"
    for folder in (dist, package, package / "dist"):
        found = find_onnxruntime_web(folder)
        assert (found.version, found.ways, found.folder) == ("1.30.7", ["wasm", "webgpu"], package / "dist")
    (package / "dist" / FILES["webgpu"][1]).unlink()
    assert find_onnxruntime_web(dist).ways == ["wasm"]


def test_folder_without_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--ort-web .*ort\.wasm\.bundle\.min\.mjs and .* are not there"):
        find_onnxruntime_web(tmp_path)


def test_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ExportError, match=r"there is no npm here\. Install it .*or run 'npm install .*--ort-web"):
        find_onnxruntime_web()


def test_npm_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'the registry is away' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ExportError, match=rf"npm cannot fetch onnxruntime-web@{VERSION}: the registry is away"):
        find_onnxruntime_web()


def test_both_modules_are_targets() -> None:
    from yolact_deploy.export.targets.registry import TARGETS

    assert (TARGETS["web"].write, TARGETS["html"].write) == (web.write, html_file.write)


@pytest.mark.slow
def test_command(tmp_path: Path, dist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both pages from one export, each with the next step."""
    for module in ("torch", "torchvision", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from yolact_deploy import samples
    from yolact_deploy.cli.main import main

    command = ["export", "--weights", str(samples.DEMO_MODEL), "--engine", "none", "-o", str(tmp_path / "shapes")]
    assert main([*command, "--format", "web", "--format", "html", "--ort-web", str(dist)]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "shapes_web"
    assert any(f"--directory {folder} 8000, then http://127.0.0.1:8000" in line for line in lines)
    assert f"Open {tmp_path / 'shapes_html' / 'shapes.html'} in a browser" in lines
    assert (folder / "model_fp32.onnx").read_bytes() == (tmp_path / "shapes.onnx").read_bytes()


def test_option_of_pages_without_a_page(tmp_path: Path, dist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from yolact_deploy.cli.main import main

    assert main(["export", "--ort-web", str(dist), "--engine", "none", "-o", str(tmp_path / "shapes")]) == 2
    assert "--ort-web is for pages: add --format web or --format html" in capsys.readouterr().err
    assert not (tmp_path / "shapes.onnx").exists()
