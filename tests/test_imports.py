"""Imports point one way, nothing runs in circles, and the runtime side needs none of the optional packages."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from house import (
    MOST_FILES,
    MOST_SHARE,
    PACKAGE,
    ROOMS,
    circles,
    folder_sizes,
    imports,
    module_graph,
    modules,
    own_imports,
    parsed,
    room,
    room_graph,
    shared_names,
    wrong_directions,
)

from yolact_deploy.moved import MOVED

# Folders that may import torch; in export, the modules that say so in their docstring.
TORCH_PLACES = (
    "export.onnx",
    "model",
    "training",
    "runtime.torch",
    "benchmarks",
    "evaluation",
)
TORCH_MARKER = "needs torch"

#: rooms that may need more than NumPy and OpenCV to be imported
HEAVY_ROOMS = ("datasets", "model", "evaluation", "training", "export", "console", "benchmarks", "serving", "cli",
               "__main__")  # fmt: skip

OPTIONAL = ("torch", "cuda", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx",
            "tensorrt_rtx_libs", "tensorrt_rtx_bindings", "pycocotools", "faster_coco_eval",
            "jsonschema", "ray", "pyarrow", "tritonclient", "av", "lap", "pandas", "msgspec", "mlperf_loadgen",
            "pynvml", "rich", "jaxtyping", "beartype")  # fmt: skip


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in modules()} - {""} <= set(ROOMS)


def test_imports_point_one_way() -> None:
    assert not wrong_directions()


def test_no_circles() -> None:
    assert not circles(room_graph())
    assert not circles(module_graph())


def test_a_circle_is_detected() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_imports_in_functions_count() -> None:
    tree = ast.parse("def f():\n    from a import b\nif TYPE_CHECKING:\n    import c\nelse:\n    import d")
    assert set(imports(tree)) == {"a.b", "d"}


def test_a_name_stands_for_one_thing() -> None:
    assert not shared_names()


def test_folders_are_small() -> None:
    sizes = folder_sizes()
    total = sum(lines for _, lines in sizes.values())
    assert [
        folder for folder, (files, lines) in sizes.items() if files > MOST_FILES or lines > MOST_SHARE * total
    ] == []


def test_old_import_paths_work() -> None:
    assert {f"yolact_deploy.{new}" for new in MOVED.values()} <= {f"yolact_deploy.{name}" for name in modules()}
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import yolact_deploy.runtime.video as old, yolact_deploy.streams.video as new\n"
        "from yolact_deploy.coco import read_annotations\n"
        "print(old is new, new.__spec__.name)"
    )
    assert run_python(code) == "True yolact_deploy.streams.video\n"


def test_an_old_import_path_warns() -> None:
    code = "import warnings; warnings.simplefilter('error')\nimport yolact_deploy.runtime.video"
    with pytest.raises(AssertionError, match=r"has moved to yolact_deploy\.streams\.video"):
        run_python(code)


def may_import_torch(module: str) -> bool:
    if module.startswith(tuple(f"{place}." for place in TORCH_PLACES)) or module in TORCH_PLACES:
        return True
    return module.startswith("export.") and TORCH_MARKER in (ast.get_docstring(parsed(modules()[module])) or "")


def test_torch_stays_in_its_places() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules().items()
        if not may_import_torch(module)
        for name in imports(parsed(path))
        if name.partition(".")[0] in ("torch", "torchvision", "torchinfo")
    ]
    assert not wrong


def prints(module: str) -> bool:
    calls = (node.func for node in ast.walk(parsed(modules()[module])) if isinstance(node, ast.Call))
    return "console" in own_imports(module) or any(isinstance(f, ast.Name) and f.id == "print" for f in calls)


def is_command(module: str) -> bool:
    return room(module) == "cli" or 'if __name__ == "__main__"' in modules()[module].read_text()


def test_only_commands_print() -> None:
    """The library uses ``logging`` and the progress that callers pass in."""
    printing = [module for module in modules() if prints(module) and not is_command(module)]
    assert printing == ["benchmarks.command", "console"], "what commands print with"


def runtime_side() -> list[str]:
    """Modules that import with NumPy and OpenCV alone."""
    return [
        "yolact_deploy" if module == "__init__" else f"yolact_deploy.{module}"
        for module in modules()
        if room(module) not in HEAVY_ROOMS and not module.startswith("runtime.torch.")
    ]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCKER = f"""
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"{{name}} is hidden", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_the_blocker_blocks() -> None:
    code = BLOCKER + "try:\n    import rich\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert run_python(code) == "rich is hidden\n"


def test_runtime_side_imports_without_optional_packages() -> None:
    names = runtime_side()
    assert "yolact_deploy" in names
    assert "yolact_deploy.runtime.predictor" in names
    lines = [f"import {name}" for name in names]
    run_python("\n".join([BLOCKER, *lines, "import yolact_deploy; yolact_deploy.load, yolact_deploy.Predictor"]))


@pytest.mark.parametrize("heavy", ["torch", "onnx", "onnxruntime", "openvino", "cv2", "rich"])
def test_import_is_light(heavy: str) -> None:
    assert run_python(f"import sys, yolact_deploy; print({heavy!r} in sys.modules)") == "False\n"


def test_one_core_of_openvino_a_process() -> None:
    """If several are freed in another order than created, the next signal kills the process; see ``shared_core``."""
    assert [path.name for path in modules().values() if "Core()" in path.read_text()] == ["openvino.py"]
