"""The bars of the demo: every cycle has its column, and nothing is told by colour alone."""

import io

import pytest
import torch
from rich.console import Console

from eaglerl.cli.shared.cycle_chart import cycle_chart
from eaglerl.eagle3 import StepResult, TreeParams
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup


def cycle(rows: int, depth: int, accepted: int, chain: int = 0) -> StepResult:
    params = TreeParams(rows - chain, depth, 4) if rows - chain > 1 else TreeParams(1)
    return StepResult(
        token_ids=tuple(range(accepted + 1)),
        params=params,
        accepted=accepted,
        draft_seconds=0.0,
        verify_seconds=0.0,
        features=torch.zeros(3),
        context_length=10,
        lookup=Lookup(2, tuple(range(chain))) if chain else NO_LOOKUP,
        rows=rows,
    )


def draw(cycles: list[StepResult], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(cycle_chart(cycles, width))
    return console.file.getvalue().splitlines()


def test_a_column_for_every_cycle() -> None:
    cycles = [cycle(1, 0, 0), cycle(8, 1, 2), cycle(16, 3, 11), cycle(9, 0, 4, chain=4)]
    lines = draw(cycles, 80)
    assert "T  rows verified, at most 16" in lines
    assert "D  passes of the draft, at most 4" in lines
    upper, lower, depth, emitted, looked_up = lines[-5:]
    # 16 rows are two lines of eighths: 8 rows fill the lower one, 9 begin the upper one.
    assert upper.rstrip() == "     █▁"
    assert lower == "T  ▁███"
    # Passes 0, 2, 4 and 1 of 4.
    assert depth == "D   ▄█▂"
    assert emitted == "+  13#5"
    assert looked_up.rstrip() == "~     ~"


@pytest.mark.parametrize("count", [0, 1, 17, 18, 40])
def test_long_texts_go_on_in_further_lines(count: int) -> None:
    lines = draw([cycle(4, 1, 1)] * count, 20)
    assert max(map(len, lines[3:]), default=0) <= 20
    assert sum(line.count("2") for line in lines if line.startswith("+  2")) == count
