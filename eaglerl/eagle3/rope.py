"""Rotary position embedding: parameters from a config, tables of cos and sin, application.

RoFormer, https://arxiv.org/abs/2104.09864, in the "rotate half" layout of the LLaMA family.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

# EAGLE's trainer knows no other base; a head without one was trained with this.
DEFAULT_ROPE_THETA = 10000.0

_REQUIRED_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def read_rope_parameters(data: Mapping[str, Any]) -> dict[str, Any]:
    """Reads RoPE's parameters from the fields of a model's config.

    Accepts transformers v5's ``rope_parameters`` and the older ``rope_theta`` with
    ``rope_scaling``, whose type is called ``rope_type`` or ``type``.

    Args:
        data: The fields; none of them has to be there.

    Returns:
        ``rope_type``, ``rope_theta`` (10000 if absent) and what the type needs besides.

    Raises:
        ValueError: The type is unknown, a parameter is missing or malformed, or the two
            notations contradict each other.
    """
    name = "rope_parameters" if data.get("rope_parameters") is not None else "rope_scaling"
    given = data.get(name)
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{name} must be an object or null, got {given!r}")
    parameters = dict(given or {})
    legacy_type = parameters.pop("type", None)
    rope_type = parameters.setdefault("rope_type", legacy_type or "default")
    if rope_type not in _REQUIRED_KEYS:
        allowed = list(_REQUIRED_KEYS)
        raise ValueError(f"{name}.rope_type must be one of {allowed}, got {rope_type!r}")
    for key in _REQUIRED_KEYS[rope_type]:
        _check_positive(f"{name}.{key}", parameters.get(key))
    theta = data.get("rope_theta")
    parameters.setdefault("rope_theta", DEFAULT_ROPE_THETA if theta is None else theta)
    _check_positive("rope_theta", parameters["rope_theta"])
    if theta is not None and parameters["rope_theta"] != theta:
        raise ValueError(
            f"rope_theta is {theta} but {name}.rope_theta is {parameters['rope_theta']}"
        )
    for source in (parameters, data):
        if source.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise ValueError(
                f"partial_rotary_factor must be 1, got {source['partial_rotary_factor']!r}"
            )
    return parameters


def rope_tables(
    head_dim: int,
    rope_parameters: Mapping[str, Any],
    max_positions: int,
    *,
    max_position_embeddings: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cos and sin of every rotary angle, scaled by the type's attention factor.

    The angles are transformers' own, in fp32 to the bit: a table that is more exact would move the
    logits away from those that the decoder promises to reproduce.

    Args:
        head_dim: Width D of a head, even.
        rope_parameters: As `read_rope_parameters` returns, or a transformers config's.
        max_positions: Number P of positions, from 0.
        max_position_embeddings: Positions that the model was made for; the "yarn", "llama3" and
            "dynamic" types read it.

    Returns:
        cos and sin, each (P, D / 2) fp32.

    Raises:
        ValueError: An argument is out of range, or the type is "dynamic" and its frequencies
            would change with the current length.
    """
    parameters = read_rope_parameters({"rope_parameters": rope_parameters})
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim must be even and positive, got {head_dim}")
    if max_positions < 1:
        raise ValueError(f"max_positions must be at least 1, got {max_positions}")
    if parameters["rope_type"] == "dynamic" and max_positions > max_position_embeddings:
        raise ValueError(
            "max_positions must be at most max_position_embeddings with RoPE of type 'dynamic', "
            f"whose frequencies depend on the length beyond it; got {max_positions} and "
            f"{max_position_embeddings}"
        )
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        rope_parameters=parameters,
    )
    # LlamaRotaryEmbedding gives each half of the head the same angles.
    like = torch.empty(0, dtype=torch.float32)
    cos, sin = LlamaRotaryEmbedding(config)(like, torch.arange(max_positions)[None])
    half = head_dim // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the heads of ``x``: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).

    Args:
        x: (..., H, D), the halves of D being x1 and x2.
        cos: (..., D / 2) of the row's position, the same leading dimensions as ``x`` without H.
        sin: Like ``cos``.

    Returns:
        A tensor like ``x``.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
