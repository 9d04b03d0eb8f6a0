"""Targets in the blocks of their GGUF file: transformers' function, and rows that stand alone."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from eaglerl._ext import thread_count
from eaglerl.eagle3 import SpeculativeDecoder, TreeParams
from eaglerl.eagle3.head.make_draft_runner import make_draft_runner
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.make_target import load_target
from eaglerl.fingerprints import target_id
from eaglerl.prepare import prepare_gguf

from ...gguf_files import VOCAB_SIZE, write_gguf
from ..tiny import tiny_head, tiny_model

PRECISIONS = ("native", "bfloat16", "int8")
KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0")
# GGUF's name of the architecture, by transformers'.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOKENS = torch.arange(3, 43) * 5 % VOCAB_SIZE
CAPACITY = 128


def make_folder(
    folder: Path,
    family: str = "llama",
    kind: str = "Q4_1",
    fields: dict[str, object] | None = None,
    **sizes: object,
) -> Path:
    """A prepared folder: config, float32 weights as gguf expands them, and the GGUF file."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model(family, **(SIZES | sizes))
    path = write_gguf(
        folder / "file.gguf",
        model,
        ARCHITECTURES[family],
        kind=gguf.GGMLQuantizationType[kind],
        fields=fields,
    )
    return prepare_gguf(path, output=folder / "model", float32=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("block"))


def run(target: BlockTarget, rows: RowBatch, cache=None) -> torch.Tensor:
    return target.forward(rows, cache or target.new_cache(CAPACITY)).logits


def run_in_steps(target: BlockTarget, tokens: torch.Tensor, step: int) -> torch.Tensor:
    """Logits of a text that passes of `step` tokens read."""
    cache, found = target.new_cache(CAPACITY), []
    for begin in range(0, len(tokens), step):
        part = tokens[begin : begin + step]
        found.append(run(target, RowBatch.causal(part, begin), cache))
        cache.advance(len(part))
    return torch.cat(found)


@pytest.mark.parametrize("family", list(ARCHITECTURES))
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_expanded_model(family: str, kind: str, tmp_path: Path) -> None:
    path = make_folder(tmp_path, family, kind)
    target = load_target(path)
    assert isinstance(target, BlockTarget)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    with torch.no_grad():
        output = model(TOKENS[None], output_hidden_states=True)
    found = target.forward(RowBatch.causal(TOKENS, 0), target.new_cache(CAPACITY))
    scale = float(output.logits.std())
    torch.testing.assert_close(found.logits.double(), output.logits[0], rtol=0, atol=2e-5 * scale)
    taken = torch.cat([output.hidden_states[i][0] for i in target.feature_layers], dim=1)
    torch.testing.assert_close(found.features.double(), taken, rtol=0, atol=1e-4)
    last = target.forward(RowBatch.causal(TOKENS, 0), target.new_cache(CAPACITY), "last").logits
    assert torch.equal(last, found.logits[-1:])
    table = model.get_input_embeddings().weight.float()
    assert torch.equal(target.embed_tokens, table)


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_1"])
def test_bfloat16_rounds_the_inputs_of_every_product(kind: str, tmp_path: Path) -> None:
    """And nothing else. In one layer, since a value that float32's error moves across the middle
    between two numbers is rounded the other way, which later layers spread."""
    path = make_folder(tmp_path, "qwen3", kind, num_hidden_layers=1)
    model, tokens = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64), TOKENS[:16]
    with torch.no_grad():
        plain = model(tokens[None]).logits[0]
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(
                    lambda _, inputs: (inputs[0].to(torch.bfloat16).double(),)
                )
        expected = model(tokens[None]).logits[0]
    target = load_target(path, precision="bfloat16", feature_layers=())
    assert target.precision == "bfloat16"
    found = run_in_steps(target, tokens, 8).double()
    effect, error = ((other - expected).norm(dim=1) for other in (plain, found))
    size = expected.norm(dim=1)
    assert float((effect / size).min()) > 5e-4
    assert float((error / size).median()) < 1e-5


@pytest.mark.parametrize("head_dim", [8, 20])
@pytest.mark.parametrize("kv_cache_dtype", ["float32", "bfloat16"])
def test_heads_that_fill_no_vector(head_dim: int, kv_cache_dtype: str, tmp_path: Path) -> None:
    path = make_folder(tmp_path, "qwen3", head_dim=head_dim, num_attention_heads=8)
    target = load_target(path, kv_cache_dtype=kv_cache_dtype)
    assert isinstance(target, BlockTarget)
    alone = run_in_steps(target, TOKENS, 1)
    for step in (2, 7, 40):
        assert torch.equal(run_in_steps(target, TOKENS, step), alone)
    if kv_cache_dtype == "float32":
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        with torch.no_grad():
            expected = model(TOKENS[None]).logits[0]
        bound = 2e-5 * float(expected.std())
        torch.testing.assert_close(alone.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_scaling_is_transformers(kind: str, tmp_path: Path) -> None:
    fields: dict[str, object] = {".rope.scaling.type": kind, ".rope.scaling.factor": 4.0}
    if kind == "yarn":
        fields[".rope.scaling.original_context_length"] = 64
    path = make_folder(tmp_path, fields=fields)
    target = load_target(path, precision="native")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    text = torch.arange(100) * 7 % VOCAB_SIZE
    with torch.no_grad():
        expected = model(text[None]).logits[0]
    found = run(target, RowBatch.causal(text, 0))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_does_not_depend_on_the_others(precision: str, folder: Path) -> None:
    target = load_target(folder, precision=precision)
    text = torch.arange(64) * 7 % VOCAB_SIZE
    alone = run_in_steps(target, text, 1)
    before = thread_count()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for step in (*range(2, 18), 31, 64):
                assert torch.equal(run_in_steps(target, text, step), alone), (threads, step)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tree_gives_the_logits_of_its_paths(precision: str, folder: Path) -> None:
    """Between siblings, with gaps in the cache, a token's logits are those of plain decoding."""
    target = load_target(folder, precision=precision)
    prompt, parents = TOKENS[:21], [-1, 0, 0, 1, 2, 2, 5, 0]
    tokens = torch.tensor([7, 9, 11, 13, 15, 17, 19, 21])
    levels, mask = [0], torch.zeros(8, 8, dtype=torch.bool)
    mask[0, 0] = True
    for node, parent in enumerate(parents[1:], start=1):
        levels.append(levels[parent] + 1)
        mask[node] = mask[parent]
        mask[node, node] = True
    bits = (mask.long() << torch.arange(8)).sum(1, keepdim=True)
    cache = target.new_cache(CAPACITY)
    run(target, RowBatch.causal(prompt, 0), cache)
    cache.advance(len(prompt))
    tree = RowBatch.tree(tokens, torch.tensor(levels, dtype=torch.int32), bits, len(prompt))
    found = run(target, tree, cache)
    for node in range(8):
        path = torch.cat((prompt, tokens[mask[node]]))
        assert torch.equal(run_in_steps(target, path, 1)[-1], found[node])


def test_rows_of_several_slots_share_a_pass(folder: Path) -> None:
    target = load_target(folder)
    texts = [TOKENS[:5], TOKENS[3:14], TOKENS[20:21]]
    cache = target.new_cache(CAPACITY, slots=3)
    for slot, text in enumerate(texts):
        run(target, RowBatch.causal(text, 0, slot=slot), cache)
    positions = torch.tensor([len(text) for text in texts], dtype=torch.int32)
    found = run(target, RowBatch.one_per_slot(torch.tensor([1, 2, 3]), positions), cache)
    for slot, text in enumerate(texts):
        whole = torch.cat((text, torch.tensor([slot + 1])))
        assert torch.equal(run_in_steps(target, whole, 1)[-1], found[slot])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8, "seed": 3}])
def test_speculation_changes_no_token(precision: str, options: dict, folder: Path) -> None:
    target = load_target(folder, precision=precision)
    decoder = SpeculativeDecoder(target, tiny_head(target), draft_dtype="float32")
    prompt = TOKENS[None, :9]
    plain = decoder.generate(prompt, TreeParams(1, 0, 1), max_new_tokens=60, **options)
    for tree in (TreeParams(8, 2, 3), TreeParams(20, 4, 5)):
        found = decoder.generate(prompt, tree, max_new_tokens=60, **options)
        if options:
            continue  # other draws; their distribution is the business of test_sampling.py
        assert torch.equal(found.sequences, plain.sequences)
    if not options and precision == "native":
        model = AutoModelForCausalLM.from_pretrained(folder)
        expected = model.generate(prompt, max_new_tokens=60, do_sample=False)
        assert torch.equal(plain.sequences, expected)


def test_what_is_not_finite_stays_in_its_row(folder: Path) -> None:
    target = load_target(folder, precision="int8")
    cache = target.new_cache(CAPACITY)
    run(target, RowBatch.causal(TOKENS[:6], 0), cache)
    cache.advance(6)
    clean = run(target, RowBatch.causal(TOKENS[6:7], 6), cache)
    cache.data[..., 30, :] = float("nan")
    assert torch.equal(run(target, RowBatch.causal(TOKENS[6:7], 6), cache), clean)
    cache.data[..., 2, :] = float("nan")
    assert run(target, RowBatch.causal(TOKENS[6:7], 6), cache).isnan().any()


def test_precision_decides_the_implementation(folder: Path) -> None:
    for options, precision in (
        ({}, "native"), ({"precision": "float32"}, "float32"), ({"backend": "packed"}, "float32")
    ):  # fmt: skip
        target = load_target(folder, **options)
        assert isinstance(target, BlockTarget)
        assert target.precision == precision
    assert load_target(folder, dtype=torch.float64).embed_tokens.dtype == torch.float64


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision must be one of \"auto\".*got 'int4'"):
        load_target(folder, precision="int4")
    with pytest.raises(ValueError, match="backend must be 'auto' with precision=\"int8\""):
        load_target(folder, precision="int8", backend="packed")
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "model.gguf").unlink()
    assert load_target(bare).precision == "float32"
    weights = (bare / "model.safetensors").read_bytes()
    (bare / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot run .*neither model\.gguf.*nor safetensors"):
        load_target(bare, precision="native")
    (bare / "model.safetensors").write_bytes(weights)
    other = make_folder(tmp_path / "other", intermediate_size=128)
    shutil.copy(other / "model.gguf", bare / "model.gguf")
    with pytest.raises(ValueError, match=r"intermediate_size 128, and config\.json beside it 96"):
        load_target(bare, precision="native")
    (bare / "model.gguf").write_bytes((folder / "model.gguf").read_bytes()[:-100])
    with pytest.raises(ValueError, match="was it cut short"):
        load_target(bare, precision="native")


def test_types_without_kernels_are_named(tmp_path: Path) -> None:
    path = make_folder(tmp_path, kind="Q5_0")
    with pytest.warns(
        UserWarning, match=r"expanded to float32, .*'token_embd.weight' of type Q5_0"
    ):
        assert load_target(path).precision == "float32"
    with pytest.raises(ValueError, match=r"tensor '.*' of type Q5_0, which weights=\"q8_0\""):
        load_target(path, precision="native")
    assert isinstance(load_target(path, weights="q8_0"), BlockTarget)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_long_prompt_in_one_pass_is_the_same_model(precision: str, folder: Path) -> None:
    """From 65 rows on, sums have another order; the function stays."""
    target = load_target(folder, precision=precision)
    text = torch.arange(100) * 7 % VOCAB_SIZE
    found, expected = run(target, RowBatch.causal(text, 0)), run_in_steps(target, text, 10)
    # An activation may be rounded the other way.
    bound = {"native": 1e-5, "bfloat16": 1e-2, "int8": 2e-2}[precision]
    assert float((found - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16"])
def test_a_head_reads_the_rows_of_the_blocks(kind: str, tmp_path: Path) -> None:
    """What it computes from them is what it computes from the expanded table, to the bit."""
    target = load_target(make_folder(tmp_path, kind=kind))
    heads = [tiny_head(target), tiny_head(target)]
    heads[0].set_embed_tokens(target.embedding)
    heads[1].set_embed_tokens(target.embed_tokens.clone())
    ids = torch.arange(70).reshape(2, 35) * 11 % VOCAB_SIZE
    rows = [head.embed(ids) for head in heads]
    assert torch.equal(*rows)
    features = torch.randn(70, 3 * target.hidden_size)
    found = [
        make_draft_runner(head, capacity=128, dtype=dtype).extend(ids.flatten(), features)
        for head in heads
        for dtype in ("float32", "int8")
    ]
    for of_blocks, of_table in zip(found[:2], found[2:], strict=True):
        assert torch.equal(of_blocks[1], of_table[1])
    assert torch.equal(copy.deepcopy(heads[0]).embed_tokens, target.embed_tokens)
    assert heads[0].to(torch.float64).embed(ids).dtype == torch.float64


def test_the_ids_of_a_target_do_not_depend_on_the_form_of_its_table(folder: Path) -> None:
    blocks, expanded = load_target(folder), load_target(folder, precision="float32")
    assert target_id(blocks) == target_id(expanded)
    assert target_id(blocks).fingerprint == target_id(expanded).fingerprint


def test_decoding_expands_no_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target(folder)
    head = tiny_head(target)
    head.set_embed_tokens(target.embedding)
    monkeypatch.setattr(type(target.embedding), "table", lambda _: 1 / 0)
    decoder = SpeculativeDecoder(target, head)
    decoder.generate(TOKENS[None, :9], TreeParams(8, 2, 3), max_new_tokens=8)
    target_id(target)
