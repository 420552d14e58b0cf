"""Wrong inputs from a user's view: the one line on stderr, the exit code, and the files that are left.

Each case runs in its own folder, whose contents must not change: some as the real program, all in this process, where
PyTorch need not be imported again. `pytest -m slow` runs all of them as the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_deploy.artifact import Metadata
from yolact_deploy.cli.main import main
from yolact_deploy.config import get_config
from yolact_deploy.samples import ANNOTATIONS, DEMO_MODEL, IMAGES

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("pycocotools")

ROOT = Path(__file__).parents[1]
LIMIT = 120  # seconds


@pytest.fixture(scope="module")
def store(demo_onnx: Path, resnet50_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx``, a valid file of the demo model, and ``w.pth``, a checkpoint of ResNet-50 with 80 classes."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "model.onnx").hardlink_to(demo_onnx)
    (folder / "w.pth").symlink_to(resnet50_checkpoint)
    return folder


def beginning(path: Path) -> bytes:
    """The first MB of a file of 125 MB."""
    with path.open("rb") as file:
        return file.read(1 << 20)


def engine(path: Path, kept: int = 1_000_000) -> None:
    """The bytes that TensorRT for RTX writes around a network, or the first ``kept`` of them."""
    metadata = Metadata(config=get_config("yolact_resnet50")).to_json().encode()
    whole = b"vtrt" + bytes(12) + struct.pack("<Q", 1_000_000) + bytes([1, 7, 1, 116]) + metadata
    path.write_bytes(whole.ljust(1_000_000, b"\0")[:kept])


def write_annotations(path: Path, category_id: int) -> None:
    """The samples' annotations, all with one category."""
    content = json.loads(ANNOTATIONS.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = category_id
    content["categories"] = [{"id": category_id, "name": "dragon", "supercategory": "animal"}]
    path.write_text(json.dumps(content))


def fill(folder: Path, store: Path) -> Path:
    """Put valid files and every kind of invalid one into a folder."""
    (folder / "model.onnx").hardlink_to(store / "model.onnx")
    (folder / "w.pth").symlink_to((store / "w.pth").resolve())
    (folder / "corrupt.pth").write_bytes(beginning(store / "w.pth"))
    (folder / "text.pth").write_text("not weights\n" * 100)
    (folder / "text.onnx").write_text("not a network\n" * 100)
    (folder / "half.onnx").write_bytes(beginning(store / "model.onnx"))
    engine(folder / "whole.trt")
    engine(folder / "half.trt", 500_000)
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    cv2.imwrite(str(folder / "good.png"), np.full((60, 80, 3), 99, np.uint8))
    (folder / "empty").mkdir()
    write_annotations(folder / "dragons.json", 999)
    results = {"image_id": 196393, "category_id": 999, "bbox": [1, 1, 9, 9], "score": 0.5}
    (folder / "results.json").write_text(json.dumps([results]))
    return folder


@pytest.fixture
def here(store: Path, tmp_path: Path) -> Path:
    return fill(tmp_path, store)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and modification time."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    } | {f"{path.relative_to(folder)}/": (0, 0) for path in folder.rglob("*") if path.is_dir()}


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONWARNINGS", "YOLACT_DATA")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"}


def check(code: int, stderr: str, message: str) -> None:
    """Exit code 2, and one error of one line that says what is wrong."""
    errors = [line for line in stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, stderr
    assert errors[0].startswith("yolact-deploy: error: "), stderr
    assert stderr.splitlines()[-1] == errors[0], stderr
    for word in message.split("|"):
        assert word in errors[0]
    assert "internal error" not in stderr
    assert "Traceback" not in stderr
    assert "Warning" not in stderr
    assert code == 2


IMAGES_DIR = str(IMAGES)
LABELS = str(ANNOTATIONS)

CASES = {
    # corrupt checkpoints, and checkpoints with other classes than the configuration
    "corrupt-checkpoint-export": ("export --weights corrupt.pth --engine none", "corrupt.pth|damaged"),
    "text-checkpoint-export": ("export --weights text.pth --engine none", "text.pth is not a weights file"),
    "corrupt-checkpoint-predict": ("predict corrupt.pth good.png", "corrupt.pth|damaged"),
    "corrupt-checkpoint-inspect": ("inspect corrupt.pth", "corrupt.pth|damaged"),
    "wrong-class-checkpoint": (
        "export --weights w.pth --config yolact_resnet50_pascal --engine none",
        "w.pth|20 classes|80 classes|--config",
    ),
    "wrong-class-bench": (
        f"bench --weights w.pth --config yolact_resnet50_pascal --images-dir {IMAGES_DIR}",
        "w.pth|20 classes|80 classes",
    ),
    # text files and halves as ONNX
    "text-onnx-build": ("build text.onnx", "text.onnx is not an ONNX file|yolact-deploy export"),
    "text-onnx-predict": ("predict text.onnx good.png", "text.onnx is not an ONNX file"),
    "text-onnx-bench": (f"bench --engine text.onnx --images-dir {IMAGES_DIR}", "text.onnx is not an ONNX file"),
    "text-onnx-eval": (
        f"eval --engine text.onnx --annotations {LABELS} --images-dir {IMAGES_DIR}",
        "text.onnx is not an ONNX file",
    ),
    "text-onnx-inspect": ("inspect text.onnx", "text.onnx"),
    "half-onnx-build": ("build half.onnx", "half.onnx|truncated"),
    # truncated engines
    "truncated-engine-inspect": ("inspect half.trt", "half.trt is truncated|500,000 of 1,000,000 bytes"),
    "truncated-engine-predict": ("predict half.trt good.png", "half.trt"),
    "truncated-engine-bench": (f"bench --engine half.trt --images-dir {IMAGES_DIR}", "half.trt"),
    # things that need a GPU
    "no-driver-cuda-bench": (
        f"bench --engine model.onnx@onnxruntime:provider=cuda --images-dir {IMAGES_DIR}",
        "no NVIDIA driver here|libcuda.so.1",
    ),
    "no-driver-tensorrt-provider-predict": (
        "predict model.onnx@onnxruntime:provider=tensorrt,tail=graph good.png",
        "no NVIDIA driver here",
    ),
    "no-driver-rtx-provider-predict": ("predict model.onnx@onnxruntime:provider=rtx good.png", "no NVIDIA driver here"),
    "no-driver-torch-predict": ("predict w.pth@torch-fp16:device=cuda,compile=yes good.png", "no NVIDIA driver here"),
    "no-driver-eager-bench": (
        f"bench --engine model.onnx --engine w.pth@torch:device=cuda --images-dir {IMAGES_DIR}",
        "no NVIDIA driver here",
    ),
    "no-driver-engine-predict": ("predict whole.trt good.png", "no NVIDIA driver here"),
    "no-driver-engine-bench": (f"bench --engine whole.trt --images-dir {IMAGES_DIR}", "no NVIDIA driver here"),
    "wrong-device-predict": ("predict model.onnx@openvino:device=cuda good.png", "openvino runs on the CPU"),
    # images
    "unreadable-image": ("predict model.onnx bad.jpg", "bad.jpg|damaged or not a JPEG"),
    "empty-folder": ("predict model.onnx empty", "no pictures or videos in folder empty"),
    "empty-folder-bench": ("bench --engine model.onnx --images-dir empty", "empty has no pictures"),
    "empty-coco-folder": ("bench --engine model.onnx --coco empty", "empty"),
    # annotations
    "missing-annotations-bench": (
        f"bench --engine model.onnx --annotations none.json --images-dir {IMAGES_DIR}",
        "none.json",
    ),
    "missing-annotations-eval": ("eval --results results.json --annotations none.json", "none.json"),
    "missing-results-eval": (f"eval --results none.json --annotations {LABELS}", "none.json"),
    "unknown-ids-bench": (
        f"bench --engine model.onnx --annotations dragons.json --images-dir {IMAGES_DIR}",
        "dragons.json|999|does not know",
    ),
    "unknown-ids-eval-model": (
        f"eval --engine model.onnx --annotations dragons.json --images-dir {IMAGES_DIR}",
        "dragons.json|999|does not know",
    ),
    "unknown-ids-eval-results": (f"eval --results results.json --annotations {LABELS}", "999"),
    # unwritable paths: below a file, which also stops root
    "unwritable-export": (
        "export --weights w.pth --size 97 --engine none -o text.pth/m",
        "cannot write text.pth/m.onnx",
    ),
    "unwritable-build": ("build model.onnx -o text.pth/m.trt", "cannot write text.pth/m.trt"),
    "unwritable-predict": ("predict model.onnx good.png -o text.pth/out", "cannot write to folder text.pth/out"),
    "unwritable-bench": (
        f"bench --engine model.onnx --images-dir {IMAGES_DIR} --images 1 --warmup 0 --output text.pth/b.json",
        "cannot write text.pth/b.json",
    ),
}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "yolact_deploy", *command.split()],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


# Of each kind one that fails before it imports PyTorch.
AS_PROGRAM = ("text-onnx-predict", "truncated-engine-inspect", "missing-results-eval")
RUNS = [
    *(pytest.param(case, False, id=case) for case in CASES),
    *(
        pytest.param(case, True, id=f"{case}-program", marks=[] if case in AS_PROGRAM else [pytest.mark.slow])
        for case in CASES
    ),
]


@pytest.mark.parametrize(("case", "program"), RUNS)
def test_wrong_input(
    here: Path, case: str, program: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.endswith("-build"):
        pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)
    if case.startswith("no-driver-") and has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    command, message = CASES[case]
    before = listing(here)
    if program:
        done = run(command, here)
        code, stderr = done.returncode, done.stderr
    else:
        monkeypatch.chdir(here)
        capfd.readouterr()
        code = main(command.split())
        stderr = capfd.readouterr().err
    check(code, stderr, message)
    assert listing(here) == before


# -- Ctrl-C ---------------------------------------------------------------------------------------------------------


def wait_until(done: Callable[[], object], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not done():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "later"),
    [
        pytest.param(signal.SIGINT, 0.0, id="at-once", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 1.5, id="while-tracing", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1.5, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_in_the_middle_of_an_export(here: Path, number: signal.Signals, later: float) -> None:
    before = listing(here)
    command = f"export --weights {DEMO_MODEL} --size 128 --engine none -o out/model"
    with subprocess.Popen(
        [sys.executable, "-m", "yolact_deploy", *command.split()],
        cwd=here,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("exporting shapes_demo (fp32) to out/model.onnx")
        wait_until(lambda: list((here / "out").glob(".model.writing-*")), child)  # the temporary file
        time.sleep(later)
        child.send_signal(number)
        stdout, stderr = child.communicate(timeout=LIMIT)
    check(child.returncode, stderr, "interrupted; no partial files were left")
    assert stdout == ""
    after = listing(here)
    after.pop("out/", None)  # the folder itself may stay
    assert after == before


@pytest.mark.fresh_trace
def test_ctrl_c_while_tracing(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported PyTorch: the exporter, which catches much, lets Ctrl-C through."""
    from yolact_deploy.export import onnx as exporter

    monkeypatch.chdir(here)
    before, trace = listing(here), exporter._trace

    def begin(*arguments: object) -> object:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            return trace(*arguments)  # type: ignore[arg-type]
        finally:
            timer.cancel()

    monkeypatch.setattr(exporter, "_trace", begin)
    code = main(f"export --weights {DEMO_MODEL} --size 128 --engine none -o out/model".split())
    check(code, capsys.readouterr().err, "interrupted; no partial files were left")
    after = listing(here)
    after.pop("out/", None)
    assert after == before


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_in_the_middle_of_a_build(here: Path, number: signal.Signals) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)
    before = listing(here)
    with subprocess.Popen(
        [sys.executable, "-m", "yolact_deploy", "build", "model.onnx", "-o", "built.trt"],
        cwd=here,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        wait_until(lambda: list(here.glob(".built.writing-*")), child)
        child.send_signal(number)
        _, stderr = child.communicate(timeout=LIMIT)
    check(child.returncode, stderr, "interrupted; no partial files were left")
    assert listing(here) == before


def test_importing_the_package_gives_no_warnings() -> None:
    code = "import yolact_deploy; yolact_deploy.load; yolact_deploy.get_config('yolact_base')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
