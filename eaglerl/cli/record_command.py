"""`eaglerl record`: what every draft tree would have yielded, at every position of many answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.options import (
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    ThreadsOption,
    encode,
    load_decoder,
    question_paths,
)
from eaglerl.cli.shared.terminal import DebugOption, command, notes, progress_bar
from eaglerl.prepare import DEFAULT_MODEL

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.traces.recording import Prompt, RecordProgress

_SPLITS = ("all", "train", "test")


@command
def record(
    output: Annotated[
        Path, typer.Argument(help="Folder of the traces; an interrupted run goes on with it.")
    ],
    prompts: Annotated[
        list[Path],
        typer.Argument(help="JSONL files: of `distill`, or of questions with a field turns."),
    ],
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Of `distill`'s rows, take only those that no draft head is trained on.",
        ),
    ] = False,
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of questions, take one half by the hash of the prompt, as `compare` splits them: "
            "train, test, or all.",
        ),
    ] = "all",
    per_file: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Prompts to take of each file.", show_default=False),
    ] = None,
    max_positions: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Stop once the folder holds as many positions.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", "-n", min=2, metavar="N", help="Longest continuation."),
    ] = 128,
    top_ks: Annotated[
        str, typer.Option("--top-k", metavar="K,...", help="Widths of the trees, ascending.")
    ] = "1,2,4,8",
    max_depth: Annotated[
        int, typer.Option(min=0, metavar="D", help="Largest depth of the trees.")
    ] = 7,
    slots: Annotated[
        int, typer.Option(min=1, metavar="N", help="Prompts decoded side by side.")
    ] = 16,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Record what every draft tree would have yielded, at every position of many answers.

    Every prompt is decoded greedily once; then the draft alone is replayed. The traces answer for
    any tree of the recorded widths and depths: policies are trained and compared on them.
    """
    widths = parse_widths(top_ks)
    if split not in _SPLITS:
        raise typer.BadParameter(
            f"must be one of {', '.join(_SPLITS)}, got {split!r}", param_hint="--split"
        )
    # Before a model is loaded in vain.
    for path in question_paths(prompts):
        _check_prompt_file(path)
    decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads)
    from eaglerl.traces.recording import RecordOptions
    from eaglerl.traces.recording import record as run

    options = RecordOptions(
        top_ks=widths, max_depth=max_depth, max_new_tokens=max_new_tokens, slots=slots
    )
    wanted = list(
        read_prompt_files(decoder, prompts, held_out=held_out, split=split, per_file=per_file)
    )
    if not wanted:
        names = ", ".join(str(path) for path in prompts)
        chosen = "--held-out keeps a tenth, " if held_out else ""
        raise ValueError(
            f"prompts must leave something to record, got nothing of {names}: {chosen}--split "
            f"{split} keeps {'all' if split == 'all' else 'about half'}; take more prompts"
        )
    started = time.monotonic()
    first: list[int] = []
    with progress_bar() as show:
        show("decoding", 0.0)

        def report(done: RecordProgress) -> None:
            first.append(done.positions)
            share = done.prompts / len(wanted)
            if max_positions is not None:
                share = max(share, done.positions / max_positions)
            speed = (done.positions - first[0]) / (time.monotonic() - started)
            show(f"{done.positions:,} positions, {speed:.1f} a second", min(share, 1.0))

        traces = run(
            decoder,
            wanted,
            output,
            options=options,
            max_positions=max_positions,
            progress=report,
        )
    notes().print(
        f"{output} holds {len(traces):,} traces with {traces.positions:,} positions",
        markup=False,
        soft_wrap=True,
    )


def parse_widths(text: str) -> tuple[int, ...]:
    """Read `K,...`.

    Raises:
        typer.BadParameter: not whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not of the form K,..., whole numbers such as 1,2,4,8",
            param_hint="--top-k",
        ) from error


def _check_prompt_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"prompts must name existing JSONL files, got {str(path)!r}")


def read_prompt_files(
    decoder: SpeculativeDecoder,
    paths: Iterable[Path],
    *,
    held_out: bool = False,
    split: str = "all",
    per_file: int | None = None,
) -> Iterator[Prompt]:
    """The prompts of JSONL files, in their order.

    A line has either ``p``, token ids of a whole prompt, or ``turns``, of which the first is put
    into the chat template. The domain is the file's name without its ending, or "self-written"
    for lines with ``p``.

    Args:
        decoder: whose tokenizer encodes the questions.
        paths: the files.
        held_out: of the lines with ``p``, only those whose prompt is held out of training.
        split: of the lines with ``turns``, those of "train", of "test", or "all".
        per_file: prompts to take of each file.

    Raises:
        ValueError: a file is missing, or a line is neither.
    """
    from eaglerl.fingerprints import prompt_id, split_of
    from eaglerl.json_file import parse_json, read_lines
    from eaglerl.traces.prompt_line import PromptLine
    from eaglerl.traces.recording import Prompt
    from eaglerl.training.data import is_held_out

    for path in question_paths(paths):
        _check_prompt_file(path)
        taken = 0
        for line in read_lines(path, "prompts"):
            if taken == per_file:
                break
            row = parse_json(line.data, PromptLine, line.where)
            if row.p is not None:
                if held_out and not is_held_out(row.p):
                    continue
                yield Prompt(row.p, "self-written")
            else:
                ids = encode(decoder, row.turns[0])[0].tolist()
                if split not in ("all", split_of(prompt_id(ids))):
                    continue
                yield Prompt(tuple(ids), path.stem)
            taken += 1
