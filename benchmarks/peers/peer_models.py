"""The packaged model and its head in the formats of the peers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from llama_cpp import source
from peer_environments import converters, make_folder, run
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from eaglerl.eagle3 import Eagle3DraftHead, load_target
from eaglerl.eagle3.head.export_head import export_head
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.files import atomic_path
from eaglerl.gguf_convert.gguf_file import GGUFFile, read_gguf

# Text on which the norms of the head's features are compared; of no benchmark.
_TEXT = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
_TEXT_ROWS = 512


def retyped(source_file: Path, kind: str, folder: Path) -> Path:
    """Return the packaged file, or its expanded weights with the matrices in another type."""
    target = folder / f"model-{kind}.gguf"
    if kind == "Q4_1":
        return source_file
    if not target.exists():
        with atomic_path(target) as temporary:
            write_retyped(read_gguf(source_file), gguf.GGMLQuantizationType[kind], temporary)
    return target


def write_retyped(file: GGUFFile, kind: gguf.GGMLQuantizationType, path: Path) -> None:
    """Write a file's metadata and its expanded tensors, the matrices in type ``kind``."""
    reader = gguf.GGUFReader(file.path)
    writer = gguf.GGUFWriter(path, file.text("general.architecture"))
    for name, value in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        content = value.contents()
        if value.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, content)
        else:
            writer.add_key_value(name, content, value.types[0])
    for name, tensor in file.tensors.items():
        values = file.expand(name)
        if len(tensor.shape) == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def head_for_llama_cpp(head: Path, model: Path, folder: Path) -> Path:
    """Return the draft head as a Q8_0 GGUF file for ``--spec-type draft-eagle3``.

    llama.cpp has one norm over the three features together where the packaged head has one for
    each. Between the two lies a factor per row and feature, the feature's root mean square over
    that of all three. Over a text it varies little (fifths for the low feature, a hundredth for the
    high one), so its typical value goes into the norm's weights. The text that is decoded does not
    depend on it.
    """
    target = folder / "head-llama.cpp.gguf"
    if target.exists():
        return target
    checkpoint = make_folder(
        folder / "head-llama.cpp", lambda to: _write_checkpoint(head, model, to)
    )
    with atomic_path(target) as temporary:
        converter = source(folder) / "convert_hf_to_gguf.py"
        command = [converters(folder) / "python", converter, checkpoint]
        command += ["--target-model-dir", model, "--outtype", "q8_0", "--outfile", temporary]
        run(command)
    return target


def _write_checkpoint(head: Path, model: Path, to: Path) -> None:
    loaded = Eagle3DraftHead.from_pretrained(head)
    if loaded.fc_norm is None:
        raise ValueError(f"head must have fc_norm, {head} has none")
    target = load_target(model, precision="native")
    layers = target.config.num_hidden_layers
    export_head(loaded, to, "llama.cpp", num_target_layers=layers)
    factors = joint_norm_factors(_features(model))
    weights = torch.cat(
        [norm.weight * factor for norm, factor in zip(loaded.fc_norm, factors, strict=True)]
    )
    state = load_file(to / "model.safetensors") | {"input_norm.weight": weights.detach()}
    save_file(state, to / "model.safetensors")
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"norm_before_fc": True}, indent=2)
    (to / "config.json").write_text(text, encoding="utf-8")


@torch.inference_mode()
def _features(model: Path) -> torch.Tensor:
    """Return the (n, 3k) features of a text, without those of its first token.

    The first token's are two hundred times as large as the others'.
    """
    ids = AutoTokenizer.from_pretrained(model)(_TEXT.read_text(encoding="utf-8")).input_ids
    target = load_target(model, precision="native")
    cache = target.new_cache(_TEXT_ROWS)
    output = target.forward(RowBatch.causal(ids[:_TEXT_ROWS], 0), cache, "none")
    return output.features[1:].clone()


def joint_norm_factors(features: torch.Tensor) -> list[float]:
    """Return what turns one norm over three features into one norm for each of them.

    Args:
        features: (n, 3k) features of a text.

    Returns:
        For each of the three the a that minimises the squared error ``(1 - a u)**2`` over the rows,
        where u is the feature's root mean square over that of all three.
    """
    squares = features.double().unflatten(1, (3, -1)).square().mean(-1)
    ratio = (squares / squares.mean(1, keepdim=True)).sqrt()
    return (ratio.mean(0) / ratio.square().mean(0)).tolist()


def end_token(model: Path) -> int:
    """Return the id of the token that ends an answer."""
    end = GenerationConfig.from_pretrained(model).eos_token_id
    assert isinstance(end, int), "the packaged model has one end token"
    return end


def model_bytes(file: Path) -> dict[str, int]:
    """Return the bytes of weights that a pass reads, by the runner of passes.

    The embedding table counts, as the output layer.
    """
    tensors = read_gguf(file).tensors.values()
    stored = sum(tensor.size for tensor in tensors)
    numbers = sum(math.prod(tensor.shape) for tensor in tensors)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0]
    return {
        "eaglerl native": stored,
        "eaglerl int8": stored,
        "eaglerl bfloat16": 2 * numbers,
        "eaglerl float32": 4 * numbers,
        "llama.cpp Q4_1": stored,
        "llama.cpp Q8_0": numbers // block * size,
        "llama.cpp F32": 4 * numbers,
    }
