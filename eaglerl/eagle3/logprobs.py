"""Log-probabilities of the tokens that come, by the target alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the target thought of a token in its place.

    Attributes:
        token_id: the token.
        logprob: its natural log-probability by the softmax of the target's logits, before
            temperature, top-k, top-p and whatever else shapes a draw.
        top: likeliest tokens of the place with theirs, the likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class LogprobRecorder:
    """Keeps the log-probabilities of tokens from the logits that they were chosen by.

    Attributes:
        tokens: those of all tokens so far, in order.
    """

    def __init__(self, top: int) -> None:
        """Start with no token.

        Args:
            top: number of likeliest tokens to keep for each place.

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
            logits: (R, V) of the target; row i is what token i was chosen by.
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
