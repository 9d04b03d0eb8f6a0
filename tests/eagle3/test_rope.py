"""RoPE's tables against transformers' and against float64."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from eaglerl.eagle3.rope import apply_rope, read_rope_parameters, rope_tables

TYPES = {
    "default": {"rope_theta": 1e5},
    "linear": {"rope_theta": 1e4, "factor": 2.0},
    "dynamic": {"rope_theta": 1e4, "factor": 2.0},
    "yarn": {"rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 256},
    "llama3": {
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


@pytest.mark.parametrize("rope_type", TYPES)
def test_tables_equal_transformers(rope_type: str) -> None:
    """To the bit, so that a target's logits do not move."""
    parameters = {"rope_type": rope_type} | TYPES[rope_type]
    cos, sin = rope_tables(16, parameters, 1024, max_position_embeddings=1024)
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=1024,
        rope_parameters=dict(parameters),
    )
    positions = torch.randperm(1024)[None]
    expected_cos, expected_sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    assert torch.equal(torch.cat((cos, cos), -1)[positions], expected_cos)
    assert torch.equal(torch.cat((sin, sin), -1)[positions], expected_sin)


def test_default_table_against_float64() -> None:
    cos, sin = rope_tables(
        64, {"rope_type": "default", "rope_theta": 1e4}, 4096, max_position_embeddings=4096
    )
    frequencies = 1e4 ** (-torch.arange(32, dtype=torch.float64) / 32)
    angles = torch.arange(4096, dtype=torch.float64)[:, None] * frequencies
    # An fp32 angle below 4096 is off by half a unit of its last place (2 ** -13) at most for the
    # product and by as much again for the frequency.
    bound = {"rtol": 0, "atol": 2**-12}
    torch.testing.assert_close(cos.double(), angles.cos(), **bound)
    torch.testing.assert_close(sin.double(), angles.sin(), **bound)


def test_llama3_leaves_high_frequencies_and_stretches_low_ones() -> None:
    parameters = {"rope_type": "llama3"} | TYPES["llama3"]
    cos, _ = rope_tables(64, parameters, 2, max_position_embeddings=1024)
    frequencies = cos[1].double().arccos()
    plain = 5e5 ** (-torch.arange(32, dtype=torch.float64) / 32)
    assert math.isclose(frequencies[0], 1.0, abs_tol=1e-6)
    # arccos near 1 loses half the digits of fp32.
    assert math.isclose(frequencies[16], plain[16] / 8, abs_tol=4e-4)


def test_apply_rope_equals_transformers() -> None:
    cos, sin = rope_tables(8, {"rope_theta": 1e4}, 10, max_position_embeddings=10)
    q, k = torch.randn(2, 10, 4, 8), torch.randn(2, 10, 2, 8)
    doubled = (torch.cat((table, table), -1)[None] for table in (cos, sin))
    expected = apply_rotary_pos_emb(q, k, *doubled, unsqueeze_dim=2)
    torch.testing.assert_close((apply_rope(q, cos, sin), apply_rope(k, cos, sin)), expected)


def test_base_is_eagles_where_none_is_given() -> None:
    assert read_rope_parameters({}) == {"rope_type": "default", "rope_theta": 10000.0}
    assert read_rope_parameters({"rope_scaling": None, "rope_theta": None}) == {
        "rope_type": "default",
        "rope_theta": 10000.0,
    }


def test_older_and_newer_notation() -> None:
    expected = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    older = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}
    assert read_rope_parameters(older) == expected
    assert read_rope_parameters(newer) == expected
    assert read_rope_parameters(older | newer) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rope_scaling": {"rope_type": "mrope"}}, "rope_scaling.rope_type.*'mrope'"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "rope_scaling.factor.*-1"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor.*None"),
        ({"rope_theta": "1e4"}, "rope_theta.*'1e4'"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor.*0.5"),
    ],
)
def test_broken_parameters_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rope_parameters(data)


def test_tables_refuse_what_they_cannot_hold() -> None:
    default, dynamic = {"rope_theta": 1e4}, {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(ValueError, match=r"max_positions.*65 and 64"):
        rope_tables(8, dynamic, 65, max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"max_positions.*0"):
        rope_tables(8, default, 0, max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"head_dim.*7"):
        rope_tables(7, default, 4, max_position_embeddings=64)
