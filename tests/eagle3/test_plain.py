"""Plain decoding without a draft head: any target, no policy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from eaglerl.eagle3 import DraftPlan, FusedPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.policies.lookup_rule import lookup_alone

from .test_device_loop import mlp_policy
from .tiny import tiny_model

PROMPT = [5, 9, 11, 3]
# Shallower than any head could read, windowed, with another kind of layer norm, with capped logits.
FAMILIES = {
    "one layer": ("llama", {"num_hidden_layers": 1}),
    "window": ("mistral", {"sliding_window": 8, "num_hidden_layers": 2}),
    "gemma3": ("gemma3_text", {"sliding_window": 8, "num_hidden_layers": 2}),
    "gemma2": ("gemma2", {"sliding_window": 8, "num_hidden_layers": 2}),
    "gpt2": ("gpt2", {"num_hidden_layers": 2, "num_key_value_heads": 4}),
    "gpt-neox": ("gpt_neox", {"num_hidden_layers": 2, "num_key_value_heads": 4}),
    "phi": ("phi", {"num_hidden_layers": 2}),
    "olmo2": ("olmo2", {"num_hidden_layers": 2}),
    "stablelm": ("stablelm", {"num_hidden_layers": 2}),
    "opt": ("opt", {"num_hidden_layers": 2, "ffn_dim": 48, "num_key_value_heads": 4}),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:the target runs through transformers' modules")
def test_text_is_the_target_s_own(name: str) -> None:
    family, changes = FAMILIES[name]
    model = tiny_model(family, logit_scale=4.0, **changes)
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30, pad_token_id=0
    )
    decoder = SpeculativeDecoder(make_target(model, feature_layers=()), None)
    output = decoder.generate(PROMPT, max_new_tokens=30)
    assert output.sequences.tolist() == expected.tolist()
    assert output.statistics.mean_acceptance_length == 1.0
    assert (decoder.draft_head, decoder.draft_runner) == (None, None)
    generation = decoder.start(PROMPT, TreeParams(1), max_new_tokens=5)
    while generation.finish_reason is None:
        generation.advance()
    assert generation.token_ids == expected[0, :9].tolist()


def test_from_folders(tiny_folders: SimpleNamespace) -> None:
    decoder = SpeculativeDecoder.from_pretrained(tiny_folders.target, None)
    assert decoder.target.feature_layers == ()
    model = AutoModelForCausalLM.from_pretrained(tiny_folders.target)
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=0
    )
    assert decoder.generate(ids, max_new_tokens=20).sequences.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (TreeParams(6, 2, 4), "6/2/4"),
        (DraftPlan(TreeParams(1), lookup_tokens=5), "5"),
        (lookup_alone(5), "LookupRule"),
    ],
)
def test_a_policy_is_refused_by_name(policy, name: str) -> None:
    target = make_target(tiny_model(), feature_layers=())
    decoder = SpeculativeDecoder(target, None)
    for call in (decoder.generate, decoder.start):
        with pytest.raises(ValueError, match=rf"no draft head: None or .* got .*{name}"):
            call(PROMPT, policy)
    with pytest.raises(ValueError, match="no draft head"):
        SpeculativeDecoder(target, None, default_policy=policy)


def test_a_model_without_positions_is_refused_by_name() -> None:
    model = tiny_model("bloom", num_hidden_layers=2, n_head=4)
    with pytest.raises(ValueError, match=r"'bloom' is not supported .* takes no position_ids"):
        make_target(model, feature_layers=())


def test_a_session_refuses_a_policy_that_needs_a_head() -> None:
    decoder = SpeculativeDecoder(make_target(tiny_model(), feature_layers=()), None)
    policy = FusedPolicy(mlp_policy(32))
    for _ in range(2):  # The refused session does not keep the policy.
        with pytest.raises(ValueError, match=r"no draft head, got a FusedPolicy"):
            decoder.new_session(GreedyVerifier(), 10, policy)
