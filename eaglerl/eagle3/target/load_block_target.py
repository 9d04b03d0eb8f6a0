"""Loading a target from the GGUF file in its folder, without expanding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedConfig

from eaglerl.eagle3.target.block_target import BlockTarget, Precision
from eaglerl.eagle3.target.block_weights import BLOCK_FORMATS, read_decoder_weights, tensor_format
from eaglerl.eagle3.target.packed_target import why_not_fast
from eaglerl.eagle3.target.target_files import check_target_files, read_target_config
from eaglerl.eagle3.target.target_model import head_dim_of
from eaglerl.gguf_convert.convert import GGUF_NAME
from eaglerl.gguf_convert.gguf_config import read_config_beside
from eaglerl.gguf_convert.gguf_file import GGUFFile, read_gguf

# Outputs of a panel, which every head has to fill.
_HEAD_DIM_STEP = 16


@dataclass(frozen=True)
class BlockSource:
    """A folder whose model runs in the blocks of its GGUF file."""

    path: Path
    config: PreTrainedConfig
    file: GGUFFile


def open_block_source(path: str | Path) -> BlockSource | str:
    """Read a folder's config and the header of its GGUF file.

    Returns:
        What `load_block_target` takes; or the reason why the model cannot run so.

    Raises:
        ValueError: the GGUF file or the config is damaged.
    """
    path = Path(path)
    if not (path / GGUF_NAME).is_file():
        return f"its folder has no {GGUF_NAME}; `eaglerl prepare` puts it there"
    config, file = read_target_config(path), read_gguf(path / GGUF_NAME)
    return _why_not(config, file) or BlockSource(path, config, file)


def _why_not(config: PreTrainedConfig, file: GGUFFile) -> str | None:
    reason = why_not_fast(config)
    if reason is not None:
        return reason
    head_dim = head_dim_of(config)
    if head_dim % _HEAD_DIM_STEP:
        return f"its heads are {head_dim} wide, no multiple of {_HEAD_DIM_STEP}"
    for name, tensor in file.tensors.items():
        if name.endswith(("ffn_up.bias", "attn_output.bias")):
            return f"it has the bias {name}"
        if len(tensor.shape) == 2 and tensor_format(tensor) not in BLOCK_FORMATS:
            return f"tensor {name!r} is of type {tensor_format(tensor)}"
    return None


def load_block_target(
    source: BlockSource,
    *,
    feature_layers: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    precision: Precision = "native",
) -> BlockTarget:
    """Load a target in the blocks of the GGUF file in its folder.

    Args:
        source: see `open_block_source`.
        feature_layers: see `load_target`.
        precision: see `BlockTarget`.

    Raises:
        ValueError: the GGUF file is that of another model, or holds something other than its header
            says.
    """
    config, file = source.config, source.file
    check_target_files(source.path)
    own = read_config_beside(file, config)
    if callable(feature_layers):
        feature_layers = feature_layers(config.num_hidden_layers)
    return BlockTarget(
        config,
        _generation_config(source.path, config),
        read_decoder_weights(file, own),
        feature_layers,
        precision=precision,
    )


def _generation_config(path: Path, config: PreTrainedConfig) -> GenerationConfig:
    if (path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(path)
    return GenerationConfig.from_model_config(config)
