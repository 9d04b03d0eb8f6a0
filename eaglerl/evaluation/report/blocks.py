"""Building blocks of a report. Texts are plain; the page escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

#: Meaning of a cell or a headline; the page shows it by a sign and a colour.
Tone = Literal["", "won", "lost", "even", "failed", "faint"]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph.

    Attributes:
        text: its sentences.
        kind: "note" explains, "missing" says what was not measured.
    """

    text: str
    kind: Literal["text", "note", "missing"] = "text"


@dataclass(frozen=True)
class Cell:
    """A table cell with a tone."""

    text: str
    tone: Tone = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table whose first column holds the row headings.

    Attributes:
        caption: what it shows.
        columns: column headings.
        rows: cells, one per column.
        note: note below the table.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: unique within a report; its PNG file is named after it.
        svg: the figure in the page's colours.
        png: the figure as a PNG file.
        alt: text alternative.
        caption: what it shows and how to read it.
    """

    name: str
    svg: Markup
    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Passage:
    """Quoted text, written by a model or a person."""

    title: str
    text: str


Block = Paragraph | Table | Picture | Passage


@dataclass(frozen=True)
class Section:
    """A section.

    Attributes:
        anchor: unique within a report.
        title: its heading.
        blocks: its content.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Headline:
    """One result of a comparison in a sentence."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Chapter:
    """The chapter of one comparison.

    Attributes:
        anchor: unique within a report.
        title: name of the comparison.
        facts: names and values of its conditions.
        headlines: its results in sentences.
        sections: its sections.
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
    """Make a paragraph that says what was not measured, and how to measure it."""
    return Paragraph(f"{what}: not measured.{' ' + how if how else ''}", "missing")
