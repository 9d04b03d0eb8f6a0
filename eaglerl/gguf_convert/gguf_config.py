"""The transformers config of a model, from a GGUF file's metadata."""

from __future__ import annotations

import re
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from eaglerl.gguf_convert.gguf_file import GGUFFile
from eaglerl.gguf_convert.gguf_rope import FREQUENCIES, read_rope
from eaglerl.gguf_convert.tensor_names import ARCHITECTURES, Sizes, layer_shapes, weight_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SUPPORTED_KEYS = re.compile(
    r"(vocab_size|context_length|embedding_length|block_count|feed_forward_length"
    r"|attention\.(head_count|head_count_kv|key_length|value_length|key_length_swa"
    r"|value_length_swa|layer_norm_rms_epsilon|sliding_window|sliding_window_pattern)"
    r"|rope\.(dimension_count|dimension_count_swa|freq_base|freq_base_swa|scale_linear|scaling\..*)"
    r"|final_logit_softcapping|tensor_data_layout)"
)
# With any other value, a model computes something other than these architectures.
_NEUTRAL = {
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "attention.causal": True,
    "pooling_type": 0,
    "attn_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "leading_dense_block_count": 0,
}
_SAME = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_GEMMA3_PERIOD = 6
_GEMMA3_LOCAL_BASE = 10000.0
# Gemma 3 27B, which does not scale its attention by the width of a head. Nothing but the number of
# layers tells it apart, and llama.cpp goes by that as well.
_GEMMA3_27B_LAYERS = 62


def read_config(file: GGUFFile) -> PreTrainedConfig:
    """Read the model's config, and check that the file has every tensor in the shape it implies.

    Raises:
        ValueError: the architecture is not supported, a field is missing, malformed or asks for
            something unsupported, or tensors do not fit.
    """
    architecture = file.text("general.architecture")
    if architecture not in ARCHITECTURES:
        names = ", ".join(repr(name) for name in ARCHITECTURES)
        hint = " (Mistral models have 'llama')" if architecture == "mistral" else ""
        raise ValueError(f"{file.path} has architecture {architecture!r}; supported: {names}{hint}")
    _check_keys(file, architecture)
    sizes = _read_sizes(file, architecture)
    biased = _check_tensors(file, architecture, sizes)
    make = {"llama": _llama, "qwen2": _qwen, "qwen3": _qwen, "gemma3": _gemma3}[architecture]
    context = file.integer(f"{architecture}.context_length")
    rope = read_rope(file, architecture, sizes.head_dim, context)
    common = {
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": file.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
        "bos_token_id": _token(file, "bos", sizes.vocab),
        "eos_token_id": _stop_tokens(file, sizes.vocab),
        "pad_token_id": _token(file, "padding", sizes.vocab),
    }
    return make(file, common, rope, biased)


def read_config_beside(file: GGUFFile, config: PreTrainedConfig) -> PreTrainedConfig:
    """Read the model's config, and check that it has the sizes of the one in the file's folder.

    Args:
        file: the file.
        config: from config.json.

    Raises:
        ValueError: `read_config` refuses the file, or a size differs.
    """
    own = read_config(file)
    for name in _SAME:
        if getattr(own, name) != getattr(config, name):
            raise file.error(
                f"it has {name} {getattr(own, name)!r}, and config.json beside it "
                f"{getattr(config, name)!r}"
            )
    return own


def _llama(
    file: GGUFFile, common: dict[str, Any], rope: dict[str, Any], biased: frozenset[str]
) -> PreTrainedConfig:
    from transformers import LlamaConfig, MistralConfig

    window = file.integer("llama.attention.sliding_window", None, lowest=0)
    if window:
        if biased:
            raise file.error("biases together with a sliding window are not supported")
        return MistralConfig(
            architectures=["MistralForCausalLM"],
            sliding_window=window,
            rope_parameters=rope,
            **common,
        )
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        attention_bias="attn_q" in biased,
        mlp_bias="ffn_up" in biased,
        rope_parameters=rope,
        **common,
    )


def _qwen(
    file: GGUFFile, common: dict[str, Any], rope: dict[str, Any], biased: frozenset[str]
) -> PreTrainedConfig:
    from transformers import Qwen2Config, Qwen3Config

    architecture = file.text("general.architecture")
    if file.metadata.get(f"{architecture}.attention.sliding_window"):
        raise file.error(f"{architecture}.attention.sliding_window is not supported")
    if architecture == "qwen2":
        if common["head_dim"] * common["num_attention_heads"] != common["hidden_size"]:
            raise file.error("qwen2.attention.key_length must be embedding_length / head_count")
        common.pop("head_dim")
        return Qwen2Config(architectures=["Qwen2ForCausalLM"], rope_parameters=rope, **common)
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        attention_bias="attn_q" in biased,
        rope_parameters=rope,
        **common,
    )


def _gemma3(
    file: GGUFFile, common: dict[str, Any], rope: dict[str, Any], biased: frozenset[str]
) -> PreTrainedConfig:
    from transformers import Gemma3TextConfig

    if FREQUENCIES in file.tensors:
        raise file.error(f"{FREQUENCIES} in a Gemma 3 model is not supported")
    layers = common["num_hidden_layers"]
    width = common["head_dim"]
    if layers == _GEMMA3_27B_LAYERS:
        width = common["hidden_size"] // common["num_attention_heads"]
    local = file.number("gemma3.rope.freq_base_swa", _GEMMA3_LOCAL_BASE)
    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        sliding_window=file.integer("gemma3.attention.sliding_window"),
        layer_types=_gemma3_layers(file, layers),
        query_pre_attn_scalar=width,
        final_logit_softcapping=file.number("gemma3.final_logit_softcapping", None),
        rope_parameters={
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        **common,
    )


def _gemma3_layers(file: GGUFFile, layers: int) -> list[str]:
    """Return the kind of attention of every layer; the last of each period has no window."""
    key = "gemma3.attention.sliding_window_pattern"
    pattern = file.metadata.get(key, _GEMMA3_PERIOD)
    if isinstance(pattern, np.ndarray):
        if pattern.dtype.kind not in "biu" or len(pattern) != layers:
            raise file.error(f"{key} must say of each of {layers} layers whether it has a window")
        windowed = [bool(value) for value in pattern]
    else:
        period = file.integer(key, _GEMMA3_PERIOD)
        windowed = [(layer + 1) % period != 0 for layer in range(layers)]
    return ["sliding_attention" if has else "full_attention" for has in windowed]


def _check_keys(file: GGUFFile, architecture: str) -> None:
    """Refuse fields with which the model would compute something else than the file asks for."""
    prefix = f"{architecture}."
    for key, value in file.metadata.items():
        name = key.removeprefix(prefix)
        if name == key or _SUPPORTED_KEYS.fullmatch(name):
            continue
        if name == "attention.scale":
            width = file.integer(f"{prefix}attention.key_length", None)
            if width is not None and abs(float(value) * sqrt(width) - 1) < 1e-5:
                continue
        if name not in _NEUTRAL or value != _NEUTRAL[name]:
            shown = value if isinstance(value, int | float | str) else type(value).__name__
            raise file.error(f"{key} = {shown!r} is not supported")


def _read_sizes(file: GGUFFile, architecture: str) -> Sizes:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise file.error("there is no tensor 'token_embd.weight' of two dimensions")
    heads = file.integer(f"{architecture}.attention.head_count")
    hidden = file.integer(f"{architecture}.embedding_length")
    head_dim = file.integer(f"{architecture}.attention.key_length", None)
    if head_dim is None:
        if hidden % heads:
            raise file.error(f"embedding_length {hidden} is not a multiple of head_count {heads}")
        head_dim = hidden // heads
    if head_dim % 2:
        raise file.error(f"the width of a head must be even, got {head_dim}")
    for name in ("attention.value_length", "rope.dimension_count", "attention.key_length_swa",
                 "attention.value_length_swa", "rope.dimension_count_swa"):  # fmt: skip
        value = file.integer(f"{architecture}.{name}", head_dim)
        if value != head_dim:
            raise file.error(
                f"{architecture}.{name} must be the width of a head, {head_dim}, got {value}"
            )
    kv_heads = file.integer(f"{architecture}.attention.head_count_kv", heads)
    if heads % kv_heads:
        raise file.error(f"head_count {heads} is not a multiple of head_count_kv {kv_heads}")
    sizes = Sizes(
        vocab=file.integer(f"{architecture}.vocab_size", embedding.shape[0]),
        hidden=hidden,
        intermediate=file.integer(f"{architecture}.feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=file.integer(f"{architecture}.block_count"),
    )
    if sizes.layers > len(file.tensors):
        raise file.error(
            f"{architecture}.block_count is {sizes.layers}, but there are only "
            f"{len(file.tensors)} tensors"
        )
    return sizes


def _check_tensors(file: GGUFFile, architecture: str, sizes: Sizes) -> frozenset[str]:
    """Check that the file has exactly the model's tensors; return the parts that have biases."""
    family = ARCHITECTURES[architecture]
    biased = set(family.biases)
    for group in family.optional_biases:
        if any(f"blk.0.{part}.bias" in file.tensors for part in group):
            biased |= set(group)
    wanted = _wanted_shapes(file, architecture, sizes, frozenset(biased))
    for name, tensor in file.tensors.items():
        if name == FREQUENCIES:
            continue
        if name not in wanted:
            try:
                weight_name(name, architecture)
            except ValueError as error:
                raise file.error(str(error)) from error
            raise file.error(f"tensor {name!r} belongs to no layer of {sizes.layers}")
        if tensor.shape != wanted[name]:
            raise file.error(f"tensor {name!r} must have shape {wanted[name]}, got {tensor.shape}")
    if missing := [name for name in wanted if name not in file.tensors]:
        raise file.error(f"{len(missing)} tensors are missing, the first is {missing[0]!r}")
    return frozenset(biased)


def _wanted_shapes(
    file: GGUFFile, architecture: str, sizes: Sizes, biased: frozenset[str]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the model, by its name in the file."""
    wanted: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (sizes.vocab, sizes.hidden),
        "output_norm.weight": (sizes.hidden,),
    }
    if "output.weight" in file.tensors:
        wanted["output.weight"] = (sizes.vocab, sizes.hidden)
    shapes = layer_shapes(architecture, sizes, biased)
    for layer in range(sizes.layers):
        wanted |= {f"blk.{layer}.{name}": shape for name, shape in shapes.items()}
    return wanted


def _token(file: GGUFFile, name: str, vocab: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    # llama.cpp writes -1, as an unsigned number, for no token.
    if file.metadata.get(key) in (-1, 0xFFFFFFFF):
        return None
    token = file.integer(key, None, lowest=0)
    if token is not None and token >= vocab:
        raise file.error(f"{key} must be below the vocabulary's {vocab}, got {token}")
    return token


def _stop_tokens(file: GGUFFile, vocab: int) -> int | list[int] | None:
    """Return the tokens that end a text, a turn or a message: one, several, or none."""
    found = [_token(file, name, vocab) for name in ("eos", "eot", "eom")]
    tokens = list(dict.fromkeys(token for token in found if token is not None))
    return tokens[0] if len(tokens) == 1 else tokens or None
