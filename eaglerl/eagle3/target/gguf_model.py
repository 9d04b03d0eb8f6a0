"""A transformers model from the GGUF file in its folder, expanded to float32 in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from eaglerl.gguf_convert.convert import GGUF_NAME
from eaglerl.gguf_convert.float32_weights import expanded_weights
from eaglerl.gguf_convert.gguf_config import read_config_beside
from eaglerl.gguf_convert.gguf_file import read_gguf

# Files in which `from_pretrained` looks for weights.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def only_gguf(path: str | Path) -> bool:
    """Return whether a folder has a GGUF file and no weights that `from_pretrained` takes."""
    folder = Path(path)
    return (folder / GGUF_NAME).is_file() and not any((folder / name).exists() for name in _WEIGHTS)


def expand_transformers_model(
    path: str | Path, config: PreTrainedConfig, dtype: torch.dtype | str
) -> tuple[Any, dict[str, Any]]:
    """Load the model of a folder from its GGUF file; the same as from float32 files beside it.

    Args:
        path: folder for which `only_gguf` holds.
        config: from its config.json.
        dtype: of the weights; "auto" is float32.

    Returns:
        What `from_pretrained` returns with ``output_loading_info``.

    Raises:
        ValueError: the file is damaged, or that of another model than the config's.
    """
    folder = Path(path)
    file = read_gguf(folder / GGUF_NAME)
    read_config_beside(file, config)
    dtype = torch.float32 if dtype == "auto" else dtype
    weights = {}
    for name, values in expanded_weights(file, config):
        weight = torch.from_numpy(values)
        # Matrices in their final dtype, so that no more than one is held in both. Of vectors
        # transformers keeps some in float32.
        weights[name] = weight.to(dtype) if weight.ndim > 1 else weight
    # Its class, without its weights.
    with torch.device("meta"):
        model_class = type(AutoModelForCausalLM.from_config(config))
    model, found = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    model.config.name_or_path = str(path)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, found
