"""A pass's drafted tokens and how sure the head is of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Drafted(NamedTuple):
    """Tokens of a pass.

    Attributes:
        token_ids: int64 (N,), ids of the target.
        logprobs: float32 (N,), logarithms of their probabilities under the head.
        probs: float32 (N, vocabulary), the distributions from which they were sampled; None if the
            most probable tokens were taken.
    """

    token_ids: Tensor
    logprobs: Tensor
    probs: Tensor | None


def draft_tokens(proposer: Any, hidden_states: Tensor, sampling: Any, original: Any) -> Drafted:
    """Draft a token for every request, as vLLM would.

    Args:
        proposer: vLLM's EagleProposer.
        hidden_states: (N, hidden_size).
        sampling: vLLM's SamplingMetadata.
        original: EagleProposer._sample_draft_tokens.
    """
    if proposer._enable_probabilistic_draft_probs and not sampling.all_greedy:
        token_ids, probs = original(proposer, hidden_states, sampling)
        if probs is not None:
            chosen = probs.gather(1, token_ids[:, None].long())[:, 0]
            return Drafted(token_ids, chosen.float().clamp_min(1e-30).log(), probs)
    model = proposer.model
    offsets = getattr(model, "draft_id_to_target_id", None)
    if offsets is None:
        logits = model.compute_logits(hidden_states)
        best, token_ids = logits.max(-1)
    else:
        # The logits of the head's own vocabulary; vLLM would spread them over the target's, which
        # is six times as large with the default head.
        logits = model.logits_processor(model.lm_head, hidden_states)
        best, token_ids = logits.max(-1)
        token_ids = token_ids + offsets[token_ids]
    return Drafted(token_ids, best.float() - torch.logsumexp(logits.float(), -1), None)


def chain_probs(probs: list[Tensor], chains: list[list[int]], from_head: list[bool]) -> Tensor:
    """Return the distributions from which the verified tokens were drawn.

    Args:
        probs: (N, vocabulary) of each pass.
        chains: N chains of tokens.
        from_head: for each, whether it is the head's; else its tokens were certain.

    Returns:
        float32 (N, longest chain, vocabulary).
    """
    longest = max(map(len, chains), default=0)
    result = torch.zeros(
        len(chains), longest, probs[0].shape[1], dtype=probs[0].dtype, device=probs[0].device
    )
    for index, chain in enumerate(chains):
        for place, token in enumerate(chain):
            if from_head[index]:
                result[index, place] = probs[place][index]
            else:
                result[index, place, token] = 1.0
    return result
