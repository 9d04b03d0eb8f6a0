"""Small random targets with fitting heads: real architectures that run in a millisecond."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.head.packed_draft import PackedDraft
from eaglerl.eagle3.target.target_model import TargetModel

from .heads import make_config, make_head

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def tiny_config(family: str = "llama", **changes: object):
    """A config of seven layers, the fewest whose default feature layers are distinct."""
    fields: dict[str, object] = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family == "mistral":
        fields["sliding_window"] = None
    return AutoConfig.for_model(family, **(fields | changes))


def tiny_model(
    family: str = "llama", *, seed: int = 0, logit_scale: float = 1.0, **changes: object
) -> PreTrainedModel:
    """A random model none of whose tensors has its default value.

    Args:
        family: transformers' ``model_type``.
        seed: Of the weights.
        logit_scale: Factor of the output head: above 1, distributions are far from flat.
        changes: Fields of the config.
    """
    config = tiny_config(family, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        model.get_output_embeddings().weight.mul_(logit_scale)
    return model


def tiny_head(
    target: TargetModel, *, draft_vocab_size: int = 24, seed: int = 0, **changes: object
) -> Eagle3DraftHead:
    """A random head that fits a target and shares its embedding table."""
    config = make_config(
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        draft_vocab_size=draft_vocab_size,
        **changes,
    )
    head = make_head(config, seed)
    head.set_embed_tokens(target.embed_tokens)
    return head


def tiny_runner(head: Eagle3DraftHead, capacity: int, *, packed: bool = True) -> CachedDraft:
    """A float32 runner of a head."""
    return (PackedDraft if packed else ModuleDraft)(head, capacity=capacity)
