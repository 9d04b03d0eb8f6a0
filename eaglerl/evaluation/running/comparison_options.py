"""Settings of a comparison, and further inputs of some modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.questions.question_files import SPLITS
from eaglerl.traces.trace_set import TraceSet

#: Constant trees that ``tuned`` and ``hindsight`` choose from by default: the best on CPUs.
DEFAULT_GRID = tuple(
    TreeParams(*tree)
    for tree in ((4, 1, 4), (4, 2, 2), (5, 2, 4), (6, 2, 4), (6, 3, 4), (8, 2, 4), (8, 4, 2))
)


@dataclass(frozen=True)
class CompareOptions:
    """Settings of a comparison.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 is greedy; above 0, the outputs of modes differ and are not compared.
        top_p: nucleus mass.
        repeats: number of times that every mode decodes every question.
        split: half of the questions that is decoded: "test", "train" or "all".
        per_file: most questions of each file; None for all.
        validation_per_file: most questions of each file that ``tuned`` is chosen on. They come from
            the half that is not decoded; with "all", each half's tree is chosen on the other half.
        grid: trees that ``tuned`` and ``hindsight`` choose from.
        draft_dtype: precision with which the decoder's head was loaded.
        seed: seed of all random numbers.
        group: modes take turns with groups of at least this many questions; None for one by one.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    repeats: int = 3
    split: str = "test"
    per_file: int | None = None
    validation_per_file: int = 8
    grid: tuple[TreeParams, ...] = DEFAULT_GRID
    draft_dtype: str = "auto"
    seed: int = 0
    group: int | None = None

    def __post_init__(self) -> None:
        counts = ("max_new_tokens", "repeats", "validation_per_file")
        for name in counts if self.group is None else (*counts, "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "temperature must not be negative and top_p must lie in (0, 1], got "
                f"{self.temperature} and {self.top_p}"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {list(SPLITS)}, got {self.split!r}")
        if not self.grid or len(set(self.grid)) < len(self.grid):
            raise ValueError(f"grid must hold at least one tree and no tree twice, got {self.grid}")


@dataclass(frozen=True)
class Extras:
    """Further inputs of some modes.

    Attributes:
        cost: cost table of this machine.
        actions: trees that baselines choose from in every cycle; `ActionSpace.cpu` by default.
        traces: recorded traces; those of questions that are decoded are left out.
    """

    cost: CostTable | None = None
    actions: ActionSpace = field(default_factory=ActionSpace.cpu)
    traces: Sequence[TraceSet] = ()
