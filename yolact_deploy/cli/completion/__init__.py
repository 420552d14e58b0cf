"""Print a script with which a shell completes commands, options, their choices, and files.

examples:
  yolact-deploy completion bash > ~/.local/share/bash-completion/completions/yolact-deploy
  yolact-deploy completion zsh > ~/.zfunc/_yolact-deploy          a folder of $fpath
  yolact-deploy completion fish > ~/.config/fish/completions/yolact-deploy.fish
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish", "tcsh")

#: metavars whose values are folders, or files
_FOLDER = re.compile(r"DIR(_.*)?")
_FILE = re.compile(r"([AB]|FILE|DIR)\b.*|W|INIT|DATA|ENGINE|MODEL|SPEC|SOURCE|STEM|ONNX")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.errors import import_optional

    shtab = import_optional("shtab", "completion", "A completion script")
    parser = whole_parser()
    for action in _actions(parser):
        words = action.metavar if isinstance(action.metavar, str) else ""
        if _FOLDER.fullmatch(words):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # where shtab reads it
        elif _FILE.fullmatch(words):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with all commands, as tools that read parsers want it; nothing is parsed with it."""
    from yolact_deploy.cli.main import COMMANDS, PROGRAM, command_parser

    parser = argparse.ArgumentParser(PROGRAM)
    parser.add_argument("--version", action="version", version="")
    commands = parser.add_subparsers()
    for name, line in COMMANDS.items():
        commands.add_parser(name, help=line)
        commands.choices[name] = command_parser(name)
    return parser


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options and arguments, those of commands, too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
        else:
            yield action
