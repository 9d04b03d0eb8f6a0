"""RoPE's tables against transformers' and against float64."""

import copy
import itertools
import math
import threading

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from eaglerl.eagle3.layers.rope import (
    RopeTables,
    apply_rope,
    head_rope_tables,
    read_rope_parameters,
    rope_tables,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
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


@pytest.mark.parametrize("head_dim", [6, 10, 16, 64, 80])
@pytest.mark.parametrize("rope_type", TYPES)
def test_tables_equal_transformers(rope_type: str, head_dim: int) -> None:
    """To the bit, so that a target's logits do not move."""
    parameters = {"rope_type": rope_type} | TYPES[rope_type]
    cos, sin = rope_tables(head_dim, parameters, 1024, max_position_embeddings=1024)
    config = LlamaConfig(
        hidden_size=4 * head_dim,
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
        ({"rope_scaling": []}, "rope_scaling must be an object"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type must be one of"),
        ({"rope_theta": math.nan}, "rope_theta.*nan"),
        ({"rope_scaling": {"type": "linear", "factor": math.inf}}, "factor.*inf"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": "x"}}, "beta_fast.*'x'"),
        (
            {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
            "low_freq_factor must be less than .*high_freq_factor",
        ),
    ],
)
def test_broken_parameters_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rope_parameters(data)


DEFAULT = {"rope_type": "default", "rope_theta": 5e5}
CONTRADICTIONS = {
    "default beside llama3": (
        {"rope_theta": 5e5, "rope_parameters": DEFAULT, "rope_scaling": LLAMA3},
        "rope_parameters and rope_scaling contradict each other: rope_type is 'default' .*'llama3'",
    ),
    "type against rope_type": (
        {"rope_scaling": {"type": "yarn", "rope_type": "default", "factor": 4.0}},
        "rope_scaling.rope_type is 'default' but rope_scaling.type is 'yarn'",
    ),
    "type against rope_type, newer": (
        {"rope_parameters": {"type": "linear", "rope_type": "yarn", "factor": 4.0}},
        "rope_parameters.rope_type is 'yarn' but rope_parameters.type is 'linear'",
    ),
    "base beside the newer": (
        {"rope_theta": 1e4, "rope_parameters": DEFAULT},
        "rope_theta is 10000.0 but rope_parameters.rope_theta is 500000.0",
    ),
    "base beside the older": (
        {"rope_theta": 1e4, "rope_scaling": LLAMA3 | {"rope_theta": 5e5}},
        "rope_theta is 10000.0 but rope_scaling.rope_theta is 500000.0",
    ),
    # transformers drops the base that stands in rope_parameters alone: 10,000 where 500,000 is
    # written.
    "base in one notation": (
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "rope_scaling": LLAMA3},
        "contradict each other: rope_theta is 500000.0 .* 10000.0",
    ),
    "factors": (
        {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3 | {"factor": 32.0}},
        "contradict each other: factor is 8.0 .* 32.0",
    ),
    "original length": (
        {"original_max_position_embeddings": 4096, "rope_scaling": LLAMA3},
        "original_max_position_embeddings is 4096 but .* is 1024",
    ),
    "layers": (
        {"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": {"rope_theta": 1e4}}},
        "full_attention and rope_parameters.sliding_attention contradict .*: rope_theta",
    ),
    "layers and all": (
        {"rope_parameters": {"full_attention": DEFAULT, "rope_theta": 5e5}},
        "per type of layer or for all",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused(case: str) -> None:
    data, message = CONTRADICTIONS[case]
    with pytest.raises(ValueError, match=message):
        read_rope_parameters(data)


@pytest.mark.parametrize(
    "data",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}},
        {"rope_scaling": LLAMA3 | {"rope_theta": 5e5}, "rope_parameters": None},
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "rope_scaling": {}},
        {"rope_theta": 5e5, "rope_parameters": LLAMA3, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_parameters": {}, "rope_scaling": None},
    ],
)
def test_what_does_not_contradict_is_read_as_transformers_reads_it(data: dict[str, object]) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 8192}
    config = LlamaConfig(**sizes, **copy.deepcopy(data))
    expected = {key: config.rope_parameters[key] for key in config.rope_parameters if key != "type"}
    assert read_rope_parameters(data) == expected


def test_parameters_per_type_of_layer() -> None:
    per_type = {"full_attention": DEFAULT, "sliding_attention": {"rope_theta": 1e4}}
    data = {"rope_parameters": per_type}
    sliding = read_rope_parameters(data, layer_type="sliding_attention")
    assert sliding == {"rope_type": "default", "rope_theta": 1e4}
    agreeing = {"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": dict(DEFAULT)}}
    assert read_rope_parameters(agreeing) == DEFAULT


@pytest.mark.parametrize("rope_type", TYPES)
def test_growing_tables_equal_those_made_at_once(rope_type: str) -> None:
    parameters = {"rope_type": rope_type} | TYPES[rope_type]
    whole = rope_tables(80, parameters, 9001, max_position_embeddings=9001)
    growing = head_rope_tables(80, parameters, max_position_embeddings=9001)
    for rows in (1, 2049, 2050, 4097, 9001):
        tables = growing.first(rows)
        assert len(tables[0]) >= rows
        for table, expected in zip(tables, whole, strict=True):
            assert torch.equal(table[:9001], expected[: len(table)])


def test_dynamic_tables_keep_their_frequencies_for_reserve_rows() -> None:
    """Rows drafted past the end of a text must not fail it, and must not change what is before."""
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    plain = rope_tables(16, {"rope_theta": 1e4}, 300, max_position_embeddings=300)
    tables = head_rope_tables(16, dynamic, max_position_embeddings=64).first(300)
    assert torch.equal(tables[0][:300], plain[0])


def test_tables_grow_by_need_and_never_change_in_a_readers_hands() -> None:
    asked: list[int] = []

    def angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.extend(positions.tolist())
        return positions[:, None] * 1.0, positions[:, None] * -1.0

    tables = RopeTables(angles)
    assert asked == []
    before = tables.first(5)[0]
    copied = before.clone()
    assert len(before) < 10_000
    barrier = threading.Barrier(8)
    seen: list[torch.Tensor] = []

    def grow(rows: int) -> None:
        barrier.wait()
        seen.append(tables.first(rows)[0])

    threads = [threading.Thread(target=grow, args=(5000 + 700 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(before, copied)
    # Every position once, in order, whoever asked.
    assert all(second == first + 1 for first, second in itertools.pairwise(asked))
    for table in seen:
        assert torch.equal(table[:, 0], torch.arange(len(table)) * 1.0)


def test_tables_refuse_what_they_cannot_hold() -> None:
    default, dynamic = {"rope_theta": 1e4}, {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(ValueError, match=r"max_positions.*65 and 64"):
        rope_tables(8, dynamic, 65, max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"max_positions.*0"):
        rope_tables(8, default, 0, max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"head_dim.*7"):
        rope_tables(7, default, 4, max_position_embeddings=64)
