"""Whole models from GGUF files of every architecture and type, and from damaged files."""

from __future__ import annotations

import json
import re
import shutil
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from eaglerl._ext import C
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.make_target import load_target
from eaglerl.gguf_convert.gguf_config import read_config
from eaglerl.gguf_convert.gguf_file import read_gguf
from eaglerl.prepare import prepare_gguf

from ...gguf_files import VOCAB_SIZE, write_gguf
from ..tiny import tiny_model
from .test_block_target import ARCHITECTURES, TOKENS, run

# Inputs are multiples of a K format's 256.
WIDE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}
ONE = WIDE | {"num_hidden_layers": 1}
SMALL = ONE | {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16,
                "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
LAYERS = (0, 1, 2)
MIXED = {
    "token_embd": "Q6_K", "output": "Q8_0", "attn_q": "Q5_K", "attn_k": "Q4_K", "attn_v": "Q6_K",
    "attn_output": "Q4_1", "ffn_gate": "F16", "ffn_up": "BF16", "ffn_down": "Q4_0",
}  # fmt: skip
# Bytes of a block with half-precision numbers, by type, and their places in it.
HALVES = {"Q4_0": (18, 0), "Q4_1": (20, 0, 2), "Q8_0": (34, 0), "Q4_K": (144, 0, 2),
          "Q5_K": (176, 0, 2), "Q6_K": (210, 208), "F16": (2, 0)}  # fmt: skip
NOT_FINITE = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}


def mixed(name: str) -> GGMLQuantizationType:
    return GGMLQuantizationType[MIXED[name.removesuffix(".weight").rpartition(".")[2]]]


@pytest.mark.parametrize("family", list(ARCHITECTURES))
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "mixed"])
def test_logits_are_those_of_gguf_s_own_dequantisation(
    family: str, kind: str, tmp_path: Path
) -> None:
    """Against transformers in float64, whose weights the package gguf has expanded."""
    tied = family == "qwen2"
    model = tiny_model(family, tie_word_embeddings=tied, **WIDE)
    chosen = mixed if kind == "mixed" else GGMLQuantizationType[kind]
    file = write_gguf(tmp_path / "file.gguf", model, ARCHITECTURES[family], kind=chosen)
    folder = prepare_gguf(file, output=tmp_path / "model", float32=True)
    target = load_target(folder, feature_layers=LAYERS)
    assert isinstance(target, BlockTarget)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(TOKENS[None]).logits[0]
    found = run(target, RowBatch.causal(TOKENS, 0)).double()
    assert 0.1 < float(expected.std()) < 100
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.std()))
    int8 = load_target(folder, feature_layers=LAYERS, precision="int8")
    off = run(int8, RowBatch.causal(TOKENS, 0)).double() - expected
    assert 0 < float(off.norm() / expected.norm()) < 0.1


def bare(folder: Path, kind: GGMLQuantizationType = GGMLQuantizationType.Q4_1, **sizes) -> Path:
    """A folder with config.json and a GGUF file without a tokenizer, which loading does not need.

    The file is so small that all of its header can be damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model("llama", **(sizes or SMALL))
    left_out = frozenset(f"tokenizer.ggml.{name}" for name in
                         ("model", "tokens", "token_type", "merges"))  # fmt: skip
    file = write_gguf(folder / "model.gguf", model, "llama", kind=kind, leave_out=left_out)
    read_config(read_gguf(file)).save_pretrained(folder)
    return folder


def load(folder: Path) -> BlockTarget:
    return load_target(folder, precision="native", feature_layers=())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare(tmp_path_factory.mktemp("whole"))


def refused(folder: Path) -> str:
    """The error that loading ends in, which names the folder."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load(folder)
    return str(caught.value)


def fields(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Every number in the header: what it is, where it lies, and its bytes."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    place = 4

    def take(what: str, size: int) -> tuple[tuple[str, int, int], int]:
        nonlocal place
        value = int.from_bytes(data[place : place + size], "little")
        place += size
        return (what, place - size, size), value

    yield take("version", 4)[0]
    field, tensors = take("tensors", 8)
    yield field
    field, keys = take("fields", 8)
    yield field
    for _ in range(keys):
        field, length = take("length of a key", 8)
        yield field
        place += length
        field, kind = take("type of a field", 4)
        yield field
        if kind == 8:
            field, length = take("length of a text", 8)
            yield field
            place += length
        else:
            assert kind in sizes, "this file has no arrays"
            yield take("value", sizes[kind])[0]
    for _ in range(tensors):
        field, length = take("length of a name", 8)
        yield field
        place += length
        field, count = take("dimensions", 4)
        yield field
        for _ in range(count):
            yield take("dimension", 8)[0]
        yield take("type of a tensor", 4)[0]
        yield take("offset", 8)[0]


def test_files_that_are_cut_anywhere_are_named(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    data = (whole / "model.gguf").read_bytes()
    last = max(place for _, place, _ in fields(data))
    starts = [place for _, place, _ in fields(data)]
    tensors = read_gguf(whole / "model.gguf").tensors.values()
    ends = [end for tensor in tensors for end in (tensor.offset, tensor.offset + tensor.size)]
    # What follows the last tensor is padding.
    places = {0, 1, 3, 4, last + 8, max(ends) - 1, len(data) // 2, *starts, *ends} - {max(ends)}
    for place in sorted(places):
        (folder / "model.gguf").write_bytes(data[:place])
        refused(folder)


def test_every_number_of_the_header_may_be_wrong(whole: Path, tmp_path: Path) -> None:
    """Each ends in an error that names the file, or in a model that runs."""
    folder = tmp_path / "flipped"
    shutil.copytree(whole, folder)
    data = (whole / "model.gguf").read_bytes()
    ran, errors = set(), []
    for what, place, size in fields(data):
        value = int.from_bytes(data[place : place + size], "little")
        most = (1 << 8 * size) - 1
        wrong = {0, 1, value + 1, value - 1, value ^ 1 << 8 * size - 1, most, most >> 1, 2 * value}
        for number in sorted(wrong - {value}):
            changed = bytearray(data)
            changed[place : place + size] = (number & most).to_bytes(size, "little")
            (folder / "model.gguf").write_bytes(changed)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    target = load(folder)
            except ValueError as error:
                errors.append((what, place, number, str(error)))
            else:
                ran.add(what)
                run(target, RowBatch.causal(TOKENS[:3], 0))
    assert [error for error in errors if str(folder) not in error[-1]] == []
    assert len(errors) > 200
    # Another RoPE base, version 2, or another type of as many bytes or fewer make a model as well,
    # and a key of another name may say nothing of the model.
    may_run = {"version", "value", "length of a text", "length of a key", "type of a field"}
    assert ran <= may_run | {"type of a tensor"}


def test_sizes_are_those_of_the_config_beside_the_file(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(whole, folder)
    config = json.loads((whole / "config.json").read_text())
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "vocab_size", "head_dim"):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config | {name: 2 * config[name]}))
        assert name in refused(folder)


@pytest.mark.parametrize("kind", [*HALVES, "BF16", "F32"])
def test_numbers_that_are_not_finite_are_named(kind: str, tmp_path: Path) -> None:
    sizes = ONE if kind.endswith("_K") else {}
    folder = bare(tmp_path, GGMLQuantizationType[kind], **sizes)
    data = (folder / "model.gguf").read_bytes()
    tensor = read_gguf(folder / "model.gguf").tensors["blk.0.ffn_up.weight"]
    size, *places = HALVES.get(kind, (2 if kind == "BF16" else 4, 0))
    exponent = NOT_FINITE.get(kind, NOT_FINITE["F16"])
    form = "<I" if kind == "F32" else "<H"
    for place in places:
        # The first and the last block; infinite, and not a number.
        for block in (0, tensor.size // size - 1):
            for bits in (exponent, exponent | 1):
                changed = bytearray(data)
                struct.pack_into(form, changed, tensor.offset + block * size + place, bits)
                (folder / "model.gguf").write_bytes(changed)
                message = refused(folder)
                assert "blk.0.ffn_up.weight" in message
                assert "not finite" in message
    changed = bytearray(data)
    norm = read_gguf(folder / "model.gguf").tensors["blk.0.ffn_norm.weight"]
    struct.pack_into("<f", changed, norm.offset + 4, float("nan"))
    (folder / "model.gguf").write_bytes(changed)
    assert "'blk.0.ffn_norm.weight' holds values that are not finite" in refused(folder)


def test_every_type_without_products_is_named(tmp_path: Path) -> None:
    """By the type's name, before anything is packed."""
    folder, name = bare(tmp_path, **ONE), "blk.0.attn_k.weight"
    model = tiny_model("llama", **ONE)
    others = [kind for kind in GGMLQuantizationType if kind.name not in C.block_formats()]
    assert len(others) > 20
    for kind in others:

        def chosen(tensor: str, kind: GGMLQuantizationType = kind) -> GGMLQuantizationType:
            return kind if tensor == name else GGMLQuantizationType.Q8_0

        write_gguf(folder / "model.gguf", model, "llama", kind=chosen)
        assert f"{name!r} of type {kind.name}" in refused(folder)
