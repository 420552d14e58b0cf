"""Every page of the documentation: its commands, code, links, and lines are right, and the site shows it."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
from pathlib import Path

import pytest
from markdown_blocks import DOC_PAGES, PAGES, ROOT, blocks, own_commands, package_strings, shell_commands, text_of

from yolact_deploy.cli.main import COMMANDS, command_parser
from yolact_deploy.loading import ModelSpec
from yolact_deploy.runtime.predictor import Predictor

COLUMNS = 120


# -- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, *arguments in own_commands(page):
        assert name in COMMANDS or name == "COMMAND", f"{page}: yolact-deploy {name}"
        if not arguments or name == "COMMAND":
            continue
        problem = ""
        try:
            command_parser(name).parse_args(arguments)
        except SystemExit as exit:
            problem = capsys.readouterr().err if exit.code else ""
        assert not problem, f"{page}: yolact-deploy {name} {' '.join(arguments)}: {problem}"


def test_there_are_commands() -> None:
    names = {words[0] for page in PAGES for words in own_commands(page)}
    assert set(COMMANDS) - names <= {"fetch", "summary", "demo"}


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"`make ([\w-]+)", text_of(page)))
    targets |= {words[1] for words in shell_commands(page) if words[0] == "make"}
    known = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    assert targets - known == set()


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist(page: str) -> None:
    """Modules that are run or imported, and files of the package that are named."""
    paths = re.findall(r"`((?:yolact_deploy|tests|examples|docs|docker)/[\w./-]+)`", text_of(page))
    assert [path for path in paths if not (ROOT / path).exists()] == []
    names = re.findall(r"(?<![\w/])yolact_deploy(?:\.\w+)+", text_of(page))
    assert [name for name in names if not _resolves(name)] == []


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, or a name at the top of one; nothing is imported but packages."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:size])
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if file.is_file():
            return size == len(parts) or parts[size] in _top_level_names(file)
    return False


def _top_level_names(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {target.id for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in _names(node)}
    return names | {alias.asname or alias.name for node in ast.walk(tree) for alias in _imported(node)}


def _names(node: ast.Assign) -> list[ast.Name]:
    return [target for target in node.targets if isinstance(target, ast.Name)]


def _imported(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize("page", DOC_PAGES)
def test_spellings_of_engines(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in re.findall(r"`([^`\s]+@[^`\s]+)`", text_of(page)):
        if "_model@" in text:  # a folder that export writes
            (tmp_path / text.partition("@")[0]).mkdir(exist_ok=True)
            (tmp_path / text.partition("@")[0] / "model.tflite").touch()
            (tmp_path / text.partition("@")[0] / "model.ncnn.param").touch()
        if "..." not in text and "FILE" not in text and not text.startswith(("@", "github")):
            spec = ModelSpec.parse(text)
            assert ModelSpec.parse(spec.spelling()) == spec, text


# -- code -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles(page: str) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block, page)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("yolact_deploy"):
                assert [name.name for name in node.names if not _resolves(f"{node.module}.{name.name}")] == []
        for name in re.findall(r"\bmodel\.(\w+)", block):
            assert hasattr(Predictor, name) or name in ("timings", "backend"), f"{page}: model.{name}"


# -- quoted output --------------------------------------------------------------------------------------------------


def _neighbors(text: str) -> set[tuple[str, str]]:
    """Words that stand next to each other."""
    words = re.findall(r"[A-Za-z']+|[^\sA-Za-z']", text)
    return {(a, b) for a, b in itertools.pairwise(words) if a.isalpha() and b.isalpha()}


@pytest.mark.parametrize("page", [page for page in DOC_PAGES if page != "docs/jetson.md" and blocks(page, "text")])
def test_quoted_output_is_current(page: str) -> None:
    """Neighboring words of quoted output are neighbors in a message, but for those that a value separates."""
    known = set().union(*map(_neighbors, package_strings()))
    for block in blocks(page, "text"):
        quoted = _neighbors(block)
        unknown = [" ".join(pair) for pair in quoted - known]
        assert len(unknown) <= 0.25 * len(quoted), f"{page}: a message has changed: {block}\nunknown: {unknown}"


# -- lines and links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/architecture.md"])
def test_lines_are_short(page: str) -> None:
    """Rows of tables are exempt, since Markdown cannot break them."""
    lines = text_of(page).splitlines()
    assert [line for line in lines if len(line) > COLUMNS and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in target or path == "cli.md":
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def _anchors(file: Path) -> set[str]:
    """Anchors of a page's headings on which GitHub and MkDocs agree."""
    headings = [heading.lower() for heading in re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)]
    github = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
    return github & {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip()) for heading in headings}


@pytest.mark.parametrize("page", DOC_PAGES)
def test_pages_are_short_enough_to_read(page: str) -> None:
    if page not in ("docs/proof.md", "docs/architecture.md"):  # tables of links; the whole house
        assert len(text_of(page).split()) <= 1600


# -- the site -------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation() -> None:
    yaml = pytest.importorskip("yaml")
    settings = yaml.safe_load(text_of("mkdocs.yml"))
    pages = sorted(_pages(settings["nav"]))
    assert pages == sorted([*(page.removeprefix("docs/") for page in DOC_PAGES), "cli.md"])


def _pages(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    assert not isinstance(children, str)
    return [page for child in children for page in _pages(child)]  # type: ignore[attr-defined]


def test_the_site_loads_nothing_from_other_hosts() -> None:
    yaml = pytest.importorskip("yaml")
    settings = yaml.safe_load(text_of("mkdocs.yml"))
    assert settings["theme"]["font"] is False
    assert "repo_url" not in settings, "the theme asks a repository's host for its stars"
    assert "extra_javascript" not in settings


def test_reference_of_the_command_line() -> None:
    """Each option of each command is in the generated page."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "hooks" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    reference = site.cli_reference()
    sections = dict(zip(*[iter(re.split(r"^## (\w+)\n", reference, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert list(sections) == list(COMMANDS)
    overview = reference.partition("\n## ")[0]
    assert all(option in overview for option in ("--debug", "--quiet", "--json"))
    assert reference.count("<code>--debug</code>") == 1
    for name, section in sections.items():
        options = {option for action in command_parser(name)._actions for option in action.option_strings}
        options -= {"-h", "--help", "--debug", "--quiet", "--json"}
        assert {option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", section)} == set(), name
