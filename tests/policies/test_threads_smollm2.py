"""The packaged model, head and policies in a pool of threads, as a web application uses them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eaglerl.eagle3 import NO_DRAFT, DraftPlan, SpeculativeDecoder, TreeParams
from eaglerl.policies.lookup_rule import LookupRule
from eaglerl.policies.policy_folder import load_policy
from eaglerl.prepare import default_draft_path

TEXTS = [
    "Count to ten:",
    "Rain forms when",
    "def add(a, b):\n    return a + b\n\ndef add(a, b):",
    "The sea, the sea, the sea,",
    "Three primary colours are",
]
NEW_TOKENS = 24


@pytest.mark.slow
def test_threads_of_all_kinds_of_policies_write_what_plain_decoding_writes(
    smollm2_path: Path,
) -> None:
    decoder = SpeculativeDecoder.from_pretrained(smollm2_path, default_draft_path())
    models = default_draft_path().parent
    trained = load_policy(models / "policy-ppo-smollm2-135m-instruct", decoder)
    tree = TreeParams(6, 2, 4)
    policies = [None, tree, DraftPlan(tree, 5), LookupRule(tree, 2, 7, 6, 12), trained, trained]
    prompts = [decoder.tokenizer(text).input_ids for text in TEXTS]

    def decode(pair) -> list[int]:
        prompt, policy = pair
        return decoder.generate(prompt, policy, max_new_tokens=NEW_TOKENS).new_ids[0]

    plain = [decode((prompt, NO_DRAFT)) for prompt in prompts]
    pairs = [(prompt, policy) for policy in policies for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decode, pairs)) == plain * len(policies)
    # Every generation with the trained policy, side by side on one thread.
    generations = [decoder.start(prompt, trained, max_new_tokens=NEW_TOKENS) for prompt in prompts]
    while any(generation.finish_reason is None for generation in generations):
        for generation in generations:
            if generation.finish_reason is None:
                generation.advance()
    assert [generation.new_ids for generation in generations] == plain
