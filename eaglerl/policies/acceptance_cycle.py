"""`AcceptanceModel` for one cycle at a time, in native code.

A cycle asks two or three times, and the answers count as decoding time. The native code therefore
keeps the survivals of earlier rounds, and takes one cycle instead of a batch.
"""

from __future__ import annotations

import numpy as np

from eaglerl._ext import C
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import DraftProgress, Selection
from eaglerl.ops._check import NativeState
from eaglerl.policies.acceptance_model import (
    LOOKUP_INPUTS,
    POOL_INPUTS,
    STOP_INPUTS,
    AcceptanceModel,
)
from eaglerl.policies.small_net import SmallNet


class CycleScorer(NativeState):
    """A model's nets and rules, applied to one cycle pass by pass.

    The results equal those of `AcceptanceModel.survival`, `plan` and `should_continue` up to
    rounding: nets and survivals are float32; lengths, times and the stopping rule are float64.
    Equal survivals keep their order, the draft's candidates before the looked-up tokens.
    """

    def __init__(self, model: AcceptanceModel, cost: CostTable) -> None:
        """Prepare what stays the same from cycle to cycle.

        Args:
            model: the model; its weights are copied.
            cost: duration of the verification.

        Raises:
            ValueError: the cost table lacks the model's rows; a size of the model is below its
                minimum; its weights do not have the shape that sizes and inputs require, or are
                not finite.
            TypeError: a size is not an int, or weights are not float32.
        """
        _check_sizes(model)
        verify_lines = cost.verify_lines(model.max_rows)
        lookup_net = model.lookup_net
        self._native = C.AcceptanceScorer(
            model.top_k,
            model.max_depth,
            model.max_rows,
            model.lookup_tokens,
            _checked_net("pool_net", model.pool_net, POOL_INPUTS),
            None if lookup_net is None else _checked_net("lookup_net", lookup_net, LOOKUP_INPUTS),
            _checked("stop_weights", model.stop_weights, (model.max_depth, STOP_INPUTS)),
            *verify_lines,
        )

    def begin(self, success: float, lookups: int) -> None:
        """Begin a cycle.

        Args:
            success: running average of lookups whose first token was accepted.
            lookups: number of lookups so far in this sequence.
        """
        self._native.begin(success, lookups)

    def score(self, progress: DraftProgress, rate: float) -> None:
        """Score the candidates that the draft has found.

        Args:
            progress: the draft after any of the cycle's passes.
            rate: tokens per second; see `AcceptancePolicy`.

        Raises:
            ValueError: the draft is deeper than the model's; an array's shape does not match the
                model's width and the draft's depth; or a looked-up token's node does not belong to
                its level.
            TypeError: an array of another type.
        """
        lookup = progress.lookup
        self._native.score(
            progress.scores,
            progress.depth,
            progress.context_length,
            lookup.match_length,
            len(lookup.token_ids),
            progress.lookup_nodes,
            rate,
        )

    def should_continue(self) -> bool:
        """Return whether another round promises more than it costs.

        Raises:
            ValueError: nothing was scored in this cycle.
        """
        return self._native.should_continue()

    def select(self) -> Selection:
        """Return the candidates worth verifying, the most probable first.

        Raises:
            ValueError: nothing was scored in this cycle.
        """
        return Selection(*self._native.select())

    def survival(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the survivals of what was scored last.

        Returns:
            (K + depth K^2,) float32 for the draft's candidates, and (C,) float32 for the looked-up
            tokens, 0 for those that the draft has proposed.

        Raises:
            ValueError: nothing was scored in this cycle.
        """
        return self._native.survival()


def _check_sizes(model: AcceptanceModel) -> None:
    minima = {"top_k": 1, "max_depth": 0, "max_rows": 1, "lookup_tokens": 0}
    for name, minimum in minima.items():
        value = getattr(model, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} of the model must be an int, got {value!r}")
        if value < minimum:
            raise ValueError(f"{name} of the model must be at least {minimum}, got {value}")


def _checked_net(name: str, net: SmallNet, inputs: int) -> tuple[np.ndarray, ...]:
    """Return weights and biases, layer by layer, checked."""
    arrays, width = [], inputs
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        out = weight.shape[-1] if layer < 2 else 1
        arrays.append(_checked(f"{name}.weights[{layer}]", weight, (width, out)))
        arrays.append(_checked(f"{name}.biases[{layer}]", bias, (out,)))
        width = out
    return tuple(arrays)


def _checked(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array in C order.

    Raises:
        ValueError: the shape is wrong, or a value is not finite.
        TypeError: the array is not float32.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} of the model must be a float32 array, got {found}")
    if array.shape != shape:
        raise ValueError(f"{name} of the model must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} of the model must be finite, got a value that is not")
    return np.ascontiguousarray(array)
