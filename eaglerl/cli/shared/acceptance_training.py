"""`eaglerl train-policy --algorithm acceptance`: a policy that predicts what is accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eaglerl.actions import ActionSpace
    from eaglerl.cost.cost_table import CostTable

_PANEL = "With --algorithm acceptance"

TopKOption = Annotated[
    int, typer.Option(min=1, metavar="K", help="Width of its trees.", rich_help_panel=_PANEL)
]
MaxDepthOption = Annotated[
    int,
    typer.Option(
        min=0, metavar="D", help="Most draft rounds after the first.", rich_help_panel=_PANEL
    ),
]
MaxRowsOption = Annotated[
    int, typer.Option(min=2, metavar="T", help="Most rows to verify.", rich_help_panel=_PANEL)
]
ChainLengthOption = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Most tokens to look up in the text; 0 for trees only.",
        rich_help_panel=_PANEL,
    ),
]
HiddenOption = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Width of the nets' hidden layers.", rich_help_panel=_PANEL
    ),
]
FoldsOption = Annotated[
    int,
    typer.Option(
        min=2,
        metavar="N",
        help="Parts of the prompts for the cross-validation that the stopping rule's penalty is "
        "chosen by.",
        rich_help_panel=_PANEL,
    ),
]


def learn_acceptance(
    folders: Sequence[Path],
    actions: ActionSpace,
    cost: CostTable,
    output: Path,
    show: Callable[[str, float], None],
    *,
    steps: int | None,
    seed: int,
    folds: int,
    **sizes: int,
) -> str:
    """Fit a policy to the traces of some folders, and say what it is worth.

    Args:
        folders: of traces.
        actions: constant trees to compare with.
        cost: time of the cycles.
        output: the run's folder.
        show: is told a stage and the share done.
        steps: of a net's fit; None for the default.
        seed: of the nets.
        folds: of the cross-validation.
        sizes: see `AcceptanceOptions`.

    Raises:
        ValueError: traces of different targets or heads; see `train_acceptance`.
    """
    from eaglerl.fitting.fit_acceptance import AcceptanceOptions
    from eaglerl.fitting.train_acceptance import TrainAcceptanceOptions, train_acceptance
    from eaglerl.traces.trace_set import TraceSet

    sets = [TraceSet(folder) for folder in folders]
    for other in sets[1:]:
        other.check_ids(target_id=sets[0].target_id, head_id=sets[0].head_id)
    fit = AcceptanceOptions(**sizes, seed=seed, **({} if steps is None else {"steps": steps}))
    trained = train_acceptance(
        [trace for traces in sets for trace in traces], actions, cost, output,
        TrainAcceptanceOptions(fit, folds), target_id=sets[0].target_id,
        head_id=sets[0].head_id, progress=show,
    )  # fmt: skip
    return (
        f"the policy is in {trained.path}; cross-validated: {trained.gain} against the best "
        f"constant tree, penalty {trained.ridge:g}"
    )
