"""The packaged model and head: 24 requests in batches write what each writes alone."""

import random
from types import SimpleNamespace

import pytest
import torch

from eaglerl.eagle3 import NO_DRAFT, DraftPlan, TreeParams

from ..test_losslessness import (
    NEW_TOKENS,
    RandomPolicy,
    assert_identical,
    decoder,
    references,
)
from .batches import Deepening, Request, new_session, run_alone, run_together

__all__ = ["decoder", "references"]

TREE = TreeParams(6, 2, 4)
POLICIES = [
    lambda: "auto",
    lambda: TREE,
    lambda: DraftPlan(TREE, 5),
    lambda: NO_DRAFT,
    lambda: RandomPolicy(3),
    Deepening,
]
#: Of the eight requests that are not plainly greedy.
OPTIONS = [
    {"temperature": 0.8},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.3},
    {"temperature": 0.7, "repetition_penalty": 1.2},
]


@pytest.fixture(scope="module")
def requests(references) -> list[Request]:
    """Every prompt of the losslessness test greedily, and eight of them in other ways."""
    prompts = [reference.prompt[0].tolist() for reference in references.values()]
    options = [{} for _ in prompts] + 2 * OPTIONS
    found = []
    for index, given in enumerate(options):
        seed = index if "temperature" in given else None
        given = given | {"max_new_tokens": NEW_TOKENS}
        policy = POLICIES[index % len(POLICIES)]
        found.append(Request(prompts[index % len(prompts)], given, seed, policy))
    assert len(found) == 24
    return found


@pytest.fixture(scope="module")
def alone(decoder, requests):
    return run_alone(decoder, requests)


@pytest.mark.parametrize(
    "slots", [8, pytest.param(2, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
def test_every_text_is_its_own(
    decoder, requests, alone, references, slots, record_property
) -> None:
    session = new_session(decoder, slots, capacity=700)
    found = run_together(session, decoder, requests, random.Random(slots))
    assert found.new_ids == alone.new_ids
    assert found.reasons == alone.reasons
    for (name, reference), request, new_ids in zip(
        references.items(), requests, found.new_ids, strict=False
    ):
        output = SimpleNamespace(sequences=torch.tensor([[*request.prompt, *new_ids]]))
        assert_identical(reference, output, name, record_property)
    assert sum(cycle.accepted for s in found.sequences for cycle in s.cycles) > 50
