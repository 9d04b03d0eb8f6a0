"""Weights of safetensors files in blocks: quantised while loading, or as they are stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from eaglerl.eagle3 import SpeculativeDecoder, TreeParams
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target import weight_files
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.make_target import load_target
from eaglerl.fingerprints import target_id

from ..tiny import FAMILIES, tiny_head, tiny_model
from .test_block_target import SIZES, TOKENS, run

QUANTISED = ("q8_0", "q4_0", "q4_1")
PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def save(
    folder: Path,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    shard: str = "1GB",
    **changes: Any,
) -> Path:
    """A folder as `save_pretrained` writes it."""
    model = tiny_model(family, **(SIZES | changes)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    GenerationConfig().save_pretrained(folder)
    return folder


def reference(folder: Path, weights: str) -> torch.nn.Module:
    """transformers' model in float64 with every matrix quantised and dequantised by gguf."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    table = model.get_input_embeddings().weight
    ends = {id(table), id(model.get_output_embeddings().weight)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                name = "q8_0" if id(parameter) in ends and weights in QUANTISED else weights
                kind = gguf.GGMLQuantizationType[name.upper()]
                blocks = gguf.quants.quantize(parameter.float().numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    return model


def check_logits(target: BlockTarget, model: torch.nn.Module) -> None:
    with torch.no_grad():
        expected = model(TOKENS[None]).logits[0]
    found = run(target, RowBatch.causal(TOKENS, 0))
    bound = 2e-5 * float(expected.std())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)
    table = model.get_input_embeddings().weight.float()
    assert torch.equal(target.embed_tokens, table)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", QUANTISED)
def test_quantised_weights_are_those_of_gguf(family: str, weights: str, tmp_path: Path) -> None:
    tied = weights == "q4_1"
    shard = "100KB" if family == "llama" else "1GB"
    folder = save(tmp_path, family, torch.bfloat16, shard, tie_word_embeddings=tied)
    assert (folder / "model.safetensors.index.json").exists() == (family == "llama")
    target = load_target(folder, weights=weights)
    assert isinstance(target, BlockTarget)
    assert (target.precision, target.weights) == ("native", weights)
    check_logits(target, reference(folder, weights))


@pytest.mark.parametrize("stored", PLAIN)
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_weights_stay_as_they_are(stored: str, family: str, tmp_path: Path) -> None:
    folder = save(tmp_path, family, PLAIN[stored])
    target = load_target(folder, precision="native")
    assert isinstance(target, BlockTarget)
    check_logits(target, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))


@pytest.mark.parametrize("weights", PLAIN)
def test_single_numbers_are_rounded(weights: str, tmp_path: Path) -> None:
    """As torch rounds them; numbers that half precision cannot hold are refused by name."""
    folder = save(tmp_path)
    target = load_target(folder, weights=weights)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(parameter.to(PLAIN[weights]))
    check_logits(target, model.double())
    change(folder, "model.layers.2.mlp.up_proj.weight", lambda weight: weight.fill_(1e5))
    if weights == "f16":
        with pytest.raises(ValueError, match=r"up_proj.weight' cannot be packed as F16.*finite"):
            load_target(folder, weights=weights)


def change(folder: Path, name: str, how: Any) -> None:
    """Change a tensor of a folder's only file, or remove it where `how` returns None."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = how(tensors[name])
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("chunk", [1, 64 * 7, 1 << 12])
def test_matrices_are_converted_in_chunks(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than a chunk of float32 numbers of a matrix exists at once, or one row."""
    folder = save(tmp_path, dtype=torch.bfloat16)
    expected = run(load_target(folder, weights="q4_1"), RowBatch.causal(TOKENS, 0))
    monkeypatch.setattr(weight_files, "_CHUNK", chunk)
    expand = gguf.quants.quantize

    def checked(values: Any, kind: Any) -> Any:
        assert values.size <= max(chunk, values.shape[1])
        return expand(values, kind)

    monkeypatch.setattr(gguf.quants, "quantize", checked)
    found = run(load_target(folder, weights="q4_1"), RowBatch.causal(TOKENS, 0))
    assert torch.equal(found, expected)


def test_heads_are_tied_as_in_transformers(tmp_path: Path) -> None:
    """What counts is what the file holds: one of the two matrices, or both, equal or not."""
    folder = save(tmp_path, tie_word_embeddings=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    table = tensors["model.embed_tokens.weight"]
    variants = (
        {"lm_head.weight": table.clone()},
        {"lm_head.weight": table.flip(0).clone()},
        {"lm_head.weight": table.flip(0).clone(), "model.embed_tokens.weight": None},
    )
    for changes in variants:
        kept = {name: value for name, value in (tensors | changes).items() if value is not None}
        save_file(kept, file, metadata={"format": "pt"})
        check_logits(
            load_target(folder, precision="native"),
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 6, "hidden_size": 40, "intermediate_size": 50},
        {"head_dim": 20},
    ],
)
def test_all_biases_and_sizes_run(
    changes: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save(tmp_path, dtype=dtype, **changes)
    target = load_target(folder, precision="native")
    check_logits(target, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))


@pytest.mark.parametrize("precision", ["native", "bfloat16", "int8"])
def test_speculation_changes_no_token(precision: str, tmp_path: Path) -> None:
    target = load_target(save(tmp_path, "qwen3"), weights="q4_0", precision=precision)
    assert target.precision == precision
    decoder = SpeculativeDecoder(target, tiny_head(target), draft_dtype="float32")
    prompt = TOKENS[None, :9]
    plain = decoder.generate(prompt, TreeParams(1, 0, 1), max_new_tokens=60)
    found = decoder.generate(prompt, TreeParams(20, 4, 5), max_new_tokens=60)
    assert torch.equal(found.sequences, plain.sequences)


def test_formats_have_ids_of_their_own(tmp_path: Path) -> None:
    folder = save(tmp_path)
    ids = {target_id(load_target(folder, weights=weights)) for weights in QUANTISED}
    assert len(ids) == 3


def test_a_hub_name_is_read_from_the_cache(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--somebody--tiny"
    save(cached / "snapshots" / "c0ffee")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee")
    code = """
from eaglerl.eagle3 import load_target
target = load_target("somebody/tiny", weights="q8_0")
assert target.weights == "q8_0"
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    for options, message in (
        ({"weights": "q4_k"}, r'weights must be one of "stored", .*"q4_1", got \'q4_k\''),
        ({"weights": "q8_0", "precision": "float32"}, 'weights must be "stored" with precision='),
        ({"weights": "q8_0", "backend": "packed"}, "backend must be 'auto' with weights=\"q8_0\""),
        ({"weights": "q8_0", "dtype": torch.float32}, "dtype must be None with weights="),
        ({"weights": "bf16", "precision": "int8"}, r"needs weights in blocks, got BF16; weights="),
        ({"precision": "int8"}, r"needs weights in blocks, got F32; weights=\"q8_0\" makes them"),
    ):
        with pytest.raises(ValueError, match=message):
            load_target(folder, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 80}, r"down_proj.weight' cannot be packed as Q8_0: its 80 inputs"),
        ({"head_dim": 258}, "its heads are 258 wide, the packed path supports up to 256"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_sizes_and_kinds_that_do_not_fit_are_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_target(folder, weights="q8_0")


DAMAGED = {
    "missing": (lambda weight: None, r"lacks 1 of its weights, such as 'model.layers.3.mlp.up_"),
    "short": (lambda weight: weight[:-1].clone(), r"must have shape \(96, 64\).*got \(95, 64\)"),
    "flat": (lambda weight: weight.flatten(), r"must have shape \(96, 64\).*got \(6144,\)"),
    "integers": (lambda weight: weight.to(torch.int8), r"must be float32, .*float64, got int8"),
    "8-bit floats": (lambda weight: weight.to(torch.float8_e4m3fn), r"got float8_e4m3fn"),
    "nan": (lambda weight: weight.index_fill(0, torch.tensor(95), float("nan")), r"not finite"),
    "inf": (lambda weight: weight.index_fill(1, torch.tensor(0), float("inf")), r"not finite"),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("options", [{"weights": "q8_0"}, {"precision": "native"}])
def test_damaged_weights_are_named(case: str, options: dict[str, str], tmp_path: Path) -> None:
    how, message = DAMAGED[case]
    folder = save(tmp_path)
    change(folder, "model.layers.3.mlp.up_proj.weight", how)
    with pytest.raises(ValueError, match=message) as caught:
        load_target(folder, **options)
    assert str(tmp_path) in str(caught.value)
    assert "model.layers.3.mlp.up_proj.weight" in str(caught.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, shard="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    whole = shards[1].read_bytes()
    for damaged in (b"", whole[:7], whole[:100], whole[:-1], b"\xff" * 8 + whole[8:]):
        shards[1].write_bytes(damaged)
        with pytest.raises(ValueError, match=shards[1].name):
            load_target(folder, weights="q8_0")
    shards[1].unlink()
    with pytest.raises(ValueError, match=shards[1].name):
        load_target(folder, weights="q8_0")
    shards[1].write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["x"] = "../model.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"must name files \.safetensors in its folder"):
        load_target(folder, weights="q8_0")


def test_vectors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, "qwen2")
    name = "model.layers.1.self_attn.k_proj.bias"
    change(folder, name, lambda bias: bias.fill_(float("nan")))
    with pytest.raises(ValueError, match=rf"{name}' holds values that are not finite"):
        load_target(folder, weights="q8_0")


def test_other_kinds_of_weights_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="it has an adapter beside its weights"):
        load_target(folder, weights="q8_0")
    (folder / "adapter_config.json").unlink()
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="its weights are quantised already"):
        load_target(folder, weights="q8_0")
