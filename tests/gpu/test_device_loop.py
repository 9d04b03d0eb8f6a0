"""The decoding loop on a CUDA device: the text of transformers, and one wait a cycle."""

import pytest
import torch

from eaglerl.eagle3 import DraftPlan, FusedPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.fused_policy import fused_part
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.policies import AutoPolicy, LimitedPolicy

from ..eagle3.test_device_loop import HEAD, MODEL, NEW_TOKENS, PROMPT, mlp_policy
from ..eagle3.test_limited_policy import limits
from ..eagle3.tiny import tiny_head, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@pytest.fixture(scope="module", params=[False, True], ids=["call by call", "graphs"])
def decoder(request: pytest.FixtureRequest) -> SpeculativeDecoder:
    model = tiny_model(**MODEL)
    head = tiny_head(make_target(model), **HEAD).cuda()
    head.embed_tokens = head.embed_tokens.cuda()
    return SpeculativeDecoder(make_target(model.cuda()), head, cuda_graphs=request.param)


def policies() -> dict[str, object]:
    return {
        "constant": TreeParams(12, 2, 4),
        "merged with the text": DraftPlan(TreeParams(8, 2, 3), 6),
        "features": FusedPolicy(mlp_policy(32), action_cache_steps=3),
        "taps": FusedPolicy(mlp_policy(96, "taps"), action_cache_steps=2),
        "by rule": AutoPolicy(limit=TreeParams(12, 2, 3), lookup_tokens=3),
        "within limits": LimitedPolicy(limits()),
    }


def continuation(decoder: SpeculativeDecoder, prompt: list[int]) -> list[int]:
    """Return what transformers' own `generate` adds to a prompt."""
    ids = torch.tensor([prompt], device="cuda")
    text = decoder.target.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    return text[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", policies())
def test_text_and_waits(decoder: SpeculativeDecoder, name: str) -> None:
    policy = policies()[name]
    expected = PROMPT + continuation(decoder, PROMPT)
    for _ in range(3):
        output = decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
        assert output.sequences[0].tolist() == expected
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        output = decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
    assert output.sequences[0].tolist() == expected
    # The profiler itself waits once, at its end.
    waits = sum(event.count for event in profile.key_averages() if event.key in _WAITS)
    before = 1 if fused_part(policy) is None else 2
    assert waits <= output.statistics.num_cycles + before + 1


@pytest.mark.parametrize("name", ["constant", "by rule"])
def test_several_sequences_together(decoder: SpeculativeDecoder, name: str) -> None:
    """The texts of transformers, and one wait a cycle for all of them."""
    prompts = [PROMPT, PROMPT[:3], [*PROMPT[2:], *PROMPT]]
    expected = [continuation(decoder, prompt) for prompt in prompts]
    policy = policies()[name]
    for _ in range(3):
        output = decoder.generate(prompts, policy, max_new_tokens=NEW_TOKENS)
        assert [*output.new_ids] == expected
    counted = []
    for tokens in (4, NEW_TOKENS):
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            output = decoder.generate(prompts, policy, max_new_tokens=tokens)
        assert [*output.new_ids] == [text[:tokens] for text in expected]
        waits = sum(event.count for event in profile.key_averages() if event.key in _WAITS)
        counted.append((waits, max(len(one.cycles) for one in output.per_sequence)))
    # Both wait as often for their prompts and for the profiler.
    (few, short), (many, long) = counted
    assert many - few <= long - short


def test_draws_in_graphs_are_those_call_by_call() -> None:
    texts = []
    for captured in (False, True):
        model = tiny_model(**MODEL)
        head = tiny_head(make_target(model), **HEAD).cuda()
        head.embed_tokens = head.embed_tokens.cuda()
        decoder = SpeculativeDecoder(make_target(model.cuda()), head, cuda_graphs=captured)
        options = {"max_new_tokens": NEW_TOKENS, "temperature": 0.8, "top_p": 0.9}
        texts.append(
            [
                decoder.generate(PROMPT, TreeParams(12, 2, 4), seed=seed, **options).sequences
                for seed in range(3)
            ]
        )
    for call_by_call, graphs in zip(*texts, strict=True):
        assert torch.equal(call_by_call, graphs)


def test_graphs_replay() -> None:
    """Most cycles of a second text launch a few graphs and hardly anything else."""
    model = tiny_model(**MODEL)
    head = tiny_head(make_target(model), **HEAD).cuda()
    head.embed_tokens = head.embed_tokens.cuda()
    decoder = SpeculativeDecoder(make_target(model.cuda()), head, cuda_graphs=True)
    for _ in range(3):
        decoder.generate(PROMPT, TreeParams(12, 2, 4), max_new_tokens=NEW_TOKENS)
    (caches,) = decoder._sessions.pool.idle
    before = caches.captured.calls.captures
    output = decoder.generate(PROMPT, TreeParams(12, 2, 4), max_new_tokens=NEW_TOKENS)
    assert caches.captured.calls.captures == before > 0
    # Accepted rows, tree, verification, acceptance; the first cycle follows the prompt.
    assert caches.captured.calls.replays >= 4 * (output.statistics.num_cycles - 1)
