"""How a comparison is made, and what some of its modes need besides."""

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
    """How a comparison is made.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 is greedy; above, the outputs of modes differ and are not compared.
        top_p: nucleus mass.
        repeats: how often every mode decodes every question.
        split: half of the questions that is decoded: "test", "train" or "all".
        per_file: most questions of each file; None for all.
        validation_per_file: most questions of each file that ``tuned`` is chosen on; they are of
            the half that is not decoded, and with "all" of the half that a question is not in.
        grid: trees that ``tuned`` and ``hindsight`` choose from.
        draft_dtype: precision of the head, as the decoder was loaded with.
        seed: of all draws.
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

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "repeats", "validation_per_file"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "temperature must not be negative and top_p lie in (0, 1], got "
                f"{self.temperature} and {self.top_p}"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {list(SPLITS)}, got {self.split!r}")
        if not self.grid or len(set(self.grid)) < len(self.grid):
            raise ValueError(f"grid must hold distinct trees, at least one, got {self.grid}")


@dataclass(frozen=True)
class Extras:
    """What some modes need besides the decoder.

    Attributes:
        cost: cost table of this machine.
        actions: trees for the policies that choose among some; `ActionSpace.cpu` by default.
        traces: recorded continuations; those of questions that are decoded are left out.
    """

    cost: CostTable | None = None
    actions: ActionSpace = field(default_factory=ActionSpace.cpu)
    traces: Sequence[TraceSet] = ()
