"""Names and shapes of the tensors of every architecture that is converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_TOP_LEVEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Architecture:
    """What sets an architecture apart from Llama.

    Attributes:
        title: the family's name.
        extra_names: further parts of a layer, or other names of them.
        biases: parts that must have a bias.
        optional_biases: groups of parts that have biases all together or not at all.
        interleaved: whether rotary pairs of queries and keys lie in neighbouring rows.
        norm_shift: what the file adds to the weights of norms.
    """

    title: str
    extra_names: Mapping[str, str] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    optional_biases: tuple[tuple[str, ...], ...] = ()
    interleaved: bool = False
    norm_shift: float = 0.0


ARCHITECTURES = {
    "llama": Architecture("Llama", optional_biases=(_ATTENTION, _MLP), interleaved=True),
    "qwen2": Architecture("Qwen2", biases=_ATTENTION[:3]),
    "qwen3": Architecture("Qwen3", _HEAD_NORMS, optional_biases=(_ATTENTION,)),
    "gemma3": Architecture(
        "Gemma 3",
        {
            **_HEAD_NORMS,
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        norm_shift=1.0,
    ),
}
"""The architectures that are converted, by the name that a GGUF file gives them."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that the shapes of tensors follow from."""

    vocab: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int


def weight_name(tensor_name: str, architecture: str = "llama") -> str:
    """Return the transformers name of a tensor of a GGUF file.

    Raises:
        ValueError: `tensor_name` is not one of the architecture's.
    """
    family = ARCHITECTURES[architecture]
    stem, _, kind = tensor_name.rpartition(".")
    if kind == "weight" and stem in _TOP_LEVEL_NAMES:
        return f"{_TOP_LEVEL_NAMES[stem]}.{kind}"
    block, _, layer_and_part = stem.partition(".")
    layer, _, part = layer_and_part.partition(".")
    names = {**_LAYER_NAMES, **family.extra_names}
    may_have_bias = {*family.biases, *(part for group in family.optional_biases for part in group)}
    known = part in names and (kind == "weight" or (kind == "bias" and part in may_have_bias))
    if block == "blk" and layer.isdecimal() and known:
        return f"model.layers.{int(layer)}.{names[part]}.{kind}"
    raise ValueError(f"tensor {tensor_name!r} is not part of a {family.title} model")


def layer_shapes(architecture: str, sizes: Sizes, biased: frozenset[str]) -> dict[str, tuple]:
    """Return the shape of every tensor of a layer by its name behind ``blk.N.``.

    Args:
        architecture: one of `ARCHITECTURES`.
        sizes: of the model.
        biased: parts that have a bias.
    """
    hidden, width = sizes.hidden, sizes.intermediate
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    weights = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (width, hidden),
        "ffn_up": (width, hidden),
        "ffn_down": (hidden, width),
    }
    for part in ARCHITECTURES[architecture].extra_names:
        weights[part] = (sizes.head_dim,) if part in _HEAD_NORMS else (hidden,)
    shapes = {f"{part}.weight": shape for part, shape in weights.items()}
    return shapes | {f"{part}.bias": weights[part][:1] for part in biased}
