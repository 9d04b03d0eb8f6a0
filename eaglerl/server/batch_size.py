"""How much of a batch fits into memory."""

from __future__ import annotations

from eaglerl.eagle3 import SpeculativeDecoder

#: Bytes of KV cache for the answers that are decoded at a time, where nothing else is said.
_DEFAULT_BYTES = 4 << 30
#: The same for rows of earlier prompts and answers, which later prompts may begin with.
_PREFIX_BYTES = 1 << 30


def token_bytes(decoder: SpeculativeDecoder) -> int:
    """Return the bytes that a token takes in the caches of target and draft."""
    target = decoder.target
    values = 2 * target.num_layers * target.num_kv_heads * target.head_dim
    draft = 0
    if decoder.draft_runner is not None:
        cache = decoder.draft_runner.cache
        draft = cache.data.nbytes // (cache.slots * cache.capacity)
    return values * target.kv_cache_dtype.itemsize + draft


def default_tokens(decoder: SpeculativeDecoder) -> int:
    """Return how many tokens 4 GiB of caches hold, but no fewer than the target's context."""
    return max(decoder.target.max_positions, _DEFAULT_BYTES // token_bytes(decoder))


def default_prefix_tokens(decoder: SpeculativeDecoder) -> int:
    """Return how many tokens 1 GiB of caches hold; 0 where a batch cannot keep prefixes."""
    return _PREFIX_BYTES // token_bytes(decoder) if decoder.target.mixes_slots else 0
