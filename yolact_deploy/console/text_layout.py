"""Text and tables laid out for a number of columns: numbers are never split, names wrap between their parts.

A table that is too wide is tried in this order: cells wrapped between words and parts of names; its columns in several
tables, each with the first column, if the others are narrow; a block of lines for each row. Nothing is left out. Only a
word that is wider than all columns, such as a hash, is split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

_BLANK = re.compile(r"(?<=\s)(?=\S)")
#: after a mark between parts of a name, unless it is part of a number
_PART = re.compile(r"(?<=[_/|@:=])(?=[^\s\d])|(?<=[A-Za-z][_/|@:=])(?=\d)|(?<=\.)(?=[A-Za-z_])")
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?")
_GAP, _INDENT = 2, 2
#: words up to this length stay whole
_WHOLE = 12
#: a column that may stand beside others in one of several tables
_NARROW = 20
#: width that a first column of names gets there
_NAMES = 24
#: lines of a wrapped name that are better than a second table
_NAME_LINES = 2
#: a wrapped row of more lines is a block of its own, where values have the whole width
_MOST_LINES = 8
_LABELS = 20
#: first words of the examples of a help page
_COMMANDS = ("yolact-deploy", "torchrun", "curl", "ffmpeg")
_REMARK = " " * 8
#: a command or name, and what is said of it
_SIDES = re.compile(r"(\s*\S.*?|)(\s{3,})(\S.*)")
#: parts of a command
_OPTION = re.compile(r"""^\s+|(?:-\S+\s+(?!-))?(?:'[^']*'|"[^"]*"|\S)+\s*""")

Kind = Literal["title", "head", "rule", "text"]


@dataclass(frozen=True)
class Line:
    """A line of a table, without the line feed."""

    text: str
    kind: Kind = "text"


def width_of(text: str) -> int:
    """Terminal columns of a text; wide characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def shortened(text: str, width: int) -> str:
    """The text in at most ``width`` terminal columns, with an ellipsis in the middle if it is wider.

    >>> shortened("building yolact_resnet50_int8.trt", 20)
    'building y…_int8.trt'
    """
    if width_of(text) <= width:
        return text
    first, last = text, text
    while width_of(first) > width // 2:
        first = first[:-1]
    while width_of(last) > width - 1 - width_of(first):
        last = last[1:]
    return f"{first}…{last}"


def is_number(text: str) -> bool:
    """Whether a cell is a number, with or without thousands separators.

    >>> [is_number(text) for text in ("1,234", "-0.5", "1.2e-05", "+3", "12 %", "a", "")]
    [True, True, True, True, False, False, False]
    """
    return _NUMBER.fullmatch(text) is not None


def wrap(text: str, width: int, *, names: bool = True, indent: str = "") -> list[str]:
    """The lines of a text, at least one.

    Args:
        width: terminal columns
        names: also break between parts of names, and within words that are too wide for a line; else at blanks only
        indent: before each line but the first
    """
    lines = []
    for paragraph in text.split("\n"):
        pieces = _fitting(paragraph, width - len(indent)) if names else _BLANK.split(paragraph)
        lines += _joined(pieces, width, indent)
    return lines


def wrap_words(words: Iterable[str], width: int, indent: str = "") -> list[str]:
    """The lines of words that stay whole, blanks within them included, with a blank between.

    Args:
        indent: before each line but the first

    >>> wrap_words(["compare", "--data DATA [DATA ...]", "[options]"], 30)
    ['compare --data DATA [DATA ...]', '[options]']
    """
    return _joined((f"{word} " for word in words), width, indent)


def command_lines(command: str, width: int, indent: str = "  ") -> list[str]:
    """The lines of a command, continued as a shell wants it; an option and its value stay together where they fit.

    Args:
        indent: before each line but the first

    >>> command_lines("train --set 'config.top_k=(1, 2)'", 28)
    ['train --set \\\\', "  'config.top_k=(1, 2)'"]
    """
    pieces = []
    for piece in _OPTION.findall(command):
        fits = width_of(piece.rstrip()) <= width - 2 - len(indent)
        pieces += [piece] if fits or not piece.startswith("-") else _BLANK.split(piece, maxsplit=1)
    *first, last = _joined(pieces, width - 2, indent)
    return [*(f"{line} \\" for line in first), last]


def _joined(pieces: Iterable[str], width: int, indent: str) -> list[str]:
    lines, current = [], ""
    for piece in pieces:
        if current.strip() and width_of((current + piece).rstrip()) > width:
            lines.append(current.rstrip())
            current = indent
        current += piece
    return [*lines, current.rstrip()]


def _pieces(text: str) -> Iterator[str]:
    """The parts between which a line may end, with the blanks after them."""
    for word in _BLANK.split(text):
        yield from _PART.split(word) if width_of(word.rstrip()) > _WHOLE else (word,)


def _fitting(text: str, width: int) -> Iterator[str]:
    """The same, with those split that are too wide for a line."""
    for piece in _pieces(text):
        while width_of(piece.rstrip()) > width > 0:
            cut = next(n for n in range(min(len(piece), width), 0, -1) if n == 1 or width_of(piece[:n]) <= width)
            yield piece[:cut]
            piece = piece[cut:]
        yield piece


def example_lines(lines: Sequence[str], width: int) -> Iterator[str]:
    """Lines of examples and lists as the help prints them: those that fit are left as they are.

    A longer command is continued as a shell wants it, with its remark below. In a longer line of a list, the text stays
    beside its name.
    """
    for item in "\n".join(lines).replace("\\\n", "\\\0").split("\n"):
        parts = item.split("\0")
        if all(width_of(part) <= width for part in parts):
            yield from parts
            continue
        line = parts[0] + " ".join(["", *(part.strip() for part in parts[1:])])
        line = line.replace("\\ ", "")
        sides = _SIDES.fullmatch(line)
        left, gap, right = sides.groups() if sides else (line, "", "")
        indent = " " * (len(line) - len(line.lstrip()))
        if left.split()[:1] and left.split()[0] in _COMMANDS:
            yield from command_lines(left, width, indent + " " * 4)
            left = ""
        if left.strip():
            yield from wrap(line, width, names=False, indent=" " * len(left + gap) if right else indent)
        elif right:
            yield from wrap(f"{_REMARK}{right}", width, names=False, indent=_REMARK)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int) -> Iterator[Line]:
    """A table in lines of at most ``width`` terminal columns, a blank line last.

    Columns of numbers are aligned to the right.
    """
    for line in wrap(title, width) if title else ():
        yield Line(line, "title")
    table = _TableCells(columns, rows)
    natural, least = table.widths()
    room = width - _GAP * (len(columns) - 1)
    if len(columns) == 2 and least[0] <= width // 2:  # even a hash beside its name
        least[1] = min(least[1], room - least[0])
    widths, groups = _shared(natural, least, room), _groups(natural, least, width)
    one = table.with_narrow_names(natural, least, room) if groups and len(groups) > 1 else None
    if one is not None:
        yield from table.drawn(one)
        yield Line("")
        return
    crowded = widths[0] < _first_width(natural, least) if groups else table.most_lines(widths) > _MOST_LINES
    if sum(widths) <= room and (len(columns) == 2 or not crowded):
        yield from table.drawn(widths)
        yield Line("")
        return
    if groups is None:
        yield from _blocks(columns, rows, width)
    for group in groups or ():
        part = _TableCells([columns[i] for i in group], [[row[i] for i in group] for row in rows])
        at_least = [_first_width(natural, least), *(least[i] for i in group[1:])]
        yield from part.drawn(_shared([natural[i] for i in group], at_least, width - _GAP * (len(group) - 1)))
        yield Line("")


class _TableCells:
    """A header and its rows."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.columns, self.rows = columns, rows
        self.right = [_is_numeric([row[i] for row in rows]) for i in range(len(columns))]

    def widths(self) -> tuple[list[int], list[int]]:
        """Of each column: the width that needs no wrapping, and that of the widest part that is never split."""
        natural, least = [], []
        for i in range(len(self.columns)):
            cells = [self.columns[i], *(row[i] for row in self.rows)]
            natural.append(max(max(map(width_of, cell.split("\n"))) for cell in cells))
            parts = (width_of(part.rstrip()) for cell in cells for part in _pieces(cell))
            least.append(max(parts, default=0))
        return natural, least

    def most_lines(self, widths: Sequence[int]) -> int:
        cells = (_cell_lines(cell, width) for row in self.rows for cell, width in zip(row, widths, strict=True))
        return max(map(len, cells), default=1)

    def with_narrow_names(self, natural: Sequence[int], least: Sequence[int], room: int) -> list[int] | None:
        """Widths at which all columns stand side by side and the first wraps into few lines; None if there are none."""
        names = min(natural[0], room - sum(least[1:]))
        if names < max(least[0], _WHOLE) or self.most_lines([names, *least[1:]]) > _NAME_LINES:
            return None
        return _shared(natural, [names, *least[1:]], room)

    def drawn(self, widths: Sequence[int]) -> Iterator[Line]:
        for line in self._row(self.columns, widths, bottom=True):
            yield Line(line, "head")
        yield Line("─" * (sum(widths) + _GAP * (len(widths) - 1)), "rule")
        for row in self.rows:
            yield from map(Line, self._row(row, widths))

    def _row(self, cells: Sequence[str], widths: Sequence[int], *, bottom: bool = False) -> Iterator[str]:
        wrapped = [_cell_lines(cell, width) for cell, width in zip(cells, widths, strict=True)]
        height = max(map(len, wrapped))
        padding = [[""] * (height - len(lines)) for lines in wrapped]
        filled = [pad + lines if bottom else lines + pad for pad, lines in zip(padding, wrapped, strict=True)]
        for line in zip(*filled, strict=True):
            parts = zip(line, widths, self.right, strict=True)
            yield (" " * _GAP).join(_aligned(*part) for part in parts).rstrip()


def _cell_lines(cell: str, width: int) -> list[str]:
    """The lines of a cell; those of an indented one are indented further.

    >>> _cell_lines("  downsample_layers: ModuleList", 20)
    ['  downsample_layers:', '    ModuleList']
    """
    lead = len(cell) - len(cell.lstrip(" "))
    return wrap(cell, width, indent=" " * min(lead + _INDENT, width // 2) if lead else "")


def _aligned(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - width_of(text))
    return blanks + text if right else text + blanks


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column has numbers and else only empty cells and dashes."""
    return any(map(is_number, cells)) and all(is_number(cell) or cell in ("", "-") for cell in cells)


def _shared(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths between the least and the natural ones: what is left goes to the narrowest columns first."""
    widths, left = list(least), room - sum(least)
    while left > 0 and (short := [i for i in range(len(widths)) if widths[i] < natural[i]]):
        i = min(short, key=widths.__getitem__)
        widths[i] += 1
        left -= 1
    return widths


def _groups(natural: Sequence[int], least: Sequence[int], width: int) -> list[list[int]] | None:
    """Columns of several tables, each with the first; None if a column is too wide to stand beside it."""
    first = _first_width(natural, least)
    if max(natural[1:], default=width) > _NARROW or first + _GAP + max(least[1:]) > width:
        return None
    groups, used = [[0]], first
    for i in range(1, len(least)):
        if used + _GAP + least[i] > width:
            groups.append([0])
            used = first
        groups[-1].append(i)
        used += _GAP + least[i]
    return groups


def _first_width(natural: Sequence[int], least: Sequence[int]) -> int:
    return min(natural[0], max(least[0], _NAMES))


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[Line]:
    """For each row a line with its first cell and a line for each other cell that is not empty."""
    labels = min(max(map(width_of, columns[1:]), default=0), _LABELS, width // 3)
    for row in rows:
        for line in wrap(f"{columns[0]} {row[0]}".strip(), width):
            yield Line(line, "head")
        pairs = [(column, cell) for column, cell in zip(columns[1:], row[1:], strict=True) if cell]
        for column, cell in pairs:
            names = wrap(column, labels)
            values = wrap(cell, width - _INDENT - labels - _GAP) if labels else wrap(cell, width - _INDENT)
            for i in range(max(len(names), len(values))):
                name = names[i] if i < len(names) else ""
                value = values[i] if i < len(values) else ""
                blank = " " * _GAP if labels else ""
                yield Line((" " * _INDENT + _aligned(name, labels, False) + blank + value).rstrip())
        yield Line("")
