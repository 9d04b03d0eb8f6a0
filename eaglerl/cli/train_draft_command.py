"""`eaglerl distill` and `eaglerl train-draft`: from a target to a draft head of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.options import (
    FeatureLayersOption,
    ModelOption,
    parse_feature_layers,
    resolve_model,
)
from eaglerl.cli.shared.terminal import DebugOption, command, notes, progress_bar
from eaglerl.prepare import DEFAULT_MODEL

if TYPE_CHECKING:
    from eaglerl.training.distill import DistillProgress


@command
def distill(
    output: Annotated[
        Path, typer.Argument(help="JSONL file to append to; an interrupted run goes on with it.")
    ],
    response_tokens: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Response tokens that the file shall hold in the end."
        ),
    ] = 1_000_000,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", min=1, metavar="N", help="Longest response, in tokens."
        ),
    ] = 256,
    slots: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sequences decoded side by side.")
    ] = 96,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of all draws.")] = 0,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="float32, bfloat16, or auto: bfloat16 where the CPU has instructions for it.",
        ),
    ] = "auto",
    feature_layers: FeatureLayersOption = None,
    model: ModelOption = DEFAULT_MODEL,
    debug: DebugOption = False,
) -> None:
    """Let the target write the data that its draft head is trained on.

    Prompts are the target's own, too: nothing but the model is needed. Stop it at any time; the
    same command goes on where it stopped. --feature-layers is only checked here, before hours are
    spent; `train-draft` uses it.
    """
    layers = parse_feature_layers(feature_layers)
    target = resolve_model(model)
    with progress_bar() as show:
        show("loading the model", 0.0)
        from eaglerl.training.distill import distill as run

        rate = _Rate()

        def report(done: DistillProgress) -> None:
            share = min(done.response_tokens / response_tokens, 1.0)
            speed = rate.per_second(done.response_tokens)
            show(f"{done.rows:,} answers, {speed:.0f} response tokens/s", share)

        written = run(
            target,
            output,
            response_tokens=response_tokens,
            slots=slots,
            max_new_tokens=max_new_tokens,
            seed=seed,
            dtype=dtype,
            feature_layers=layers,
            progress=report,
        )
    notes().print(
        f"{output} holds {written.rows:,} answers with {written.response_tokens:,} tokens",
        markup=False,
        soft_wrap=True,
    )


@command
def train_draft(
    data: Annotated[list[Path], typer.Argument(help="JSONL files that `distill` wrote.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of the run; one with checkpoints goes on. The head ends in its head/.",
        ),
    ],
    features: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the target's features, which several runs may share; "
            "default: features/ in the run's folder.",
            show_default=False,
        ),
    ] = None,
    initial_head: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Head to train further, with its vocabulary; default: a new one.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(metavar="X", help="How often the data is read.")] = 4.0,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Time budget; the learning rate has decayed when it is used up.",
            show_default=False,
        ),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Draft rows of one optimizer step.")
    ] = 3072,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="Its peak.")] = 2e-3,
    draft_vocab_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens that the head can propose.")
    ] = 8192,
    ttt_steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Steps of training-time test.")
    ] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Of initial weights and order.")] = 0,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="float32, bfloat16, or auto: bfloat16 where the CPU has instructions for it.",
        ),
    ] = "auto",
    feature_layers: FeatureLayersOption = None,
    model: ModelOption = DEFAULT_MODEL,
    debug: DebugOption = False,
) -> None:
    """Train an EAGLE-3 draft head on what its target wrote.

    A tenth of the prompts is held out. Ctrl-C saves; the same command goes on where it stopped.
    """
    layers = parse_feature_layers(feature_layers)
    target = resolve_model(model)
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.training.train_draft import train_draft as run
        from eaglerl.training.train_options import TrainOptions

        options = TrainOptions(
            epochs=epochs,
            max_minutes=max_minutes,
            batch_tokens=batch_tokens,
            learning_rate=learning_rate,
            draft_vocab_size=draft_vocab_size,
            ttt_steps=ttt_steps,
            seed=seed,
            dtype=dtype,
            initial_head=None if initial_head is None else str(initial_head.resolve()),
            feature_layers=layers,
        )
        features = output / "features" if features is None else features
        result = run(target, data, features, output, options, progress=show)
    shares = ", ".join(f"{share:.3f}" for share in result.validation.accuracy)
    console = notes()
    console.print(f"held-out top-1 accuracy by step: {shares}", markup=False, soft_wrap=True)
    console.print(f"head: {result.head_path}", markup=False, soft_wrap=True)


class _Rate:
    """Growth per second of a count, from when this is made."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: int | None = None

    def per_second(self, count: int) -> float:
        # What the first report counts may be an earlier run's.
        if self._first is None:
            self._first = count
        return (count - self._first) / max(time.monotonic() - self._started, 1e-9)
