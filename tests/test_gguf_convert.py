"""Conversion of GGUF files: the model that was written is the model that is read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.cli.shared.options import resolve_model
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.gguf_convert import convert_gguf, float32_weights
from eaglerl.gguf_convert.gguf_config import read_config
from eaglerl.gguf_convert.gguf_file import read_gguf
from eaglerl.gguf_convert.gguf_rope import parameters_of

from .gguf_files import VOCAB_SIZE, rope_divisors, write_gguf

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": VOCAB_SIZE - 2,
    "eos_token_id": VOCAB_SIZE - 1,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def llama(rope: dict | None = None, **options) -> LlamaForCausalLM:
    rope = rope or {"rope_type": "default", "rope_theta": 5000.0}
    config = LlamaConfig(**{**SIZES, "rope_parameters": rope, **options})
    return shaken(LlamaForCausalLM(config))


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """With norms, biases and larger weights that make a difference."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(300)[None] * 7 % VOCAB_SIZE
    with torch.inference_mode():
        return model(ids).logits


def converted(path: Path, output: Path) -> PreTrainedModel:
    output.mkdir()
    convert_gguf(path, output, float32=True)
    model = AutoModelForCausalLM.from_pretrained(output, attn_implementation="eager")
    assert_expands_to(model, path, output)
    return model


def assert_expands_to(model: PreTrainedModel, path: Path, output: Path) -> None:
    """The folder without float32 files is the same model, loaded from its GGUF file."""
    folder = output.with_name(f"{output.name}-without")
    folder.mkdir()
    convert_gguf(path, folder)
    assert not list(folder.glob("*.safetensors*"))
    assert (folder / "model.gguf").samefile(path)
    expanded = load_transformers_model(folder, torch.float32)
    assert type(expanded) is type(model)
    assert expanded.generation_config.to_dict() == model.generation_config.to_dict()
    differing = {"_name_or_path": None}
    assert expanded.config.to_dict() | differing == model.config.to_dict() | differing
    found, expected = (
        dict([*one.state_dict().items(), *one.named_buffers()]) for one in (expanded, model)
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def assert_converts(path: Path, model: PreTrainedModel, output: Path) -> PreTrainedModel:
    """The logits of what was written, but for the rounding of the frequencies' divisors."""
    model.set_attn_implementation("eager")
    expected = logits(model)
    actual = converted(path, output)
    # Positions of up to 300 times a frequency's rounding of 1e-7, through two layers.
    torch.testing.assert_close(logits(actual), expected, rtol=0, atol=2e-3 * expected.std().item())
    return actual


ROPE = {
    "default": ({}, {"rope_type": "default"}),
    "linear": (
        {".rope.scaling.type": "linear", ".rope.scaling.factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "linear without a type": (
        {".rope.scaling.factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "linear of old": ({".rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "none": ({".rope.scaling.type": "none"}, {"rope_type": "default"}),
    "yarn": (
        {
            ".rope.scaling.type": "yarn",
            ".rope.scaling.factor": 4.0,
            ".rope.scaling.original_context_length": 128,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    "yarn with betas": (
        {
            ".rope.scaling.type": "yarn",
            ".rope.scaling.factor": 8.0,
            ".rope.scaling.original_context_length": 64,
            ".rope.scaling.yarn_beta_fast": 16.0,
            ".rope.scaling.yarn_beta_slow": 2.0,
            ".rope.scaling.yarn_attn_factor": 1.5,
        },
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5,
        },
    ),
}


@pytest.mark.parametrize("name", ROPE)
def test_rope_scaling_of_the_metadata(name: str, tmp_path: Path) -> None:
    fields, rope = ROPE[name]
    model = llama({"rope_theta": 5000.0, **rope})
    path = write_gguf(tmp_path / "a.gguf", model, "llama", fields=fields)
    found = assert_converts(path, model, tmp_path / "out")
    assert {key: found.config.rope_parameters[key] for key in rope} == rope


def test_rope_scaling_matters(tmp_path: Path) -> None:
    # Otherwise the tests above would pass without any.
    plain, scaled = logits(llama()), logits(llama({"rope_theta": 5000.0, **ROPE["linear"][1]}))
    assert (plain - scaled).abs().max() > plain.std()


@pytest.mark.parametrize("head_dim", [8, 16, 64, 128])
@pytest.mark.parametrize(("factor", "original"), [(8.0, 8192), (32.0, 8192), (8.0, 64), (3.0, 100)])
def test_llama3_scaling_is_found_again(
    head_dim: int, factor: float, original: int, tmp_path: Path
) -> None:
    rope = {**LLAMA3, "factor": factor, "original_max_position_embeddings": original}
    model = llama(rope, head_dim=head_dim, num_hidden_layers=1)
    divisors = rope_divisors(model)
    path = write_gguf(tmp_path / "a.gguf", model, "llama", tensors={"rope_freqs.weight": divisors})
    actual = converted(path, tmp_path / "out")
    ratio = actual.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-6, atol=0)
    assert actual.model.rotary_emb.attention_scaling == 1.0
    if original == 8192 and divisors.max() > 1:
        expected = {key: rope[key] for key in ("low_freq_factor", "high_freq_factor", "factor")}
        if head_dim >= 64:
            assert actual.config.rope_parameters | expected == actual.config.rope_parameters


def test_llama3_scaling_gives_its_logits(tmp_path: Path) -> None:
    model = llama(LLAMA3, head_dim=64)
    tensors = {"rope_freqs.weight": rope_divisors(model)}
    path = write_gguf(tmp_path / "a.gguf", model, "llama", tensors=tensors)
    found = assert_converts(path, model, tmp_path / "out")
    assert found.config.rope_parameters["rope_type"] == "llama3"


def test_other_divisors_are_kept(tmp_path: Path) -> None:
    model = llama(head_dim=16)
    divisors = np.linspace(1, 5, 8, dtype=np.float32) ** 1.5
    path = write_gguf(tmp_path / "a.gguf", model, "llama", tensors={"rope_freqs.weight": divisors})
    actual = converted(path, tmp_path / "out")
    with torch.inference_mode():
        # A longer text does not change them.
        actual(torch.arange(400)[None] % VOCAB_SIZE)
    frequencies = model.model.rotary_emb.inv_freq / torch.from_numpy(divisors)
    torch.testing.assert_close(actual.model.rotary_emb.inv_freq, frequencies, rtol=1e-6, atol=0)
    assert actual.model.rotary_emb.attention_scaling == 1.0


def test_divisors_and_a_factor_multiply(tmp_path: Path) -> None:
    model = llama(LLAMA3, head_dim=64)
    fields = {".rope.scaling.type": "linear", ".rope.scaling.factor": 2.0}
    tensors = {"rope_freqs.weight": rope_divisors(model)}
    path = write_gguf(tmp_path / "a.gguf", model, "llama", fields=fields, tensors=tensors)
    actual = converted(path, tmp_path / "out").model.rotary_emb.inv_freq
    torch.testing.assert_close(actual, model.model.rotary_emb.inv_freq / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [1.0, 4.0])
def test_equal_divisors_are_a_factor(value: float) -> None:
    expected = {"rope_type": "default"} if value == 1 else {"rope_type": "linear", "factor": value}
    assert parameters_of(np.full(8, value), 1e4, 512) == expected


def qwen2() -> tuple[PreTrainedModel, dict]:
    rope = {"rope_theta": 1e6, **ROPE["yarn"][1]}
    config = Qwen2Config(**SIZES, rope_parameters=rope)
    return shaken(Qwen2ForCausalLM(config)), ROPE["yarn"][0]


def qwen3() -> tuple[PreTrainedModel, dict]:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True, rope_parameters=rope)
    return shaken(Qwen3ForCausalLM(config)), {}


def gemma3() -> tuple[PreTrainedModel, dict]:
    rope = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    sizes = {**SIZES, "num_hidden_layers": 7, "head_dim": 32}
    config = Gemma3TextConfig(
        **sizes, rope_parameters=rope, sliding_window=50, query_pre_attn_scalar=32
    )
    fields = {
        ".attention.sliding_window": 50,
        ".rope.scaling.type": "linear",
        ".rope.scaling.factor": 8.0,
    }
    return shaken(Gemma3ForCausalLM(config)), fields


def mistral() -> tuple[PreTrainedModel, dict]:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = MistralConfig(**SIZES, rope_parameters=rope, sliding_window=None, head_dim=16)
    return shaken(MistralForCausalLM(config)), {}


def mistral_with_a_window() -> tuple[PreTrainedModel, dict]:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = MistralConfig(**SIZES, rope_parameters=rope, sliding_window=40, head_dim=16)
    return shaken(MistralForCausalLM(config)), {".attention.sliding_window": 40}


def llama_with_biases() -> tuple[PreTrainedModel, dict]:
    return llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True), {}


@pytest.mark.parametrize(
    ("architecture", "make"),
    [
        ("qwen2", qwen2),
        ("qwen3", qwen3),
        ("gemma3", gemma3),
        ("llama", mistral),
        ("llama", mistral_with_a_window),
        ("llama", llama_with_biases),
    ],
)
def test_architectures(architecture: str, make, tmp_path: Path) -> None:
    model, fields = make()
    path = write_gguf(tmp_path / "a.gguf", model, architecture, fields=fields)
    assert_converts(path, model, tmp_path / "out")


EXPANDED = sorted(kind.name for kind in gguf.quants._type_traits)


@pytest.mark.parametrize("kind", [*EXPANDED, "F16", "F32", "F64"])
def test_every_type_is_expanded_as_by_gguf(kind: str, tmp_path: Path) -> None:
    of = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[of]
    # No byte of a scale's exponent is so high that a number would not be finite.
    raw = np.random.default_rng(0).integers(0, 0x3B, (6, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", raw, raw_shape=raw.shape, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (theirs,) = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    ours = read_gguf(tmp_path / "a.gguf").expand("x")
    assert ours.shape == (6, 2 * block)
    plain = theirs.data.astype(np.float32)
    expected = plain if kind[0] == "F" else gguf.dequantize(theirs.data, of)
    assert np.array_equal(ours, expected.reshape(ours.shape))


def test_quantised_weights_are_gguf_s(tmp_path: Path) -> None:
    model = llama()
    kind = gguf.GGMLQuantizationType.Q5_0
    path = write_gguf(tmp_path / "a.gguf", model, "llama", kind=kind)
    actual = converted(path, tmp_path / "out").model.layers[1].mlp.down_proj.weight
    weight = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    expected = gguf.dequantize(gguf.quants.quantize(weight, kind), kind)
    assert np.array_equal(actual.detach().numpy(), expected)


def test_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    path = write_gguf(tmp_path / "a.gguf", model, "llama")
    monkeypatch.setattr(float32_weights, "SHARD_ELEMENTS", 30_000)
    assert_converts(path, model, tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    # What is there is not computed again.
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    shards[1].unlink()
    convert_gguf(path, tmp_path / "out", float32=True)
    after = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert {s for s in shards if before[s] != after[s]} == {shards[1]}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({}, 257 + 1),
        ({"eot": 5}, [258, 5]),
        ({"eot": 5, "eom": 6}, [258, 5, 6]),
        ({"eot": 258}, 258),
    ],
)
def test_all_tokens_that_end_a_turn_are_kept(ids, expected, tmp_path: Path) -> None:
    fields = {f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items()}
    path = write_gguf(tmp_path / "a.gguf", llama(), "llama", fields=fields)
    model = converted(path, tmp_path / "out")
    assert model.generation_config.eos_token_id == expected
    assert model.generation_config.bos_token_id == VOCAB_SIZE - 2
    assert model.generation_config.pad_token_id is None


def test_the_chat_template_is_kept(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}"
    fields = {"tokenizer.chat_template": template}
    path = write_gguf(tmp_path / "a.gguf", llama(), "llama", fields=fields)
    converted(path, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "ab"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|start|>ab<|end|>"
    assert tokenizer(text, add_special_tokens=False).input_ids == [257, 256, 258]


REFUSED = {
    "longrope": ({".rope.scaling.type": "longrope", ".rope.scaling.factor": 2.0}, "'longrope'"),
    "no factor": ({".rope.scaling.type": "yarn"}, "needs llama.rope.scaling.factor"),
    "factor 0": ({".rope.scaling.factor": 0.0}, "rope.scaling.factor must be a number above 0"),
    "factor nan": ({".rope.scaling.factor": float("nan")}, "must be a number above 0, got nan"),
    "attn factor": (
        {".rope.scaling.factor": 2.0, ".rope.scaling.attn_factor": 1.25},
        "rope.scaling.attn_factor = 1.25 is not supported",
    ),
    "base": ({".rope.freq_base": float("inf")}, "rope.freq_base must be a number above 0"),
    "experts": ({".expert_count": 8}, "llama.expert_count = 8 is not supported"),
    "scale": ({".attention.scale": 0.5}, "llama.attention.scale = 0.5 is not supported"),
    "logit scale": ({".logit_scale": 0.0625}, "llama.logit_scale = 0.0625 is not supported"),
    "unknown": ({".new_idea": "x"}, "llama.new_idea = 'x' is not supported"),
    "partial": ({".rope.dimension_count": 8}, "rope.dimension_count must be the width of a head"),
    "values": ({".attention.value_length": 8}, "value_length must be the width of a head"),
    "per layer": ({".attention.head_count": [4, 2]}, "must be one number for all layers"),
    "kv": ({".attention.head_count_kv": 3}, "head_count 4 is not a multiple of head_count_kv 3"),
    "no heads": ({".attention.head_count": 0}, "head_count must be a whole number >= 1, got 0"),
    "layers": ({".block_count": 2_000_000_000}, "block_count is 2000000000, but there are only"),
    "one layer more": ({".block_count": 3}, "tensors are missing, the first is 'blk.2.attn_norm"),
    "one layer less": ({".block_count": 1}, "'blk.1.*' belongs to no layer of 1"),
    "width": ({".feed_forward_length": 97}, "'blk.0.ffn_gate.weight' must have shape"),
    "vocabulary": ({".vocab_size": 999}, "'token_embd.weight' must have shape"),
    "text": ({".context_length": "long"}, "context_length must be a whole number"),
    "split": ({"split.count": 3}, "one of several files"),
    "eos": ({"tokenizer.ggml.eos_token_id": 1000}, "eos_token_id must be below the vocabulary's"),
    "tokens": ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens must be a list of texts"),
    "model": ({"tokenizer.ggml.model": "nothing"}, "its tokenizer cannot be converted"),
    "merges": ({"tokenizer.ggml.merges": ["nonsense"]}, "its tokenizer cannot be converted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_over_is_refused(name: str, tmp_path: Path) -> None:
    fields, message = REFUSED[name]
    path = write_gguf(tmp_path / "a.gguf", llama(), "llama", fields=fields)
    with pytest.raises(ValueError, match=rf"a\.gguf: .*{message}"):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.ones(7), "must hold 8 numbers above 0"), (-np.ones(8), "must hold 8 numbers above 0"),
     (np.full(8, np.nan), "not finite")],
)  # fmt: skip
def test_wrong_divisors_are_refused(values, message: str, tmp_path: Path) -> None:
    tensors = {"rope_freqs.weight": values.astype(np.float32)}
    path = write_gguf(tmp_path / "a.gguf", llama(), "llama", tensors=tensors)
    with pytest.raises(ValueError, match=rf"a\.gguf: .*{message}"):
        convert_gguf(path, tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.inf
    path = write_gguf(tmp_path / "a.gguf", model, "llama")
    with pytest.raises(ValueError, match=r"a\.gguf: tensor 'blk\.1\.ffn_up\.weight' .* not finite"):
        convert_gguf(path, tmp_path)


def test_types_that_gguf_does_not_expand_are_named(tmp_path: Path) -> None:
    model = llama()
    tensors = {"output.weight": np.zeros((VOCAB_SIZE, 64), np.int8)}
    path = write_gguf(tmp_path / "a.gguf", model, "llama", tensors=tensors)
    with pytest.raises(ValueError, match=r"'output\.weight' is of type I8, which the package gguf"):
        convert_gguf(path, tmp_path)


def test_no_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "none", tmp_path, fifo):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_gguf(path)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("GGML or so")
    for name in ("empty", "text"):
        with pytest.raises(ValueError, match=rf"{name}: this is not a GGUF file"):
            read_gguf(tmp_path / name)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    path = tmp_path_factory.mktemp("small") / "a.gguf"
    return write_gguf(path, llama(**sizes), "llama").read_bytes()


def read_or_refuse(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        file = read_gguf(path)
        read_config(file)
        for name in file.tensors:
            file.expand(name)
    except ValueError as error:
        refused = error
    else:
        return
    assert str(path) in str(refused)


FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=100, **FUZZ)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data, small_file: bytes, tmp_path: Path) -> None:
    damage(data, small_file, tmp_path / "a.gguf")


@pytest.mark.slow
@settings(max_examples=5000, **FUZZ)
@given(data=st.data())
def test_many_damaged_files(data, small_file: bytes, tmp_path: Path) -> None:
    damage(data, small_file, tmp_path / "a.gguf")


def damage(data, small_file: bytes, path: Path) -> None:
    """Write nonsense over some places of the header, cut some off, and read it."""
    damaged = bytearray(small_file)
    header = 9000
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(4, header))
        count = data.draw(st.sampled_from([1, 4, 8]))
        damaged[place : place + count] = data.draw(st.binary(min_size=count, max_size=count))
    cut = data.draw(st.sampled_from([None, None, *range(0, header, 61)]))
    read_or_refuse(path, bytes(damaged[:cut]))


def test_no_count_runs_away(small_file: bytes, tmp_path: Path) -> None:
    # A length of exabytes, wherever there is one: it lies at most two bytes beside.
    for place in range(4, 700, 3):
        damaged = small_file[:place] + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + small_file[place + 8 :]
        read_or_refuse(tmp_path / "a.gguf", damaged)


class TestCommand:
    def test_its_name_is_a_model_then(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EAGLERL_CACHE", str(tmp_path / "cache"))
        path = write_gguf(tmp_path / "a.gguf", llama(), "llama")
        result = CliRunner().invoke(app, ["prepare", "--gguf", str(path), "--name", "mine"])
        assert result.exit_code == 0, result.stderr
        assert result.stderr.endswith("use it with: --model mine\n")
        assert resolve_model("mine") == tmp_path / "cache" / "models" / "mine"

    def test_a_file_is_no_model(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "a.gguf", llama(), "llama")
        with pytest.raises(ValueError, match=r"first run: eaglerl prepare --gguf .*a\.gguf"):
            resolve_model(str(path))

    @pytest.mark.parametrize(
        "options", [["--name", "x"], ["--output", "x"], ["smollm2-135m-instruct", "--gguf", "x"]]
    )
    def test_options_that_do_not_go_together(self, options: list[str]) -> None:
        assert CliRunner().invoke(app, ["prepare", *options]).exit_code == 2
