"""`AcceptanceModel` for one cycle at a time, in native code.

A cycle asks two or three times, and every microsecond counts as decoding time: what was judged in
the round before is kept, and nothing is computed for several cycles at once.
"""

from __future__ import annotations

import numpy as np

from eaglerl._ext import C
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import DraftProgress, Selection
from eaglerl.ops._check import NativeState
from eaglerl.policies.acceptance_model import (
    CHAIN_INPUTS,
    POOL_INPUTS,
    STOP_INPUTS,
    AcceptanceModel,
)
from eaglerl.policies.small_net import SmallNet


class CycleJudge(NativeState):
    """Judges the draft of one cycle, pass by pass, with a model's nets and rules.

    The results are those of `AcceptanceModel.survival`, `plan` and `should_continue`, up to rounding: nets
    and survivals are float32, lengths, times and the stopping rule float64. Equal survivals keep
    their order, the draft's candidates before the chain's.
    """

    def __init__(self, model: AcceptanceModel, cost: CostTable) -> None:
        """Prepare what does not change from cycle to cycle.

        Args:
            model: the model; its weights are copied.
            cost: time of the verification.

        Raises:
            ValueError: the cost table lacks the model's rows; a size of the model is below its
                minimum; its weights have another shape than the sizes and inputs ask for, or are
                not finite.
            TypeError: a size that is no int, or weights that are not float32.
        """
        _check_sizes(model)
        # Before anything is made of their size.
        if model.max_rows > cost.total_tokens[-1]:
            raise ValueError(f"rows must lie in 1..{cost.total_tokens[-1]}, got {model.max_rows}")
        rows = np.arange(1, model.max_rows + 1)
        base = cost.verify_seconds(rows, 0)
        chain_net = model.chain_net
        self._native = C.AcceptanceJudge(
            model.top_k,
            model.max_depth,
            model.max_rows,
            model.chain_length,
            _checked_net("pool_net", model.pool_net, POOL_INPUTS),
            None if chain_net is None else _checked_net("chain_net", chain_net, CHAIN_INPUTS),
            _checked("stop_weights", model.stop_weights, (model.max_depth, STOP_INPUTS)),
            base,
            cost.verify_seconds(rows, 1) - base,
        )

    def begin(self, success: float, lookups: int) -> None:
        """Begin a cycle.

        Args:
            success: running success of lookups.
            lookups: lookups so far in this sequence.
        """
        self._native.begin(success, lookups)

    def judge(self, progress: DraftProgress, rate: float) -> None:
        """Take in what the draft has found.

        Args:
            progress: after any of the cycle's passes.
            rate: lambda, tokens per second.

        Raises:
            ValueError: a draft that is deeper than the model's, or arrays whose shapes are not
                those of the model's width and the draft's depth; a node of the chain that is none
                of its level.
            TypeError: arrays of another type.
        """
        lookup = progress.lookup
        self._native.judge(
            progress.scores,
            progress.depth,
            progress.context_length,
            lookup.match_length,
            len(lookup.token_ids),
            progress.lookup_nodes,
            rate,
        )

    def should_continue(self) -> bool:
        """Whether another round promises more than it costs.

        Raises:
            ValueError: nothing was judged in this cycle.
        """
        return self._native.should_continue()

    def select(self) -> Selection:
        """The candidates that pay, the most probable first.

        Raises:
            ValueError: nothing was judged in this cycle.
        """
        return Selection(*self._native.select())

    def survival(self) -> tuple[np.ndarray, np.ndarray]:
        """Survivals of what was judged last.

        Returns:
            (K + depth K^2,) float32 of the draft's candidates, and (C,) float32 of the looked-up
            tokens that the draft has not proposed, 0 for the others.

        Raises:
            ValueError: nothing was judged in this cycle.
        """
        return self._native.survival()


def _check_sizes(model: AcceptanceModel) -> None:
    minima = {"top_k": 1, "max_depth": 0, "max_rows": 1, "chain_length": 0}
    for name, minimum in minima.items():
        value = getattr(model, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} of the model must be an int, got {value!r}")
        if value < minimum:
            raise ValueError(f"{name} of the model must be at least {minimum}, got {value}")


def _checked_net(name: str, net: SmallNet, inputs: int) -> tuple[np.ndarray, ...]:
    """Weights and biases, layer by layer."""
    arrays, width = [], inputs
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        out = weight.shape[-1] if layer < 2 else 1
        arrays.append(_checked(f"{name}.weights[{layer}]", weight, (width, out)))
        arrays.append(_checked(f"{name}.biases[{layer}]", bias, (out,)))
        width = out
    return tuple(arrays)


def _checked(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array in C order.

    Raises:
        ValueError: another shape, or values that are not finite.
        TypeError: not float32.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} of the model must be a float32 array, got {found}")
    if array.shape != shape:
        raise ValueError(f"{name} of the model must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} of the model must be finite, got a value that is not")
    return np.ascontiguousarray(array)
