"""Logits processors for options of OpenAI's API that transformers has no processor for."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Penalties:
    """Penalty on tokens that are already in the answer; the prompt does not count.

    OpenAI's formula: logit[t] - count[t] * frequency - (count[t] > 0) * presence.
    """

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        """Set up.

        Args:
            prompt_length: number of tokens before the answer.
            presence: penalty of a token that occurs in the answer.
            frequency: penalty of a token per occurrence.
        """
        self._prompt_length = prompt_length
        self._presence = presence
        self._frequency = frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the penalised (1, V) scores after (1, L) tokens, prompt included."""
        answer = input_ids[0, self._prompt_length :].to(scores.device)
        counts = torch.bincount(answer, minlength=scores.shape[-1]).to(scores.dtype)
        return scores - counts * self._frequency - (counts > 0) * self._presence


class LogitBias:
    """Bias that is added to the logits of some tokens."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        """Set up with the biases by token id."""
        self._ids = torch.tensor([*biases])
        self._biases = torch.tensor([*biases.values()], dtype=torch.float32)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the biased (1, V) scores."""
        biases = self._biases.to(scores)[None]
        return scores.index_add(1, self._ids.to(scores.device), biases)
