"""The structure of the package: who imports whom, circles, names and sizes. ``python tests/house.py`` prints it."""

from __future__ import annotations

import ast
import gc
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "yolact_deploy"

#: the rooms from the ground up: a root module or folder imports only rooms above it in this list
ROOMS = (
    "version", "errors", "untrusted", "vocabulary", "moved", "ops", "progress", "config", "size_range", "artifact",
    "cache", "pretrained", "engine_file", "samples", "array_types", "priors", "mask_iou", "preprocess", "mask_forms",
    "postprocess", "paste", "draw", "detections", "machine", "graph", "datasets", "model", "streams", "runtime",
    "loading", "inspection", "evaluation", "training", "export", "console", "benchmarks", "serving", "scale", "cli",
    "__init__", "__main__",
)  # fmt: skip

#: what a function should not exceed; a few may
MOST_FUNCTION_LINES, MOST_COMPLEXITY = 40, 15

#: most .py files directly in a folder, and most of the product's lines in it
MOST_FILES, MOST_SHARE = 25, 0.20


@cache
def modules() -> dict[str, Path]:
    """The file of each module, by its name without ``yolact_deploy.``; packages by their ``__init__``."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The root module or folder that a module belongs to."""
    return module.partition(".")[0]


@cache
def parsed(path: Path) -> ast.Module:
    gc.disable()  # a tree has no garbage, and looking for it would take twice as long as parsing
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    finally:
        gc.enable()


def imports(tree: ast.Module) -> Iterator[str]:
    """The full name of each module or name imported, inside functions, too; ``if TYPE_CHECKING:`` does not count."""

    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and any(getattr(part, "id", "") == "TYPE_CHECKING" for part in ast.walk(node.test)):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))


@cache
def own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports, as :func:`modules` names them."""
    targets = set()
    for name in imports(parsed(modules()[module])):
        package, _, rest = name.partition(".")
        if package == "yolact_deploy":
            while rest not in modules():  # a function or class: its module
                rest = rest.rpartition(".")[0] or "__init__"
            targets.add(rest)
    return targets - {module}


def module_graph() -> dict[str, set[str]]:
    return {module: own_imports(module) for module in modules()}


def room_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, targets in module_graph().items():
        graph[room(module)] |= {room(target) for target in targets} - {room(module)}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach one another, by their names; empty where there is none."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in graph.get(waiting.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return seen

    reach = {node: reachable(node) for node in graph}
    groups = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in graph if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def wrong_directions() -> list[str]:
    """Imports of a room that is not above the importing one in :data:`ROOMS`."""
    place = {name: index for index, name in enumerate(ROOMS)}
    return [
        f"{module} imports {target}"
        for module, targets in module_graph().items()
        for target in sorted(targets)
        if room(module) != room(target) and place[room(target)] >= place[room(module)]
    ]


def shared_names() -> list[str]:
    """Names that stand for two modules or two classes. A command's module may have the name of what it calls."""
    files = defaultdict(list)
    classes = defaultdict(list)
    for module, path in modules().items():
        if not module.startswith("cli.") and path.name != "__init__.py":
            files[path.stem].append(module)
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(module)
    named = [*files.items(), *classes.items()]
    return [f"{name}: {', '.join(places)}" for name, places in sorted(named) if len(places) > 1]


def folder_sizes() -> dict[str, tuple[int, int]]:
    """(files, lines) directly in each folder of the package."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for path in modules().values():
        folder = path.parent.relative_to(PACKAGE.parent).as_posix()
        files[folder] += 1
        lines[folder] += len(path.read_text(encoding="utf-8").splitlines())
    return {folder: (files[folder], lines[folder]) for folder in sorted(files)}


def long_functions(limit: int = MOST_FUNCTION_LINES) -> dict[str, int]:
    """Lines of each function that has more than ``limit``, from ``def`` to its last line, docstring included."""
    return {
        f"{module}.{node.name}": lines
        for module, path in modules().items()
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > limit
    }


def complex_functions(limit: int = MOST_COMPLEXITY) -> dict[str, int]:
    """Cyclomatic complexity of each function that exceeds ``limit``, as ruff counts it."""
    if importlib.util.find_spec("ruff") is None:
        sys.exit("house.py: counting complexity requires ruff: pip install ruff")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "C901", "--output-format", "json"]
    command += ["--config", f"lint.mccabe.max-complexity={limit}", "--exit-zero", str(PACKAGE)]
    findings = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    complexities = {}
    for finding in findings:
        name, complexity = re.findall(r"`(\w+)`|\((\d+) >", finding["message"])
        complexities[f"{module_name(Path(finding['filename']))}.{name[0]}"] = int(complexity[1])
    return complexities


def main() -> None:
    for what, graph in (("folders", room_graph()), ("files", module_graph())):
        found = circles(graph)
        print(f"{what}: {found or 'no circles'}")
    for problem in (*wrong_directions(), *shared_names()):
        print(problem)
    sizes = folder_sizes()
    total = sum(lines for _, lines in sizes.values())
    for folder, (count, lines) in sizes.items():
        print(f"{folder:40} {count:3} files {lines:6} lines {lines / total:6.1%}")
    for what, functions in (("lines", long_functions()), ("complexity", complex_functions())):
        print(f"{len(functions)} functions with too high {what}")
        for name, value in sorted(functions.items(), key=lambda item: -item[1]):
            print(f"  {name} {value}")
    print(f"{'all':40} {sum(count for count, _ in sizes.values()):3} files {total:6} lines")


if __name__ == "__main__":
    main()
