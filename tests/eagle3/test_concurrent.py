"""Several generations of one decoder at once: each text is the one that it has alone."""

import asyncio
import gc
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from eaglerl.eagle3 import (
    NO_DRAFT,
    DraftPlan,
    FusedPolicy,
    SpeculativeDecoder,
    TreeParams,
)
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.target.make_target import make_target

from .batch.batches import Deepening
from .test_device_loop import HEAD, MODEL
from .test_device_loop import policies as fused_policies
from .tiny import tiny_head, tiny_model

VOCAB = 12
PROMPTS = [[(5 * i * i + 3 * n + i) % VOCAB for i in range(3 + 4 * n)] for n in range(5)]
NEW_TOKENS = 16
TREES = [NO_DRAFT, TreeParams(6, 2, 4), DraftPlan(TreeParams(4, 1, 3), 5), DraftPlan(None, 4)]


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=VOCAB, logit_scale=3.0)


@pytest.fixture
def decoder(model) -> SpeculativeDecoder:
    return make_decoder(model, "packed")


@pytest.fixture(params=["packed", "transformers"])
def any_decoder(model, request) -> SpeculativeDecoder:
    return make_decoder(model, request.param)


def make_decoder(model, backend: str) -> SpeculativeDecoder:
    target = make_target(model, backend=backend)
    head = tiny_head(target, draft_vocab_size=VOCAB)
    return SpeculativeDecoder(target, head, draft_dtype="float32")


def reference(model, prompt: list[int]) -> list[int]:
    """Plain greedy decoding by transformers."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS)[0].tolist()


@pytest.fixture(scope="module")
def expected(model) -> list[list[int]]:
    return [reference(model, prompt) for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def _threads_change_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def decode(decoder, prompt, policy=None, **arguments) -> list[int]:
    output = decoder.generate(prompt, policy, max_new_tokens=NEW_TOKENS, **arguments)
    return output.sequences[0].tolist()


def run_to_the_end(generation) -> None:
    while generation.finish_reason is None:
        generation.advance()


def at_once(work, items) -> list:
    """Call `work` for every item, each in its own thread, all starting together."""
    items = list(items)
    barrier = threading.Barrier(len(items))

    def run(item):
        barrier.wait()
        return work(item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(run, items))


def test_two_targets_of_one_model(model, expected) -> None:
    decoders = [make_decoder(model, "transformers") for _ in range(2)]
    indices = range(len(PROMPTS))
    assert at_once(lambda i: decode(decoders[i % 2], PROMPTS[i], TREES[1]), indices) == expected


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_threads_with_the_same_tree(any_decoder, expected, tree) -> None:
    assert at_once(lambda prompt: decode(any_decoder, prompt, tree), PROMPTS) == expected


def test_threads_with_policies_of_their_own(decoder, expected) -> None:
    makers = [*(lambda tree=tree: tree for tree in TREES[:3]), Deepening, Deepening]
    pairs = list(zip(PROMPTS, makers, strict=True))
    assert at_once(lambda pair: decode(decoder, pair[0], pair[1]()), pairs) == expected


def test_more_generations_than_threads(decoder, expected) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda prompt: decode(decoder, prompt), PROMPTS * 2))
    assert results == expected * 2


def test_draws_of_a_seed_are_the_same_beside_others(decoder) -> None:
    def draw(seed: int) -> list[int]:
        return decode(decoder, PROMPTS[2], TREES[1], temperature=1.0, seed=seed)

    alone = [draw(seed) for seed in range(5)]
    assert at_once(draw, range(5)) == alone
    assert len({tuple(text) for text in alone}) > 1


@pytest.mark.parametrize("order", ["in turn", "first before the others", "backwards"])
def test_interleaved_generations(decoder, expected, order) -> None:
    going = [
        decoder.start(prompt, TREES[index % 4], max_new_tokens=NEW_TOKENS)
        for index, prompt in enumerate(PROMPTS)
    ]
    if order == "first before the others":
        going[0].advance()
        going[0].advance()
    while any(generation.finish_reason is None for generation in going):
        for generation in going if order != "backwards" else reversed(going):
            if generation.finish_reason is None:
                generation.advance()
    assert [generation.token_ids for generation in going] == expected


def test_one_generation_carried_on_by_several_threads(decoder, expected) -> None:
    generation = decoder.start(PROMPTS[3], TREES[1], max_new_tokens=NEW_TOKENS)

    def carry_on(_: int) -> str:
        try:
            run_to_the_end(generation)
        except ValueError as error:
            # Another thread reached the end between the check and the call.
            return str(error)
        return "has ended: length"

    assert all("has ended: length" in found for found in at_once(carry_on, range(4)))
    assert generation.token_ids == expected[3]


def test_from_asyncio(decoder, expected) -> None:
    async def decode_one(prompt: list[int]) -> list[int]:
        generation = decoder.start(prompt, max_new_tokens=NEW_TOKENS)
        while generation.finish_reason is None:
            await asyncio.to_thread(generation.advance)
        return generation.token_ids

    async def decode_all() -> list[list[int]]:
        return await asyncio.gather(*map(decode_one, PROMPTS))

    assert asyncio.run(decode_all()) == expected


def test_the_model_may_decode_by_itself_meanwhile(any_decoder, model, expected) -> None:
    """The model's own passes and the decoder's do not share hooks or activations."""

    def either(index: int) -> list[int]:
        prompt = PROMPTS[index]
        if index % 2:
            return decode(any_decoder, prompt, TREES[1])
        return reference(model, prompt)

    assert at_once(either, range(len(PROMPTS))) == expected


def test_two_decoders_of_one_target(any_decoder, expected) -> None:
    head = any_decoder.draft_head
    other = SpeculativeDecoder(any_decoder.target, head, draft_dtype="float32")
    decoders = [any_decoder, other]
    indices = range(len(PROMPTS))
    assert at_once(lambda i: decode(decoders[i % 2], PROMPTS[i], TREES[1]), indices) == expected


class TestCachesThatAreGone:
    def test_closed(self, decoder, expected) -> None:
        generation = decoder.start(PROMPTS[0], TREES[1], max_new_tokens=NEW_TOKENS)
        generation.advance()
        so_far = list(generation.token_ids)
        generation.close()
        with pytest.raises(ValueError, match=r"given its caches back.* the generation was closed"):
            generation.advance()
        with pytest.raises(ValueError, match="given its caches back"):
            generation.session.step(TREES[1])
        assert generation.token_ids == so_far
        assert decode(decoder, PROMPTS[1]) == expected[1]

    def test_the_session_of_a_text_that_has_ended_cannot_go_on(self, decoder) -> None:
        generation = decoder.start(PROMPTS[0], max_new_tokens=2)
        while generation.finish_reason is None:
            generation.advance()
        other = decoder.start(PROMPTS[1], max_new_tokens=NEW_TOKENS)
        other.advance()
        with pytest.raises(ValueError, match="the sequence has ended: length"):
            generation.session.step(TREES[1])

    def test_a_with_block_closes(self, decoder) -> None:
        with decoder.start(PROMPTS[0], max_new_tokens=NEW_TOKENS) as generation:
            generation.advance()
        with pytest.raises(ValueError, match="given its caches back"):
            generation.advance()

    def test_closing_from_another_thread_waits_for_the_cycle(self, decoder, expected) -> None:
        inside, closed = threading.Event(), threading.Event()

        class Slow(Deepening):
            def choose(self, state) -> TreeParams:
                inside.set()
                time.sleep(0.05)
                assert not closed.is_set()
                return super().choose(state)

        generation = decoder.start(PROMPTS[2], Slow(), max_new_tokens=NEW_TOKENS)
        generation.advance()
        # That of the first cycle says nothing of the one to wait for.
        inside.clear()
        thread = threading.Thread(target=generation.advance)
        thread.start()
        assert inside.wait(20)
        generation.close()
        closed.set()
        thread.join(20)
        length = len(generation.token_ids)
        assert length > len(PROMPTS[2]) + 1
        assert generation.token_ids == expected[2][:length]


class TestFailures:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    @pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
    def test_in_a_pass(self, decoder, expected, monkeypatch, error, at) -> None:
        """A failure in any pass ends that generation; the others and new ones are right."""
        going = decoder.start(PROMPTS[1], TREES[1], max_new_tokens=NEW_TOKENS)
        going.advance()
        failing = decoder.start(PROMPTS[2], TREES[1], max_new_tokens=NEW_TOKENS)
        forward, passes = type(decoder.target).forward, [0]

        def interrupted(self, rows, cache, logits="all"):
            passes[0] += 1
            output = forward(self, rows, cache, logits)
            if passes[0] == at + 1:
                raise error("in the middle")
            return output

        with monkeypatch.context() as patch:
            patch.setattr(type(decoder.target), "forward", interrupted)
            with pytest.raises(error, match="in the middle"):
                run_to_the_end(failing)
        assert failing.token_ids == expected[2][: len(failing.token_ids)]
        with pytest.raises(ValueError, match=f"it failed with {error.__name__}"):
            failing.advance()
        assert decode(decoder, PROMPTS[2]) == expected[2]
        run_to_the_end(going)
        assert going.token_ids == expected[1]

    @pytest.mark.parametrize("method", ["choose", "observe"])
    def test_in_the_policy(self, decoder, expected, method) -> None:
        class Failing(Deepening):
            calls = 0

        def fail(self, argument):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return getattr(Deepening, method)(self, argument)

        setattr(Failing, method, fail)
        policy = Failing()
        generation = decoder.start(PROMPTS[2], policy, max_new_tokens=NEW_TOKENS)
        with pytest.raises(KeyboardInterrupt):
            run_to_the_end(generation)
        if method == "choose":
            # Nothing had changed yet.
            run_to_the_end(generation)
            assert generation.token_ids == expected[2]
        else:
            with pytest.raises(ValueError, match="it failed with KeyboardInterrupt"):
                generation.advance()
        generation.close()
        assert decode(decoder, PROMPTS[3], policy) == expected[3]

    def test_of_a_streamer(self, decoder, expected) -> None:
        class Failing:
            def put(self, value: torch.Tensor) -> None:
                raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            decode(decoder, PROMPTS[0], streamer=Failing())
        assert len(decoder._sessions.pool.idle) == 1
        assert decode(decoder, PROMPTS[0]) == expected[0]

    def test_a_policy_that_advances_its_own_generation(self, decoder) -> None:
        class Greedy(Deepening):
            def should_continue(self, progress) -> bool:
                self.generation.advance()
                return True

            def choose_total_tokens(self, progress) -> int:
                return 2

        policy = Greedy()
        policy.generation = decoder.start(PROMPTS[0], policy, max_new_tokens=NEW_TOKENS)
        policy.generation.advance()
        with pytest.raises(ValueError, match="in the middle of a pass"):
            policy.generation.advance()


class TestPolicies:
    def test_one_that_cannot_serve_two_is_refused_the_second_time(self, decoder, expected) -> None:
        policy = Deepening()
        going = decoder.start(PROMPTS[0], policy, max_new_tokens=NEW_TOKENS)
        going.advance()
        for _ in range(2):
            with pytest.raises(ValueError, match="a Deepening, is in use by another generation"):
                decoder.generate(PROMPTS[1], policy)
        run_to_the_end(going)
        assert going.token_ids == expected[0]
        assert decode(decoder, PROMPTS[1], policy) == expected[1]

    @pytest.mark.parametrize("end", ["close", "drop", "interrupt"])
    def test_it_is_free_again(self, decoder, expected, end) -> None:
        policy = Deepening()
        generation = decoder.start(PROMPTS[0], policy, max_new_tokens=NEW_TOKENS)
        generation.advance()
        if end == "close":
            generation.close()
        elif end == "drop":
            del generation
            gc.collect()
        else:

            class Interrupting:
                def put(self, value: torch.Tensor) -> None:
                    raise KeyboardInterrupt

            generation.close()
            with pytest.raises(KeyboardInterrupt):
                decode(decoder, PROMPTS[0], policy, streamer=Interrupting())
        assert decode(decoder, PROMPTS[1], policy) == expected[1]

    def test_threads_with_one_that_cannot(self, decoder, expected) -> None:
        """Each text is right or was refused; at least one is right."""
        policy = Deepening()

        def try_it(prompt: list[int]) -> list[int] | str:
            try:
                return decode(decoder, prompt, policy)
            except ValueError as error:
                return str(error)

        found = at_once(try_it, PROMPTS)
        assert any(text == right for text, right in zip(found, expected, strict=True))
        for text, right in zip(found, expected, strict=True):
            assert text == right or "in use by another generation" in text

    def test_a_policy_refused_for_the_head_is_free(self, decoder) -> None:
        class Refusing(Deepening):
            def reset(self) -> None:
                raise ValueError("not today")

        policy = Refusing()
        for _ in range(2):
            with pytest.raises(ValueError, match="not today"):
                decoder.start(PROMPTS[0], policy)

    @pytest.mark.parametrize("name", ["features", "taps", "adaptive"])
    def test_fused_policies_decide_for_each_as_for_it_alone(self, name) -> None:
        target = make_target(tiny_model(**MODEL))
        decoder = SpeculativeDecoder(target, tiny_head(target, **HEAD), draft_dtype="float32")
        prompts = [[(7 * i * i + n) % VOCAB for i in range(4 + n)] for n in range(4)]

        def run(prompt: list[int], policy: FusedPolicy):
            output = decoder.generate(prompt, policy, max_new_tokens=NEW_TOKENS)
            trees = [cycle.params for cycle in output.statistics.cycles]
            return output.sequences[0].tolist(), trees

        alone = [run(prompt, fused_policies()[name]) for prompt in prompts]
        shared = fused_policies()[name]
        assert at_once(lambda prompt: run(prompt, shared), prompts) == alone
        assert len({tree for _, trees in alone for tree in trees}) > 1

    def test_the_default_policy_may_be_one_that_forks(self) -> None:
        target = make_target(tiny_model(**MODEL))
        decoder = SpeculativeDecoder(
            target,
            tiny_head(target, **HEAD),
            draft_dtype="float32",
            default_policy=fused_policies()["features"],
        )
        prompts = [[n, 2, 3] for n in range(4)]
        plain = [decode(decoder, prompt, NO_DRAFT) for prompt in prompts]
        assert at_once(lambda prompt: decode(decoder, prompt), prompts) == plain


def test_the_time_of_other_generations_is_not_that_of_the_cycles(decoder) -> None:
    """While seven others decode, waiting is counted apart and decoding takes no longer."""
    others = 7

    def run(_: int):
        return decoder.generate(PROMPTS[4], TREES[1], max_new_tokens=NEW_TOKENS).statistics

    alone = min((run(0) for _ in range(3)), key=lambda statistics: statistics.seconds)
    assert alone.waited_seconds == 0.0
    started = time.perf_counter()
    beside = at_once(run, range(others + 1))
    elapsed = time.perf_counter() - started
    # Passes do not overlap, so their times add up to no more than what has passed.
    assert sum(statistics.seconds for statistics in beside) <= elapsed
    assert sum(statistics.waited_seconds for statistics in beside) > elapsed
    for statistics in beside:
        cycles = sum(cycle.seconds for cycle in statistics.cycles)
        assert cycles + statistics.policy_seconds <= statistics.decode_seconds


def test_two_sessions_have_verifiers_of_their_own(decoder) -> None:
    """A verifier that reads the text would verify one session by the text of another."""
    settings = decoder.read_options(repetition_penalty=1.5, max_new_tokens=NEW_TOKENS)
    verifier, _ = settings.start(PROMPTS[0], 100)
    first = decoder.new_session(verifier, 60)
    first.prefill(PROMPTS[0])
    with pytest.raises(ValueError, match="the verifier, a ProcessingVerifier, keeps track"):
        decoder.new_session(verifier, 60)
    own, _ = settings.start(PROMPTS[1], 100)
    second = decoder.new_session(own, 60)
    second.prefill(PROMPTS[1])
    for session in (first, second) * 20:
        session.step(TreeParams(6, 2, 4))
    for session, prompt in ((first, PROMPTS[0]), (second, PROMPTS[1])):
        alone = decoder.generate(prompt, repetition_penalty=1.5, max_new_tokens=NEW_TOKENS)
        text = alone.sequences[0].tolist()
        assert session.token_ids[: len(text)] == text
    first.close()
    again = decoder.new_session(verifier, 60)
    again.prefill(PROMPTS[0])
    again.step(TreeParams(6, 2, 4))
    assert first.token_ids[: len(again.token_ids)] == again.token_ids


def test_verifiers_that_remember_nothing_may_be_shared(decoder) -> None:
    verifier = GreedyVerifier()
    sessions = [decoder.new_session(verifier, 60) for _ in range(2)]
    for session, prompt in zip(sessions, PROMPTS, strict=False):
        session.prefill(prompt)


def test_a_session_reads_one_prompt(decoder) -> None:
    """A second prompt would be committed behind the first, at wrong positions."""
    session = decoder.new_session(GreedyVerifier(), 60)
    session.prefill(PROMPTS[1])
    session.step(TreeParams(6, 2, 4))
    text = list(session.token_ids)
    with pytest.raises(ValueError, match="has a prompt already"):
        session.prefill(PROMPTS[2])
    session.step(TreeParams(6, 2, 4))
    assert session.token_ids[: len(text)] == text
    unread = decoder.new_session(GreedyVerifier(), 60)
    unread.begin_prompt(PROMPTS[1])
    with pytest.raises(ValueError, match="has a prompt already"):
        unread.begin_prompt(PROMPTS[2])
