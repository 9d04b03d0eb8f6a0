"""Small GGUF files written from models of transformers, with the package gguf's own names.

It is what llama.cpp's converter does, as far as these architectures need it: queries and keys of
Llama in neighbouring pairs, norms of Gemma with one added, Llama 3's RoPE as a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

START, END = "<|start|>", "<|end|>"


def vocabulary() -> list[str]:
    """Bytes in GPT-2's printable form, one merge, two special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    return [*letters, "ab", START, END]


VOCAB_SIZE = len(vocabulary())


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    architecture: str,
    *,
    fields: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    leave_out: frozenset[str] = frozenset(),
    kind: gguf.GGMLQuantizationType | Callable[[str], gguf.GGMLQuantizationType] = (
        gguf.GGMLQuantizationType.F32
    ),
) -> Path:
    """Write a model's file.

    Args:
        path: the file.
        model: of transformers, with `VOCAB_SIZE` tokens.
        architecture: GGUF's name of it.
        fields: further metadata; a key that begins with a dot gets the architecture before it.
        tensors: further tensors.
        leave_out: keys of the usual metadata that are not written.
        kind: of the matrices, or a function of a tensor's name. Of a type that gguf does not
            write, such as a K format, a matrix gets random blocks.
    """
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    usual: dict[str, Any] = {
        ".context_length": config.max_position_embeddings,
        ".embedding_length": config.hidden_size,
        ".block_count": config.num_hidden_layers,
        ".feed_forward_length": config.intermediate_size,
        ".attention.head_count": config.num_attention_heads,
        ".attention.head_count_kv": config.num_key_value_heads,
        ".attention.key_length": head_dim,
        ".attention.value_length": head_dim,
        ".attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        ".rope.freq_base": _theta(config),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": vocabulary(),
        "tokenizer.ggml.token_type": [1] * (VOCAB_SIZE - 2) + [3, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": VOCAB_SIZE - 2,
        "tokenizer.ggml.eos_token_id": VOCAB_SIZE - 1,
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**usual, **(fields or {})}.items():
        if key not in leave_out:
            _add(writer, f"{architecture}{key}" if key.startswith(".") else key, value)
    for name, values in {**_tensors(model, architecture), **(tensors or {})}.items():
        chosen = gguf.GGMLQuantizationType.F32
        if values.ndim > 1:
            chosen = kind(name) if callable(kind) else kind
        if chosen == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, _blocks(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Bytes of a block with its half-precision scale and minimum, and what makes weights of magnitude 1:
# codes of 4 or 5 bits times scales of 6, codes from -32 to 31 times signed scales of 8.
_K_SCALES = {
    "Q4_K": (0, 2, 240.0, 7.5),
    "Q5_K": (0, 2, 496.0, 15.5),
    "Q6_K": (208, None, 1369.0, 0),
}


def _blocks(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Blocks of a matrix; random ones of a type that gguf does not write."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        return random_blocks(*values.shape, kind)


def random_blocks(
    outputs: int, inputs: int, kind: gguf.GGMLQuantizationType, seed: int = 0
) -> np.ndarray:
    """Valid random blocks (outputs, bytes), whose weights are about inputs ** -0.5."""
    generator = np.random.default_rng([seed, outputs, inputs])
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = generator.integers(0, 256, (outputs, inputs // block, size), dtype=np.uint8)
    if kind.name in _K_SCALES:
        place, other, unit, ratio = _K_SCALES[kind.name]
        scales = generator.uniform(0.5, 1.5, data.shape[:2]) * inputs**-0.5 / unit
        data[..., place : place + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
        if other is not None:
            minima = (scales * ratio).astype(np.float16)
            data[..., other : other + 2] = minima[..., None].view(np.uint8)
    return data.reshape(outputs, -1)


def rope_divisors(model: PreTrainedModel) -> np.ndarray:
    """What a model's RoPE scaling divides its frequencies by, fp32, as llama.cpp stores it."""
    frequencies = model.get_decoder().rotary_emb.inv_freq.double()
    half = len(frequencies)
    plain = _theta(model.config) ** -(torch.arange(half, dtype=torch.float64) / half)
    return (plain / frequencies).float().numpy()


def _theta(config) -> float:
    rope = config.rope_parameters
    return float(rope.get("full_attention", rope)["rope_theta"])


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], model.config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if architecture == "llama" and ".q_proj." in name:
            values = _neighbouring_pairs(values, model.config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            values = _neighbouring_pairs(values, model.config.num_key_value_heads)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        stem, _, suffix = name.rpartition(".")
        tensors[f"{names.get_name(stem)}.{suffix}"] = values
    return tensors


def _neighbouring_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + D / 2 of every head, next to each other."""
    out = np.empty_like(values)
    width = len(values) // heads
    for head in range(heads):
        for pair in range(width // 2):
            for member in range(2):
                source = head * width + member * (width // 2) + pair
                out[head * width + 2 * pair + member] = values[source]
    return out
