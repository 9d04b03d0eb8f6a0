"""Which rows the verifiers keep, against brute force over all paths."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import EtaLogitsWarper, LogitsProcessorList

from eaglerl.eagle3.sampling import GreedyVerifier, SamplingVerifier, make_verifier
from eaglerl.eagle3.verifier import Verifier
from eaglerl.ops import DraftTree, tree_structure

VOCAB = 6


def make_tree(parents: list[int], tokens: list[int]) -> DraftTree:
    """A tree from its parents; row 0 is the root."""
    rows = torch.tensor(parents, dtype=torch.int32)
    levels, mask = tree_structure(rows)
    return DraftTree(torch.tensor(tokens), rows, levels, mask, torch.zeros(len(parents)))


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Parents and tokens of a tree whose siblings carry distinct tokens."""
    parents, tokens, used = [-1], [draw(st.integers(0, VOCAB - 1))], set()
    for _ in range(draw(st.integers(0, 14))):
        edge = (draw(st.integers(0, len(parents) - 1)), draw(st.integers(0, VOCAB - 1)))
        if edge not in used:
            used.add(edge)
            parents.append(edge[0])
            tokens.append(edge[1])
    return parents, tokens


def paths(parents: list[int]) -> list[list[int]]:
    """Every path from the root to any row."""
    result = [[0]]
    for row in range(1, len(parents)):
        result.append([*next(path for path in result if path[-1] == parents[row]), row])
    return result


def longest_match(parents: list[int], tokens: list[int], choices: list[int]) -> list[int]:
    """The longest path all of whose tokens are what their parents' rows chose."""
    matching = [
        path
        for path in paths(parents)
        if all(tokens[child] == choices[row] for row, child in itertools.pairwise(path))
    ]
    return max(matching, key=len)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(trees(), st.data())
def test_greedy_keeps_the_longest_matching_path(
    tree: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    parents, tokens = tree
    # Half of the rows choose one of their children, so that long paths are common.
    choices = []
    for row in range(len(parents)):
        children = [token for token, parent in zip(tokens, parents, strict=True) if parent == row]
        anything = st.integers(0, VOCAB - 1)
        choices.append(data.draw(st.sampled_from(children) | anything if children else anything))
    logits = torch.nn.functional.one_hot(torch.tensor(choices), VOCAB).float()
    rows, bonus = GreedyVerifier().accept(logits, make_tree(parents, tokens))
    assert rows == longest_match(parents, tokens, choices)
    assert bonus == choices[rows[-1]]


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert GreedyVerifier().next_token(torch.tensor([0.0, 2.0, 2.0])) == 1
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    rows, bonus = GreedyVerifier().accept(logits, make_tree([-1, 0, 0], [0, 2, 1]))
    assert (rows, bonus) == ([0, 2], 0)


def test_rows_that_are_not_reached_are_not_drawn() -> None:
    """A tree that is never entered leaves the generator where one draw leaves it."""
    logits = torch.zeros(3, VOCAB)
    logits[0, 5] = 100.0
    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    tree = make_tree([-1, 0, 1], [0, 1, 2])
    assert SamplingVerifier(1.0, 1.0, 0, one).accept(logits, tree) == ([0], 5)
    assert SamplingVerifier(1.0, 1.0, 0, other).next_token(logits[0]) == 5
    assert torch.equal(one.get_state(), other.get_state())


def test_sampling_walks_as_far_as_the_draws_match() -> None:
    tree = make_tree([-1, 0, 0, 2, 3], [0, 1, 2, 3, 4])
    logits = torch.full((5, VOCAB), -1e4)
    for row, token in enumerate([2, 0, 3, 5, 0]):
        logits[row, token] = 0.0
    assert SamplingVerifier(0.7, 0.9, 0).accept(logits, tree) == ([0, 2, 3], 5)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "expected"),
    [
        (1.0, 1.0, 0, [0.5, 0.25, 0.125, 0.0625, 0.0625]),
        (0.5, 1.0, 0, [64 / 86, 16 / 86, 4 / 86, 1 / 86, 1 / 86]),
        (1.0, 1.0, 2, [2 / 3, 1 / 3, 0, 0, 0]),
        (1.0, 0.7, 0, [2 / 3, 1 / 3, 0, 0, 0]),
        # top_k first: 0.8 is reached within the renormalised three, 4/7 + 2/7.
        (1.0, 0.8, 3, [2 / 3, 1 / 3, 0, 0, 0]),
        (1.0, 0.01, 0, [1, 0, 0, 0, 0]),
        (1.0, 1.0, 99, [0.5, 0.25, 0.125, 0.0625, 0.0625]),
    ],
)
def test_warped_probabilities(
    temperature: float, top_p: float, top_k: int, expected: list[float]
) -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log()
    probabilities = SamplingVerifier(temperature, top_p, top_k).probabilities(logits)
    torch.testing.assert_close(probabilities, torch.tensor(expected).float())


def test_next_token_follows_the_probabilities() -> None:
    verifier = make_verifier(1.0, 1.0, 0, seed=5, device="cpu")
    probabilities = np.array([0.5, 0.3, 0.2])
    logits = torch.tensor(probabilities).log().float()
    counts = np.bincount([verifier.next_token(logits) for _ in range(3000)], minlength=3)
    assert chisquare(counts, 3000 * probabilities).pvalue > 0.01


def draws(verifier: Verifier, count: int = 20) -> list[int]:
    return [verifier.next_token(torch.zeros(1000)) for _ in range(count)]


def test_seeds() -> None:
    first, same, other = (
        draws(make_verifier(1.0, 1.0, 0, seed=seed, device="cpu")) for seed in (1, 1, 2)
    )
    assert first == same != other
    state = torch.get_rng_state()
    torch.manual_seed(1)
    unseeded = draws(make_verifier(1.0, 1.0, 0, seed=None, device="cpu"))
    torch.set_rng_state(state)
    # Without a seed, torch's global generator counts.
    assert unseeded == first


def test_a_seed_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    draws(make_verifier(1.0, 1.0, 0, seed=1, device="cpu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature_chooses_the_verifier() -> None:
    assert isinstance(make_verifier(0.0, 1.0, 0, None, "cpu"), GreedyVerifier)
    assert isinstance(make_verifier(0.1, 1.0, 0, None, "cpu"), SamplingVerifier)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_p": float("nan")}, "top_p .* nan"),
        ({"top_k": -1}, "top_k must be 0 .*, got -1"),
    ],
)
def test_values_out_of_range(temperature: float, changes: dict, message: str) -> None:
    arguments = {"top_p": 1.0, "top_k": 0, "seed": None, "device": "cpu"} | changes
    with pytest.raises(ValueError, match=message):
        make_verifier(temperature, **arguments)


@pytest.mark.parametrize("temperature", [-0.5, float("nan")])
def test_wrong_temperatures(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        make_verifier(temperature, 1.0, 0, None, "cpu")


@pytest.mark.parametrize("temperature", [1e-29, 1e-37, 1e-38, 1e-45, 1e-300, 5e-324])
def test_the_coldest_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.tensor([[-40.0, 20.0, 19.9999, float("-inf")], [0.0, -1.0, -2.0, 1e-6]])
    verifier = make_verifier(temperature, 0.9, 3, seed=1, device="cpu")
    assert verifier.choices(logits).tolist() == [1, 3]
    assert [verifier.next_token(row) for row in logits] == [1, 3]
    # The limit of two equal ones is a fair draw.
    equal = verifier.choices(torch.tensor([[2.0, 2.0, 1.0]]).expand(400, 3))
    assert 150 < int((equal == 0).sum()) < 250
    assert int((equal == 2).sum()) == 0


def test_settings_of_verifiers() -> None:
    """Equal where they choose alike; None where a warper may wait, or is not known."""
    one, same = SamplingVerifier(0.8, 0.9, 5), SamplingVerifier(0.8, 0.9, 5, torch.Generator())
    assert one.settings is not None
    assert one.settings == same.settings
    assert one.settings != SamplingVerifier(0.8, 0.9, 6).settings
    assert one.settings != SamplingVerifier(0.7, 0.9, 5).settings
    # That of eta_cutoff validates a distribution, for which the host waits.
    waiting = LogitsProcessorList([EtaLogitsWarper(0.1)])
    assert SamplingVerifier(1.0, 1.0, 0, warpers=waiting).settings is None
    times = torch.empty(2, 3)
    one.draw(times)
    logits = torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]])
    assert one.choices_by(logits, times).tolist() == [1, 0]
