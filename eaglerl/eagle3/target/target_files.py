"""Loading a target from a folder, whose config is checked before transformers uses it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from eaglerl.eagle3.generation_config.generation_schema import GenerationConfigSchema
from eaglerl.eagle3.layers.rope import rope_contradiction
from eaglerl.eagle3.target.gguf_model import expand_transformers_model, only_gguf
from eaglerl.eagle3.target.target_header import check_fits_header
from eaglerl.json_file import AnyObject, read_json, shortly
from eaglerl.regular_file import check_regular, naming

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIZES = (
    "hidden_size",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
# Upper limits far beyond any model, since memory is allocated by these sizes. A context length
# allocates nothing by itself and may be larger.
_MOST = 1 << 24
_LARGEST = {
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1 << 13,
    "num_key_value_heads": 1 << 13,
    "head_dim": 1 << 14,
    "max_position_embeddings": 1 << 40,
}
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "intermediate_size")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Endings of the files that transformers may open in a folder.
_READ_ENDINGS = (".json", ".safetensors", ".bin", ".model")


def read_target_config(path: str | Path) -> PreTrainedConfig:
    """Read the config of a target, a dense causal language model.

    If a config gives RoPE in two notations that contradict each other, a warning says so, and
    transformers' reading counts: decoding has to reproduce what transformers computes.

    Args:
        path: folder or hub name.

    Raises:
        ValueError: the config is broken or describes another kind of model; the message names the
            key or the kind.
        OSError: transformers finds no config there.
    """
    data: Mapping[str, Any] = {}
    file = Path(path) / "config.json"
    if Path(path).is_dir():
        data = read_json(file, AnyObject, "target's config", allow_nan=True)
        _check_values(data, f"the target's config {str(file)!r}")
    try:
        with naming(f"the target {str(path)!r}"):
            config = AutoConfig.from_pretrained(path)
    except (ValueError, OSError):
        raise
    except Exception as error:
        # transformers' own checks raise errors of several types, and miss some divisions by 0.
        reason = " ".join(str(error).split())
        raise ValueError(
            f"transformers cannot read the target's config {str(file)!r}: {reason}"
        ) from error
    try:
        check_target_config(config)
    except ValueError as error:
        raise ValueError(f"the target {str(path)!r} cannot be used: {error}") from None
    contradiction = rope_contradiction(data)
    if contradiction is not None:
        warnings.warn(
            f"config.json of the target: {contradiction}; as in transformers' own generate, what "
            f"transformers reads counts, {config.rope_parameters}",
            stacklevel=2,
        )
    return config


def check_target_config(config: PreTrainedConfig) -> None:
    """Check that a config describes a causal language model of text.

    Raises:
        ValueError: it is not, or lacks a size; the message names it.
    """
    kind = f"model_type {config.model_type!r}"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} is an encoder-decoder model, which is not supported as a target")
    text = config.get_text_config()
    if text is not config:
        raise ValueError(
            f"{kind} reads more than text (its language model is a {text.model_type!r} inside), "
            "which is not supported as a target; a folder with that language model alone is"
        )
    for name in _SIZES:
        value = _size(config, name)
        if type(value) is not int or value < 1:
            raise ValueError(
                f"the target's config must give {name} as a positive integer, got "
                f"{shortly(value)}: {kind} is not supported without it"
            )


def check_target_files(path: str | Path) -> None:
    """Check that a folder's files are regular, and its generation config well-formed.

    Raises:
        ValueError: one is not; the message names it.
    """
    for file in sorted(Path(path).iterdir()):
        if file.name.endswith(_READ_ENDINGS):
            check_regular(file, "target's file")
        if file.name == "generation_config.json":
            read_json(file, GenerationConfigSchema, "target's generation config", allow_nan=True)


def load_transformers_model(path: str | Path, dtype: torch.dtype | str) -> PreTrainedModel:
    """Load a target's weights with transformers, on the CPU and in evaluation mode.

    Of a prepared folder without float32 files, the GGUF file is expanded in memory.

    Args:
        path: folder or hub name.
        dtype: of the weights, or "auto" for the file's.

    Raises:
        ValueError: the config is refused, see `read_target_config`; or weights are missing or
            cannot be read.
        OSError: transformers finds no model there.
    """
    config = read_target_config(path)
    if Path(path).is_dir():
        check_target_files(path)
        check_fits_header(path, config)
    try:
        with naming(f"the target {str(path)!r}"):
            loaded = (
                expand_transformers_model(path, config, dtype)
                if only_gguf(path)
                else AutoModelForCausalLM.from_pretrained(
                    path, dtype=dtype, output_loading_info=True
                )
            )
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # A damaged file can raise any exception in its reader.
        reason = " ".join(str(error).split())
        raise ValueError(f"transformers cannot load the target {str(path)!r}: {reason}") from error
    # A pair with output_loading_info, which transformers' annotations leave out.
    model, found = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(
            f"the target {str(path)!r} lacks {len(missing)} of its weights, such as "
            f"{missing[0]!r}; transformers would fill them with random numbers"
        )
    return model.eval()


def embedding_table(model: PreTrainedModel) -> torch.Tensor:
    """Return the input embeddings (vocab_size, hidden_size) of a model."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor), "an embedding has a table"
    return weight.detach()


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the decoder layers of a causal language model.

    Raises:
        ValueError: the model keeps them elsewhere than in ``layers`` of its decoder.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ValueError(
            f"model_type {model.config.model_type!r} is not supported as a target: its decoder "
            f"({type(model.get_decoder()).__name__}) has no list of layers named 'layers'"
        )
    return layers


def _size(config: PreTrainedConfig, name: str) -> Any:
    """Return a config's size; None if it has none, or a different one per layer."""
    try:
        return getattr(config, name, None)
    except Exception:
        # transformers raises for sizes in which the layers of a model differ.
        return None


def _check_values(data: Mapping[str, Any], where: str) -> None:
    """Check sizes and token ids in the file, before anything divides by them."""
    for name in (*_SIZES, *_OPTIONAL_SIZES):
        value = data.get(name)
        # Some architectures give a size per layer.
        if value is None or isinstance(value, list | dict):
            continue
        if type(value) is not int or value < 1:
            raise ValueError(
                f"{where} must give {name} as a positive integer, got {shortly(value)}"
            )
        if value > (most := _LARGEST.get(name, _MOST)):
            raise ValueError(f"{where} must give {name} of at most {most}, got {shortly(value)}")
    _check_token_ids(data, where)


def _check_token_ids(data: Mapping[str, Any], where: str) -> None:
    for name in _TOKEN_IDS:
        value = data.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(index) is int for index in ids):
            raise ValueError(
                f"{where} must give {name} as a token id, a list of them or null, got "
                f"{shortly(value)}"
            )
