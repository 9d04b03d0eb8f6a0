"""Sampled text is a function of the seed and the target alone, and transformers' own."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from eaglerl.eagle3 import NO_DRAFT, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.sampling import SamplingVerifier
from eaglerl.eagle3.target.make_target import make_target

from .tiny import tiny_head, tiny_model

PROMPT = [3, 14, 15, 9, 26]
TREES = [NO_DRAFT, TreeParams(8, 2, 4), TreeParams(60, 0, 59), TreeParams(300, 3, 30)]
WARPS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.4, "top_k": 12},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.1, "top_p": 0.9, "top_k": 20},
]


@pytest.fixture(scope="module")
def model():
    return tiny_model(logit_scale=2.0)


@pytest.fixture(scope="module")
def decoder(model) -> SpeculativeDecoder:
    target = make_target(model)
    return SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=60))


@pytest.mark.parametrize("warp", WARPS)
def test_draws_are_those_of_transformers(decoder, model, warp):
    """One draw per token from one generator, so that equal seeds write equal texts.

    A draw within 1e-6 of a boundary between two tokens could fall on either side; none does here.
    """
    prompt = torch.tensor([PROMPT])
    torch.manual_seed(17)
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        max_new_tokens=30,
        pad_token_id=0,
        **({"top_k": 0, "top_p": 1.0} | warp),
    )
    for tree in TREES[:3]:
        torch.manual_seed(17)
        output = decoder.generate(prompt, tree, max_new_tokens=30, **warp)
        assert output.sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_tree_does_not_change_the_text(decoder, seed):
    outputs = [
        decoder.generate(PROMPT, tree, max_new_tokens=40, temperature=0.9, top_k=30, seed=seed)
        for tree in TREES
    ]
    assert len({tuple(output.sequences[0].tolist()) for output in outputs}) == 1
    accepted = sum(cycle.accepted for cycle in outputs[-1].statistics.cycles)
    assert accepted > 0


def test_first_token_of_a_cycle_over_a_larger_vocabulary():
    """300 tokens, most of which the tree does not hold."""
    vocab, draws = 300, 20_000
    model = tiny_model(vocab_size=vocab, logit_scale=1.5)
    target = make_target(model)
    decoder = SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=200))
    verifier = SamplingVerifier(0.8, 1.0, 0, torch.Generator().manual_seed(5))
    session = decoder.new_session(verifier, 40)
    session.prefill(PROMPT)
    session.token_ids[-1] = root = 7
    tree, _ = session._draft_tree(TreeParams(40, 2, 8))
    logits = session._verify_tree(tree).logits.clone()
    counts, kept = Counter(), 0
    for _ in range(draws):
        rows, bonus = verifier.accept(logits, tree)
        kept += len(rows) > 1
        counts[int(tree.token_ids[rows[1]]) if len(rows) > 1 else bonus] += 1
    with torch.no_grad():
        exact = model.double()(torch.tensor([[*PROMPT, root]])).logits[0, -1]
    expected = draws * torch.softmax(exact / 0.8, 0)
    large = (expected >= 5).nonzero().flatten().tolist()
    observed = [counts[token] for token in large]
    wanted = expected[large].tolist()
    observed.append(draws - sum(observed))
    wanted.append(draws - sum(wanted))
    assert len(large) > 40
    assert 0.02 * draws < kept < 0.98 * draws
    assert chisquare(observed, wanted).pvalue > 0.01
