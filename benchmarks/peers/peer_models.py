"""The packaged model and its head in the formats of the peers."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import source
from peer_environments import converters, make_folder, run
from transformers import AutoTokenizer, GenerationConfig

from eaglerl.eagle3 import Eagle3DraftHead, load_target
from eaglerl.eagle3.head.export_head import export_head
from eaglerl.eagle3.head.fc_norm_stand_ins import feature_rms
from eaglerl.eagle3.head.feature_layer_check import PAGE
from eaglerl.files import atomic_path
from eaglerl.gguf_convert.gguf_file import GGUFFile, read_gguf


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

    Its norm over the three features stands in for those of the head, see docs/engines.md.
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
    target = load_target(model, precision="native")
    ids = AutoTokenizer.from_pretrained(model)(PAGE).input_ids
    export_head(
        Eagle3DraftHead.from_pretrained(head),
        to,
        "llama.cpp",
        num_target_layers=target.config.num_hidden_layers,
        rms=feature_rms(target, ids),
        lossy=True,
    )


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
