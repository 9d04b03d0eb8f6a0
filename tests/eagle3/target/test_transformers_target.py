"""Targets with sliding windows or reshaped logits, which only transformers' own modules run."""

import random

import pytest
import torch
from transformers import PreTrainedModel

from eaglerl.eagle3 import SpeculativeDecoder, TreeParams
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.target.transformers_target import TransformersTarget
from eaglerl.ops import tree_structure

from ..tiny import tiny_head, tiny_model

WINDOW = 8
PROMPT = [7 * i * i % 60 for i in range(30)]
# transformers runs on both sides; a tree's rows and a chain's are summed in another order.
TOLERANCE = 1e-4
MODELS = {
    "every_layer_slides": ("mistral", {"sliding_window": WINDOW}),
    "some_layers_slide": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    ),
    "slides_and_caps_its_logits": ("gemma2", {"sliding_window": WINDOW}),
    "two_rotary_bases": ("gemma3_text", {"sliding_window": WINDOW}),
    "scales_its_logits": ("cohere", {}),
}
WINDOWED = [name for name, (_, changes) in MODELS.items() if changes]


def family_target(name: str) -> tuple[PreTrainedModel, TargetModel]:
    """A tiny model and a target that runs it."""
    family, changes = MODELS[name]
    model = tiny_model(family, logit_scale=4.0, **changes)
    return model, make_target(model, backend="transformers")


@torch.inference_mode()
def reference(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits (n, V) by transformers, which makes its own mask."""
    return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("name", WINDOWED)
def test_window_matters_to_these_models(name: str) -> None:
    """Logits after the prompt depend on the window, or the comparisons below would show nothing."""
    family, changes = MODELS[name]
    narrow = tiny_model(family, logit_scale=4.0, **changes)
    wide = tiny_model(family, logit_scale=4.0, **(changes | {"sliding_window": 100}))
    difference = reference(narrow, PROMPT)[-1] - reference(wide, PROMPT)[-1]
    assert float(difference.abs().max()) > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_equal_trees_in_several_slots(name: str) -> None:
    """One pass over a tree in each of neighbouring slots is a pass over each, in caches and all."""
    _, target = family_target(name)
    generator = torch.Generator().manual_seed(3)
    starts, rows, first = [11, 4, 17], 5, 1
    ids = torch.randint(60, (3, rows), generator=generator)
    # A chain, two branches, and a row for all of the root's children.
    parents = torch.tensor([[0, 0, 1, 2, 3], [0, 0, 0, 1, 2], [0, 0, 0, 0, 0]])
    structures = [tree_structure(own.int()) for own in parents]
    levels = torch.stack([own.long() for own, _ in structures])
    mask = torch.stack([((words >> torch.arange(rows)) & 1).bool() for _, words in structures])
    together, alone = (target.new_cache(40, slots=5) for _ in range(2))
    expected = []
    for slot, start in enumerate(starts):
        prompt = torch.tensor(PROMPT[slot : slot + start])
        for cache in (together, alone):
            target.forward(RowBatch.causal(prompt, 0, first + slot), cache, "none")
            cache.advance(start, first + slot)
        own = RowBatch.tree(ids[slot], levels[slot], mask[slot], start, first + slot)
        expected.append(target.forward(own, alone))
    batch = RowBatch.equal_trees(ids, levels, mask, torch.tensor(starts), 30, first)
    output = target.forward(batch, together)
    for name in ("logits", "features"):
        rows_alone = torch.cat([getattr(one, name) for one in expected])
        torch.testing.assert_close(
            getattr(output, name), rows_alone, atol=TOLERANCE, rtol=TOLERANCE
        )
    torch.testing.assert_close(together.data, alone.data, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_prefill_in_chunks(name: str) -> None:
    model, target = family_target(name)
    expected = reference(model, PROMPT)
    cache = target.new_cache(40)
    for start, end, wanted in ((0, 5, "all"), (5, 6, "none"), (6, 29, "last"), (29, 30, "all")):
        rows = RowBatch.causal(PROMPT[start:end], start)
        logits = target.forward(rows, cache, wanted).logits
        cache.commit(range(end - start))
        if logits is None:
            assert wanted == "none"
            continue
        assert len(logits) == (1 if wanted == "last" else end - start)
        torch.testing.assert_close(
            logits, expected[end - len(logits) : end], rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize("name", MODELS)
def test_tree_rows_equal_the_chain_of_their_path(name: str) -> None:
    model, target = family_target(name)
    cache = target.new_cache(80)
    target.forward(RowBatch.causal(PROMPT, 0), cache, "none")
    cache.commit(range(len(PROMPT)))
    draw = random.Random(3)
    # Deep enough that a window ends inside the tree.
    parents = [-1, *range(9), *(draw.randrange(max(0, row - 5), row) for row in range(10, 30))]
    tokens = [draw.randrange(60) for _ in parents]
    levels, mask = tree_structure(torch.tensor(parents, dtype=torch.int32))
    assert int(levels.max()) > WINDOW
    rows = RowBatch.tree(torch.tensor(tokens), levels, mask, len(PROMPT))
    logits = target.forward(rows, cache).logits
    for row in range(0, len(parents), 3):
        path, node = [], row
        while node >= 0:
            path.insert(0, tokens[node])
            node = parents[node]
        expected = reference(model, PROMPT + path)[-1]
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_output_is_that_of_generate(name: str) -> None:
    model, target = family_target(name)
    decoder = SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=60))
    prompt = torch.tensor([PROMPT])
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=25,
        pad_token_id=0,
    )
    output = decoder.generate(prompt, TreeParams(300, 3, 30), max_new_tokens=25)
    assert output.sequences.tolist() == expected.tolist()


def test_other_kinds_of_attention_are_refused() -> None:
    model = tiny_model()
    model.config.layer_types = ["full_attention"] * 6 + ["linear_attention"]
    with pytest.raises(ValueError, match="layers of type 'linear_attention'"):
        TransformersTarget(model)


@pytest.mark.parametrize("name", MODELS)
def test_one_row_of_each_of_several_slots(name: str) -> None:
    model, target = family_target(name)
    prompts = [PROMPT[:length] for length in (25, 4, 12)]
    cache = target.new_cache(40, slots=3)
    for slot, prompt in enumerate(prompts):
        target.forward(RowBatch.causal(prompt, 0, slot), cache, "none")
    rows = RowBatch.one_per_slot(torch.tensor([5, 6, 7]), torch.tensor([25, 4, 12]).int())
    output = target.forward(rows, cache)
    for row, prompt in enumerate(prompts):
        expected = reference(model, [*prompt, 5 + row])[-1]
        torch.testing.assert_close(output.logits[row], expected, rtol=TOLERANCE, atol=TOLERANCE)


def longrope_model(original: int) -> PreTrainedModel:
    """Phi-3 with other frequencies beyond `original` positions."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 3.0, 9.0, 27.0],
    }
    return tiny_model(
        "phi3",
        logit_scale=4.0,
        rope_parameters=rope,
        original_max_position_embeddings=original,
        max_position_embeddings=256,
        pad_token_id=0,
    )


def test_longrope_ends_where_its_frequencies_change() -> None:
    """Beyond, keys would depend on the chunks of the prompt, and logits on the rows of the tree."""
    model = longrope_model(24)
    with pytest.warns(UserWarning, match="end at 24 of the target's 256 positions"):
        target = make_target(model, backend="transformers")
    decoder = SpeculativeDecoder(target, tiny_head(target), draft_dtype="float32")
    prompt = PROMPT[1:11]
    expected = model.generate(torch.tensor([prompt]), max_length=24, do_sample=False)[0].tolist()
    output = decoder.generate(prompt, TreeParams(12, 3, 3), max_new_tokens=100)
    assert output.sequences[0].tolist() == expected
    assert output.finish_reasons == ("context",)
    with pytest.raises(ValueError, match="the target's context holds 24"):
        decoder.generate(PROMPT[1:], max_new_tokens=5)


def test_longrope_up_to_its_frequencies_is_no_limit() -> None:
    target = make_target(longrope_model(256), backend="transformers")
    assert target.max_positions == 256
