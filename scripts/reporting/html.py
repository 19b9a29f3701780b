"""Pieces of a self-contained page: the document, tables that sort, regions that scroll, rows of
artefacts. Everything given is escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedduet.scripts.reporting.style import SCRIPT, STYLE

WORDS = 30  # characters from which a cell may be broken into lines


def document(
    title: str, sections: Sequence[tuple[str, str, str]], head: str, refresh: int | None = None
) -> str:
    """A page: `head` first, then sections of (id, heading, body) behind a list of links to them.

    Its Content-Security-Policy allows this one script and inline style, and no address at all:
    nothing is fetched, and no text can bring a script of its own. `refresh`: seconds after which a
    browser asks again.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = "".join(
        f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in sections
    )
    parts = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2'
        f' id="{name}-h">{escape(heading)}</h2>{body}</section>'
        for name, heading, body in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{again}<meta'
        f' http-equiv="Content-Security-Policy" content="{policy}"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light'
        f' dark"><title>{escape(title)}</title><style>{STYLE}</style></head><body><a class="skip"'
        ' href="#main">Skip to the answer</a><main id="main"><p'
        f' class="over">{escape(title)}</p>{head}<nav aria-label="On this'
        f' page"><ul>{links}</ul></nav>{parts}</main><script>{SCRIPT}</script></body></html>\n'
    )


def table(rows: Iterable[Sequence[str]], label: str = "") -> str:
    """A table whose first row is its head and whose first column names the rows; it scrolls
    sideways where it is too wide."""
    head, *body = [[escape(cell) for cell in row] for row in rows]
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    cells = [(row[0], "".join(_cell(cell) for cell in row[1:])) for row in body]
    lines = "".join(f'<tr><th scope="row">{first}</th>{rest}</tr>' for first, rest in cells)
    return wide(
        f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>",
        label or f"table: {html_text(head)}",
    )


def _cell(content: str) -> str:
    return f'<td class="words">{content}</td>' if len(content) > WORDS else f"<td>{content}</td>"


def html_text(cells: Sequence[str]) -> str:
    """First and last of escaped cells, to name a table by."""
    return f"{cells[0]} to {cells[-1]}"


def wide(inner: str, label: str) -> str:
    """A region that scrolls sideways, also by keyboard."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}">{inner}</div>'


def picture(svg: str, label: str) -> str:
    """An SVG of `fedduet.scripts.reporting.charts` in a region of its own, so that its words stay
    readable on a phone; nothing for no picture."""
    return wide(svg, escape(label)) if svg else ""


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """Texts as a list: (what it is, the text, what it is next to)."""
    items = "".join(
        f'<li><p class="of">{escape(of)}</p><blockquote>{escape(text)}</blockquote>'
        + (f'<p class="near">{escape(near)}</p>' if near else "")
        + "</li>"
        for of, text, near in entries
    )
    return f'<ul class="cards">{items}</ul>'


def opened(summary: str, inner: str, open: bool = False) -> str:
    """What a reader may unfold."""
    return (
        f"<details{' open' if open else ''}><summary>{escape(summary)}</summary>{inner}</details>"
    )


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of an artefact; none where the file is missing."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def in_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def spread(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """`count` rows from all over, the same each time."""
    return list(rows[:: max(1, len(rows) // count)][:count])
