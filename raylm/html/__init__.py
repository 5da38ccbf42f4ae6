"""The frame of every HTML page that raylm writes: one file, its own style, no address but its own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources


def frame(title: str, body: Iterable[str], *, style: str = "", end: str = "") -> str:
    """A whole page; `body` and `end` (scripts) are HTML, `style` is CSS beside what all pages share."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)} - raylm</title>'
        f"<style>{text_of('raylm.html', 'base.css')}{style}</style></head>"
        f"<body><main>{''.join(body)}</main>{end}</body></html>\n"
    )


def tiles(rows: Iterable[tuple[str, str, str]]) -> str:
    """Figures in boxes, as (name, value, note)."""
    boxes = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><small>{escape(note)}</small></div>"
        for name, value, note in rows
    ]
    return f'<dl class="tiles">{"".join(boxes)}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Cells of text; columns in `numbers` stand right-aligned."""
    style = [' class="n"' if column in numbers else "" for column in range(len(head))]
    lines = ["".join(f"<td{style[column]}>{escape(cell)}</td>" for column, cell in enumerate(row)) for row in rows]
    top = "".join(f"<th{style[column]}>{escape(name)}</th>" for column, name in enumerate(head))
    return f'<table class="grid"><tr>{top}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def text_of(package: str, name: str) -> str:
    """A file that lies beside a package's modules."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
