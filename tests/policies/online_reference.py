"""What `OnlinePolicy` learns and decides, computed again in plain NumPy."""

import numpy as np

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import DraftProgress, TreeParams

NODE_PRIOR = (np.array([0.0, 1.0] + [0.0] * 8), np.array([0.5, 0.2] + [0.5] * 7 + [0.3]))
LOOKUP_PRIOR = (np.zeros(9), np.ones(9))


class Logistic:
    """A Gaussian belief about weights; one step of Newton's method for each label."""

    def __init__(self, mean: np.ndarray, deviation: np.ndarray) -> None:
        self.mean = mean.copy()
        self.prior = deviation**2
        self.covariance = np.diag(self.prior)

    def predict(self, x: np.ndarray) -> float:
        return float(1 / (1 + np.exp(-np.clip(self.mean @ x, -30, 30))))

    def update(self, x: np.ndarray, label: bool) -> None:
        p = self.predict(x)
        information = max(p * (1 - p), 1e-3)
        # Sherman and Morrison's formula for the inverse of (covariance^-1 + information x x^T).
        toward = self.covariance @ x
        updated = self.covariance - (
            information * np.outer(toward, toward) / (1 + information * x @ toward)
        )
        self.mean = self.mean + updated @ x * (label - p)
        np.fill_diagonal(updated, np.minimum(np.diagonal(updated) + 1e-5 * self.prior, self.prior))
        self.covariance = updated


class Reference:
    """The policy of one sequence."""

    def __init__(self, cost: CostTable, limit: TreeParams, lookup_tokens: int) -> None:
        self.cost, self.limit, self.lookup_tokens = cost, limit, lookup_tokens
        self.nodes, self.lookups = Logistic(*NODE_PRIOR), Logistic(*LOOKUP_PRIOR)
        self.prior = 5.0 * float(cost.verify_seconds(1, 0))
        self.local = np.zeros(2)
        self.tokens, self.seconds = 20.0, 20.0 * cost.verify_seconds(1, 0) / 1.3
        self.ratio = np.full(limit.depth + 1, 0.75)
        self.gains = np.full((limit.depth + 1, 2), 5.0)
        self.success, self.count = 0.5, 0

    @property
    def rate(self) -> float:
        """Of this sequence."""
        return (self.local[0] + self.prior * self.shared_rate) / (self.local[1] + self.prior)

    @property
    def shared_rate(self) -> float:
        """Of all sequences."""
        return self.tokens / self.seconds

    def begin(self) -> None:
        self.survival = np.zeros(0)
        self.inputs: list[np.ndarray] = []
        self.tops: list[np.ndarray] = []
        self.expected: float | None = None

    def look_at(self, progress: DraftProgress) -> None:
        width = progress.top_k
        while len(self.tops) <= progress.depth:
            self._score_level(progress, width)
        self._score_lookup(progress)
        joined = np.concatenate((self.survival, self.looked_up[self.inside : self.offered]))
        place = np.concatenate(
            (
                np.arange(len(self.survival)),
                len(self.survival) + np.arange(self.inside, self.offered),
            )
        )
        order = np.argsort(-joined, kind="stable")[: self.limit.total_tokens - 1]
        best = joined[order]
        value, chosen = self._value(best, progress.context_length)
        picked = place[order[:chosen]]
        self.chosen = np.sort(picked[picked < len(self.survival)])
        beyond = picked[picked >= len(self.survival)] - len(self.survival)
        self.verified_lookup = int(beyond.max()) + 1 if len(beyond) else 0
        self._decide(progress, best, value)
        self.progress = progress

    def _score_level(self, progress: DraftProgress, width: int) -> None:
        level = len(self.tops)
        begin = 0 if level == 0 else width + (level - 1) * width**2
        scores = progress.scores.astype(np.float64)[begin : width + level * width**2]
        above = np.ones(width)
        if level:
            before = 0 if level == 1 else width + (level - 2) * width**2
            best = np.argsort(-progress.scores[before:begin], kind="stable")[:width] + before
            above = np.repeat(self.survival[best], width)
        below = np.minimum(scores, -1e-4)
        confidence = np.clip(below - np.log1p(-np.exp(below)), -12, 8)
        match = progress.lookup.match_length
        at = -1 if progress.lookup_nodes is None else progress.lookup_nodes[level]
        found = []
        for i, value in enumerate(confidence):
            x = np.zeros(10)
            x[:2], x[8:] = (1, value), (max(value, 0), level)
            if match:
                kind = 2 if begin + i == at else 5
                x[kind : kind + 3] = 1, np.log1p(min(match, 16)), self.success
            self.inputs.append(x)
            found.append(min(self.nodes.predict(x), above[i]))
        self.survival = np.concatenate((self.survival, found))
        self.tops.append(np.sort(found)[::-1][:width])

    def _score_lookup(self, progress: DraftProgress) -> None:
        nodes = [] if progress.lookup_nodes is None else progress.lookup_nodes.tolist()
        self.inside = next((i for i, node in enumerate(nodes) if node < 0), len(nodes))
        self.offered = min(len(progress.lookup.token_ids), self.lookup_tokens)
        self.looked_up = np.zeros(self.lookup_tokens)
        self.lookup_inputs: dict[int, np.ndarray] = {}
        match = np.log1p(min(progress.lookup.match_length, 16)) - 1.4
        reached = self.survival[nodes[self.inside - 1]] if self.inside else 1.0
        for level in range(self.inside, self.offered):
            own = float(progress.scores[0]) if level == self.inside else 0.0
            log_level = np.log1p(level)
            few = min(self.count, 10) / 10
            x = np.array(
                [1, match, self.success, few, level == 0, log_level, match * log_level,
                 self.inside > 0, own]
            )  # fmt: skip
            self.lookup_inputs[level] = x
            reached *= self.lookups.predict(x)
            self.looked_up[level] = reached

    def _value(self, best: np.ndarray, context: int) -> tuple[float, int]:
        best = best[: self.limit.total_tokens - 1]
        length = 1 + np.concatenate(([0], np.cumsum(best)))
        rows = np.arange(1, len(length) + 1)
        values = length - self.rate * np.asarray(self.cost.verify_seconds(rows, context))
        return float(values.max()), int(values.argmax())

    def _decide(self, progress: DraftProgress, best: np.ndarray, value: float) -> None:
        depth = progress.depth
        if depth and self.expected is not None:
            ratio = self.tops[depth].sum() / max(self.tops[depth - 1].sum(), 1e-3)
            self.ratio[depth] += 0.02 * (ratio - self.ratio[depth])
            self.gains[depth] = 0.99 * self.gains[depth] + (self.expected, value - self.value)
        self.value, self.expected, self.go = value, None, False
        if depth == self.limit.depth:
            return
        more = np.concatenate((best, self.tops[depth] * self.ratio[depth + 1]))
        following, _ = self._value(np.sort(more)[::-1], progress.context_length)
        self.expected = max(following - value, 0.0)
        factor = np.clip(self.gains[depth + 1, 1] / max(self.gains[depth + 1, 0], 1e-6), 0.3, 3)
        draft, context = self.cost.draft_seconds, progress.context_length
        seconds = draft(1, progress.top_k, context) - draft(0, progress.top_k, context)
        self.go = bool(self.expected * factor > self.rate * seconds)

    def observe(self, rows: list[int], tokens: int) -> None:
        for row, node in enumerate(self.chosen):
            self.nodes.update(self.inputs[node], row + 1 in rows)
        nodes = self.progress.lookup_nodes
        accepted = {int(self.chosen[row - 1]) for row in rows if row <= len(self.chosen)}
        if self.inside == 0 or int(nodes[self.inside - 1]) in accepted:
            for level in range(self.inside, self.verified_lookup):
                right = 1 + len(self.chosen) + level - self.inside in rows
                self.lookups.update(self.lookup_inputs[level], right)
                if not right:
                    break
        verified = 1 + len(self.chosen) + max(0, self.verified_lookup - self.inside)
        context, depth = self.progress.context_length, self.progress.depth
        seconds = self.cost.verify_seconds(verified, context)
        seconds += self.cost.draft_seconds(depth, self.progress.top_k, context)
        self.tokens = 0.999 * self.tokens + tokens
        self.seconds = 0.999 * self.seconds + float(seconds)
        self.local = 0.9 * self.local + (tokens, float(seconds))

    def count_lookup(self, right: bool) -> None:
        self.success += 0.2 * (right - self.success)
        self.count += 1
