"""The decoding loop on a CUDA device: the text of transformers, and one wait a cycle."""

import pytest
import torch

from eaglerl.eagle3 import DraftPlan, FusedPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.target.make_target import make_target

from ..eagle3.test_device_loop import HEAD, MODEL, NEW_TOKENS, PROMPT, mlp_policy
from ..eagle3.tiny import tiny_head, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    model = tiny_model(**MODEL)
    head = tiny_head(make_target(model), **HEAD).cuda()
    head.embed_tokens = head.embed_tokens.cuda()
    return SpeculativeDecoder(make_target(model.cuda()), head)


def policies() -> dict[str, object]:
    return {
        "constant": TreeParams(12, 2, 4),
        "merged with the text": DraftPlan(TreeParams(8, 2, 3), 6),
        "features": FusedPolicy(mlp_policy(32), action_cache_steps=3),
        "taps": FusedPolicy(mlp_policy(96, "taps"), action_cache_steps=2),
    }


@pytest.mark.parametrize("name", policies())
def test_text_and_waits(decoder: SpeculativeDecoder, name: str) -> None:
    policy = policies()[name]
    prompt = torch.tensor([PROMPT], device="cuda")
    expected = decoder.target.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        output = decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
    assert output.sequences[0].tolist() == expected[0].tolist()
    # The profiler itself waits once, at its end.
    waits = sum(event.count for event in profile.key_averages() if event.key in _WAITS)
    before = 2 if isinstance(policy, FusedPolicy) else 1
    assert waits <= output.statistics.num_cycles + before + 1
