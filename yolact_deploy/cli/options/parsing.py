"""The parser of every command: options only in full, and help that fits the terminal."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from yolact_deploy.console import print_text
from yolact_deploy.console.text_layout import example_lines, wrap_words

_USAGE = "usage: "

#: options of the original and of other tools, and those of ours that mean the same, in every command that has them
_ALSO_UNDERSTOOD = {
    "--conf": "--score-threshold",
    "--imgsz": "--size",
    "--images": "--limit",
    "--max-images": "--limit",
    "--coco": "--data",
    "--trained-model": "--weights",
    "--classes": "--class",
    "--postprocess-match-metric": "--match-metric",
    "--postprocess-match-threshold": "--match-threshold",
    "--postprocess-class-agnostic": "--class-agnostic",
}


class CommandParser(argparse.ArgumentParser):
    """Takes long options only in full, with ``-`` or ``_`` between words; also :data:`_ALSO_UNDERSTOOD`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": HelpText, **options})
        self.color = False  # Python 3.14 and later

    def format_usage(self) -> str:
        self._shorten_usage()
        return super().format_usage()

    def format_help(self) -> str:
        self._shorten_usage()
        return super().format_help()

    def _shorten_usage(self) -> None:
        """The list of options below is enough."""
        if self.usage is None:
            width = HelpText(self.prog)._width - len(_USAGE)
            lines = wrap_words(usage(self), width, indent=" " * (len(_USAGE) + 2))
            self.usage = "\n".join(lines).replace("%", "%%")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, which may be longer than a line of the terminal, and end with code 2."""
        self.print_usage(sys.stderr)
        print_text(f"{self.prog}: error: {message}", file=sys.stderr, red=True)
        self.exit(2)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        has_actions = any(isinstance(action.choices, dict) for action in self._actions)
        # Only so may options stand between optional positional arguments.
        parse = super().parse_args if has_actions else super().parse_intermixed_args
        return parse(args, namespace)

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        # What follows an action or "--" is not for this parser.
        actions = {name for action in self._actions if isinstance(action.choices, dict) for name in action.choices}
        end = next((i for i, word in enumerate(words) if word == "--" or word in actions), len(words))
        return super().parse_known_args([*map(self._own_spelling, words[:end]), *words[end:]], namespace)

    def _own_spelling(self, word: str) -> str:
        name, equals, value = word.partition("=")
        known = self._option_string_actions
        if not name.startswith("--") or name in known:
            return word
        hyphens = "--" + name[2:].replace("_", "-")
        spelling = next((name for name in (hyphens, _ALSO_UNDERSTOOD.get(hyphens)) if name in known), None)
        if spelling is None:
            near = [full for full in known if full.startswith(hyphens)]
            near = near or difflib.get_close_matches(hyphens, known, n=1)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            self.error(f"unrecognized arguments: {word}{hint}")
        return f"{spelling}{equals}{value}"


def whole(least: int = 1, most: int = 10**9) -> Callable[[str], int]:
    """The type of an option that takes a whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        number = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text[:40]!r}")
        return number

    return parse


#: the type of a seed of a random generator
seed = whole(0, 2**63 - 1)


def usage(parser: argparse.ArgumentParser) -> list[str]:
    """What is required, in full, and ``[options]`` for the rest; an option and its value are one item."""
    words = [parser.prog]
    exclusive = {id(action) for group in parser._mutually_exclusive_groups for action in group._group_actions}
    choices = [group._group_actions for group in parser._mutually_exclusive_groups if group.required]
    words += [f"({' | '.join(map(_spelling, choice))})" for choice in choices]
    options = [action for action in parser._actions if action.option_strings and id(action) not in exclusive]
    words += [_spelling(action) for action in options if action.required]
    words.append("[options]")
    words += [_argument(action) for action in parser._actions if not action.option_strings]
    return words


def _spelling(action: argparse.Action) -> str:
    """The option or argument as a user types it."""
    if not action.option_strings:
        return _argument(action)
    value = "" if action.nargs == 0 else f" {_argument(action)}"
    in_full = next((name for name in action.option_strings if name.startswith("--")), action.option_strings[0])
    return in_full + value


def _argument(action: argparse.Action) -> str:
    default = action.option_strings[-1].lstrip("-").upper() if action.option_strings else action.dest
    text = argparse.HelpFormatter("")._format_args(action, default)
    return text if action.required or action.nargs != argparse.PARSER else f"[{text}]"


class HelpText(argparse.HelpFormatter):
    """Wraps paragraphs; lays out those with indented lines, such as examples, line by line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(self._filled(paragraph, width) for paragraph in text.strip().split("\n\n"))

    def _filled(self, paragraph: str, width: int) -> str:
        if "\n " in paragraph:
            return "\n".join(example_lines(paragraph.split("\n"), width))
        return textwrap.fill(" ".join(paragraph.split()), width, break_on_hyphens=False)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
