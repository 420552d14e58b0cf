"""Commands, code, and quoted output in Markdown pages, for the tests that check or run them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: pages of the site, by path from the root of the checkout; cli.md is generated
DOC_PAGES = tuple(sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")))
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", *DOC_PAGES)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Contents of a page's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def shell_commands(page: str) -> list[list[str]]:
    """Words of every command in a page's shell blocks; comments and ``&&`` are resolved."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        words = shlex.split(re.sub(r"<([a-z ]+)>", r"'\1'", line), comments=True)
        while "&&" in words:
            commands.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        commands.append(words)
    return [words for words in commands if words]


def own_commands(page: str) -> list[list[str]]:
    """Words after ``yolact-deploy`` in a page's shell blocks, and in its text between backticks."""
    own = []
    for words in shell_commands(page):
        program = [i for i, word in enumerate(words) if re.fullmatch(r"yolact-deploy(:\w+)?|yolact_deploy", word)]
        if program and words[:2] != ["docker", "build"] and words[0] != "cd":
            own.append(words[program[0] + 1 :])
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`yolact-deploy (\w[^`]*)`", prose)
    return own + [[word for word in shlex.split(span) if word != "..."] for span in spans]


@cache
def package_strings() -> frozenset[str]:
    """Every text in the package's code; a NUL marks each value that an f-string fills in."""

    def texts() -> Iterator[str]:
        for path in (ROOT / "yolact_deploy").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values)

    return frozenset(texts())
