"""Elements of the HTML report: escaped text, accessible tables, sections."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from yolact_deploy.benchmarks.tables import Table

_FIGURE = re.compile(r"[-+\d.,% ]*")


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; ``key`` is its anchor."""

    key: str
    title: str
    parts: Sequence[str]

    def html(self) -> str:
        heading = f'<h2 id="{self.key}-title">{text(self.title)}</h2>'
        inner = "\n".join((heading, *self.parts))
        return f'<section id="{self.key}" aria-labelledby="{self.key}-title">\n{inner}\n</section>'


def text(value: object) -> str:
    """Escaped for HTML, including attributes."""
    return html.escape(str(value))


def name(value: str) -> str:
    """Escaped, with line breaks allowed where its parts end."""
    return re.sub(r"(?<=[_:/])(?=\w)|(?=@)", "<wbr>", text(value))


def plain(value: object) -> str:
    """A value of a JSON object as words; objects leave out what is unknown."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items() if not is_nothing(item))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def is_nothing(value: object) -> bool:
    """Whether a value is unknown or absent: None and empty collections, but not 0 or False."""
    return value is None or value in ([], {}, (), "")


def paragraph(words: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def listing(lines: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{text(line)}</li>" for line in lines) + "\n</ul>"


def box(inner: str, *, alarm: bool = False) -> str:
    return f'<div class="box{" alarm" if alarm else ""}">\n{inner}\n</div>'


def table(content: Table, *, words: bool = False) -> str:
    """A table that scrolls on its own if it is too wide; ``words``: text that wraps, not figures."""
    # Words align left, figures right.
    kinds = ["" if _FIGURE.fullmatch("".join(cells)) else ' class="left"' for cells in zip(*content.rows, strict=True)]
    head = "".join(
        f'<th scope="col"{kind}>{name(column)}</th>' for column, kind in zip(content.columns, kinds, strict=True)
    )
    rows = "\n".join(
        f'<tr><th scope="row" class="left">{name(row[0])}</th>'
        + "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
        + "</tr>"
        for row in content.rows
    )
    title = text(content.title)
    kind = ' class="words"' if words else ""
    inner = f'<table{kind} aria-label="{title}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>'
    # The title does not scroll. Keyboards can only scroll elements that take the focus, which need a name.
    scrolling = (
        inner if words else f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">\n{inner}\n</div>'
    )
    return f'<p class="caption">{title}</p>\n{scrolling}'


def document(title: str, subject: str, head: Iterable[str], sections: Sequence[Section], style: str) -> str:
    """A whole page: title and subject, links to the sections, what comes before them, and the sections."""
    links = "\n".join(f'<li><a href="#{s.key}">{text(s.title)}</a></li>' for s in sections)
    body = "\n".join(
        [
            f"<header>\n<h1>{text(title)}</h1>\n{paragraph(subject)}\n</header>",
            f'<nav aria-label="Contents"><ul>\n{links}\n</ul></nav>',
            "<main>",
            *head,
            *(section.html() for section in sections),
            "</main>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n"
        '<link rel="icon" href="data:,">\n'  # or browsers that get the file from a server ask for an icon
        f"<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def folded(title: str, inner: str) -> str:
    """Collapsed on a screen, always shown on paper."""
    return f"<details>\n<summary>{text(title)}</summary>\n{inner}\n</details>"
