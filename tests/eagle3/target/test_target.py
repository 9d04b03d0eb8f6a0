"""Both targets against transformers: logits, features, caches and trees."""

import dataclasses
import json
import random
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.make_target import load_target, make_target
from eaglerl.eagle3.target.packed_target import pack_decoder_weights, packed_target, why_not_packed
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.eagle3.target.target_model import (
    checked_feature_layers,
    default_feature_layers,
)
from eaglerl.eagle3.target.transformers_target import TransformersTarget
from eaglerl.ops import tree_structure

from ..tiny import FAMILIES, tiny_model

# What the packed path must keep to; tiny models come within 1e-5 of it.
TOLERANCE = 1e-3
# Two orders of summation in fp32 through seven layers; entries are of magnitude 1 to 10.
TINY_TOLERANCE = 1e-4
BACKENDS = ("packed", "transformers")
VARIANTS = {family: (family, {}) for family in FAMILIES} | {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "no_groups": ("llama", {"num_key_value_heads": 4}),
    "odd_head_dim": ("llama", {"head_dim": 12}),
    "linear_rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    ),
    # Scales its angles' cosines and sines, too.
    "yarn_rope": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama3_rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}


def make_prompt(length: int, vocab_size: int = 60, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(vocab_size) for _ in range(length)]


def assert_near(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@torch.inference_mode()
def reference(
    model: PreTrainedModel, tokens: list[int], layers: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, V) and features (n, 3k) by transformers alone."""
    output = model(torch.tensor([tokens]), output_hidden_states=True)
    features = [output.hidden_states[layer][0] for layer in layers]
    return output.logits[0], torch.cat(features, dim=-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_features_equal_transformers(variant: str, backend: str) -> None:
    family, changes = VARIANTS[variant]
    model = tiny_model(family, **changes)
    prompt = make_prompt(45)
    logits, features = reference(model, prompt, (2, 3, 4))
    target = make_target(model, backend=backend)
    assert target.feature_layers == (2, 3, 4)
    output = target.forward(RowBatch.causal(prompt, 0), target.new_cache(45))
    assert_near(output.logits, logits, TINY_TOLERANCE)
    assert_near(output.features, features, TINY_TOLERANCE)
    # The last hidden state is what the output head reads.
    head = model.get_output_embeddings()
    with torch.inference_mode():
        assert_near(head(output.last_hidden_state), logits, TINY_TOLERANCE)


def test_nothing_behind_the_cache_is_read() -> None:
    """Heads whose width is no multiple of a vector's end in the middle of one."""
    model = tiny_model("llama", head_dim=12)
    prompt = make_prompt(45)
    logits, _ = reference(model, prompt, (2, 3, 4))
    target = make_target(model, backend="packed")
    cache = target.new_cache(45)
    poisoned = torch.full((cache.data.numel() + 64,), torch.nan)
    cache.data = poisoned[:-64].view(cache.data.shape)
    assert_near(target.forward(RowBatch.causal(prompt, 0), cache).logits, logits, TINY_TOLERANCE)
    assert poisoned[-64:].isnan().all()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_families_differ_where_they_should(family: str) -> None:
    """The weights that set a family apart are random here, so that a lost one shows."""
    names = dict(tiny_model(family).named_parameters())
    assert ("model.layers.0.self_attn.q_norm.weight" in names) == (family == "qwen3")
    bias = dict(tiny_model("qwen2").named_parameters())["model.layers.0.self_attn.q_proj.bias"]
    assert float(bias.detach().abs().min()) > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_in_any_order(backend: str) -> None:
    model = tiny_model()
    prompt = make_prompt(6)
    layers = (6, 0, 3)
    features = reference(model, prompt, layers)[1]
    target = make_target(model, feature_layers=layers, backend=backend)
    output = target.forward(RowBatch.causal(prompt, 0), target.new_cache(6), "none")
    assert output.logits is None
    assert_near(output.features, features, TINY_TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_prefill_in_chunks(backend: str) -> None:
    target = make_target(tiny_model(), backend=backend)
    prompt = make_prompt(100)
    whole, pieces = target.new_cache(100), target.new_cache(120)
    at_once = target.forward(RowBatch.causal(prompt, 0), whole)
    logits, features = at_once.logits.clone(), at_once.features.clone()
    start = 0
    for size in (1, 64, 7, 28):
        rows = RowBatch.causal(prompt[start : start + size], start)
        output = target.forward(rows, pieces, "last")
        pieces.commit(range(size))
        assert output.logits.shape == (1, target.vocab_size)
        assert_near(output.logits[0], logits[start + size - 1], TINY_TOLERANCE)
        assert_near(output.features, features[start : start + size], TINY_TOLERANCE)
        start += size
    assert_near(pieces.data[..., :100, :], whole.data, TINY_TOLERANCE)


def random_tree(rows: int, seed: int) -> tuple[list[int], list[int]]:
    """Parents and tokens, the root first."""
    generator = random.Random(seed)
    parents = [-1] + [generator.randrange(max(0, row - 8), row) for row in range(1, rows)]
    return parents, make_prompt(rows, seed=seed + 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2, 9, 70])
def test_tree_rows_equal_the_chain_of_their_path(rows: int, backend: str) -> None:
    model = tiny_model("qwen3")
    target = make_target(model, backend=backend)
    prompt = make_prompt(20)
    cache = target.new_cache(100)
    target.forward(RowBatch.causal(prompt, 0), cache, "none")
    cache.commit(range(20))
    parents, tokens = random_tree(rows, seed=rows)
    levels, mask = tree_structure(torch.tensor(parents, dtype=torch.int32))
    output = target.forward(RowBatch.tree(torch.tensor(tokens), levels, mask, 20), cache)
    for row in range(0, rows, 1 + rows // 20):
        path, node = [], row
        while node >= 0:
            path.insert(0, tokens[node])
            node = parents[node]
        logits, features = reference(model, prompt + path, target.feature_layers)
        assert_near(output.logits[row], logits[-1], TINY_TOLERANCE)
        assert_near(output.features[row], features[-1], TINY_TOLERANCE)
    assert cache.lengths == [20]


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_are_apart(backend: str) -> None:
    target = make_target(tiny_model(), backend=backend)
    prompts = [make_prompt(9, seed=1), make_prompt(9, seed=2)]
    cache = target.new_cache(12, slots=2)
    for slot, prompt in enumerate(prompts):
        target.forward(RowBatch.causal(prompt, 0, slot), cache, "none")
        cache.commit(range(9), slot)
    for slot, prompt in enumerate(prompts):
        output = target.forward(RowBatch.causal([5], 9, slot), cache)
        alone = target.forward(RowBatch.causal([*prompt, 5], 0), target.new_cache(10), "last")
        assert_near(output.logits, alone.logits, TINY_TOLERANCE)


@pytest.mark.parametrize("backend", ["packed", "transformers"])
def test_one_pass_over_several_slots(backend: str) -> None:
    model = tiny_model()
    target = make_target(model, backend=backend)
    prompts = [make_prompt(length, seed=length) for length in (9, 4, 17)]
    cache = target.new_cache(20, slots=3)
    for slot, prompt in enumerate(prompts):
        target.forward(RowBatch.causal(prompt, 0, slot), cache, "none")
        cache.commit(range(len(prompt)), slot)
    rows = RowBatch.one_per_slot(torch.tensor([5, 6, 7]), torch.tensor(cache.lengths).int())
    output = target.forward(rows, cache)
    for row, prompt in enumerate(prompts):
        logits, features = reference(model, [*prompt, 5 + row], (2, 3, 4))
        assert_near(output.logits[row], logits[-1], TINY_TOLERANCE)
        assert_near(output.features[row], features[-1], TINY_TOLERANCE)
    # Any of the slots, in any order.
    some = RowBatch(
        torch.tensor([7, 5]), *(torch.tensor([17, 9]).int(),) * 2,
        torch.tensor([18, 10]).int(), slots=torch.tensor([2, 0]).int(),
    )  # fmt: skip
    assert_near(target.forward(some, cache).logits, output.logits[[2, 0]], TINY_TOLERANCE)


def test_modules_take_one_row_of_each_slot() -> None:
    target = make_target(tiny_model(), backend="transformers")
    rows = RowBatch.one_per_slot(torch.tensor([5, 6]), torch.zeros(2).int())
    twice = dataclasses.replace(rows, slots=torch.zeros(2).int())
    with pytest.raises(ValueError, match=r"slots must be distinct: .* one slot per pass"):
        target.forward(twice, target.new_cache(4, slots=2))


@pytest.mark.parametrize("backend", ["packed", "transformers"])
def test_no_feature_layers(backend: str) -> None:
    model = tiny_model(num_hidden_layers=2)
    target = make_target(model, backend=backend, feature_layers=())
    output = target.forward(RowBatch.causal([3, 4, 5], 0), target.new_cache(3))
    assert output.features.shape == (3, 0)
    with torch.inference_mode():
        assert_near(output.logits, model(torch.tensor([[3, 4, 5]])).logits[0], TINY_TOLERANCE)


def test_real_model(smollm2_path: Path) -> None:
    model = load_transformers_model(smollm2_path, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    prompt = tokenizer("The capital of France is Paris, and its river is called")["input_ids"]
    layers = (2, 15, 27)
    logits, features = reference(model, prompt, layers)
    target = make_target(model)
    assert isinstance(target, BlockTarget)
    assert target.feature_layers == layers
    output = target.forward(RowBatch.causal(prompt, 0), target.new_cache(len(prompt)))
    assert_near(output.logits, logits, TOLERANCE)
    # The residual stream has outliers in the thousands, so that its error is relative to them.
    error = (output.features - features).abs().max() / features.abs().max()
    assert float(error) < 1e-5
    assert torch.equal(target.embed_tokens, model.get_input_embeddings().weight)


REFUSALS = {
    "mistral_window": (("mistral", {"sliding_window": 8}), "sliding window"),
    "qwen2_window": (
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        "sliding window",
    ),
    "other_family": (("gemma", {}), "model_type is 'gemma'"),
    "other_activation": (("llama", {"hidden_act": "gelu"}), "hidden_act is 'gelu'"),
    "dynamic_rope": (
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        ),
        "'dynamic' changes with the length",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_packed_path_says_why_not(case: str) -> None:
    (family, changes), reason = REFUSALS[case]
    model = tiny_model(family, **changes)
    assert reason in why_not_packed(model)
    with pytest.raises(ValueError, match="the packed CPU path cannot run this model: .*" + reason):
        make_target(model, backend="packed")
    with pytest.raises(ValueError, match=reason):
        packed_target(model)
    with pytest.warns(UserWarning, match="transformers' modules, which is slower: .*" + reason):
        target = make_target(model)
    assert isinstance(target, TransformersTarget)


def test_rope_tables_are_made_as_the_sequence_grows() -> None:
    """For all of ten million positions they would cost gigabytes before the first token."""
    model = tiny_model(max_position_embeddings=10_000_000)
    prompt = make_prompt(3000)
    expected = reference(model, prompt, (2, 3, 4))[0][-1]
    asked: list[int] = []

    def note(module, args, kwargs, output) -> None:
        positions = kwargs.get("position_ids", args[-1])
        asked.append(int(positions.max()) + 1)

    model.get_decoder().rotary_emb.register_forward_hook(note, with_kwargs=True)
    target = packed_target(model)
    cache = target.new_cache(3000)
    target.forward(RowBatch.causal(prompt[:100], 0), cache, "none")
    assert max(asked) < 10_000
    cache.commit(range(100))
    last = target.forward(RowBatch.causal(prompt[100:], 100), cache, "last").logits[0]
    assert max(asked) < 10_000
    assert_near(last, expected, TINY_TOLERANCE)


CONTRADICTING_ROPE = {
    "default beside llama3": {
        "rope_theta": 5e5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "type against rope_type": {
        "rope_scaling": {"type": "yarn", "rope_type": "default", "factor": 4.0}
    },
    "two bases": {
        "rope_theta": 1e6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e3},
    },
    "dynamic beside default": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
}


@pytest.mark.parametrize("case", CONTRADICTING_ROPE)
def test_contradicting_rope_is_read_as_transformers_reads_it(tmp_path: Path, case: str) -> None:
    """What a target means is what `generate` makes of it, and its reading is transformers'."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    data = json.loads(file.read_text())
    del data["rope_parameters"]
    file.write_text(json.dumps(data | CONTRADICTING_ROPE[case]))
    with pytest.warns(UserWarning, match=r"config.json of the target: .* transformers reads"):
        target = load_target(tmp_path, device="cpu", backend="transformers")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = make_prompt(200)
    logits = reference(expected, prompt, (2, 3, 4))[0]
    assert_near(target.forward(RowBatch.causal(prompt, 0), target.new_cache(200)).logits, logits, 0)
    if why_not_packed(expected) is None:
        packed = packed_target(expected)
        output = packed.forward(RowBatch.causal(prompt, 0), packed.new_cache(200))
        assert_near(output.logits, logits, TINY_TOLERANCE)
    assert (why_not_packed(expected) is None) == (case != "dynamic beside default")


def test_other_dtypes_are_not_packed() -> None:
    model = tiny_model().to(torch.bfloat16)
    assert why_not_packed(model) == "its dtype is torch.bfloat16"
    target = make_target(model, backend="transformers")
    assert target.new_cache(4).data.dtype == torch.bfloat16


def test_other_families_run_through_transformers() -> None:
    model = tiny_model("gemma")
    prompt = make_prompt(12)
    logits, features = reference(model, prompt, (2, 3, 4))
    target = make_target(model, backend="transformers")
    cache = target.new_cache(12)
    target.forward(RowBatch.causal(prompt[:7], 0), cache, "none")
    cache.commit(range(7))
    output = target.forward(RowBatch.causal(prompt[7:], 7), cache)
    assert_near(output.logits, logits[7:], TINY_TOLERANCE)
    assert_near(output.features, features[7:], TINY_TOLERANCE)


def test_warned_once_and_only_where_slower() -> None:
    slow, fast = tiny_model("gemma"), tiny_model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        target = make_target(slow)
        cache = target.new_cache(4)
        for start in range(4):
            target.forward(RowBatch.causal([1], start), cache)
        assert len(caught) == 1
        # Asked for by name, or not needed: nothing to say.
        make_target(slow, backend="transformers")
        assert isinstance(make_target(fast), BlockTarget)
        assert len(caught) == 1


def test_from_pretrained(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path)
    target = load_target(tmp_path, feature_layers=(1, 2, 5), device="cpu")
    assert isinstance(target, BlockTarget)
    prompt = make_prompt(5)
    logits, features = reference(model, prompt, (1, 2, 5))
    output = target.forward(RowBatch.causal(prompt, 0), target.new_cache(5))
    assert_near(output.logits, logits, TINY_TOLERANCE)
    assert_near(output.features, features, TINY_TOLERANCE)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend must be .*, got 'fast'"):
        make_target(tiny_model(), backend="fast")


@pytest.mark.parametrize("num_layers", [4, 5, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shallow_targets_need_explicit_layers(num_layers: int, backend: str) -> None:
    model = tiny_model(num_hidden_layers=num_layers)
    with pytest.raises(ValueError, match=f"distinct layers, got .* {num_layers} layers; name them"):
        make_target(model, backend=backend)
    target = make_target(model, feature_layers=(0, 1, 2), backend=backend)
    assert target.feature_layers == (0, 1, 2)


def test_default_layers() -> None:
    assert default_feature_layers(7) == (2, 3, 4)
    assert default_feature_layers(32) == (2, 16, 29)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((1, 2), r"three layers, got \[1, 2\]"),
        ((1, 2, 2), r"distinct layers, got \[1, 2, 2\]"),
        ((0, 1, 7), r"\[0, 7\).*got 7"),
        ((-1, 1, 2), r"\[0, 7\).*got -1"),
    ],
)
def test_wrong_layers(layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_feature_layers(layers, 7)
    with pytest.raises(ValueError, match=message):
        make_target(tiny_model(), feature_layers=layers)


def test_cache_fits_the_model() -> None:
    for backend in BACKENDS:
        cache = make_target(tiny_model(), backend=backend).new_cache(11, slots=2)
        assert isinstance(cache, KVCache)
        assert cache.data.shape == (2, 7, 2, 2, 11, 8)


def _as_an_adapter(model) -> None:
    """As PEFT's LoRA layers do: the weight that the module shows is the base layer's."""
    linear = model.get_decoder().layers[3].mlp.down_proj
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) / 8 for shape in ((4, 48), (32, 4)))
    base = linear.forward
    linear.forward = lambda x: base(x) + x @ down.T @ up.T


def _as_a_hook(model) -> None:
    """Activation steering."""
    shift = torch.linspace(-1, 1, 32)
    model.get_decoder().layers[2].register_forward_hook(lambda module, args, output: output + shift)


def _as_another_output(model) -> None:
    inner = model.lm_head
    model.lm_head.register_forward_hook(lambda module, args, output: output.roll(1, dims=-1))
    assert model.lm_head is inner


@pytest.mark.parametrize("change", [_as_an_adapter, _as_a_hook, _as_another_output])
def test_what_modules_compute_besides_their_weights_is_kept(change) -> None:
    """Packed weights alone would give the text of another model without a word."""
    model = tiny_model(logit_scale=4.0)
    prompt = make_prompt(12)
    before = reference(model, prompt, (2, 3, 4))[0]
    change(model)
    expected = reference(model, prompt, (2, 3, 4))[0]
    assert float((expected - before).abs().max()) > 0.1
    with pytest.raises(ValueError, match="cannot run this model: its logits are off by"):
        make_target(model, backend="packed")
    with pytest.warns(UserWarning, match="an adapter, a hook or a module of another kind"):
        target = make_target(model)
    logits = target.forward(RowBatch.causal(prompt, 0), target.new_cache(12)).logits
    assert_near(logits, expected, TINY_TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["qwen3", "llama_bias", "odd_head_dim"])
def test_a_row_does_not_depend_on_the_others(variant: str, dtype: str) -> None:
    """Bit by bit, also with heads and products that fill no whole vectors and blocks."""
    family, changes = VARIANTS[variant]
    target = packed_target(tiny_model(family, **changes), dtype=dtype)
    assert target.precision == dtype
    prompt = make_prompt(64)

    def read(step: int) -> torch.Tensor:
        cache, found = target.new_cache(64), []
        for begin in range(0, 64, step):
            part = prompt[begin : begin + step]
            found.append(target.forward(RowBatch.causal(part, begin), cache).logits)
            cache.advance(len(part))
        return torch.cat(found)

    alone = read(1)
    for step in (2, 5, 8, 9, 16, 64):
        assert torch.equal(read(step), alone), step


def test_weights_that_are_not_finite_run_in_modules() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"a weight cannot be packed: .*not finite"):
        make_target(model, backend="packed")
    with pytest.warns(UserWarning, match=r"transformers' modules, .*: a weight cannot be packed"):
        assert isinstance(make_target(model), TransformersTarget)


def test_tied_weights_are_packed_once() -> None:
    model = tiny_model(tie_word_embeddings=True)
    weights = pack_decoder_weights(model)
    assert weights.head.matrices == [weights.embedding]
    weights = pack_decoder_weights(tiny_model())
    assert weights.head.matrices[0] is not weights.embedding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packing_leaves_a_model_as_it_was(dtype: str) -> None:
    model = tiny_model("qwen3").train()
    model.get_decoder().layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    packed_target(model, dtype=dtype)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
