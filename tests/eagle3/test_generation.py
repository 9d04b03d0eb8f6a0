"""A sequence carried on cycle by cycle: it is `generate`'s own, however it is interleaved."""

import pytest
import torch

from eaglerl.eagle3 import (
    ConstantPolicy,
    DraftPlan,
    Generation,
    SpeculativeDecoder,
    TreeParams,
)
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.packed_target import packed_target

from .tiny import tiny_head, tiny_model

VOCAB = 12
PROMPT = [1, 2, 3, 1, 2]
PLANS = [TreeParams(1), TreeParams(6, 2, 4), DraftPlan(TreeParams(4, 1, 3), 5)]


@pytest.fixture(scope="module")
def target() -> BlockTarget:
    """So few tokens that a random head is right now and then."""
    return packed_target(tiny_model(vocab_size=VOCAB, logit_scale=3.0))


def new_decoder(target: BlockTarget) -> SpeculativeDecoder:
    head = tiny_head(target, draft_vocab_size=VOCAB)
    return SpeculativeDecoder(target, head, draft_dtype="float32")


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "drawn"])
def test_cycle_by_cycle_gives_what_generate_gives(target, plan, sampling) -> None:
    expected = new_decoder(target).generate([PROMPT], plan, max_new_tokens=40, **sampling)
    generation = new_decoder(target).start(PROMPT, plan, max_new_tokens=40, **sampling)
    emitted = [generation.advance()]
    assert len(emitted[0]) == 1
    while generation.finish_reason is None:
        emitted.append(generation.advance())
    assert [*PROMPT, *(token for kept in emitted for token in kept)] == generation.token_ids
    assert generation.token_ids == expected.sequences[0].tolist()
    assert generation.finish_reason == expected.finish_reasons[0] == "length"
    assert len(generation.cycles) == len(emitted) - 1 == expected.statistics.num_cycles
    assert 0 < generation.policy_seconds < generation.decode_seconds
    with pytest.raises(ValueError, match="has ended: length"):
        generation.advance()


def test_sequences_of_two_decoders_of_one_target_do_not_meet(target) -> None:
    prompts = [PROMPT, [7, 7, 0, 4]]
    expected = [
        new_decoder(target).generate([prompt], PLANS[1], max_new_tokens=30).sequences[0].tolist()
        for prompt in prompts
    ]
    going = [new_decoder(target).start(p, PLANS[1], max_new_tokens=30) for p in prompts]
    while any(generation.finish_reason is None for generation in going):
        for generation in going:
            if generation.finish_reason is None:
                generation.advance()
    assert [generation.token_ids for generation in going] == expected


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_tree_of_every_cycle_holds_what_was_accepted(target, plan) -> None:
    generation = new_decoder(target).start(PROMPT, plan, max_new_tokens=60)
    assert generation.session.tree is None
    generation.advance()
    accepted = 0
    while generation.finish_reason is None:
        root = generation.token_ids[-1]
        generation.advance()
        tree, result = generation.session.tree, generation.cycles[-1]
        tokens, parents = tree.token_ids.tolist(), tree.parents.tolist()
        assert tokens[0] == root
        assert len(tokens) == result.rows
        row = 0
        for token in result.token_ids[:-1]:
            row = next(i for i in range(1, len(tokens)) if (parents[i], tokens[i]) == (row, token))
        assert (row, result.token_ids[-1]) not in list(zip(parents, tokens, strict=True))[1:]
        accepted += result.accepted
    assert accepted > 0 or plan == TreeParams(1)


def test_bad_arguments_are_named_before_anything_is_decoded(target) -> None:
    decoder = new_decoder(target)
    with pytest.raises(ValueError, match="input_ids is empty"):
        decoder.start([])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        decoder.start(PROMPT, max_new_tokens=0)
    with pytest.raises(ValueError, match="top_k=40"):
        decoder.start(PROMPT, TreeParams(2, 0, 40))
    with pytest.raises(ValueError, match='policy must be "auto"'):
        decoder.start(PROMPT, "fast")
    assert torch.equal(
        decoder.generate([PROMPT], max_new_tokens=3).sequences,
        new_decoder(target).generate([PROMPT], max_new_tokens=3).sequences,
    )


@pytest.mark.parametrize("rows", [None, 1, 3, 7])
def test_a_prompt_in_chunks_is_the_same_prompt(target, rows: int | None) -> None:
    prompt = PROMPT * 4
    expected = new_decoder(target).generate([prompt], PLANS[1], max_new_tokens=20)
    generation = new_decoder(target).start(prompt, PLANS[1], max_new_tokens=20)
    chunks = 0
    while generation.read_chunk(rows):
        chunks += 1
        assert generation.new_ids == []
    assert chunks == (0 if rows is None else (len(prompt) - 1) // rows)
    assert len(generation.advance()) == 1
    assert not generation.read_chunk(rows)
    while generation.finish_reason is None:
        generation.advance()
    assert generation.token_ids == expected.sequences[0].tolist()


def test_a_chunk_has_at_least_a_row(target) -> None:
    with pytest.raises(ValueError, match="most_rows must be at least 1, got 0"):
        new_decoder(target).start(PROMPT).read_chunk(0)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7, "top_p": 0.8, "seed": 3}], ids=["greedy", "drawn"]
)
def test_logprobs_are_those_of_the_target(plan, sampling) -> None:
    model = tiny_model(vocab_size=VOCAB, logit_scale=3.0)
    decoder = new_decoder(packed_target(model))
    generation = decoder.start(PROMPT, plan, max_new_tokens=30, top_logprobs=4, **sampling)
    while generation.finish_reason is None:
        generation.advance()
    told = generation.logprobs
    assert [token.token_id for token in told] == generation.new_ids
    with torch.no_grad():
        logits = model.double()(torch.tensor([generation.token_ids])).logits[0]
    expected = logits.log_softmax(-1)[len(PROMPT) - 1 : -1]
    for token, row in zip(told, expected, strict=True):
        # float32 against float64.
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
        best = row.topk(4)
        assert [logprob for _, logprob in token.top] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
        assert [token_id for token_id, _ in token.top] == best.indices.tolist()
    assert new_decoder(packed_target(model.float())).start(PROMPT).logprobs == []
    with pytest.raises(ValueError, match="top_logprobs must be 0 or positive, got -1"):
        decoder.start(PROMPT, top_logprobs=-1)


def test_a_decoder_by_its_old_argument_name_opens_the_sessions(target) -> None:
    decoder, plan = new_decoder(target), TreeParams(6, 2, 4)
    expected = decoder.generate([PROMPT], plan, max_new_tokens=8).sequences[0].tolist()
    rules = StoppingRules(eos_token_ids=(), max_new_tokens=8, room=50)
    arguments = {"rules": rules, "policy": ConstantPolicy(plan), "verifier": GreedyVerifier()}
    with pytest.warns(DeprecationWarning, match="decoder is deprecated .* use sessions"):
        generation = Generation(decoder=decoder, prompt_ids=PROMPT, **arguments)
    generation.run()
    assert generation.token_ids == expected


def test_a_closed_session_keeps_no_caches(target) -> None:
    generation = new_decoder(target).start(PROMPT, TreeParams(6, 2, 4), max_new_tokens=8)
    generation.advance()
    generation.close()
    assert generation.session.cache is None
    assert generation.session.draft is None
