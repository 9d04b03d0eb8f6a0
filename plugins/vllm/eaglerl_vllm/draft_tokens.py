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
    """

    token_ids: Tensor
    logprobs: Tensor


def draft_tokens(proposer: Any, hidden_states: Tensor) -> Drafted:
    """Draft the head's most probable token for every request, also where text is sampled.

    A token that was drawn must be verified whatever it is: a chain that is cut because of what was
    drawn would no longer be a sample of the head's distribution, and rejection sampling with that
    distribution would change the target's.

    Args:
        proposer: vLLM's EagleProposer.
        hidden_states: (N, hidden_size).
    """
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
    return Drafted(token_ids, best.float() - torch.logsumexp(logits.float(), -1))
