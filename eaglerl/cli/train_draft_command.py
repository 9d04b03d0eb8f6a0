"""`eaglerl train-draft`: train a draft head on what its target wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.options import (
    FeatureLayersOption,
    ModelOption,
    TrainingDtypeOption,
    resolve_model,
)
from eaglerl.cli.shared.parse_options import parse_feature_layers
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import DebugOption, progress_bar, say
from eaglerl.packaged_models import DEFAULT_MODEL

if TYPE_CHECKING:
    from eaglerl.training.train_options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class TrainDraftSettings:
    """Options of `eaglerl train-draft`."""

    data: Annotated[list[Path], typer.Argument(help="JSONL files that `distill` wrote.")]
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of the run; a folder with checkpoints is continued. The trained head is "
            "in its head/.",
        ),
    ]
    features: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the target's features, which several runs may share; "
            "default: features/ in the run's folder.",
            show_default=False,
        ),
    ] = None
    initial_head: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Head to train further, with its vocabulary; default: a new head.",
            show_default=False,
        ),
    ] = None
    epochs: Annotated[float, typer.Option(metavar="X", help="Passes over the data.")] = 4.0
    max_minutes: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Time budget; the learning rate decays to its end within it.",
            show_default=False,
        ),
    ] = None
    batch_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Draft rows per optimizer step.")
    ] = 3072
    learning_rate: Annotated[float, typer.Option(metavar="X", help="Peak learning rate.")] = 2e-3
    draft_vocab_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of tokens that the head can propose.")
    ] = 8192
    ttt_steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Steps of training-time test.")
    ] = 4
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the initial weights and the data order.")
    ] = 0
    dtype: TrainingDtypeOption = "auto"
    feature_layers: FeatureLayersOption = None
    model: ModelOption = DEFAULT_MODEL
    debug: DebugOption = False

    def train_options(self) -> TrainOptions:
        """Return the library's options.

        Raises:
            typer.BadParameter: `feature_layers` are not three layers.
            ValueError: a value out of its range.
        """
        layers = parse_feature_layers(self.feature_layers)
        from eaglerl.training.train_options import TrainOptions

        return TrainOptions(
            epochs=self.epochs,
            max_minutes=self.max_minutes,
            batch_tokens=self.batch_tokens,
            learning_rate=self.learning_rate,
            draft_vocab_size=self.draft_vocab_size,
            ttt_steps=self.ttt_steps,
            seed=self.seed,
            dtype=self.dtype,
            initial_head=None if self.initial_head is None else str(self.initial_head.resolve()),
            feature_layers=layers,
        )


@settings_command
def train_draft(settings: TrainDraftSettings) -> None:
    """Train an EAGLE-3 draft head on what its target wrote.

    A tenth of the prompts is held out. Ctrl-C saves; the same command continues where it stopped.
    """
    target = resolve_model(settings.model)
    with progress_bar() as show:
        show("loading libraries", 0.0)
        options = settings.train_options()
        from eaglerl.training.train_draft import train_draft as run

        features = settings.features or settings.output / "features"
        result = run(target, settings.data, features, settings.output, options, progress=show)
    shares = ", ".join(f"{share:.3f}" for share in result.validation.accuracy)
    say(f"held-out top-1 accuracy by step: {shares}")
    say(f"head: {result.head_path}")
