"""A whole fit of an acceptance model, from the functions that training uses."""

from collections.abc import Sequence

from eaglerl.cost.cost_table import CostTable
from eaglerl.fitting.fit_acceptance import (
    AcceptanceOptions,
    fit_lookup_net,
    fit_pool_net,
    fit_stopping,
    new_model,
    read_positions,
)
from eaglerl.fitting.scored_positions import score_positions
from eaglerl.policies.acceptance_model import AcceptanceModel
from eaglerl.traces.trace_set import Trace


def fit_acceptance(
    traces: Sequence[Trace], cost: CostTable, options: AcceptanceOptions | None = None
) -> AcceptanceModel:
    options = options or AcceptanceOptions()
    positions = read_positions(list(traces), options)
    nets = fit_pool_net(positions, options), fit_lookup_net(positions, options)
    model = new_model(options, cost, *nets)
    return fit_stopping(model, score_positions(model, positions), positions, cost, options)
