"""Rendering chapters as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from eaglerl.evaluation.report.blocks import (
    Cell,
    Chapter,
    Paragraph,
    Passage,
    Picture,
    Table,
    Tone,
)

_KINDS = {Paragraph: "paragraph", Table: "table", Picture: "picture", Passage: "passage"}
_SIGNS: dict[Tone, str] = {"won": "▲", "lost": "▼", "even": "≈", "failed": "✕"}


def render(title: str, chapters: Sequence[Chapter], made: str) -> str:
    """Render the page.

    Args:
        title: title of the page.
        chapters: chapters in order.
        made: sentence that says how and when it was made.
    """
    environment = Environment(
        autoescape=True,
        finalize=_keep_together,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["kind"] = lambda block: _KINDS[type(block)]
    environment.filters["tone"] = lambda cell: cell.tone if isinstance(cell, Cell) else ""
    environment.filters["sign"] = lambda tone: _SIGNS.get(tone, "")
    template = environment.from_string(_resource("page.html"))
    return template.render(
        title=title,
        chapters=chapters,
        several=sum(bool(chapter.headlines) for chapter in chapters) > 1,
        made=made,
        style=_resource("page.css").strip(),
    )


def _keep_together(value: object) -> object:
    """Keep a number and its percent sign on one line; markup stays as it is."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
