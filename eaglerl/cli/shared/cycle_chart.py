"""What the policy chose in every cycle, drawn on the terminal as bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

if TYPE_CHECKING:
    from eaglerl.eagle3 import StepResult

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LABEL = 3


def cycle_chart(cycles: Sequence[StepResult], width: int) -> Group:
    """Draw T, D and the emitted tokens of every cycle, one column per cycle.

    T is the number of rows that the target verified, looked-up tokens included; cycles with
    looked-up tokens are marked. Nothing is told by colour alone.

    Args:
        cycles: results of the cycles, in order.
        width: columns of the terminal.
    """
    rows = [cycle.rows for cycle in cycles]
    depths = [0 if cycle.params.total_tokens == 1 else cycle.params.depth + 1 for cycle in cycles]
    most_rows, most_depth = max(rows, default=1), max(depths, default=1)
    legend = Text(
        f"T  rows verified, at most {most_rows}\n"
        f"D  passes of the draft, at most {max(most_depth, 1)}\n"
        "+  tokens emitted; ~ if looked-up tokens were verified, too",
        style="dim",
    )
    parts: list[Text] = [legend]
    columns = max(width - _LABEL, 1)
    for begin in range(0, len(cycles), columns):
        piece = slice(begin, begin + columns)
        parts += [Text(), *_bars("T", rows[piece], most_rows, 2, "cyan")]
        parts += _bars("D", depths[piece], max(most_depth, 1), 1, "magenta")
        parts.append(_line("+", cycles[piece], lambda cycle: _digit(cycle.accepted + 1), "green"))
        if any(cycle.lookup.token_ids for cycle in cycles):
            parts.append(
                _line("~", cycles[piece], lambda c: "~" if c.lookup.token_ids else " ", "yellow")
            )
    return Group(*parts)


def _bars(
    label: str, values: Sequence[int], largest: int, lines: int, style: str
) -> Iterator[Text]:
    """Yield the lines of vertical bars, from top to bottom."""
    heights = [max(round(8 * lines * value / largest), 1 if value else 0) for value in values]
    for line in reversed(range(lines)):
        bars = "".join(_EIGHTHS[min(max(height - 8 * line, 0), 8)] for height in heights)
        head = label if line == 0 else ""
        yield Text.assemble(head.ljust(_LABEL), (bars, style), no_wrap=True)


def _line(
    label: str,
    cycles: Sequence[StepResult],
    mark: Callable[[StepResult], str],
    style: str,
) -> Text:
    marks = "".join(mark(cycle) for cycle in cycles)
    return Text.assemble(label.ljust(_LABEL), (marks, style), no_wrap=True)


def _digit(value: int) -> str:
    return str(value) if value < 10 else "#"
