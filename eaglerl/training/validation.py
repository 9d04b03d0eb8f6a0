"""How well a head predicts held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eaglerl.training.batches import pack
from eaglerl.training.features import FeatureDataset
from eaglerl.training.ttt import TrainingTimeTest, TTTResult


@dataclass(frozen=True)
class DraftMetrics:
    """Means over draft rows, one value for each training-time-test step.

    Attributes:
        step_losses: cross-entropy against the target's distribution over the draft's vocabulary.
        accuracy: share of rows where the draft's most probable token is the target's; a token
            that the draft's vocabulary lacks counts as a miss.
        accepted: share of rows where this and all earlier steps are right: the acceptance rate of
            a greedy chain of that length.
    """

    step_losses: list[float]
    accuracy: list[float]
    accepted: list[float]


class MetricSums:
    """Sums over the results of several batches."""

    def __init__(self, steps: int) -> None:
        """Start at zero for ``steps`` training-time-test steps."""
        self._losses = torch.zeros(steps, dtype=torch.float64)
        self._correct = torch.zeros(steps, dtype=torch.float64)
        self._accepted = torch.zeros(steps, dtype=torch.float64)
        self._counted = torch.zeros(steps, dtype=torch.float64)

    def add(self, result: TTTResult) -> None:
        """Add a batch."""
        counted = result.counted.sum(0)
        self._counted += counted
        self._losses += result.step_losses.detach().double().nan_to_num() * counted
        self._correct += result.correct.sum(0)
        self._accepted += result.correct.long().cumprod(1).sum(0)

    def take(self) -> DraftMetrics:
        """Return the means of what was added, 0 where nothing was, and start again at zero."""
        counted = self._counted.clamp_min(1)
        sums = (self._losses, self._correct, self._accepted)
        metrics = DraftMetrics(*[(total / counted).tolist() for total in sums])
        for total in (*sums, self._counted):
            total.zero_()
        return metrics


@torch.no_grad()
def validate(
    ttt: TrainingTimeTest, dataset: FeatureDataset, indices: Sequence[int], batch_tokens: int
) -> DraftMetrics:
    """Measure a head on some sequences of a data set.

    Args:
        ttt: the head's training-time test.
        dataset: the held-out sequences.
        indices: which of them; those without a draft row are left out.
        batch_tokens: draft rows computed at once.
    """
    sums = MetricSums(ttt.steps)
    batch: list[int] = []
    filled = 0
    usable = [index for index in indices if dataset.draft_rows[index] > 0]
    for place, index in enumerate(usable):
        batch.append(index)
        filled += dataset.draft_rows[index]
        if filled >= batch_tokens or place == len(usable) - 1:
            sums.add(ttt(pack([dataset[i] for i in batch], ttt.steps)))
            batch, filled = [], 0
    return sums.take()
