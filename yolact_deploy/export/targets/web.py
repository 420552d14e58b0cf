"""A static web page that runs a model in the browser: the page, the model, and ONNX Runtime Web beside it.

The page asks no other host for anything, and its content security policy forbids it. Pictures never leave the browser.
The model is the exported file as it is: its graph decodes boxes, runs NMS and assembles masks, and what is left for the
page is to resize a picture and to paste masks. So :mod:`yolact_deploy.export.parity` has checked it already.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import Metadata, sha256_file, write_json
from yolact_deploy.errors import ArtifactError, ExportError
from yolact_deploy.export.targets.onnxruntime_web import FILES, LICENSE, OnnxRuntimeWeb, find_onnxruntime_web
from yolact_deploy.export.targets.target_source import TargetSource
from yolact_deploy.preprocess import padding_color
from yolact_deploy.runtime.selection import SCORE_THRESHOLD
from yolact_deploy.untrusted import parse_json

#: in this order the page offers them; the first is the one it starts with
PRECISIONS = ("fp32", "int8", "fp16")
_PAGE = ("page.css", "page.js", "detector.js", "favicon.svg")
_RUNTIME = "onnxruntime-web"
_MOST_BYTES = 10_000_000
#: width of the names in README.txt
_COLUMN = 20
#: nothing may come from another host
_POLICY = (
    "default-src 'none'; script-src {script} 'wasm-unsafe-eval' blob:; style-src {style}; img-src {image} blob: data:; "
    "media-src blob:; worker-src blob:; connect-src {connect} blob:; base-uri 'none'; form-action 'none'"
)


def write(source: TargetSource, folder: Path) -> list[Path]:
    """Write the page into ``folder``: index.html, the model, and ONNX Runtime Web.

    Models of the same weights in other precisions that a page in STEM_web has stay in it: its user chooses.
    """
    metadata = source.metadata
    check_for_web(metadata)
    runtime = find_onnxruntime_web(source.ort_web)
    stem = source.onnx_path.stem
    file = folder / f"model_{metadata.precision}.onnx"
    shutil.copyfile(source.onnx_path, file)
    earlier = _earlier(source.onnx_path.with_name(f"{stem}_web"), metadata)
    models = [_model(metadata, file), *(model for model in earlier if model["precision"] != metadata.precision)]
    places = {way: tuple(f"{_RUNTIME}/{name}" for name in FILES[way]) for way in runtime.ways}
    settings = _settings(stem, metadata, models, runtime, places)
    write_json(folder / "model.json", settings)
    head = (
        '<link rel="icon" href="favicon.svg" type="image/svg+xml">\n<link rel="stylesheet" href="page.css">\n'
        '<script src="page.js" defer></script>'
    )
    policy = _POLICY.format(script="'self'", style="'self'", image="'self'", connect="'self'")
    (folder / "index.html").write_bytes(_index(stem, policy, head, ""))
    (folder / "README.txt").write_text(_readme(settings), "utf-8")
    for static in _PAGE:
        (folder / static).write_bytes(_source(static))
    page = [folder / name for name in ("index.html", "README.txt", "model.json", *_PAGE)]
    return [*page, file, *runtime.copy_to(folder / _RUNTIME)]


def single_page(source: TargetSource, path: Path) -> None:
    """Write a page in one HTML file, which a browser opens without a web server. It runs on the CPU only."""
    check_for_web(source.metadata)
    runtime = find_onnxruntime_web(source.ort_web)
    model = {**_model(source.metadata, source.onnx_path), "file": f"model_{source.metadata.precision}.onnx"}
    settings = _settings(path.stem, source.metadata, [model], runtime, {"wasm": FILES["wasm"]})
    contents = {
        "model.json": json.dumps(settings).encode(),
        "detector.js": _source("detector.js"),
        model["file"]: source.onnx_path.read_bytes(),
        **{name: (runtime.folder / name).read_bytes() for name in FILES["wasm"]},
    }
    packed = {name: base64.b64encode(gzip.compress(data, mtime=0)).decode() for name, data in contents.items()}
    license_text = f"<!--\nThis page contains ONNX Runtime Web {runtime.version}.\n{LICENSE}-->\n"
    head = f"{license_text}<style>\n{_source('page.css').decode()}</style>"
    foot = (
        f'<script type="application/json" id="embedded">{json.dumps(packed)}</script>\n'
        f"<script>\n{_source('page.js').decode()}</script>"
    )
    policy = _POLICY.format(script="'unsafe-inline'", style="'unsafe-inline'", image="data:", connect="data:")
    path.write_bytes(_index(path.stem, policy, head, foot))


def check_for_web(metadata: Metadata) -> None:
    """Raise :class:`ExportError` if the page cannot run files with this metadata."""
    if metadata.tail != "functions":
        raise ExportError("a web page needs a file that ends in detections: leave out --tail heads")
    if metadata.precision not in PRECISIONS or metadata.half == "bf16":
        raise ExportError(
            f"ONNX Runtime Web cannot run {metadata.precision} files: choose --fp32, --int8 or --fp16 for a web page"
        )
    if metadata.batch[0] > 1:
        raise ExportError(
            f"a web page gives the network one picture at a time, and the smallest batch of the file is "
            f"{metadata.batch[0]}: leave out --batch, or give a range from 1"
        )


def _model(metadata: Metadata, path: Path) -> dict[str, Any]:
    """What the page must know to run a file."""
    config = metadata.config
    return {
        "file": path.name,
        "precision": metadata.precision,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "weights_sha256": metadata.weights_sha256,
        "shape": list(config.input_shape),
        "dtype": metadata.input_dtype,
        "fit": config.fit,
        "padding": list(padding_color(config, metadata.input_dtype)),
    }


def _settings(
    name: str,
    metadata: Metadata,
    models: Sequence[dict[str, Any]],
    runtime: OnnxRuntimeWeb,
    places: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    """The content of model.json.

    Args:
        places: script and binary of each way to run
    """
    ways = {way: {"script": script, "binary": binary} for way, (script, binary) in places.items()}
    return {
        "name": name,
        "classes": list(metadata.config.class_names),
        "threshold": max(SCORE_THRESHOLD, metadata.config.nms_score_threshold),
        "least": metadata.config.nms_score_threshold,
        "models": sorted(models, key=lambda model: PRECISIONS.index(model["precision"])),
        "runtime": {"name": _RUNTIME, "version": runtime.version, **ways},
    }


def _earlier(folder: Path, metadata: Metadata) -> list[dict[str, Any]]:
    """The models of the page in a folder, if they have the same weights and classes and are unchanged."""
    path = folder / "model.json"
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > _MOST_BYTES:
            return []
        values = parse_json(path.read_text("utf-8"), str(path), ArtifactError)
        if values["classes"] != list(metadata.config.class_names) or not metadata.weights_sha256:
            return []
        return [model for model in values["models"] if _is_of(model, folder, metadata)]
    except (ArtifactError, UnicodeDecodeError, KeyError, TypeError):
        return []  # not a page of ours


def _is_of(model: dict[str, Any], folder: Path, metadata: Metadata) -> bool:
    file = folder / f"model_{model['precision']}.onnx"
    known = model["precision"] in PRECISIONS and model["file"] == file.name and file.is_file()
    return known and model["weights_sha256"] == metadata.weights_sha256 and model["sha256"] == sha256_file(file)


def _source(name: str) -> bytes:
    return (resources.files(__package__) / "web_page" / name).read_bytes()


def _index(name: str, policy: str, head: str, foot: str) -> bytes:
    values = {"policy": policy, "title": html.escape(name), "head": head, "foot": foot}
    # In one pass, so that braces in a value stay what they are.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _source("index.html").decode()).encode()


def _readme(settings: dict[str, Any]) -> str:
    models = "\n".join(
        f"  {model['file']:<{_COLUMN}}the model in {model['precision'].upper()}" for model in settings["models"]
    )
    gpu = "after it found there what the CPU finds" if "webgpu" in settings["runtime"] else "not with these files"
    return f"""\
{settings["name"]}: instance segmentation in the browser

To see it, run in this folder

  python -m http.server --bind 127.0.0.1 8000

and open http://127.0.0.1:8000. To publish it, copy the folder to any web server. It must send .js as JavaScript;
cameras work at https:// addresses and on this machine.

  {"index.html, page.*":<{_COLUMN}}the page
  {"detector.js":<{_COLUMN}}from pixels to detections, in a worker: resize, run, paste masks
  {"model.json":<{_COLUMN}}class names, input size, files
{models}
  {_RUNTIME + "/":<{_COLUMN}}ONNX Runtime Web {settings["runtime"]["version"]} (MIT license)

It runs on the CPU with one thread. A GPU is used {gpu}.
If the server sends "Cross-Origin-Opener-Policy: same-origin" and "Cross-Origin-Embedder-Policy: require-corp", the
address may end in ?threads=4. Compress .wasm and .onnx files on the server where you can.
"""
