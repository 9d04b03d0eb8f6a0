"""The options of `eaglerl train-policy`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from eaglerl.cli.shared.options import DecoderSettings
from eaglerl.cli.shared.parse_options import parse_numbers

if TYPE_CHECKING:
    from eaglerl.envs.rewards import RewardName
    from eaglerl.sb3.train_policy import Algorithm, TrainPolicyOptions

_ALGORITHMS = ("ppo", "dqn")
_LIVE_PANEL = "Live, instead of on traces"


@dataclass(frozen=True, kw_only=True)
class TrainPolicySettings(DecoderSettings):
    """Options of `eaglerl train-policy`.

    Raises:
        typer.BadParameter: an unknown algorithm, or options that exclude or need each other.
    """

    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of the run; a folder with checkpoints is continued. The trained policy is "
            "in its policy/.",
        ),
    ]
    traces: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Traces from `record`; repeatable.",
                     show_default=False),
    ] = None  # fmt: skip
    cost: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cost table from `calibrate`; required with --traces; with --prompts it replaces "
            "the clock.",
            show_default=False,
        ),
    ] = None
    algorithm: Annotated[
        str, typer.Option("--algorithm", "-a", metavar="NAME", help="ppo or dqn.")
    ] = "ppo"
    actions: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Trees to choose from: cpu, cpu-grid, resps, resps-grid, or a JSON file.",
        ),
    ] = "cpu-grid"
    select: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep only the N trees that together reach most of the possible gain.",
            show_default=False,
        ),
    ] = None
    held_out: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            metavar="X",
            help="Share of the prompts, by their hash, that is held out to choose the best policy "
            "of the run.",
        ),
    ] = 0.2
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Cache windows to learn from.",
        ),
    ] = 200_000
    cache_steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Cycles for which a decision is kept.")
    ] = 10
    extras: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Observations besides the features: acceptance, position, confidence (of the "
            "last draft).",
            show_default=False,
        ),
    ] = ""
    similarity_threshold: Annotated[
        float | None,
        typer.Option(
            min=-1.0,
            max=1.0,
            metavar="X",
            help="Decide again before the --cache-steps are over if the cosine similarity between "
            "the features now and at the decision falls below X.",
            show_default=False,
        ),
    ] = None
    horizon: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Windows per decision of PPO, each with its own tree."
        ),
    ] = 1
    compressed_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Compress the features to N linear combinations, such as 32, 64 or 128, which are "
            "learned with the policy.",
            show_default=False,
        ),
    ] = None
    reward: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="tokens: tokens minus a rate times the seconds; throughput: tokens per second.",
        ),
    ] = "tokens"
    learning_rate: Annotated[
        float, typer.Option(metavar="X", help="Learning rate of Adam.")
    ] = 1e-3  # fmt: skip
    gamma: Annotated[
        float, typer.Option(metavar="X", help="Discount per window; 0 is a contextual bandit.")
    ] = 0.9
    net_arch: Annotated[str, typer.Option(metavar="N,...", help="Widths of the hidden layers.")] = (
        "64,64"
    )
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Train on traces as the code of Re-SpS does, bugs included, for comparison, with "
            "its settings instead of --reward, --learning-rate, --gamma and --net-arch.",
        ),
    ] = False
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of all random choices.")
    ] = 0  # fmt: skip
    checkpoint_steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Windows between checkpoints.")
    ] = 10_000
    wandb_project: Annotated[
        str | None,
        typer.Option(
            "--wandb",
            metavar="PROJECT",
            help="Also log to Weights & Biases; WANDB_MODE=offline keeps the log on this machine.",
            show_default=False,
        ),
    ] = None
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="JSONL files of prompts to decode; repeatable.",
            show_default=False,
            rich_help_panel=_LIVE_PANEL,
        ),
    ] = None
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            "-n",
            min=2,
            metavar="N",
            help="Longest answer.",
            rich_help_panel=_LIVE_PANEL,
        ),
    ] = 128

    def __post_init__(self) -> None:
        if self.algorithm not in _ALGORITHMS:
            raise typer.BadParameter(
                f"algorithm must be one of {', '.join(_ALGORITHMS)}, got {self.algorithm!r}",
                param_hint="--algorithm",
            )
        self._check_sources()
        changed = self.similarity_threshold is not None or self.horizon > 1 or self.compressed_size
        if self.reference and changed:
            raise typer.BadParameter(
                "Re-SpS has no --similarity-threshold, --horizon or --compressed-size",
                param_hint="--reference",
            )

    def trainer_options(self) -> TrainPolicyOptions:
        """Return the options of PPO and DQN.

        Raises:
            typer.BadParameter: `net_arch` is not a list of widths.
            ValueError: a value out of its range.
        """
        from eaglerl.sb3.train_policy import TrainPolicyOptions

        return TrainPolicyOptions(
            algorithm=cast("Algorithm", self.algorithm),  # checked above
            total_steps=self.steps,
            cache_steps=self.cache_steps,
            extras=tuple(name for name in self.extras.split(",") if name),
            similarity_threshold=self.similarity_threshold,
            horizon=self.horizon,
            compressed_size=self.compressed_size,
            reward=cast("RewardName", self.reward),  # checked by the reward itself
            learning_rate=self.learning_rate,
            gamma=self.gamma,
            net_arch=parse_numbers(self.net_arch, "--net-arch"),
            seed=self.seed,
            checkpoint_steps=self.checkpoint_steps,
            wandb_project=self.wandb_project,
        )

    def _check_sources(self) -> None:
        if bool(self.traces) == bool(self.prompts):
            raise typer.BadParameter(
                "give either --traces, with --cost, or --prompts", param_hint="--traces"
            )
        if self.traces and self.cost is None:
            raise typer.BadParameter(
                "traces hold no times: give the table that `eaglerl calibrate` wrote",
                param_hint="--cost",
            )
        for option, given in (
            ("--select", self.select is not None),
            ("--reference", self.reference),
        ):
            if given and self.prompts:
                raise typer.BadParameter("it needs --traces", param_hint=option)
