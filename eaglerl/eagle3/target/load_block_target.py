"""Loading a target from the GGUF file in its folder, without expanding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedConfig

from eaglerl.eagle3.target.block_target import BlockTarget, Precision
from eaglerl.eagle3.target.block_weights import BLOCK_FORMATS, read_decoder_weights, tensor_format
from eaglerl.eagle3.target.packed_target import why_not_fast
from eaglerl.eagle3.target.target_files import check_target_files, read_target_config
from eaglerl.gguf_convert.convert import GGUF_NAME
from eaglerl.gguf_convert.gguf_config import read_config
from eaglerl.gguf_convert.gguf_file import GGUFFile, read_gguf

# Outputs of a panel, which every head has to fill.
_HEAD_DIM_STEP = 16
_SAME = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def why_not_blocks(path: str | Path) -> str | None:
    """Return why a folder's model cannot run in the blocks of a GGUF file; None if it can.

    Raises:
        ValueError: the GGUF file or the config is damaged.
    """
    file = Path(path) / GGUF_NAME
    if not file.is_file():
        return f"its folder has no {GGUF_NAME}"
    return _why_not(read_target_config(path), read_gguf(file))


def _why_not(config: PreTrainedConfig, file: GGUFFile) -> str | None:
    reason = why_not_fast(config)
    if reason is not None:
        return reason
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    if head_dim % _HEAD_DIM_STEP:
        return f"its heads are {head_dim} wide, no multiple of {_HEAD_DIM_STEP}"
    for name, tensor in file.tensors.items():
        if name.endswith(("ffn_up.bias", "attn_output.bias")):
            return f"it has the bias {name}"
        if len(tensor.shape) == 2 and tensor_format(tensor) not in BLOCK_FORMATS:
            return f"tensor {name!r} is of type {tensor_format(tensor)}"
    return None


def load_block_target(
    path: str | Path,
    *,
    feature_layers: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    precision: Precision = "native",
) -> BlockTarget:
    """Load a target in the blocks of the GGUF file in its folder.

    Args:
        path: folder with the config, the tokenizer and `model.gguf`.
        feature_layers: see `load_target`.
        precision: see `BlockTarget`.

    Raises:
        ValueError: the folder has no GGUF file, it is damaged or is that of another model, or the
            kernels do not support the model.
    """
    config = read_target_config(path)
    gguf_path = Path(path) / GGUF_NAME
    if not gguf_path.is_file():
        raise ValueError(
            f'precision="{precision}" needs {GGUF_NAME} in the folder {str(path)!r}; '
            "`eaglerl prepare` puts it there"
        )
    file = read_gguf(gguf_path)
    reason = _why_not(config, file)
    if reason is not None:
        raise ValueError(f'precision="{precision}" cannot run {str(path)!r}: {reason}')
    check_target_files(path)
    own = read_config(file)
    for name in _SAME:
        if getattr(own, name) != getattr(config, name):
            raise file.error(
                f"it has {name} {getattr(own, name)!r}, and config.json beside it "
                f"{getattr(config, name)!r}"
            )
    if callable(feature_layers):
        feature_layers = feature_layers(config.num_hidden_layers)
    weights = read_decoder_weights(file, own)
    return BlockTarget(
        config, _generation_config(path, config), weights, feature_layers, precision=precision
    )


def _generation_config(path: str | Path, config: PreTrainedConfig) -> GenerationConfig:
    if (Path(path) / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(path)
    return GenerationConfig.from_model_config(config)
