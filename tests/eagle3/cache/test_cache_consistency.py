"""Both KV caches after many random cycles are those of a fresh pass over the same tokens."""

import random

import pytest
import torch

from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.eagle3.sampling import GreedyVerifier, make_verifier
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.target.target_model import TargetModel

from ..tiny import tiny_head, tiny_model, tiny_runner
from ..tree.reference_tree import Float64Head

CYCLES = 200
CAPACITY = 1000
PROMPT = [5, 17, 3, 9, 41, 2, 2, 58]
# Entries are of magnitude 1 to 5. A tree pass and a causal pass sum the same numbers in another
# order (other blocks of rows and keys), an fp32 error of some 1e-6 that seven layers may amplify.
TARGET_TOLERANCE = 1e-4
# The same, through the features, the reduction and one more layer.
DRAFT_TOLERANCE = 2e-4


def random_params(generator: random.Random, widest: int) -> TreeParams:
    """Any valid tree of up to 40 rows."""
    top_k, depth = generator.randint(1, widest), generator.randint(0, 5)
    pool = top_k + depth * top_k**2
    return TreeParams(generator.randint(2, min(pool, 39) + 1), depth, top_k)


def random_schedule(generator: random.Random, widest: int) -> list[TreeParams]:
    """Trees, broken by stretches without a draft, which leave features pending."""
    schedule: list[TreeParams] = []
    while len(schedule) < CYCLES - 1:
        if generator.random() < 0.1:
            schedule += [NO_DRAFT] * generator.randint(1, 8)
        else:
            schedule.append(random_params(generator, widest))
    # The last cycle drafts, so that the draft has taken in all but what this cycle commits.
    return [*schedule[: CYCLES - 1], TreeParams(6, 1, 3)]


def fresh_pass(
    target: TargetModel, draft: CachedDraft, tokens: list[int], stable: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's cache over all tokens but the root, and the draft's over `stable` rows."""
    cache = target.new_cache(CAPACITY)
    committed = len(tokens) - 1
    output = target.forward(RowBatch.causal(tokens[:-1], 0), cache, "none")
    draft.extend(torch.tensor(tokens[1 : stable + 1]), output.features[:stable].clone())
    return cache.data[..., :committed, :], draft.cache.data[..., :stable, :]


@pytest.mark.parametrize("backend", ["packed", "transformers"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_after_random_cycles(backend: str, temperature: float) -> None:
    target = make_target(tiny_model(vocab_size=12, seed=4), backend=backend)
    head = tiny_head(target, draft_vocab_size=10, seed=5)
    packed = backend == "packed"
    draft = tiny_runner(head, CAPACITY, packed=packed)
    verifier = make_verifier(temperature, 1.0, 0, seed=6, device="cpu")
    session = DecodingSession(target, draft, verifier, target.new_cache(CAPACITY))
    prompt = [token % target.vocab_size for token in PROMPT]
    session.prefill(prompt)
    accepted = 0
    for params in random_schedule(random.Random(7), widest=8):
        before = len(session.token_ids)
        accepted += session.step(params).accepted
    # Rows were moved: a fair number of drafted tokens was accepted.
    assert accepted >= CYCLES // 10

    tokens, committed = session.token_ids, len(session.token_ids) - 1
    assert session.cache.lengths == [committed]
    assert draft.lengths == [before - 1]
    target_rows, draft_rows = fresh_pass(
        target, tiny_runner(head, CAPACITY, packed=packed), tokens, before - 1
    )
    torch.testing.assert_close(
        session.cache.data[..., :committed, :], target_rows, rtol=0, atol=TARGET_TOLERANCE
    )
    torch.testing.assert_close(
        draft.cache.data[..., : before - 1, :], draft_rows, rtol=0, atol=DRAFT_TOLERANCE
    )


def test_a_new_session_forgets_the_old_sequence() -> None:
    target = make_target(tiny_model(seed=4), backend="packed")
    draft = tiny_runner(tiny_head(target), 200)
    cache = target.new_cache(200)
    outputs = []
    for prompt in (PROMPT, [7] * 30, PROMPT):
        session = DecodingSession(target, draft, GreedyVerifier(), cache)
        session.prefill(prompt)
        for _ in range(10):
            session.step(TreeParams(12, 2, 4))
        outputs.append(session.token_ids)
    assert outputs[0] == outputs[2]


def test_caches_equal_those_of_other_implementations() -> None:
    """transformers' cache; and for the draft, a float64 head over transformers' features."""
    model = tiny_model(vocab_size=12, seed=4)
    target = make_target(model, backend="packed")
    head = tiny_head(target, draft_vocab_size=10, seed=5)
    draft = tiny_runner(head, CAPACITY)
    session = DecodingSession(target, draft, GreedyVerifier(), target.new_cache(CAPACITY))
    session.prefill([token % target.vocab_size for token in PROMPT])
    for params in random_schedule(random.Random(8), widest=8):
        session.step(params)
    tokens, stable = session.token_ids, draft.lengths[0]
    with torch.inference_mode():
        output = model(torch.tensor([tokens[:-1]]), use_cache=True, output_hidden_states=True)
    committed = len(tokens) - 1
    for index, layer in enumerate(output.past_key_values.layers):
        for ours, theirs in (
            (session.cache.keys(index), layer.keys),
            (session.cache.values(index), layer.values),
        ):
            torch.testing.assert_close(
                ours[:, :, :committed], theirs, rtol=0, atol=TARGET_TOLERANCE
            )
    features = torch.cat([output.hidden_states[i][0] for i in target.feature_layers], dim=-1)
    rows = Float64Head(head).stable_rows(tokens[1 : stable + 1], features[:stable])[1]
    keys, values = (torch.stack(part, dim=1).float() for part in zip(*rows, strict=True))
    cache = draft.cache.data[0, 0, :, :, :stable]
    torch.testing.assert_close(cache[0], keys, rtol=0, atol=DRAFT_TOLERANCE)
    torch.testing.assert_close(cache[1], values, rtol=0, atol=DRAFT_TOLERANCE)
