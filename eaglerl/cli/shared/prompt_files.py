"""Prompts from JSONL files, as `record` and `train-policy --prompts` read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eaglerl.cli.shared.options import encode, question_paths

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.traces.prompt_line import PromptLine
    from eaglerl.traces.recording import Prompt


def check_prompt_files(paths: Iterable[Path]) -> None:
    """Check that all files of prompts exist.

    Raises:
        ValueError: one does not.
    """
    for path in question_paths(paths):
        _check_exists(path)


def read_prompt_files(
    decoder: SpeculativeDecoder,
    paths: Iterable[Path],
    *,
    held_out: bool = False,
    split: str = "all",
    per_file: int | None = None,
) -> Iterator[Prompt]:
    """Yield the prompts of JSONL files, in their order.

    A line has either ``p``, the token ids of a whole prompt, or ``turns``, the first of which is
    put into the chat template. The domain is the file's name without its ending, or "self-written"
    for lines with ``p``.

    Args:
        decoder: whose tokenizer encodes the questions.
        paths: the files.
        held_out: of the lines with ``p``, only those whose prompt is held out of training.
        split: of the lines with ``turns``, those of "train", those of "test", or "all".
        per_file: most prompts to take from each file; None for all.

    Raises:
        ValueError: a file is missing, or a line has neither.
    """
    from eaglerl.json_file import parse_json, read_lines
    from eaglerl.traces.prompt_line import PromptLine

    for path in question_paths(paths):
        _check_exists(path)
        taken = 0
        for line in read_lines(path, "prompts"):
            if taken == per_file:
                break
            row = parse_json(line.data, PromptLine, line.where)
            prompt = _chosen_prompt(decoder, row, path.stem, held_out=held_out, split=split)
            if prompt is not None:
                yield prompt
                taken += 1


def _chosen_prompt(
    decoder: SpeculativeDecoder, row: PromptLine, domain: str, *, held_out: bool, split: str
) -> Prompt | None:
    """Return a line's prompt; None where `held_out` or `split` leaves it out."""
    from eaglerl.fingerprints import prompt_id, split_of
    from eaglerl.traces.recording import Prompt
    from eaglerl.training.data import is_held_out

    if row.p is not None:
        return None if held_out and not is_held_out(row.p) else Prompt(row.p, "self-written")
    assert row.turns is not None  # the schema demands one of the two
    ids = encode(decoder, row.turns[0])[0].tolist()
    return Prompt(tuple(ids), domain) if split in ("all", split_of(prompt_id(ids))) else None


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"prompts must name existing JSONL files, got {str(path)!r}")
