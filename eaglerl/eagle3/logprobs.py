"""Log-probabilities of the emitted tokens under the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at the position of one token.

    Attributes:
        token_id: the token.
        logprob: its natural log-probability under the softmax of the target's logits, before
            temperature, top-k, top-p and all other logits processors.
        top: the most likely tokens at this position with their log-probabilities, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class LogprobRecorder:
    """A record of the log-probabilities of emitted tokens.

    Attributes:
        tokens: one entry per token so far, in order.
    """

    def __init__(self, top: int) -> None:
        """Start without tokens.

        Args:
            top: number of most likely tokens to keep per position.

        Raises:
            ValueError: `top` is negative.
        """
        if top < 0:
            raise ValueError(f"top_logprobs must be 0 or positive, got {top}")
        self._top = top
        self.tokens: list[TokenLogprobs] = []

    def add(self, logits: torch.Tensor, token_ids: Sequence[int]) -> None:
        """Add R tokens.

        Args:
            logits: (R, V) logits of the target; token i was chosen from row i.
            token_ids: the tokens.
        """
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        ids = torch.tensor(token_ids, device=logprobs.device)
        own = logprobs.gather(1, ids[:, None])[:, 0].tolist()
        best = logprobs.topk(min(self._top, logprobs.shape[1]), dim=-1)
        for token, logprob, top_ids, top in zip(
            token_ids, own, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            self.tokens.append(TokenLogprobs(token, logprob, tuple(zip(top_ids, top, strict=True))))
