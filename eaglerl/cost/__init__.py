"""The cost of a cycle on a machine: the table, its measurement, its fit and its check."""

from typing import TYPE_CHECKING

from eaglerl._lazy import lazy_names

if TYPE_CHECKING:
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.cost.online_cost import OnlineCost

__all__ = [
    "CostTable",
    "OnlineCost",
]
__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "CostTable": "eaglerl.cost.cost_table",
        "OnlineCost": "eaglerl.cost.online_cost",
    },
)
