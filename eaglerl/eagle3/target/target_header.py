"""Check a target's config against the headers of its weights, before memory is allocated."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import PreTrainedConfig

from eaglerl.tensor_file import open_tensors, read_weight_index

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def check_fits_header(path: str | Path, config: PreTrainedConfig) -> None:
    """Check that the sizes of a config are those of the tensors in its folder.

    transformers allocates a model of the config's sizes before it reads a tensor, so an absurd size
    would fill the memory. Quantised models are not checked, since their tensors have other shapes,
    and neither are folders without safetensors.

    Args:
        path: folder of the target.
        config: its config, with checked sizes.

    Raises:
        ValueError: a file cannot be read, or a size contradicts its tensors; the message says both.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    shapes = dict(_shapes(Path(path)))
    layers = [int(found[1]) + 1 for name in shapes if (found := _LAYER.search(name))]
    if layers and config.num_hidden_layers > max(layers):
        raise ValueError(
            f"num_hidden_layers of the target {str(path)!r} is {config.num_hidden_layers}, but its "
            f"weights have {max(layers)} layers"
        )
    for ending, expected in _expected(config).items():
        for name, shape in shapes.items():
            # Padded tensors, such as embeddings, have more rows, never fewer.
            if name.endswith(ending) and (len(shape) != 2 or shape[0] < expected[0]):
                raise ValueError(
                    f"{name} of the target {str(path)!r} must have {expected[0]} rows, as its "
                    f"config says, got the shape {shape}"
                )


def _expected(config: PreTrainedConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the fewest rows of tensors in the usual architectures, by the end of their names."""
    expected = {"embed_tokens.weight": (config.vocab_size,)}
    width = getattr(config, "intermediate_size", None)
    if isinstance(width, int) and config.model_type in ("llama", "mistral", "qwen2", "qwen3"):
        expected["mlp.gate_proj.weight"] = (width,)
        expected["mlp.down_proj.weight"] = (config.hidden_size,)
    return expected


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    if not os.path.lexists(files[0]) and os.path.lexists(index):
        files = [folder / name for name in read_weight_index(index)]
    for file in files:
        if not os.path.lexists(file):
            continue
        with open_tensors(file, "target's file of weights") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_slice(name).get_shape()
