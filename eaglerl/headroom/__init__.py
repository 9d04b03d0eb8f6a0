"""What adapting would be worth on an engine: from what it logged, and what its steps cost."""

from typing import TYPE_CHECKING

from eaglerl._lazy import lazy_names

if TYPE_CHECKING:
    from eaglerl.headroom.chain_study import ChainOptions, study_steps
    from eaglerl.headroom.cost_curve import CostCurve
    from eaglerl.headroom.cost_files import read_cost
    from eaglerl.headroom.result import Headroom, Way
    from eaglerl.headroom.step_log import Steps, read_steps
    from eaglerl.headroom.tree_study import study_trees

__all__ = [
    "ChainOptions",
    "CostCurve",
    "Headroom",
    "Steps",
    "Way",
    "read_cost",
    "read_steps",
    "study_steps",
    "study_trees",
]
__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "ChainOptions": "eaglerl.headroom.chain_study",
        "CostCurve": "eaglerl.headroom.cost_curve",
        "Headroom": "eaglerl.headroom.result",
        "Steps": "eaglerl.headroom.step_log",
        "Way": "eaglerl.headroom.result",
        "read_cost": "eaglerl.headroom.cost_files",
        "read_steps": "eaglerl.headroom.step_log",
        "study_steps": "eaglerl.headroom.chain_study",
        "study_trees": "eaglerl.headroom.tree_study",
    },
)
