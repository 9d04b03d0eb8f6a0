"""What a target's folder may hold, and how everything else is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.target.make_target import load_target
from eaglerl.eagle3.target.target_files import load_transformers_model, read_target_config

from ..heads import make_config, make_head
from ..tiny import tiny_model


def config_folder(path: Path, **fields: Any) -> Path:
    """A folder with a config.json that has these fields."""
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | fields))
    return path


BROKEN = {
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads as a positive integer, got 0"),
    "no key heads": ({"num_key_value_heads": 0}, "num_key_value_heads.*got 0"),
    "no head_dim": ({"head_dim": 0}, "head_dim as a positive integer, got 0"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers.*got 0"),
    "negative width": ({"hidden_size": -64}, "hidden_size.*got -64"),
    "a word": ({"num_attention_heads": "four"}, "num_attention_heads.*got 'four'"),
    "a half": ({"max_position_embeddings": 1.5}, "max_position_embeddings.*got 1.5"),
    "true": ({"vocab_size": True}, "vocab_size.*got True"),
    "eos as a word": ({"eos_token_id": "</s>"}, "eos_token_id as a token id.*got '</s>'"),
    "bos as words": ({"bos_token_id": ["a"]}, "bos_token_id"),
    "rope as a number": ({"rope_scaling": 3}, "transformers cannot read the target's config"),
    "kind as a list": ({"model_type": ["llama"]}, "transformers cannot read the target's config"),
    "unknown kind": ({"model_type": "nonsense"}, "nonsense"),
    "groups": ({"num_attention_heads": 5}, "transformers cannot read the target's config"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_configs_are_named(tmp_path: Path, case: str) -> None:
    fields, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        read_target_config(config_folder(tmp_path, **fields))
    with pytest.raises(ValueError, match=message):
        load_target(tmp_path, device="cpu")


OTHER_KINDS = {
    "qwen2_5_vl": "model_type 'qwen2_5_vl' reads more than text .*'qwen2_5_vl_text' inside",
    "gemma3": "model_type 'gemma3' reads more than text .*'gemma3_text' inside",
    "llava": "model_type 'llava' reads more than text",
    "t5": "model_type 't5' is an encoder-decoder model",
    "bart": "model_type 'bart' is an encoder-decoder model",
    "whisper": "model_type 'whisper' is an encoder-decoder model",
    "bloom": "max_position_embeddings as a positive integer, got None: model_type 'bloom'",
    "mamba": "got None: model_type 'mamba'",
}


@pytest.mark.parametrize("model_type", OTHER_KINDS)
def test_other_kinds_are_refused_by_name(tmp_path: Path, model_type: str) -> None:
    config_folder(tmp_path, model_type=model_type)
    with pytest.raises(ValueError, match=OTHER_KINDS[model_type]):
        load_target(tmp_path, device="cpu")
    make_head(make_config()).save_pretrained(tmp_path / "head")
    with pytest.raises(ValueError, match=OTHER_KINDS[model_type]):
        SpeculativeDecoder.from_pretrained(tmp_path, tmp_path / "head", device="cpu")


@pytest.mark.slow
def test_every_kind_that_transformers_knows_is_read_or_refused(tmp_path: Path) -> None:
    """822 kinds in transformers 5.24.0, with their own defaults."""
    read, reasons = 0, []
    for model_type in CONFIG_MAPPING_NAMES:
        config_folder(tmp_path, model_type=model_type)
        try:
            read_target_config(tmp_path)
        except ValueError as error:
            reasons.append(str(error))
        else:
            read += 1
    assert 100 < read < len(CONFIG_MAPPING_NAMES)
    assert all(reasons)


def test_layers_under_another_name_are_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=60, n_embd=32, n_layer=7, n_head=4, n_positions=64
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'gpt2' is not supported .*GPT2Model.*'layers'"):
        load_target(tmp_path, device="cpu", backend="transformers")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would block the reader for ever."""
    tiny_model().save_pretrained(tmp_path)
    os.mkfifo(tmp_path / "generation_config.json.json")
    with pytest.raises(ValueError, match="must be a regular file, got a pipe"):
        load_target(tmp_path, device="cpu")
    os.remove(tmp_path / "generation_config.json.json")
    os.remove(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must be a regular file, got a pipe"):
        load_target(tmp_path, device="cpu")


def test_missing_weights_are_not_filled_at_random(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of its weights.*layers.3.mlp.up_proj.weight"):
        load_target(tmp_path, device="cpu")
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"file of weights .* cannot be read"):
        load_target(tmp_path, device="cpu")


def test_a_tied_target_lacks_nothing(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    target = load_target(tmp_path, device="cpu")
    assert torch.equal(target.embed_tokens, model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 900}, "num_hidden_layers of the target .* is 900.*have 7 layers"),
        ({"vocab_size": 1 << 22}, "embed_tokens.weight of the target .* must have 4194304 rows"),
        ({"intermediate_size": 1 << 22}, "gate_proj.weight of the target .* must have 4194304"),
        (
            {"num_hidden_layers": 1 << 30},
            "config.json' must give num_hidden_layers .* at most 1024",
        ),
    ],
)
def test_sizes_are_compared_with_the_weights_before_they_are_made(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load_transformers_model(tmp_path, torch.float32)
