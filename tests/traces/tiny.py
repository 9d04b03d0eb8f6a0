"""Tiny decoders, made-up traces and cost tables that the tests of this package share."""

from dataclasses import replace

import numpy as np
import torch

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.target.packed_target import packed_target
from eaglerl.eagle3.tree.prompt_lookup import ContextLookup
from eaglerl.traces.recording import Prompt
from eaglerl.traces.trace_set import ABSENT, Trace

from ..eagle3.tiny import tiny_head, tiny_model

VOCAB = 12


def tiny_decoder(draft_dtype: str = "float32", *, seed: int = 0) -> SpeculativeDecoder:
    """A random target of 12 tokens, so few that a random head is right now and then."""
    target = packed_target(tiny_model(vocab_size=VOCAB, seed=seed, logit_scale=3.0))
    head = tiny_head(target, draft_vocab_size=VOCAB, seed=seed)
    return SpeculativeDecoder(target, head, draft_dtype=draft_dtype)


def tiny_prompts(count: int, *, seed: int = 0) -> list[Prompt]:
    """Random prompts of 3 to 9 tokens, in two domains."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for index in range(count):
        length = int(torch.randint(3, 10, (), generator=generator))
        ids = torch.randint(VOCAB, (length,), generator=generator).tolist()
        prompts.append(Prompt(tuple(ids), f"domain {index % 2}"))
    return prompts


def made_up_trace(
    positions: int,
    *,
    seed: int = 0,
    top_ks: tuple[int, ...] = (1, 2),
    max_depth: int = 2,
    domain: str = "made up",
    width: int = 6,
) -> Trace:
    """A trace with random scores and a random true path, consistent with each other."""
    from eaglerl.traces.token_paths import pool_ranks

    draw = np.random.default_rng(seed)
    levels = max_depth + 1
    ranks = np.full((positions, len(top_ks), levels, levels), ABSENT, dtype=np.int16)
    path = np.full((positions, len(top_ks), levels), -1, dtype=np.int16)
    scores = {}
    for column, top_k in enumerate(top_ks):
        pool = top_k + max_depth * top_k**2
        blocks = [top_k] + [top_k**2] * max_depth
        drawn = [-(depth + draw.random((positions, size))) for depth, size in enumerate(blocks)]
        scores[top_k] = np.concatenate(drawn, axis=1).astype(np.float32)
        begin = np.concatenate(([0], np.cumsum(blocks)))
        for position in range(positions):
            for level in range(draw.integers(0, levels + 1)):
                path[position, column, level] = draw.integers(begin[level], begin[level + 1])
        assert scores[top_k].shape[1] == pool
        ranks[:, column] = pool_ranks(scores[top_k], path[:, column], top_k, max_depth)
    ids = draw.integers(0, VOCAB, positions + 1 + 12)
    return Trace(
        domain=domain,
        prompt_id=f"{seed:016x}",
        prompt_ids=np.arange(4, dtype=np.int32),
        continuation_ids=ids.astype(np.int32),
        top_ks=top_ks,
        ranks=ranks,
        path=path,
        scores={top_k: pool.astype(np.float16) for top_k, pool in scores.items()},
        first_log_probs=-np.sort(draw.random((positions, 8))).astype(np.float16),
        features=draw.standard_normal((positions, width)).astype(np.float16),
        lookup_match=draw.integers(0, 5, positions).astype(np.uint8),
        lookup_accepted=draw.integers(0, 4, positions).astype(np.uint8),
        lookup_path=np.full((positions, len(top_ks), levels), -1, dtype=np.int16),
        lookup_tokens=12,
    )


def with_repetitive_text(trace: Trace, *, seed: int = 0) -> Trace:
    """The same trace of a text of three tokens, whose lookups the draft never proposes."""
    ids = np.random.default_rng(seed).integers(0, 3, len(trace.continuation_ids)).astype(np.int32)
    index = ContextLookup(trace.prompt_ids)
    match, accepted = (np.zeros(len(trace), dtype=np.uint8) for _ in range(2))
    for position in range(len(trace)):
        index.extend(ids[position : position + 1])
        found = index.propose(trace.lookup_tokens)
        match[position] = found.match_length
        following = ids[position + 1 : position + 1 + len(found.token_ids)]
        accepted[position] = np.logical_and.accumulate(following == found.token_ids).sum()
    return replace(trace, continuation_ids=ids, lookup_match=match, lookup_accepted=accepted)
