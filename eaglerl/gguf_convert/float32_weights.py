"""The weights of a GGUF file in float32, under transformers' names: one by one, or as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eaglerl.files import atomic_path
from eaglerl.gguf_convert.gguf_file import GGUFFile, GGUFTensor
from eaglerl.gguf_convert.gguf_rope import FREQUENCIES
from eaglerl.gguf_convert.tensor_names import ARCHITECTURES, weight_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Progress = Callable[[str, float], None]
"""Called with a description of the current step and the fraction of the whole that is done."""

WEIGHTS_NAME = "model.safetensors"
"""Name of the file of float32 weights, where it is only one."""
INDEX_NAME = "model.safetensors.index.json"
"""Name of the index of several files of float32 weights."""
#: Most numbers that are expanded and written at a time, 4 GB, unless one tensor has more.
SHARD_ELEMENTS = 1 << 30


def expanded_weights(file: GGUFFile, config: PreTrainedConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the values of every weight of a transformers model, in float32.

    Args:
        file: whose tensors have the shapes that the config implies, as `read_config` checks.
        config: of the model.

    Raises:
        ValueError: `gguf` cannot expand a tensor, or it holds values that are not finite.
    """
    architecture = file.text("general.architecture")
    for tensor in _weights(file):
        yield weight_name(tensor.name, architecture), _expand(file, tensor, config)


def check_weights(file: GGUFFile, report: Progress) -> None:
    """Expand every tensor once, and keep none.

    Args:
        file: the file.
        report: called with the fraction of the weights that is checked.

    Raises:
        ValueError: `gguf` cannot expand a tensor, or it holds values that are not finite.
    """
    weights = _weights(file)
    total, done = sum(map(_elements, weights)), 0
    for tensor in weights:
        report("checking the weights", done / total)
        file.expand(tensor.name)
        done += _elements(tensor)


def write_float32(
    file: GGUFFile, config: PreTrainedConfig, output: Path, report: Progress
) -> list[str]:
    """Write all weights in float32 as safetensors.

    Args:
        file: whose tensors have the shapes that the config implies, as `read_config` checks.
        config: of the model.
        output: existing folder. Files of weights that it holds are taken for complete, so that an
            interrupted run is resumed.
        report: called with the fraction of the weights that is written.

    Returns:
        The names of the files; of several, the index comes last.

    Raises:
        ValueError: `gguf` cannot expand a tensor, or it holds values that are not finite.
    """
    shards = _plan(_weights(file))
    total, done = sum(_elements(tensor) for shard in shards for tensor in shard), 0
    where: dict[str, str] = {}
    names = []
    architecture = file.text("general.architecture")
    for number, shard in enumerate(shards, start=1):
        name = WEIGHTS_NAME
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        names.append(name)
        where |= {weight_name(tensor.name, architecture): name for tensor in shard}
        if not (output / name).exists():
            weights = {}
            for tensor in shard:
                report("expanding the weights to float32", done / total)
                weights[weight_name(tensor.name, architecture)] = _expand(file, tensor, config)
                done += _elements(tensor)
            _save(weights, output / name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": 4 * total}, "weight_map": where}
        with atomic_path(output / INDEX_NAME) as temporary:
            temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        names.append(INDEX_NAME)
    return names


def rotate_half_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key projection (heads * head_dim, ...), or of its bias.

    GGUF keeps the two members of a rotary pair in neighbouring rows; transformers keeps them
    head_dim / 2 rows apart.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _weights(file: GGUFFile) -> list[GGUFTensor]:
    """Return the tensors that are weights in transformers, in the order of the file."""
    return [tensor for name, tensor in file.tensors.items() if name != FREQUENCIES]


def _save(weights: dict[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def _plan(tensors: list[GGUFTensor]) -> list[list[GGUFTensor]]:
    """Group the tensors into shards that fit into memory, in the order of the file."""
    shards: list[list[GGUFTensor]] = []
    room = 0
    for tensor in tensors:
        elements = _elements(tensor)
        if not shards or elements > room:
            shards.append([])
            room = SHARD_ELEMENTS
        shards[-1].append(tensor)
        room -= elements
    return shards


def _elements(tensor: GGUFTensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _expand(file: GGUFFile, tensor: GGUFTensor, config: PreTrainedConfig) -> np.ndarray:
    family = ARCHITECTURES[file.text("general.architecture")]
    weight = file.expand(tensor.name)
    if family.interleaved and ".attn_q." in tensor.name:
        weight = rotate_half_order(weight, config.num_attention_heads)
    elif family.interleaved and ".attn_k." in tensor.name:
        weight = rotate_half_order(weight, config.num_key_value_heads)
    if family.norm_shift and tensor.name.endswith("norm.weight"):
        weight = weight - np.float32(family.norm_shift)
    return np.ascontiguousarray(weight)
