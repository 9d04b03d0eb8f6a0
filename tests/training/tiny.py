"""A tiny head and tiny sequences."""

import torch

from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.training.batches import FeatureSequence

VOCAB, DRAFT_VOCAB, WIDTH = 48, 20, 16


def tiny_config(**changes) -> Eagle3Config:
    config = Eagle3Config(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB,
        draft_vocab_size=DRAFT_VOCAB,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        fc_norm=True,
        feature_layers=(1, 2, 3),
    )
    return config.replace(**changes)


def tiny_head(dtype: torch.dtype = torch.float64, seed: int = 0, **changes) -> Eagle3DraftHead:
    """A random head whose every parameter, the norms' weights too, differs from its default."""
    generator = torch.Generator().manual_seed(seed)
    head = Eagle3DraftHead(tiny_config(**changes))
    head.set_embed_tokens(torch.randn(VOCAB, WIDTH, generator=generator).to(dtype))
    if head.config.prunes_vocabulary:
        head.set_draft_vocabulary(torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB])
    head.to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.3 * noise)
    return head


def tiny_sequence(
    prompt_length: int, response_length: int, seed: int, dtype: torch.dtype = torch.float64
) -> FeatureSequence:
    generator = torch.Generator().manual_seed(seed)
    length = prompt_length + response_length
    return FeatureSequence(
        token_ids=torch.randint(VOCAB, (length,), generator=generator),
        prompt_length=prompt_length,
        features=torch.randn(length, 3 * WIDTH, generator=generator).to(dtype),
        final_hidden=torch.randn(length, WIDTH, generator=generator).to(dtype),
    )
