"""Small random heads, their files in the three layouts, and an independent float64 draft pass."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead

VOCAB, DRAFT_VOCAB = 60, 24


def make_config(**changes: object) -> Eagle3Config:
    """The smallest head that has grouped heads and a head_dim of its own."""
    fields: dict[str, object] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCAB,
        "draft_vocab_size": DRAFT_VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
    }
    return Eagle3Config(**(fields | changes))


def make_head(config: Eagle3Config, seed: int = 0) -> Eagle3DraftHead:
    """A head none of whose tensors has its default value."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(config.vocab_size, config.hidden_size, generator=generator)
    head = Eagle3DraftHead(config, embed_tokens=table)
    with torch.no_grad():
        for parameter in head.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else noise * scale)
    if config.prunes_vocabulary:
        ids = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size]
        head.set_draft_vocabulary(ids)
    return head.eval()


def eagle_tensors(head: Eagle3DraftHead) -> dict[str, torch.Tensor]:
    """A head's tensors under the names that EAGLE's own checkpoints use."""
    layer = head.midlayer
    attention, mlp = layer.self_attn, layer.mlp
    tensors = {
        "fc.weight": head.fc.weight,
        "midlayer.self_attn.q_proj.weight": attention.q_proj.weight,
        "midlayer.self_attn.k_proj.weight": attention.k_proj.weight,
        "midlayer.self_attn.v_proj.weight": attention.v_proj.weight,
        "midlayer.self_attn.o_proj.weight": attention.o_proj.weight,
        "midlayer.mlp.gate_proj.weight": mlp.gate_proj.weight,
        "midlayer.mlp.up_proj.weight": mlp.up_proj.weight,
        "midlayer.mlp.down_proj.weight": mlp.down_proj.weight,
        "midlayer.hidden_norm.weight": layer.hidden_norm.weight,
        "midlayer.input_layernorm.weight": layer.input_layernorm.weight,
        "midlayer.post_attention_layernorm.weight": layer.post_attention_layernorm.weight,
        "norm.weight": head.norm.weight,
        "lm_head.weight": head.lm_head.weight,
    }
    if head.config.fc_norm:
        for i in range(3):
            tensors[f"fc_norm.{i}.weight"] = head.fc_norm[i].weight
    if head.config.qk_norm:
        tensors["midlayer.self_attn.q_norm.weight"] = attention.q_norm.weight
        tensors["midlayer.self_attn.k_norm.weight"] = attention.k_norm.weight
    if head.config.norm_before_fc:
        tensors["input_norm.weight"] = head.input_norm.weight
    if head.d2t is not None:
        tensors |= {"d2t": head.d2t, "t2d": head.t2d}
    return {key: tensor.detach().clone() for key, tensor in tensors.items()}


def speculators_tensors(head: Eagle3DraftHead) -> dict[str, torch.Tensor]:
    """The same under speculators' names."""
    return {
        key.replace("midlayer.", "layers.0."): tensor for key, tensor in eagle_tensors(head).items()
    }


def eagle_json(config: Eagle3Config) -> dict[str, object]:
    """A config.json as EAGLE writes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }


def specforge_json(config: Eagle3Config) -> dict[str, object]:
    """A config.json as SpecForge writes it, in transformers v5's notation of RoPE."""
    return eagle_json(config) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [1, 4, 8],
            "use_aux_hidden_state": True,
        },
    }


def speculators_json(config: Eagle3Config) -> dict[str, object]:
    """A config.json as speculators writes it."""
    layer = eagle_json(config)
    for key in ("architectures", "draft_vocab_size", "pretraining_tp", "torch_dtype"):
        del layer[key]
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": None,
        "norm_before_residual": config.norm_before_residual,
        "eagle_aux_hidden_state_layer_ids": [2, 5, 9],
        "tie_word_embeddings": False,
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": "a/target"},
        },
    }


def write_files(
    folder: Path, config_json: dict[str, object], tensors: dict[str, torch.Tensor]
) -> Path:
    """Writes config.json and model.safetensors and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json))
    save_file(tensors, folder / "model.safetensors")
    return folder


@dataclass
class Row:
    """A row of a draft pass.

    Attributes:
        token: Target id whose embedding the row has.
        position: Rotary position.
        visible: Indices of the rows that it sees, itself included.
        features: (3k,) of the target, or None for a drafted row.
        parent: Index of the row whose output feeds a drafted row.
    """

    token: int
    position: int
    visible: list[int]
    features: torch.Tensor | None = None
    parent: int = -1


def windowed(rows: list[Row], window: int | None) -> list[Row]:
    """The rows with what their window leaves of what they see: the last ``window`` positions."""
    if window is None:
        return rows
    return [
        replace(row, visible=[i for i in row.visible if row.position - rows[i].position < window])
        for row in rows
    ]


def reference_pass(head: Eagle3DraftHead, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """EAGLE-3's draft layer row by row, in float64, from the paper's formulas.

    The head's sliding window narrows what the rows say that they see.

    Returns:
        Features for a next step (M, h) and draft logits (M, Vd), float64.
    """
    config = head.config
    rows = windowed(rows, config.sliding_window)
    weights = {key: tensor.double() for key, tensor in eagle_tensors(head).items()}

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return x / (x.square().mean() + config.rms_norm_eps).sqrt() * weights[key]

    def rotate(x: torch.Tensor, position: int) -> torch.Tensor:
        half = config.head_dim // 2
        inverse = torch.arange(half, dtype=torch.float64) / half
        angles = position * config.rope_parameters["rope_theta"] ** -inverse
        pairs = torch.complex(x[:, :half], x[:, half:]) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat((pairs.real, pairs.imag), dim=1)

    def reduce(features: torch.Tensor) -> torch.Tensor:
        if config.norm_before_fc:
            features = norm(features, "input_norm.weight")
        chunks = features.split(config.feature_hidden_size)
        if config.fc_norm:
            chunks = [norm(chunk, f"fc_norm.{i}.weight") for i, chunk in enumerate(chunks)]
        return weights["fc.weight"] @ torch.cat(list(chunks))

    def norm_heads(x: torch.Tensor, name: str) -> torch.Tensor:
        if not config.qk_norm:
            return x
        return torch.stack([norm(one, f"midlayer.self_attn.{name}.weight") for one in x])

    keys, values, feedbacks, logits = [], [], [], []
    group = config.num_attention_heads // config.num_key_value_heads
    layer = "midlayer."
    for row in rows:
        feature = feedbacks[row.parent] if row.features is None else reduce(row.features.double())
        embedding = norm(head.embed_tokens[row.token].double(), layer + "input_layernorm.weight")
        normed = norm(feature, layer + "hidden_norm.weight")
        pair = torch.cat((embedding, normed))
        q, k, v = (
            (weights[f"{layer}self_attn.{name}_proj.weight"] @ pair).view(-1, config.head_dim)
            for name in "qkv"
        )
        q, k = norm_heads(q, "q_norm"), norm_heads(k, "k_norm")
        keys.append(rotate(k, row.position))
        values.append(v)
        heads = []
        for head_index, query in enumerate(rotate(q, row.position)):
            seen_keys = torch.stack([keys[i][head_index // group] for i in row.visible])
            seen_values = torch.stack([values[i][head_index // group] for i in row.visible])
            scores = torch.softmax(seen_keys @ query / config.head_dim**0.5, dim=0)
            heads.append(scores @ seen_values)
        x = normed if config.norm_before_residual else feature
        x = x + weights[f"{layer}self_attn.o_proj.weight"] @ torch.cat(heads)
        inner = norm(x, layer + "post_attention_layernorm.weight")
        gate = weights[f"{layer}mlp.gate_proj.weight"] @ inner
        up = weights[f"{layer}mlp.up_proj.weight"] @ inner
        x = x + weights[f"{layer}mlp.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * up)
        final = norm(x, "norm.weight")
        feedbacks.append(final if config.norm_feedback else x)
        logits.append(weights["lm_head.weight"] @ (final if config.norm_output else x))
    return torch.stack(feedbacks), torch.stack(logits)
