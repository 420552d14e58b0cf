"""Imports point one way, and the runtime side needs none of the optional packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "yolact_deploy"

# A module may import modules of a lower layer, or of its own where that layer is in PEERS.
LAYERS = {
    "errors": 0, "class_names": 0, "ops": 1, "samples": 1, "console": 1, "config": 1,
    "artifact": 2, "cache": 2, "engine_file": 2,
    "coco": 3, "mask_iou": 3, "priors": 3, "preprocess": 3, "postprocess": 3, "paste": 3, "draw": 3, "detections": 3,
    "runtime": 4, "loading": 5, "training": 6, "inspection": 6, "export": 6, "benchmarks": 6,
    "cli": 7, "__init__": 8, "__main__": 8,
}  # fmt: skip
PEERS = {0, 1, 2, 3, 4, 6, 7}

# These sit above runtime, and reach for training only when a user's checkpoint or question needs it.
LAZY_ALLOWED = {("loading", "training"), ("inspection", "training"), ("inspection", "export")}

# Where torch may be imported.
TORCH_FOLDERS = ("training", "runtime/torch", "benchmarks")
TORCH_MODULES = ("export/onnx",)
TORCH_MARKER = "needs torch"  # an export module that says so in its docstring

OPTIONAL = ("torch", "cuda", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx",
            "tensorrt_rtx_libs", "tensorrt_rtx_bindings", "pycocotools", "faster_coco_eval",
            "jsonschema", "mlperf_loadgen", "pynvml", "rich")  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def house(path: Path) -> str:
    """The top-level module or folder of a file of the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(module, inside a function) of each import that runs; ``if TYPE_CHECKING:`` does not."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, lazy)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, lazy
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            if module == "yolact_deploy":  # from yolact_deploy import priors
                for alias in node.names:
                    yield f"{module}.{alias.name}", lazy
            else:
                yield module, lazy
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(tree, False)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def names_used_of_the_package(tree: ast.Module) -> set[str]:
    """The ``x`` of each ``yolact_deploy.x`` in the code."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yolact_deploy"
    }


def test_every_module_has_a_layer() -> None:
    assert {house(path) for path in modules()} <= set(LAYERS)


def test_imports_point_one_way() -> None:
    wrong = []
    for path in modules():
        own = house(path)
        tree = parsed(path)
        for name, lazy in imports(tree):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top != "yolact_deploy" or target == own:
                continue
            if target not in LAYERS:  # a name of the package itself: the top may use those, and anyone its version
                target = "__init__"
                if rest == "__version__" or (not rest and names_used_of_the_package(tree) <= {"__version__"}):
                    continue
            allowed = LAYERS[target] < LAYERS[own] or (LAYERS[target] == LAYERS[own] and LAYERS[own] in PEERS)
            if not allowed and not (lazy and (own, target) in LAZY_ALLOWED):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def may_import_torch(path: Path) -> bool:
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if name.startswith(tuple(f"{folder}/" for folder in TORCH_FOLDERS)) or name.startswith(TORCH_MODULES):
        return True
    return name.startswith("export/") and TORCH_MARKER in (ast.get_docstring(parsed(path)) or "")


def test_torch_stays_in_its_places() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in modules()
        if not may_import_torch(path)
        for name, _ in imports(parsed(path))
        if name.partition(".")[0] in ("torch", "torchvision", "torchinfo")
    ]
    assert not wrong


def runtime_side() -> list[str]:
    names = []
    for path in modules():
        relative = path.relative_to(PACKAGE)
        if house(path) in ("training", "export", "benchmarks", "cli", "console", "__main__"):
            continue
        if relative.parts[:2] == ("runtime", "torch") and relative.name != "__init__.py":
            continue
        names.append(".".join(("yolact_deploy", *relative.with_suffix("").parts)).removesuffix(".__init__"))
    return names


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
    """Of several, freed in another order than made, the next signal kills the process; see ``shared_core``."""
    assert [path.name for path in modules() if "Core()" in path.read_text()] == ["openvino.py"]
