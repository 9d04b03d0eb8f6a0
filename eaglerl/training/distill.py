"""Self-distillation: the target writes its own prompts and answers into a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from eaglerl.eagle3.target.target_files import read_target_config
from eaglerl.eagle3.target.target_model import checked_feature_layers
from eaglerl.files import exclusive_file
from eaglerl.json_file import read_lines
from eaglerl.training.data import parse_row
from eaglerl.training.prompt_pieces import ChatTemplatePieces
from eaglerl.training.row_writer import Row, RowOptions, RowWriter, choose_tokens, read_pieces

__all__ = [
    "DEFAULT_OPENINGS",
    "ChatTemplatePieces",
    "DistillProgress",
    "append_row",
    "choose_tokens",
    "distill",
    "recover",
]

#: Openings of a user turn that steer some of the sampled prompts towards kinds of text that a model
#: seldom asks for by itself. The model continues the opening, so the prompts still differ.
DEFAULT_OPENINGS: tuple[str, ...] = (
    "Write a Python function that",
    "Complete the following Python function:\n```python\ndef ",
    "Solve this problem step by step:",
    "A farmer has",
    "Summarize the following text:\n",
    "Summarize the following article:\n(CNN)",
    "Who was",
    "What is the",
    "When did",
    "Explain",
    "Write a short story about",
    "Write an email to",
    "Imagine you are",
    "Compare",
    "How many",
    "Translate",
)
#: What writes the rows of a stream, in the order in which they are complete, without an end.
WriteRows = Callable[[RowOptions, int], Generator[Row, None, None]]


@dataclass
class DistillProgress:
    """What a run has written so far; passed to the progress callback after every finished row."""

    rows: int
    response_tokens: int
    prompt_tokens: int


def append_row(path: Path, prompt: Sequence[int], response: Sequence[int]) -> None:
    """Append one JSON line in a single write: a killed process leaves no partial line."""
    line = json.dumps({"p": list(prompt), "r": list(response)}, separators=(",", ":")) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = line.encode()
        written = os.write(descriptor, data)
        if written != len(data):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(f"could not write a whole line to {path}: is the disk full?")
    finally:
        os.close(descriptor)


def recover(path: Path) -> DistillProgress:
    """Count the rows of an earlier run and cut off a line that it did not finish.

    Args:
        path: the JSONL file; it need not exist.

    Returns:
        The rows and tokens that the file holds.

    Raises:
        ValueError: a line in the middle of the file is not a row of token ids.
    """
    progress = DistillProgress(0, 0, 0)
    if not os.path.lexists(path):
        return progress
    complete = 0
    for line in read_lines(path, "rows", keep_blank=True):
        if not line.ended:
            break
        row = parse_row(line.data, line.where)
        complete += len(line.data) + 1
        progress.rows += 1
        progress.prompt_tokens += len(row.prompt)
        progress.response_tokens += len(row.response)
    os.truncate(path, complete)
    return progress


def distill(
    target: str | Path,
    output: str | Path,
    *,
    response_tokens: int,
    slots: int = 96,
    max_new_tokens: int = 256,
    seed: int = 0,
    dtype: str = "auto",
    openings: Sequence[str] = DEFAULT_OPENINGS,
    feature_layers: Sequence[int] | None = None,
    progress: Callable[[DistillProgress], None] | None = None,
    write: WriteRows | None = None,
) -> DistillProgress:
    """Let the target write training data for its own draft head.

    Each row is one JSON line ``{"p": prompt ids, "r": response ids}``. The prompt is the chat
    template up to the answer, with a user turn that the target sampled itself (half of them after
    one of `openings`); the response is greedy for two thirds of the rows and drawn at temperature
    0.7 for the rest, and ends with a stop token of the target unless it reaches `max_new_tokens`.
    The logits processors of the target's generation config are applied to the response.

    The same call resumes an interrupted run. A base model, whose tokenizer has no chat template,
    writes plain texts: the prompt is the beginning, the response the continuation.

    Args:
        target: folder of the target model, with its tokenizer. A model that the packed path cannot
            run is run by transformers' modules, with a warning.
        output: JSONL file to append to.
        response_tokens: response tokens that the file holds in the end, at least.
        slots: sequences that are decoded side by side.
        max_new_tokens: longest response, in tokens.
        seed: seed of all draws; a resumed run draws from a stream of its own. Every row has its own
            random numbers.
        dtype: "float32", "bfloat16", or "auto": bfloat16 on the packed path if the CPU supports it.
        openings: texts with which half of the user turns begin; empty for none.
        feature_layers: of the head to be trained; only checked, before hours of decoding.
        progress: called after every row.
        write: what writes the rows in place of this process, such as other machines.

    Returns:
        What the file holds now.

    Raises:
        ValueError: an argument out of its range, a chat template that alters the user's text, a
            file that is not such JSONL, or a target with stop rules beyond tokens and length.
        AlreadyLockedError: another process appends to `output`.
    """
    if response_tokens < 1:
        raise ValueError(f"response_tokens must be at least 1, got {response_tokens}")
    options = RowOptions(Path(target), slots, max_new_tokens, seed, dtype, tuple(openings))
    if feature_layers is not None:
        layers = read_target_config(target).num_hidden_layers
        checked_feature_layers(feature_layers, layers)
    # Before hours are spent: the target's files may not do.
    pieces = read_pieces(options)

    def write_here(options: RowOptions, stream: int) -> Generator[Row, None, None]:
        yield from RowWriter(options, pieces).rows(stream)

    with exclusive_file(output):
        return _append_rows(Path(output), options, response_tokens, write or write_here, progress)


def _append_rows(
    output: Path,
    options: RowOptions,
    response_tokens: int,
    write: WriteRows,
    progress: Callable[[DistillProgress], None] | None,
) -> DistillProgress:
    """Append rows until the file holds enough; load the target only if rows are missing."""
    written = recover(output)
    if written.response_tokens >= response_tokens:
        return written
    # Closed at once when there are enough: what is still being written elsewhere is cancelled.
    with closing(write(options, written.rows)) as rows:
        for row in rows:
            append_row(output, row.prompt, row.response)
            written.rows += 1
            written.prompt_tokens += len(row.prompt)
            written.response_tokens += len(row.response)
            if progress is not None:
                progress(written)
            if written.response_tokens >= response_tokens:
                return written
    raise AssertionError("the stream of rows does not end by itself")
