"""Generated text on the terminal, word by word, and the statistics of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from transformers import TextStreamer

    from eaglerl.eagle3 import GenerateOutput


def text_streamer(tokenizer: Any, write: Callable[[str], None]) -> TextStreamer:
    """Return a streamer that writes generated text as soon as its words are complete.

    Args:
        tokenizer: of the target.
        write: called with each piece of the answer; the prompt is left out.
    """
    from transformers import TextStreamer

    class WordStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                write(text)

    return WordStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def statistics_dict(run: GenerateOutput) -> dict[str, float]:
    """Return a run's figures, named like the attributes of its statistics."""
    names = ("tokens_per_second", "mean_acceptance_length", "num_cycles", "new_tokens", "seconds")
    return {name: getattr(run.statistics, name) for name in (*names, "prefill_seconds")}


def statistics_table(runs: dict[str, GenerateOutput]) -> Table:
    """Return a table with a column for each run.

    Args:
        runs: what was generated, by the name of the run.
    """
    table = Table(show_header=len(runs) > 1, header_style="bold")
    table.add_column("")
    for name in runs:
        table.add_column(name, justify="right")
    statistics = [run.statistics for run in runs.values()]
    rows = {
        "tokens/s": [f"{run.tokens_per_second:.1f}" for run in statistics],
        "mean acceptance length": [f"{run.mean_acceptance_length:.2f}" for run in statistics],
        "cycles": [str(run.num_cycles) for run in statistics],
        "new tokens": [str(run.new_tokens) for run in statistics],
        "seconds (prompt included)": [f"{run.seconds:.2f}" for run in statistics],
        "seconds for the prompt": [f"{run.prefill_seconds:.2f}" for run in statistics],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table
