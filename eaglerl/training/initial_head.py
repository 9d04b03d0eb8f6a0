"""The untrained draft head of a target."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from eaglerl.eagle3.config import Eagle3Config
from eaglerl.eagle3.draft import Eagle3DraftHead
from eaglerl.eagle3.rope import read_rope_parameters
from eaglerl.training.data import Row, choose_draft_vocabulary
from eaglerl.training.train_options import TrainOptions

INITIAL_NORM_WEIGHT = 0.25


def make_head(
    target: str | Path, rows: Sequence[Row], options: TrainOptions
) -> tuple[Eagle3DraftHead, torch.Tensor]:
    """Makes the untrained head of a target.

    The output layer starts as the target's rows of the draft's vocabulary, with the final norm's
    weight at 0.25: as large as the target's own, their logits would be far too sure of a draft
    that knows nothing yet.

    Args:
        target: Folder of the target model.
        rows: Training rows, which the draft's vocabulary is chosen from.
        options: Sizes and seed.

    Returns:
        The head in fp32, and the target's output layer (V, k).
    """
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    embeddings = model.get_input_embeddings().weight.detach()
    lm_head = model.get_output_embeddings().weight.detach()
    stop_ids = model.generation_config.eos_token_id
    config = _head_config(model, options)
    torch.manual_seed(options.seed)
    head = Eagle3DraftHead(config, embed_tokens=embeddings)
    if config.prunes_vocabulary:
        required = stop_ids if isinstance(stop_ids, list) else [stop_ids]
        required = [token for token in required if token is not None]
        head.set_draft_vocabulary(
            choose_draft_vocabulary(rows, config.draft_vocab_size, config.vocab_size, required)
        )
    kept = head.draft_to_target
    with torch.no_grad():
        head.lm_head.weight.copy_(lm_head if kept is None else lm_head[kept])
        head.norm.weight.fill_(INITIAL_NORM_WEIGHT)
    return head, lm_head


def _head_config(model: PreTrainedModel, options: TrainOptions) -> Eagle3Config:
    target = model.config
    heads = target.num_attention_heads
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = Eagle3Config(
        hidden_size=target.hidden_size,
        intermediate_size=options.intermediate_size or target.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=getattr(target, "num_key_value_heads", None) or heads,
        head_dim=getattr(target, "head_dim", None) or target.hidden_size // heads,
        vocab_size=len(model.get_output_embeddings().weight),
        draft_vocab_size=options.draft_vocab_size,
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters=read_rope_parameters(target.to_dict()),
        fc_norm=True,
        token_ids={
            key: getattr(target, key) for key in tokens if getattr(target, key, None) is not None
        },
    )
    layers = config.resolve_feature_layers(target.num_hidden_layers)
    return config.replace(feature_layers=layers)
