"""The files around the code: workflows call what exists, and versions agree."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy import __version__

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
YAML_FILES = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    ROOT / ".pre-commit-config.yaml",
    ROOT / "CITATION.cff",
]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    """The steps of all jobs of a workflow."""
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def commands(path: Path) -> list[list[str]]:
    """The words of each command of a workflow."""
    lines = [line for step in steps(path) if "run" in step for line in step["run"].splitlines()]
    return [shlex.split(line) for line in lines]


def targets() -> set[str]:
    """Targets of the Makefile that are no files."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return {name for line in re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE) for name in line.split()}


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_parses(path: Path) -> None:
    assert isinstance(read(path), dict)


def test_there_is_a_workflow() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_exists(path: Path) -> None:
    words = commands(path)
    makes = {name for command in words if command[0] == "make" for name in command[1:]}
    assert makes <= targets()
    tests = {word for command in words for word in command if word.startswith("tests/")}
    assert {name for name in tests if not (ROOT / name).is_file()} == set()
    wanted = {name for command in words for word in command for name in re.findall(r"^\.\[(\w+)\]$", word)}
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    assert wanted <= set(parser["options.extras_require"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit(path: Path) -> None:
    actions = [step["uses"] for step in steps(path) if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []


def test_linux_runs_lint_tests_docs_and_the_slow_examples() -> None:
    linux = [command for path in WORKFLOWS for command in commands(path)]
    assert ["make", "check"] in linux
    assert ["make", "docs"] in linux
    slow = [command for command in linux if "slow" in command]
    assert {"tests/test_examples.py", "tests/test_notebooks.py"} <= {word for command in slow for word in command}


def test_pre_commit_runs_the_ruff_of_the_environment() -> None:
    (revision,) = (repo["rev"] for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] if "ruff" in repo["repo"])
    pinned = re.search(r"^\s+ruff~=(\d+\.\d+)\.", (ROOT / "setup.cfg").read_text("utf-8"), re.MULTILINE)
    assert pinned is not None
    assert revision.startswith(f"v{pinned[1]}.")


def test_citation_names_this_version() -> None:
    assert read(ROOT / "CITATION.cff")["version"] == __version__


def test_bug_reports_ask_for_commands_that_exist() -> None:
    from yolact_deploy.cli.main import COMMANDS

    asked = re.findall(r"`yolact-deploy (\w+)", (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text("utf-8"))
    assert "doctor" in asked
    assert set(asked) <= set(COMMANDS)
