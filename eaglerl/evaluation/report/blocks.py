"""What a report is put together from. Texts are plain: the page escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

#: How a cell or a headline is meant; the page gives it a sign as well as a colour.
Tone = Literal["", "won", "lost", "even", "failed", "faint"]


@dataclass(frozen=True)
class Paragraph:
    """Some sentences.

    Attributes:
        text: the sentences.
        kind: "note" explains, "missing" says what was not measured.
    """

    text: str
    kind: Literal["text", "note", "missing"] = "text"


@dataclass(frozen=True)
class Cell:
    """A cell of a table whose tone matters."""

    text: str
    tone: Tone = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table; the first column heads its rows.

    Attributes:
        caption: what it shows.
        columns: heads.
        rows: cells, as many as there are columns.
        note: below it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: distinct within a report; its PNG file is named after it.
        svg: drawn for the page, in its ink.
        png: the same for everything else.
        alt: what can be seen, for who cannot.
        caption: what it shows and how to read it.
    """

    name: str
    svg: Markup
    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Passage:
    """Text that a model or a person wrote."""

    title: str
    text: str


Block = Paragraph | Table | Picture | Passage


@dataclass(frozen=True)
class Section:
    """A heading and what follows.

    Attributes:
        anchor: distinct within a report.
        title: the heading.
        blocks: what follows.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Headline:
    """What a comparison says, in a sentence."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Chapter:
    """One comparison.

    Attributes:
        anchor: distinct within a report.
        title: its name.
        facts: name and value of what it was measured with.
        headlines: the result in words.
        sections: the rest.
    """

    anchor: str
    title: str
    facts: Sequence[tuple[str, str]] = ()
    headlines: Sequence[Headline] = ()
    sections: Sequence[Section] = field(default_factory=tuple)

    @property
    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        return [
            block
            for section in self.sections
            for block in section.blocks
            if isinstance(block, Picture)
        ]


def not_measured(what: str, how: str = "") -> Paragraph:
    """Say that something is missing, and how to get it."""
    return Paragraph(f"{what}: not measured.{' ' + how if how else ''}", "missing")
