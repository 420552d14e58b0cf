"""Records which attribute uses of some modules were executed: each use is compiled to report itself.

``config.progress_monitor = monitor`` and ``trt.Builder`` are such uses, identified by file, line and name.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_GET, _SET = "__site_get__", "__site_set__"


@dataclass(frozen=True, order=True)
class Site:
    file: str
    line: int
    name: str
    text: str  #: the expression, for messages


class Sites:
    """The sites of the watched modules, and the executed ones."""

    def __init__(self) -> None:
        self.all: list[Site] = []
        self.seen: set[int] = set()

    def add(self, site: Site) -> int:
        self.all.append(site)
        return len(self.all) - 1

    def get(self, value: Any, name: str, number: int) -> Any:
        self.seen.add(number)
        return getattr(value, name)

    def assign(self, value: Any, name: str, new: Any, number: int) -> None:
        self.seen.add(number)
        setattr(value, name, new)

    def executed(self) -> set[Site]:
        return {self.all[number] for number in self.seen}


class Watcher(ast.NodeTransformer):
    """Turns ``x.name`` into ``__site_get__(x, "name", number)``, and assignments likewise."""

    def __init__(self, sites: Sites, file: str) -> None:
        self.sites = sites
        self.file = file

    def _call(self, function: str, node: ast.Attribute, *more: ast.expr) -> ast.Call:
        number = self.sites.add(Site(self.file, node.lineno, node.attr, ast.unparse(node)))
        arguments = [self.visit(node.value), ast.Constant(node.attr), *more, ast.Constant(number)]
        return ast.copy_location(ast.Call(ast.Name(function, ast.Load()), arguments, []), node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        private = node.attr.startswith("__") and not node.attr.endswith("__")
        if not isinstance(node.ctx, ast.Load) or private:
            return self.generic_visit(node)
        return self._call(_GET, node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        target = node.targets[0]
        if len(node.targets) > 1 or not isinstance(target, ast.Attribute):
            return self.generic_visit(node)
        return ast.copy_location(ast.Expr(self._call(_SET, target, self.visit(node.value))), node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return node  # annotations

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = [self.visit(statement) for statement in node.body]
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        node.args = self.visit(node.args)
        return node

    def visit_Match(self, node: ast.Match) -> ast.AST:
        node.subject = self.visit(node.subject)
        for case in node.cases:  # patterns must stay as they are
            case.body = [self.visit(statement) for statement in case.body]
        return node


def instrument(source: str, file: str, sites: Sites) -> ast.Module:
    """The syntax tree of a module with reporting sites."""
    tree = Watcher(sites, file).visit(ast.parse(source))
    return ast.fix_missing_locations(tree)  # type: ignore[no-any-return]


class WatchingFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the named modules watched.

    Args:
        sources: module name -> source text that replaces that of the file's
    """

    def __init__(self, names: Sequence[str], sites: Sites, sources: dict[str, str] | None = None) -> None:
        self.names = set(names)
        self.sites = sites
        self.sources = sources or {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        file = module.__file__ or ""
        source = self.sources.get(module.__name__) or Path(file).read_text(encoding="utf-8")
        tree = instrument(source, module.__name__, self.sites)
        vars(module).update({_GET: self.sites.get, _SET: self.sites.assign})
        exec(compile(tree, file, "exec"), vars(module))

    def install(self) -> None:
        loaded = self.names & set(sys.modules)
        assert not loaded, f"already imported: {loaded}"
        sys.meta_path.insert(0, self)
