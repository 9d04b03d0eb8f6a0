"""Drawing a figure twice: as SVG in the page's colours, light or dark, and as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eaglerl.evaluation.report.blocks import Picture

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

#: Text, axes and outlines; the SVG has the page's text colour instead.
INK = "#20242b"
#: Gaps between neighbouring areas; the SVG has the page's background instead.
PAPER = "#fdfefe"
#: Readable on light and dark pages. No figure relies on colour alone.
COLORS = ("#3d7fd6", "#d9822b", "#2b9d6a", "#9166cc", "#d14d5f", "#1f97a8", "#8a9099")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo")

_PNG_DPI = 160
_LARGEST_SCALE = 1.25
_PARAMETERS: dict[RcKeyType, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9.5,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    # Labels come from files: a dollar sign must not start a formula.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(
    name: str,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
    *,
    alt: str,
    caption: str,
) -> Picture:
    """Draw a figure.

    Args:
        name: unique within a report; letters, digits and hyphens.
        size: width and height in inches.
        paint: draws into the empty figure.
        alt: see `Picture`.
        caption: see `Picture`.
    """
    with matplotlib.rc_context(_PARAMETERS | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(pixels, format="png", dpi=_PNG_DPI, facecolor="white")
    return Picture(
        name, Markup(embeddable(vector.getvalue(), name)), pixels.getvalue(), alt, caption
    )


def embeddable(svg: str, name: str) -> str:
    """Turn an SVG file into an element of a page.

    Its colours follow the page's, its ids are unique, and it refers to no other address.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    width = re.search(r'width="([\d.]+)pt"', head)
    # A wider figure would have larger text than the page.
    limit = f"{_LARGEST_SCALE * float(width.group(1)):.0f}pt" if width else "100%"
    head = f'<svg {box.group() if box else ""} style="max-width: {limit}" focusable="false"'
    rest = rest.replace("xlink:href", "href")
    rest = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", rest)
    rest = rest.replace(INK, "currentColor").replace(PAPER, "var(--page)")
    # The fonts that the figure was laid out with may be missing, and are wider than the page's.
    rest = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", rest)
    return f"{head}>{rest}"
