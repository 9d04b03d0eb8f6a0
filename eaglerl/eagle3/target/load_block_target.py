"""Loading a target for the CPU's block kernels, tensor by tensor and without expanding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import GenerationConfig, PreTrainedConfig

from eaglerl._ext import C
from eaglerl.eagle3.target.block_target import BlockTarget, Precision
from eaglerl.eagle3.target.block_weights import read_decoder_weights
from eaglerl.eagle3.target.gguf_weights import GGUFWeights
from eaglerl.eagle3.target.packed_target import why_not_fast
from eaglerl.eagle3.target.safetensors_weights import SafetensorsWeights, safetensors_of
from eaglerl.eagle3.target.target_files import check_target_files, read_target_config
from eaglerl.eagle3.target.target_model import head_dim_of
from eaglerl.eagle3.target.weight_files import WeightFile, WeightFormat, has_blocks
from eaglerl.gguf_convert.convert import GGUF_NAME
from eaglerl.gguf_convert.gguf_config import read_config_beside
from eaglerl.gguf_convert.gguf_file import read_gguf

# Files of a hub's repository that are read.
_PATTERNS = ["*.json", "model*.safetensors"]


@dataclass(frozen=True)
class BlockSource:
    """A folder whose model runs in the block kernels."""

    path: Path
    config: PreTrainedConfig
    weights: WeightFile


def has_gguf(path: str | Path) -> bool:
    """Return whether a folder has the GGUF file of its model."""
    return (Path(path) / GGUF_NAME).is_file()


def open_block_source(path: str | Path, weights: WeightFormat = "stored") -> BlockSource | str:
    """Read a model's config and the headers of its weights.

    Args:
        path: folder with a GGUF file or safetensors files, of which the first is taken if there
            are both; or the hub name of a model with safetensors files.
        weights: see `load_target`.

    Returns:
        What `load_block_target` takes; or the reason why the model cannot run so.

    Raises:
        ValueError: a file is damaged, or its tensors are not those that the config implies.
        OSError: there is no model of this name.
    """
    config = read_target_config(path)
    reason = why_not_fast(config)
    if reason is not None:
        return reason
    folder = Path(path)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(path), allow_patterns=_PATTERNS))
    opened = (_open_gguf if has_gguf(folder) else _open_safetensors)(folder, config, weights)
    return opened if isinstance(opened, str) else BlockSource(folder, config, opened)


def _open_gguf(path: Path, config: PreTrainedConfig, weights: WeightFormat) -> WeightFile | str:
    file = read_gguf(path / GGUF_NAME)
    own = read_config_beside(file, config)
    if head_dim_of(own) != head_dim_of(config):
        raise file.error(
            f"its heads are {head_dim_of(own)} wide, and config.json beside it has head_dim "
            f"{head_dim_of(config)}"
        )
    opened = GGUFWeights(file, weights)
    for name in opened.matrices():
        if opened.format_of(name) not in C.block_formats():
            return (
                f"its GGUF file has tensor {name!r} of type {opened.format_of(name)}, which "
                f'weights="q8_0" would convert while loading'
            )
    return opened


def _open_safetensors(
    path: Path, config: PreTrainedConfig, weights: WeightFormat
) -> WeightFile | str:
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantised already, in another way than GGUF's"
    if (path / "adapter_config.json").exists():
        return "it has an adapter beside its weights"
    if not safetensors_of(path):
        return (
            f"its folder has neither {GGUF_NAME}, which `eaglerl prepare` puts there, nor "
            "safetensors files"
        )
    return SafetensorsWeights(path, config, weights)


def load_block_target(
    source: BlockSource,
    *,
    feature_layers: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    precision: Precision = "native",
    kv_cache_dtype: torch.dtype | None = None,
) -> BlockTarget:
    """Load a target for the block kernels.

    Args:
        source: see `open_block_source`.
        feature_layers: see `load_target`.
        precision: see `BlockTarget`.
        kv_cache_dtype: see `BlockTarget`; None for float32.

    Raises:
        ValueError: a tensor cannot be packed, see `WeightFile.matrix`; or the precision is int8 and
            no matrix has blocks.
    """
    config, weights = source.config, source.weights
    check_target_files(source.path)
    if precision == "int8":
        formats = {weights.format_of(name) for name in weights.matrices()}
        if not any(map(has_blocks, formats)):
            raise weights.error(
                f'precision="int8" needs weights in blocks, got {", ".join(sorted(formats))}; '
                'weights="q8_0" makes them'
            )
    if callable(feature_layers):
        feature_layers = feature_layers(config.num_hidden_layers)
    target = BlockTarget(
        config,
        _generation_config(source.path, config),
        read_decoder_weights(weights, config),
        feature_layers,
        precision=precision,
        kv_cache_dtype=kv_cache_dtype or torch.float32,
    )
    target.weights = weights.weights
    return target


def _generation_config(path: Path, config: PreTrainedConfig) -> GenerationConfig:
    if (path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(path)
    return GenerationConfig.from_model_config(config)
