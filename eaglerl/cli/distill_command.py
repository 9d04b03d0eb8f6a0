"""`eaglerl distill`: the target writes the data that its draft head is trained on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.ray_cluster import cluster_of
from eaglerl.cli.shared.options import (
    FeatureLayersOption,
    ModelOption,
    RayOption,
    ThreadsOption,
    TrainingDtypeOption,
    resolve_model,
)
from eaglerl.cli.shared.parse_options import parse_feature_layers
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import DebugOption, progress_bar, say
from eaglerl.packaged_models import DEFAULT_MODEL

if TYPE_CHECKING:
    from eaglerl.distributed.cluster import Cluster
    from eaglerl.training.distill import DistillProgress


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Options of `eaglerl distill`."""

    output: Annotated[
        Path,
        typer.Argument(help="JSONL file to append to; an interrupted run continues with it."),
    ]
    response_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Stop when the file has this many tokens.")
    ] = 1_000_000
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", min=1, metavar="N", help="Longest response, in tokens."
        ),
    ] = 256
    slots: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sequences decoded side by side.")
    ] = 96
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the sampling.")] = 0
    dtype: TrainingDtypeOption = "auto"
    feature_layers: FeatureLayersOption = None
    ray: RayOption = None
    model: ModelOption = DEFAULT_MODEL
    threads: ThreadsOption = None
    debug: DebugOption = False


@settings_command
def distill(settings: DistillSettings) -> None:
    """Let the target write the data that its draft head is trained on.

    The target also writes the prompts, so nothing but the model is needed. Stop it at any time;
    the same command continues where it stopped. --feature-layers is only checked here, before
    hours are spent; `train-draft` uses it.
    """
    layers = parse_feature_layers(settings.feature_layers)
    with cluster_of(settings.ray, settings.threads) as cluster:
        written = _distill(settings, layers, cluster)
    say(f"{settings.output} holds {written.rows:,} answers with {written.response_tokens:,} tokens")


def _distill(
    settings: DistillSettings, layers: tuple[int, ...] | None, cluster: Cluster | None
) -> DistillProgress:
    target = resolve_model(settings.model)
    with progress_bar() as show:
        show("loading the model", 0.0)
        import torch

        from eaglerl.training.distill import distill as run

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        write = None
        if cluster is not None:
            from eaglerl.distributed.distill import distill_on

            write = distill_on(cluster, settings.model)
        rate = _Rate()

        def report(done: DistillProgress) -> None:
            share = min(done.response_tokens / settings.response_tokens, 1.0)
            speed = rate.per_second(done.response_tokens)
            show(f"{done.rows:,} answers, {speed:.0f} response tokens/s", share)

        return run(
            target,
            settings.output,
            response_tokens=settings.response_tokens,
            slots=settings.slots,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            dtype=settings.dtype,
            feature_layers=layers,
            progress=report,
            write=write,
        )


class _Rate:
    """Growth per second of a count, measured from its first report."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: int | None = None

    def per_second(self, count: int) -> float:
        # The first report may include what an earlier run has written.
        if self._first is None:
            self._first = count
        return (count - self._first) / max(time.monotonic() - self._started, 1e-9)
