"""The files of ONNX Runtime Web that a web page needs, from the npm package, in the cache or in a folder given.

The package is MIT licensed and has no file with the license in it, so its text is written beside the copies.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.artifact import write_bytes
from yolact_deploy.cache import cache_folder
from yolact_deploy.errors import ExportError, InputError

#: what was tried with the page
VERSION = "1.30.0"
_PACKAGE = "onnxruntime-web"
#: the script and the WebAssembly binary of each way to run
FILES = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
#: no file of the package is nearly that large
_MOST_BYTES = 200_000_000

LICENSE = """\
ONNX Runtime Web (the files in this folder) is distributed under the MIT License.

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class OnnxRuntimeWeb:
    """A folder with the files of ONNX Runtime Web.

    Attributes:
        folder: has at least the files for WebAssembly
        version: of the package; "unknown" if the folder has no package.json
    """

    folder: Path
    version: str

    @property
    def ways(self) -> list[str]:
        """The keys of :data:`FILES` whose files are there."""
        return [way for way, names in FILES.items() if all((self.folder / name).is_file() for name in names)]

    def copy_to(self, folder: Path) -> list[Path]:
        """Copy the files of all :attr:`ways`, with the license; returns the copies."""
        folder.mkdir()
        (folder / "LICENSE.txt").write_text(LICENSE, "utf-8")
        names = [name for way in self.ways for name in FILES[way]]
        return [folder / "LICENSE.txt", *(Path(shutil.copyfile(self.folder / name, folder / name)) for name in names)]


def find_onnxruntime_web(folder: Path | None = None) -> OnnxRuntimeWeb:
    """The files in a folder, else those in the cache, else those of the npm package, which then are in the cache.

    Args:
        folder: the unpacked npm package, its ``dist``, or a folder in which ``npm install`` has run

    Raises:
        InputError: the folder has none of it.
        ExportError: npm is missing, or cannot fetch the package.
    """
    if folder is not None:
        return _in_folder(folder)
    kept = cache_folder("web") / f"{_PACKAGE}-{VERSION}"
    cached = OnnxRuntimeWeb(kept, VERSION)
    if len(cached.ways) < len(FILES):
        _download(kept)
    return cached


def _in_folder(folder: Path) -> OnnxRuntimeWeb:
    package = folder / "node_modules" / _PACKAGE
    for place, described in ((folder, folder.parent), (folder / "dist", folder), (package / "dist", package)):
        if "wasm" in OnnxRuntimeWeb(place, "").ways:
            return OnnxRuntimeWeb(place, _version(described / "package.json"))
    raise InputError(
        f"--ort-web {folder}: {' and '.join(FILES['wasm'])} are not there. Give the folder in which "
        f"'npm install --ignore-scripts {_PACKAGE}@{VERSION}' has run"
    )


def _version(path: Path) -> str:
    try:
        return str(json.loads(path.read_text("utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _download(target: Path) -> None:
    """Fetch the package with npm, which checks its digest, and keep what a page needs."""
    npm = shutil.which("npm")
    elsewhere = (
        f"run 'npm install --ignore-scripts {_PACKAGE}@{VERSION}' in a folder of a machine that can, and name a "
        "copy of that folder with --ort-web"
    )
    if npm is None:
        raise ExportError(
            f"a web page needs {_PACKAGE}, which comes from npm, and there is no npm here. Install it (Debian and "
            f"Ubuntu: apt-get install npm), or {elsewhere}"
        )
    with tempfile.TemporaryDirectory() as work:
        command = [npm, "pack", "--ignore-scripts", "--silent", f"{_PACKAGE}@{VERSION}"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=600, check=False)
        packed = next(Path(work).glob("*.tgz"), None)
        if done.returncode or packed is None:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise ExportError(f"npm cannot fetch {_PACKAGE}@{VERSION}: {lines[-1]}. Try again, or {elsewhere}")
        _unpack(packed, target)


def _unpack(packed: Path, target: Path) -> None:
    names = {f"package/dist/{name}": name for pair in FILES.values() for name in pair}
    with tarfile.open(packed) as archive:
        for member in archive:
            name = names.get(member.name)
            content = archive.extractfile(member) if name and member.isfile() else None
            if name and content is not None and member.size <= _MOST_BYTES:
                write_bytes(target / name, content.read())
    missing = [name for name in names.values() if not (target / name).is_file()]
    if missing:
        raise ExportError(f"{packed.name} from npm has no {' and no '.join(missing)}: another version is needed")
