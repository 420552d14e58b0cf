"""What all tests share: where the golden files are, torch's threads, and a checkpoint of deterministic weights."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"

# The helpers of the golden files (detweights, goldencheck, lossinputs) and those of the tests (deterministic), and
# the package itself where it is not installed.
for folder in (TESTS, TESTS / "helpers", GOLDEN, GOLDEN / "foreign", TESTS.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# Before the first import of the NumPy core: every call of it checks the dtypes and shapes of its annotations. Without
# jaxtyping and beartype the tests run unchecked.
with contextlib.suppress(ImportError):
    import jaxtyping
    from array_checker import MODULES

    assert not any(name.partition(".")[0] == "yolact_deploy" for name in sys.modules), "imported before the hook"
    jaxtyping.install_import_hook([f"yolact_deploy.{name}" for name in MODULES], "array_checker.checker")

# Tests start many processes: without these files each would compile the package, and pytest each module, once more.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

pytest_plugins = ("fake_cuda.plugin", "exports", "traces", "services", "web_runtime", "quick_bench")


# pytest-xdist tells its workers the width of its own terminal; tables are to be as wide as in a plain run.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)

# Each worker keeps to its own share of the cores, as do its children: runtimes that believe that all of them are free
# start a thread for each, and these wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ and sys.platform == "linux":
    _cores, _workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    if len(_cores) >= _workers:
        os.sched_setaffinity(0, _cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) :: _workers])

# A shell lets what it starts in the background ignore Ctrl-C, and so do the children of that. Some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does nohup with SIGHUP, which Windows lacks.
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without looking for garbage, of which there is next to none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that no worker of pytest-xdist ends long after the others."""
    order = ("tests/export/", "tests/cli/", "tests/benchmarks/")
    items.sort(key=lambda item: next((i for i, place in enumerate(order) if item.nodeid.startswith(place)), len(order)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep torch to two threads, or to one in each worker of pytest-xdist, once a collected test has imported it.

    What is there by now stays: tests that collect garbage to see that nothing is left need not look through it.
    """
    if "array_checker" in sys.modules:
        sys.modules["array_checker"].leave_inner_functions_to_mypy()
    gc.collect()
    gc.freeze()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session")
def resnet50_checkpoint(run_folder: Path) -> Path:
    """A ``.pth`` file with the deterministic weights of yolact_resnet50, as the original would save them."""
    pytest.importorskip("torch")
    from deterministic import write_checkpoint
    from traces import once

    path = run_folder / "weights" / "yolact_resnet50_54_800000.pth"
    return once(path, lambda path: write_checkpoint(path, "yolact_resnet50"))


@pytest.fixture(scope="session")
def demo_onnx(run_folder: Path) -> Path:
    """The model that ships with the package, exported in FP32. Shared: copy it before you change it."""
    for module in ("torch", "torchvision", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from traces import once

    from yolact_deploy import samples
    from yolact_deploy.cli.main import main

    def make(path: Path) -> None:
        arguments = [
            "--weights",
            str(samples.DEMO_MODEL),
            "--engine",
            "none",
            "--quiet",
            "-o",
            str(path.with_suffix("")),
        ]
        assert main(["export", *arguments]) == 0

    return once(run_folder / "demo" / "shapes_demo.onnx", make)
