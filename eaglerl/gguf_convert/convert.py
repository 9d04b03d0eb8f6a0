"""The conversion: config, weights and tokenizer of one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eaglerl.files import atomic_path
from eaglerl.gguf_convert.gguf_config import read_config
from eaglerl.gguf_convert.gguf_file import GGUFFile, GGUFTensor, read_gguf
from eaglerl.gguf_convert.gguf_rope import FREQUENCIES
from eaglerl.gguf_convert.tensor_names import ARCHITECTURES, weight_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Progress = Callable[[str, float], None]
"""Called with a description of the current step and the fraction of the whole that is done."""

#: Name of the GGUF file itself in the folder.
GGUF_NAME = "model.gguf"
#: Most fp32 numbers that are expanded and written at a time, 4 GB, unless one tensor has more.
SHARD_ELEMENTS = 1 << 30
_WEIGHTS_BEGIN, _WEIGHTS_END = 0.3, 0.8


def convert_gguf(source: Path, output: Path, *, progress: Progress | None = None) -> None:
    """Write config, weights (fp32) and tokenizer of a GGUF file as a transformers folder.

    Args:
        source: GGUF file of one of `ARCHITECTURES`, in any quantization that `gguf` can expand.
        output: existing folder. Files of the same names are overwritten, except complete files of
            weights, so that an interrupted conversion is resumed.
        progress: called with each step and the fraction of the whole that is done.

    Raises:
        ValueError: the file is damaged, of another architecture, or has something that cannot be
            converted; the message names it.
    """
    report = progress or (lambda _stage, _fraction: None)
    report("loading libraries", 0.0)
    from transformers import GenerationConfig

    report("reading the model's metadata", 0.1)
    file = read_gguf(source)
    config = read_config(file)
    report("converting the tokenizer", 0.2)
    # Before the weights, which take the longest: what cannot be converted is refused early.
    _convert_tokenizer(file, config.vocab_size, output)
    config.save_pretrained(output)
    GenerationConfig.from_model_config(config).save_pretrained(output)
    _write_weights(file, config, output, report)
    # The CPU's block kernels read the file as it is.
    with atomic_path(output / GGUF_NAME) as temporary:
        shutil.copyfile(source, temporary)
    report("done", 1.0)


def _convert_tokenizer(file: GGUFFile, vocab_size: int, output: Path) -> None:
    from transformers import AutoTokenizer

    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise file.error("there is no tokenizer: tokenizer.ggml.tokens must be a list of texts")
    if len(tokens) > vocab_size:
        raise file.error(
            f"tokenizer.ggml.tokens has {len(tokens)} texts for {vocab_size} rows of embeddings"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            file.path.parent, gguf_file=file.path.name, local_files_only=True
        )
    except Exception as error:
        # A damaged file can raise any exception in transformers and tokenizers.
        raise file.error(
            f"its tokenizer cannot be converted: {type(error).__name__}: {error}"
        ) from error
    tokenizer.save_pretrained(output)


def _write_weights(
    file: GGUFFile, config: PreTrainedConfig, output: Path, report: Progress
) -> None:
    shards = _plan([tensor for name, tensor in file.tensors.items() if name != FREQUENCIES])
    total = sum(_elements(tensor) for shard in shards for tensor in shard)
    done = 0
    where: dict[str, str] = {}
    architecture = file.text("general.architecture")
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        where |= {weight_name(tensor.name, architecture): name for tensor in shard}
        if not (output / name).exists():
            weights = {}
            for tensor in shard:
                share = done / total
                report(
                    "expanding the weights to fp32",
                    _WEIGHTS_BEGIN + share * (_WEIGHTS_END - _WEIGHTS_BEGIN),
                )
                weights[weight_name(tensor.name, architecture)] = _expand(
                    file, tensor, config, architecture
                )
                done += _elements(tensor)
            _save(weights, output / name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": 4 * total}, "weight_map": where}
        with atomic_path(output / "model.safetensors.index.json") as temporary:
            temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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


def _expand(
    file: GGUFFile, tensor: GGUFTensor, config: PreTrainedConfig, architecture: str
) -> np.ndarray:
    family = ARCHITECTURES[architecture]
    weight = file.expand(tensor.name)
    if family.interleaved and ".attn_q." in tensor.name:
        weight = rotate_half_order(weight, config.num_attention_heads)
    elif family.interleaved and ".attn_k." in tensor.name:
        weight = rotate_half_order(weight, config.num_key_value_heads)
    if family.norm_shift and tensor.name.endswith("norm.weight"):
        weight = weight - np.float32(family.norm_shift)
    return np.ascontiguousarray(weight)


def rotate_half_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key projection (heads * head_dim, ...), or of its bias.

    GGUF keeps the two members of a rotary pair in neighbouring rows; transformers keeps them
    head_dim / 2 rows apart.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
