"""Reading of a draft head's ``config.json`` in the three layouts in use.

EAGLE and SpecForge write a flat LLaMA-like object; speculators nests the decoder's fields in
``transformer_layer_config``. Both become the fields of one `Eagle3Config`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from eaglerl.eagle3.head.feature_layers import (
    AuxLayerConvention,
    as_feature_layers,
    eagle_config,
    is_speculators,
    read_feature_layers,
)
from eaglerl.eagle3.layers.rope import read_rope_parameters

NormOutputConvention = Literal["logits", "feedback"]

_LAYER_TYPES = ("full_attention", "sliding_attention")
_PARALLEL_DRAFTING_KEYS = ("mask_hidden", "mask_token_id", "ptd_token_id", "num_depths")
_BIAS_KEYS = ("attention_bias", "mlp_bias", "qkv_bias")


def read_config_fields(
    data: Mapping[str, Any],
    *,
    feature_layers: Sequence[int] | None,
    aux_layer_convention: AuxLayerConvention | None,
    norm_output_convention: NormOutputConvention | None,
) -> dict[str, Any]:
    """Return `Eagle3Config`'s fields; arguments and errors are those of its ``from_dict``."""
    _check_choice("aux_layer_convention", aux_layer_convention, ("input", "output"))
    _check_choice("norm_output_convention", norm_output_convention, ("logits", "feedback"))
    if not isinstance(data, Mapping):
        raise ValueError(f"config.json must hold an object, got {type(data).__name__}")
    layer = _layer_fields(data)
    _reject_other_heads(data, layer)
    _reject_unsupported(data, layer)
    hidden_size, heads, vocab_size = (
        _required_size(layer, key) for key in ("hidden_size", "num_attention_heads", "vocab_size")
    )
    window = _read_sliding_window(layer)
    return {
        "hidden_size": hidden_size,
        "intermediate_size": _required_size(layer, "intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": _value(layer, "num_key_value_heads", heads),
        "head_dim": _value(layer, "head_dim", hidden_size // heads),
        "vocab_size": vocab_size,
        "draft_vocab_size": _value(data, "draft_vocab_size", vocab_size),
        "max_position_embeddings": _value(layer, "max_position_embeddings", 2048),
        "rms_norm_eps": _value(layer, "rms_norm_eps", 1e-6),
        "rope_parameters": read_rope_parameters(
            layer, layer_type="full_attention" if window is None else "sliding_attention"
        ),
        "qk_norm": layer.get("model_type") == "qwen3",
        "sliding_window": window,
        "target_hidden_size": data.get("target_hidden_size"),
        "fc_norm": _flag(data, "fc_norm"),
        "norm_before_fc": _flag(data, "norm_before_fc"),
        "norm_before_residual": _norm_before_residual(data),
        "tie_word_embeddings": _flag(data, "tie_word_embeddings"),
        "feature_layers": read_feature_layers(data, aux_layer_convention)
        if feature_layers is None
        else as_feature_layers(list(feature_layers), "feature_layers"),
        "token_ids": _read_token_ids(data, layer),
        **_read_norm_output(data, norm_output_convention),
    }


def _layer_fields(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the mapping that holds the decoder layer's fields."""
    if not is_speculators(data):
        return data
    layer = data.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        raise ValueError(
            "transformer_layer_config must be an object in a speculators config.json, got "
            f"{type(layer).__name__}"
        )
    return layer


def _reject_other_heads(data: Mapping[str, Any], layer: Mapping[str, Any]) -> None:
    kind = data.get("speculators_model_type", "eagle3")
    if kind != "eagle3":
        raise ValueError(f"speculators_model_type must be 'eagle3', got {kind!r}")
    for key in _PARALLEL_DRAFTING_KEYS:
        if data.get(key) is not None:
            raise ValueError(f"{key} belongs to a P-EAGLE head, which is not supported")
    count = _value(layer, "num_hidden_layers", 1)
    if count != 1:
        raise ValueError(
            f"num_hidden_layers must be 1 in an EAGLE-3 head, got {count} (heads of several layers,"
            " such as P-EAGLE's, are not supported)"
        )
    if not eagle_config(data).get("use_aux_hidden_state", True):
        raise ValueError(
            "eagle_config.use_aux_hidden_state must be true: an EAGLE-3 head reads three layers"
        )


def _reject_unsupported(data: Mapping[str, Any], layer: Mapping[str, Any]) -> None:
    for key, allowed in (("model_type", ("llama", "qwen3")), ("hidden_act", ("silu",))):
        value = _value(layer, key, allowed[0])
        if value not in allowed:
            names = " or ".join(map(repr, allowed))
            raise ValueError(f"{key} must be {names}, got {value!r}")
    for key in _BIAS_KEYS:
        if layer.get(key):
            raise ValueError(f"{key} must be false: EAGLE-3 heads have no biases")


def _read_sliding_window(layer: Mapping[str, Any]) -> int | None:
    """Return the window of the head's layer as transformers and speculators understand it."""
    window, types = layer.get("sliding_window"), layer.get("layer_types")
    is_qwen3 = layer.get("model_type") == "qwen3"
    # Qwen3 has no window unless use_sliding_window is set, whatever its layer types say.
    switch = _flag(layer, "use_sliding_window", not is_qwen3)
    if is_qwen3 and not switch:
        return None
    if types is not None:
        if not isinstance(types, list) or len(types) != 1 or types[0] not in _LAYER_TYPES:
            raise ValueError(f"layer_types must name one of {list(_LAYER_TYPES)}, got {types!r}")
        slides = types[0] == "sliding_attention"
        if slides and window is None:
            raise ValueError("sliding_window is missing: layer_types says 'sliding_attention'")
    elif is_qwen3:
        # Layers from this number on have the window; a head has layer 0 only.
        slides = _value(layer, "max_window_layers", 28) == 0
    else:
        slides = switch
    return window if slides else None


def _read_norm_output(
    data: Mapping[str, Any], convention: NormOutputConvention | None
) -> dict[str, bool]:
    if "eaglerl_norm_output" in data or "eaglerl_norm_feedback" in data:
        return {
            "norm_output": _flag(data, "eaglerl_norm_output", True),
            "norm_feedback": _flag(data, "eaglerl_norm_feedback", False),
        }
    if data.get("norm_output") is None:
        return {}
    value = _flag(data, "norm_output")
    if convention is None:
        convention = "feedback" if is_speculators(data) else "logits"
        if convention == "logits":
            warnings.warn(
                f"norm_output = {value} in config.json is read as 'apply the final norm before "
                "lm_head'; EAGLE-3.1 heads mean 'feed the normed output back'. Pass "
                "norm_output_convention='logits' or 'feedback' to say which.",
                stacklevel=4,
            )
    if convention == "logits":
        return {"norm_output": value}
    return {"norm_feedback": value}


def _norm_before_residual(data: Mapping[str, Any]) -> bool:
    # speculators writes False by default and vLLM assumes True. A wrong guess lowers the acceptance
    # length and shows in no other way, so there is no default here.
    if is_speculators(data) and data.get("norm_before_residual") is None:
        raise ValueError(
            "norm_before_residual is missing in a speculators config.json; add true or false"
        )
    return _flag(data, "norm_before_residual")


def _flag(data: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = data.get(key)
    if value is None:
        value = eagle_config(data).get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}")
    return value


def _read_token_ids(data: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    values = {key: _value(data, key, layer.get(key)) for key in keys}
    for key, value in values.items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(index) is int for index in ids):
            raise ValueError(f"{key} must be a token id, a list of them or null, got {value!r}")
    return {key: value for key, value in values.items() if value is not None}


def _required_size(data: Mapping[str, Any], key: str) -> int:
    value = data.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json must give {key} as a positive integer, got {value!r}")
    return value


def _value(data: Mapping[str, Any], key: str, default: Any) -> Any:
    value = data.get(key)
    return default if value is None else value


def _check_choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {allowed} or None, got {value!r}")
