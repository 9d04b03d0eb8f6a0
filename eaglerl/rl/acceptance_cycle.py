"""`AcceptanceModel` for one cycle at a time, in as few NumPy calls as it takes.

A cycle asks two or three times, and every microsecond counts as decoding time: what was judged in
the round before is kept, and nothing is computed for several cycles at once.
"""

from __future__ import annotations

import numpy as np

from eaglerl.eagle3.params import DraftProgress, Selection
from eaglerl.rl.acceptance_model import CHAIN_INPUTS, POOL_INPUTS, AcceptanceModel
from eaglerl.rl.candidates import LONGEST_MATCH, MANY_LOOKUPS
from eaglerl.rl.cost import CostTable
from eaglerl.rl.small_net import SmallNet


class CycleJudge:
    """Judges the draft of one cycle, pass by pass, with a model's nets and rules.

    The results are those of `AcceptanceModel.survival`, `plan` and `goes_on`, up to rounding.
    """

    def __init__(self, model: AcceptanceModel, cost: CostTable) -> None:
        """Prepare what does not change from cycle to cycle.

        Args:
            model: the model.
            cost: time of the verification.

        Raises:
            ValueError: the cost table lacks the model's rows.
        """
        self._model = model
        rows = np.arange(1, model.max_rows + 1)
        self._base = cost.verify_seconds(rows, 0)
        self._slope = cost.verify_seconds(rows, 1) - self._base
        width = model.top_k
        self._pool = np.empty(width + model.max_depth * width**2, dtype=np.float32)
        self._inputs = np.empty((max(width, width**2), POOL_INPUTS), dtype=np.float32)
        self._chain_inputs = self._fixed_chain_inputs()
        self._chain = np.zeros(model.chain_length, dtype=np.float32)
        self._stops = [_quadratic(weights) for weights in model.stop_weights]
        self._known = -1

    def begin(self, success: float, lookups: int) -> None:
        """Begin a cycle.

        Args:
            success: running success of lookups.
            lookups: lookups so far in this sequence.
        """
        self._success, self._lookups = success, lookups
        self._known = -1
        self._parents: np.ndarray | None = None

    def judge(self, progress: DraftProgress, rate: float) -> None:
        """Take in what the draft has found.

        Args:
            progress: after any of the cycle's passes.
            rate: lambda, tokens per second.
        """
        match = min(progress.lookup.match_length, LONGEST_MATCH)
        with np.errstate(over="ignore"):
            for level in range(self._known + 1, progress.depth + 1):
                self._take_level(progress, level, match)
            self._known = progress.depth
            self._judge_chain(progress, match)
        self._plan(progress, rate)

    def goes_on(self, progress: DraftProgress) -> bool:
        """Whether another round promises more than it costs, after `judge`."""
        depth, width = progress.depth, progress.top_k
        if depth >= self._model.max_depth:
            return False
        size = len(progress.scores)
        begin = 0 if depth == 0 else size - width**2
        last = np.sort(self._pool[begin:size])[::-1][:width]
        before = 1.0
        if depth:
            start = 0 if depth == 1 else begin - width**2
            before = float(np.sort(self._pool[start:begin])[::-1][:width].sum())
        total = float(last.sum())
        matched = progress.lookup.match_length > 0
        following = 0.0
        if matched and len(self._chain):
            following = float(self._chain[min(self._inside, len(self._chain) - 1)])
        x = np.array(
            (
                total,
                last[0],
                last[min(1, width - 1)],
                before,
                total / (before + 0.05),
                self._expected,
                (len(self._chosen) + 1) / 10,
                matched,
                matched and self._inside == depth + 1,
                following,
            )
        )
        constant, linear, square = self._stops[depth]
        return constant + float(x @ linear) + float(x @ square @ x) > 0

    def select(self, progress: DraftProgress) -> Selection:
        """The candidates that pay, after `judge`."""
        size = len(progress.scores)
        outside = self._chosen[self._chosen >= size]
        chain = int(outside.max()) - size + 1 if len(outside) else 0
        return Selection(self._chosen[self._chosen < size], chain)

    def _take_level(self, progress: DraftProgress, level: int, match: int) -> None:
        width = progress.top_k
        begin = 0 if level == 0 else width + (level - 1) * width**2
        scores = progress.scores[begin : begin + (width if level == 0 else width**2)]
        x = self._inputs[: len(scores)]
        parents = None
        above: np.ndarray | float = 0.0
        if level:
            start = 0 if level == 1 else begin - width**2
            best = np.argsort(-progress.scores[start:begin], kind="stable")[:width] + start
            parents = np.repeat(best, width)
            above = progress.scores[parents]
        log_match = np.log1p(match)
        x[:, 0] = scores
        x[:, 1] = above
        x[:, 2] = np.sqrt(np.maximum(-scores, 0.0))
        x[:, 3] = scores - above
        x[:, 4] = level
        x[:, 5] = scores * (level / 4)
        x[:, 6:] = (
            level == 0, 0, 0, match > 0, log_match, 0, self._success if match else 0.0, 0,
        )  # fmt: skip
        if progress.lookup_nodes is not None and progress.lookup_nodes[level] >= 0:
            row = progress.lookup_nodes[level] - begin
            x[row, 7:] = (1, log_match, 0, 0, self._success, 0, scores[row])
        survival = _run(self._model.pool_net, x)
        if parents is not None:
            survival = np.minimum(survival, self._pool[parents])
        self._pool[begin : begin + len(scores)] = survival

    def _judge_chain(self, progress: DraftProgress, match: int) -> None:
        self._chain[:] = 0.0
        nodes = progress.lookup_nodes
        self._inside = inside = 0 if nodes is None else int((nodes >= 0).sum())
        length = min(len(progress.lookup.token_ids), len(self._chain))
        if not match or length <= inside or self._model.chain_net is None:
            return
        last = nodes[inside - 1] if inside else 0
        x = self._chain_inputs[inside:length]
        x[:, 1:6] = (
            np.log1p(match), match >= 3, match >= LONGEST_MATCH, self._success,
            min(self._lookups, MANY_LOOKUPS) / MANY_LOOKUPS,
        )  # fmt: skip
        x[:, 8] = np.log1p(match) * x[:, 7]
        x[:, 9:] = (
            inside == 0, inside, progress.scores[last] if inside else 0.0, progress.scores[0],
        )  # fmt: skip
        reached = self._pool[last] if inside else 1.0
        self._chain[inside:length] = np.cumprod(_run(self._model.chain_net, x)) * reached

    def _fixed_chain_inputs(self) -> np.ndarray:
        """(C, 13) float32 with the columns that depend on the level alone."""
        level = np.arange(self._model.chain_length)
        x = np.zeros((len(level), CHAIN_INPUTS), dtype=np.float32)
        x[:, 0] = level / 4
        x[:, 6] = level == 0
        x[:, 7] = np.log1p(level)
        return x

    def _plan(self, progress: DraftProgress, rate: float) -> None:
        joined = np.concatenate((self._pool[: len(progress.scores)], self._chain))
        order = np.argsort(-joined, kind="stable")[: self._model.max_rows - 1]
        length = np.empty(len(order) + 1)
        length[0] = 1.0
        np.cumsum(joined[order], out=length[1:])
        length[1:] += 1.0
        seconds = self._base[: len(length)] + progress.context_length * self._slope[: len(length)]
        count = int((length - rate * seconds).argmax())
        self._expected = float(length[count])
        self._chosen = order[:count]


def _run(net: SmallNet, x: np.ndarray) -> np.ndarray:
    (first, second, third), (a, b, c) = net.weights, net.biases
    x = x @ first + a
    x = x / (1.0 + np.exp(-x))
    x = x @ second + b
    x = x / (1.0 + np.exp(-x))
    return 1.0 / (1.0 + np.exp(-(x @ third + c)[:, 0]))


def _quadratic(weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """A constant, a vector and a matrix: the weights of one, of ten figures and their products."""
    count = int((np.sqrt(8 * len(weights) + 1) - 3) / 2)
    square = np.zeros((count, count))
    square[np.triu_indices(count)] = weights[1 + count :]
    return float(weights[0]), weights[1 : 1 + count].astype(np.float64), square
