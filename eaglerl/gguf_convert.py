"""Convert a Llama model stored as GGUF into a transformers folder in fp32.

transformers reads GGUF itself, but parses the metadata once for the config, once for the weights
and once for the tokenizer, at about three seconds each, and refuses to save what it has loaded.
Here the file is read once for config and weights; the tokenizer is left to transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import LlamaConfig

Progress = Callable[[str, float], None]
"""Called with what is being done (a few words) and the fraction of the whole that is done."""

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


def convert_llama_gguf(source: Path, output: Path, *, progress: Progress | None = None) -> None:
    """Write config, weights (fp32) and tokenizer of a Llama GGUF file as a transformers folder.

    Args:
        source: GGUF file of architecture "llama", any quantization that `gguf` can expand.
        output: existing folder; files of the same names are overwritten.
        progress: told what is being done and how far it is.

    Raises:
        ValueError: `source` is of another architecture or holds a tensor that is not Llama's.
    """
    report = progress or (lambda _stage, _fraction: None)
    report("loading libraries", 0.0)
    import gguf
    from transformers import AutoTokenizer, GenerationConfig

    report("reading the model's metadata", 0.2)
    reader = gguf.GGUFReader(source)
    config = _read_config(reader, source)
    config.save_pretrained(output)
    GenerationConfig.from_model_config(config).save_pretrained(output)
    _write_weights(reader, config, output / "model.safetensors", report)

    report("converting the tokenizer", 0.8)
    tokenizer = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, local_files_only=True
    )
    tokenizer.save_pretrained(output)
    report("done", 1.0)


def weight_name(tensor_name: str) -> str:
    """Return the transformers name of a tensor of a Llama GGUF file.

    Raises:
        ValueError: `tensor_name` is not one of Llama's.
    """
    stem, _, kind = tensor_name.rpartition(".")
    if stem in _TOP_LEVEL_NAMES:
        return f"{_TOP_LEVEL_NAMES[stem]}.{kind}"
    block, _, layer_and_part = stem.partition(".")
    layer, _, part = layer_and_part.partition(".")
    if block == "blk" and layer.isdecimal() and part in _LAYER_NAMES:
        return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    raise ValueError(f"tensor {tensor_name!r} is not part of a Llama model")


def _read_config(reader: GGUFReader, source: Path) -> LlamaConfig:
    from transformers import LlamaConfig

    def value(key: str) -> int | float | str:
        field = reader.get_field(key)
        if field is None:
            raise ValueError(f"{source.name} has no metadata field {key!r}")
        return field.contents()

    architecture = value("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{source.name} has architecture {architecture!r}; supported: 'llama'")
    heads = value("llama.attention.head_count")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=value("llama.attention.head_count_kv"),
        head_dim=value("llama.embedding_length") // heads,
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("llama.rope.freq_base")},
        bos_token_id=value("tokenizer.ggml.bos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
        pad_token_id=value("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        dtype="float32",
    )


def _write_weights(reader: GGUFReader, config: LlamaConfig, path: Path, report: Progress) -> None:
    from safetensors.numpy import save_file

    total = sum(int(tensor.n_elements) for tensor in reader.tensors)
    weights: dict[str, np.ndarray] = {}
    done = 0
    for tensor in reader.tensors:
        report("expanding the weights to fp32", 0.4 + 0.3 * done / total)
        weights[weight_name(tensor.name)] = _expand(tensor, config)
        done += int(tensor.n_elements)
    report("writing the weights", 0.7)
    save_file(weights, path, metadata={"format": "pt"})


def _expand(tensor: ReaderTensor, config: LlamaConfig) -> np.ndarray:
    from gguf import dequantize

    weight = dequantize(tensor.data, tensor.tensor_type)
    if ".attn_q." in tensor.name:
        weight = _rotate_half_order(weight, config.num_attention_heads)
    elif ".attn_k." in tensor.name:
        weight = _rotate_half_order(weight, config.num_key_value_heads)
    return np.ascontiguousarray(weight, dtype=np.float32)


def _rotate_half_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key projection (heads * head_dim, hidden).

    GGUF keeps the two members of a rotary pair in neighbouring rows; transformers keeps them
    head_dim / 2 rows apart.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
