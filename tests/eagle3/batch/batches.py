"""Requests of all kinds for one tiny target, and ways to run them alone and together."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from eaglerl.eagle3 import NO_DRAFT, DraftPlan, SpeculativeDecoder, StepResult, TreeParams
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.batch.batched_sequence import BatchedSequence
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.sampling import seeded_generator
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.policies.auto_policy import make_auto_policy
from eaglerl.policies.lookup_rule import LookupRule

from ..tiny import tiny_head, tiny_model

VOCAB = 12
TREE = TreeParams(6, 2, 4)


class Deepening:
    """A policy that remembers its sequence and cannot fork."""

    def reset(self) -> None:
        self.depth = 1

    def choose(self, state) -> TreeParams:
        return TreeParams(2 + 2 * self.depth, self.depth, 2)

    def observe(self, result: StepResult) -> None:
        self.depth = min(self.depth + 1, 4) if result.accepted else 1


class Halving(Deepening):
    """A staged policy: it drafts until the best candidate is improbable, and verifies half."""

    def should_continue(self, progress) -> bool:
        return progress.scores.max() > -4.0

    def choose_total_tokens(self, progress) -> int:
        return 1 + len(progress.scores) // 2


#: Makes the policy of a request, a new one for every run.
POLICIES: list[Callable[[], object]] = [
    lambda: TREE,
    lambda: DraftPlan(TreeParams(4, 1, 3), 5),
    lambda: NO_DRAFT,
    lambda: DraftPlan(None, 4),
    # A tree of more rows than a shared pass has.
    lambda: TreeParams(80, 3, 6),
    Deepening,
    Halving,
    lambda: make_auto_policy(VOCAB),
    lambda: LookupRule(TREE, 2, 7, 6, 12),
]
#: Options of `generate`; those of sampling get a seed as well.
OPTIONS: list[dict[str, object]] = [
    {},
    {"temperature": 0.8},
    {"repetition_penalty": 1.3},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.9},
    {"eos_token_id": 7},
    {"temperature": 0.9, "repetition_penalty": 1.2, "eos_token_id": 3},
]


@dataclass(frozen=True)
class Request:
    """One prompt with everything that its text depends on, and a policy, on which it does not."""

    prompt: list[int]
    options: dict[str, object]
    seed: int | None
    new_policy: Callable[[], object]

    @property
    def greedy(self) -> bool:
        return self.seed is None


@dataclass
class Texts:
    """The outputs of requests, in their order, and how many sequences shared a step at most."""

    new_ids: list[list[int]]
    reasons: list[str | None]
    sequences: list[BatchedSequence] = field(default_factory=list)
    together: int = 0


def make_requests(count: int = 24, *, longest: int = 600) -> list[Request]:
    """Requests with prompts of 1 to `longest` tokens, some longer than a pass or a chunk."""
    lengths = [1, 3, 7, 20, 63, 64, 65, 130, longest, 12, 2, 40]
    requests = []
    for index in range(count):
        options = dict(OPTIONS[index % len(OPTIONS)])
        seed = 100 + index if "temperature" in options else None
        length = lengths[index % len(lengths)]
        prompt = [(5 * i * i + 3 * index + i) % VOCAB for i in range(length)]
        options["max_new_tokens"] = 8 + 5 * (index % 7)
        # Every kind of option meets every kind of policy: their numbers have no common divisor.
        requests.append(Request(prompt, options, seed, POLICIES[(index * 5) % len(POLICIES)]))
    return requests


def make_model() -> PreTrainedModel:
    """So few tokens that a random head is right now and then."""
    return tiny_model(vocab_size=VOCAB, logit_scale=3.0)


def make_decoder(
    model: PreTrainedModel, *, backend: str = "packed", dtype: str = "float32", **head: object
) -> SpeculativeDecoder:
    target = make_target(model, backend=backend)
    return SpeculativeDecoder(
        target, tiny_head(target, draft_vocab_size=VOCAB, **head), draft_dtype=dtype
    )


def new_session(decoder: SpeculativeDecoder, slots: int, **arguments: object) -> BatchSession:
    settings = {"capacity": 1000} | arguments
    return BatchSession(
        decoder.target, decoder.draft_runner, PerSlotPolicies(TREE), slots=slots, **settings
    )


def join(session: BatchSession, decoder: SpeculativeDecoder, request: Request, **arguments):
    """Join with a verifier and rules as `generate` makes them."""
    verifier, rules = decoder.read_options(**request.options).start(
        request.prompt,
        decoder.target.max_positions - len(request.prompt),
        generator=seeded_generator(request.seed, "cpu"),
    )
    policy = decoder._named.find(request.new_policy())
    return session.join(request.prompt, verifier, rules, policy, **arguments)


def run_alone(decoder: SpeculativeDecoder, requests: Sequence[Request]) -> Texts:
    """Every request by `generate`."""
    outputs = [
        decoder.generate([r.prompt], r.new_policy(), seed=r.seed, **r.options) for r in requests
    ]
    return Texts([o.new_ids[0] for o in outputs], [o.finish_reasons[0] for o in outputs])


def run_together(
    session: BatchSession,
    decoder: SpeculativeDecoder,
    requests: Sequence[Request],
    draw: random.Random,
) -> Texts:
    """Every request in one session; they join in a random order, at random moments."""
    waiting = list(range(len(requests)))
    draw.shuffle(waiting)
    sequences: dict[int, BatchedSequence] = {}
    emitted: dict[BatchedSequence, list[int]] = {}
    together = 0
    while waiting or session.sequences:
        while waiting and session.free_slots and draw.random() < 0.6:
            index = waiting.pop()
            sequences[index] = join(session, decoder, requests[index])
            emitted[sequences[index]] = []
        together = max(together, len(session.sequences))
        for sequence, tokens in session.step():
            emitted[sequence] += tokens
    found = [sequences[index] for index in range(len(requests))]
    assert [s.error for s in found] == [None] * len(found)
    # What the steps reported is the text.
    assert [emitted[s] for s in found] == [s.new_ids for s in found]
    return Texts([s.new_ids for s in found], [s.finish_reason for s in found], found, together)


def by_transformers(model: PreTrainedModel, request: Request) -> list[int]:
    """The output of transformers' own greedy `generate`."""
    ids = torch.tensor([request.prompt])
    mask = torch.ones_like(ids)
    output = model.generate(ids, attention_mask=mask, do_sample=False, **request.options)
    return output[0, len(request.prompt) :].tolist()
