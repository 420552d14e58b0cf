"""The pages about GPUs and the Dockerfiles: their extras, folders, and quoted messages are real.

test_docs.py checks commands, code, and links of all pages.
"""

from __future__ import annotations

import configparser
import re
from functools import cache
from pathlib import Path

import pytest
from markdown_blocks import package_strings, text_of

from yolact_deploy.cache import KINDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/build.md", "docs/tensorrt.md", "docs/jetson.md")
DOCKERFILES = ("docker/server.Dockerfile", "docker/jetson.Dockerfile")


@cache
def extras() -> frozenset[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return frozenset(parser["options.extras_require"])


# -- the pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_extras(page: str) -> None:
    named = {
        name for group in re.findall(r"(?:\.|yolact-deploy)\[([a-z,-]+)\]", text_of(page)) for name in group.split(",")
    }
    assert named <= extras()


def test_cache_folders() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ", text_of("docs/build.md").partition("## Caches")[2], re.MULTILINE)
    assert set(KINDS) <= set(rows)


@pytest.mark.parametrize("page", PAGES)
def test_no_claims_of_speed(page: str) -> None:
    assert not re.findall(r"\d\s?(?:ms|fps|images/s|x faster)\b", text_of(page), re.IGNORECASE)


# -- quoted messages ------------------------------------------------------------------------------------------------

#: messages of other programs
FOREIGN = ("Killed", "Failed to create CaptureSession")


@pytest.mark.parametrize("page", ["docs/tensorrt.md", "docs/jetson.md"])
def test_quoted_messages(page: str) -> None:
    table = text_of(page).partition("## When something goes wrong")[2].partition("\n## ")[0]
    quoted = [
        fragment
        for row in re.findall(r"^\| (`.+?`) \| ", table, re.MULTILINE)
        for fragment in re.findall(r"`([^`]+)`", row)
        if fragment not in FOREIGN
    ]
    assert len(quoted) >= 2
    missing = [fragment for fragment in quoted if not any(_holds(text, fragment) for text in package_strings())]
    assert not missing


def _holds(text: str, fragment: str) -> bool:
    """Whether a string in the code can produce a fragment; a placeholder counts as one word."""
    pattern = re.escape(text).replace("\0", r"\S+") if "\0" in text else ""
    return fragment in text or (len(text) > 12 and bool(pattern) and re.search(pattern, fragment) is not None)


# -- Dockerfiles ----------------------------------------------------------------------------------------------------


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    body = re.sub(r"^\s*#.*\n", "", text_of(name), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile(name: str) -> None:
    steps = instructions(name)
    known = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in steps} <= known
    arguments = dict(rest.split("=", 1) for word, rest in steps if word == "ARG")
    (image,) = [rest.replace("${BASE}", arguments.get("BASE", "")) for word, rest in steps if word == "FROM"]
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", image), "images have a tag"
    assert not image.endswith(":latest")
    assert [rest for word, rest in steps if word == "ENTRYPOINT"] == ['["yolact-deploy"]']
    assert [rest for word, rest in steps if word == "USER"] == ["yolact"], "not root"
    assert all(rest.startswith("/") for word, rest in steps if word == "WORKDIR")
    for rest in (rest for word, rest in steps if word == "COPY"):
        *sources, target = rest.split()
        assert all((ROOT / source).exists() for source in sources), rest
        assert target.startswith("./"), rest


@pytest.mark.parametrize("name", DOCKERFILES)
def test_shell_of_a_dockerfile(name: str) -> None:
    for line in (rest for word, rest in instructions(name) if word == "RUN"):
        if "apt-get install" in line:
            assert "--no-install-recommends" in line
            assert "--yes" in line
            assert line.endswith("rm -rf /var/lib/apt/lists/*")
        if "pip install" in line:
            assert "--no-cache-dir" in line
        assert "sudo" not in line
        assert "|" not in line, "a pipe hides the failure of its first command"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_extras_of_a_dockerfile(name: str) -> None:
    default = [
        rest.partition("=")[2] for word, rest in instructions(name) if word == "ARG" and rest.startswith("EXTRAS")
    ]
    named = {extra for group in default for extra in group.split(",")}
    named |= set(re.findall(r'"(\w+)" (?:\(|adds)', text_of(name)))
    assert named <= extras()
    assert named or name.startswith("docker/jetson")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_not_ignored(name: str) -> None:
    kept = {line[1:] for line in text_of(f"{name}.dockerignore").splitlines() if line.startswith("!")}
    copied = {source for word, rest in instructions(name) if word == "COPY" for source in rest.split()[:-1]}
    assert copied == kept
