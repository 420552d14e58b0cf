"""MkDocs hooks: the command-line reference comes from the parsers, and links to files of the repository work.

A page may link to any file of the repository as ``../path``, which GitHub understands. The site carries a copy of each
such file as text under ``source/``, so that it needs no repository host.
"""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from yolact_deploy.cli.main import COMMANDS, PROGRAM, command_parser
from yolact_deploy.cli.options.parsing import usage

ROOT = Path(__file__).resolve().parents[2]
_REPOSITORY_LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
_SPHINX_ROLE = re.compile(r":(?:class|attr|meth|func|data|mod|exc):<code>~?(?:[\w.]+\.)?([\w()]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command-line reference and the files of the repository that pages link to."""
    files.append(File.generated(config, "cli.md", content=cli_reference()))
    pages = [file.content_string for file in files.documentation_pages()]
    for path in sorted({path for page in pages for path in _REPOSITORY_LINK.findall(page)}):
        files.append(File.generated(config, f"source/{path}.txt", content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository to their copies."""
    return _REPOSITORY_LINK.sub(r"](source/\1.txt)", markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show Sphinx's roles, which some docstrings use, as plain code."""
    return _SPHINX_ROLE.sub(r"<code>\1</code>", content)


# -- command-line reference -----------------------------------------------------------------------------------------


def cli_reference() -> str:
    """The page ``cli.md``, in Markdown."""
    overview = "\n".join(f"| [`{name}`](#{name}) | {_inline(line)} |" for name, line in COMMANDS.items())
    parsers = {name: command_parser(name) for name in COMMANDS}
    lines = [
        "# Command line",
        f"`{PROGRAM} COMMAND --help` prints the same information. [Naming an engine](engine-names.md) explains the "
        "values of options that take a model.",
        f"| command | purpose |\n| --- | --- |\n{overview}",
        "Exit codes: 0 done, 1 a gate failed (such as `--min-fps`), 2 any other failure.",
        "Every command accepts:",
        *(_table(group) for group in next(iter(parsers.values()))._action_groups if _is_global(group)),
    ]
    for name, parser in parsers.items():
        lines += [f"## {name}", *_command(parser, level=3)]
    return "\n\n".join(lines) + "\n"


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    description, examples, rest = (parser.description or "").partition("\nexamples:\n")
    yield from _text(description)
    yield f"```sh\n{usage(parser)}\n```"
    for group in parser._action_groups:
        if _is_global(group) or not _shown(group):
            continue
        if group.title not in ("options", "positional arguments"):
            yield f"**{group.title.capitalize()}**" if group.title else ""
        yield from _text(group.description or "")
        yield _table(group)
    yield from _text(examples + rest)
    yield from _text(parser.epilog or "")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield f"{'#' * level} {parser.prog.removeprefix(PROGRAM).strip()} {name}"
                yield from _command(child, level + 1)


def _is_global(group: argparse._ArgumentGroup) -> bool:
    """Whether it holds the options of every command."""
    return any("--debug" in action.option_strings for action in group._group_actions)


def _shown(group: argparse._ArgumentGroup) -> list[argparse.Action]:
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return [a for a in group._group_actions if not isinstance(a, hidden) and a.help != argparse.SUPPRESS]


def _table(group: argparse._ArgumentGroup) -> str:
    formatter = argparse.HelpFormatter("")
    rows = [
        f"| {_code(_spelling(action))} | {_inline(formatter._expand_help(action) if action.help else '')} |"
        for action in _shown(group)
    ]
    kind = "option" if any(action.option_strings for action in _shown(group)) else "argument"
    return "\n".join([f"| {kind} | description |", "| --- | --- |", *rows])


def _spelling(action: argparse.Action) -> str:
    """The option or argument as a user types it."""
    if not action.option_strings:
        return _argument(action)
    names = sorted(action.option_strings, key=len, reverse=True)
    value = "" if action.nargs == 0 else f" {_argument(action)}"
    return ", ".join(names) + value


def _argument(action: argparse.Action) -> str:
    formatter = argparse.HelpFormatter("")
    default = action.option_strings[-1].lstrip("-").upper() if action.option_strings else action.dest
    return formatter._format_args(action, default)


# -- Markdown -------------------------------------------------------------------------------------------------------


def _code(text: str) -> str:
    """An option as code; a list of choices may break after its commas."""
    name, brace, choices = text.partition(" {")
    code = f"<code>{html.escape(name).replace('|', '&#124;')}</code>"
    return f"{code} <code class='choices'>{{{choices.replace(',', ',<wbr>')}</code>" if brace else code


def _inline(text: str) -> str:
    """Help text as Markdown: options and quoted words as code."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = text.replace("|", "\\|").replace("*", "\\*").replace("[", "&#91;")
    text = re.sub(r"(?<![\w`-])--?[a-z][\w-]*", lambda match: f"<code class='option'>{match[0]}</code>", text)
    return text.replace("``", "`")


def _text(text: str) -> Iterator[str]:
    """Paragraphs of a description; what follows a line such as ``examples:`` is shown as it is."""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        start = next((i for i, line in enumerate(lines) if line.startswith("  ")), len(lines))
        if lines[:start]:
            paragraph = _inline(" ".join(lines[:start]))
            yield paragraph[0].upper() + paragraph[1:] if paragraph else ""
        if lines[start:]:
            yield "```sh\n" + "\n".join(_examples(line.removeprefix("  ") for line in lines[start:])) + "\n```"


def _examples(lines: Iterable[str]) -> list[str]:
    """Commands with their remarks, which stand behind or below them in the help, above them."""
    shown: list[str] = []
    start = 0  # of the command that is read
    for line in lines:
        continued = bool(shown) and shown[-1].endswith("\\")
        start = start if continued else len(shown)
        parts = re.fullmatch(r"(\s*\S.*?\S)\s{3,}\(?(\S.*?)\)?", line) or re.fullmatch(r"()\s{30,}\(?(\S.*?)\)?", line)
        if not parts:
            shown.append(line)
        elif not parts[1]:
            shown.insert(start - 1, f"# {parts[2]}")
        elif parts[2].startswith("then: "):
            shown += [parts[1], parts[2].removeprefix("then: ")]
        else:
            shown.append(parts[1])
            shown.insert(start, f"# {parts[2]}")
    return shown
