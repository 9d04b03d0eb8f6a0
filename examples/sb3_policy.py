"""A PPO policy of stable-baselines3, trained on a live decoder and run inside the fused op.

    python examples/sb3_policy.py [TARGET HEAD] [--steps 256]

`PolicyWeights.from_sb3` takes the actor's layers and checks on random observations that they decide
as `model.predict(..., deterministic=True)` does. `fused_encode` then runs the head's FC and the
policy in one call, and `FusedPolicy` does so in the decoding loop. Needs the extra `rl`. So few
steps train nothing useful: docs/policies.md has commands that do.
"""

import argparse

import torch
from stable_baselines3 import PPO

from eaglerl import SpeculativeDecoder, TreeParams
from eaglerl.actions import ActionSpace
from eaglerl.eagle3 import FusedPolicy
from eaglerl.envs import SpeculativeDecodingEnv
from eaglerl.ops import PolicyWeights, fused_encode
from eaglerl.prepare import default_draft_path, prepare_model


def main(target: str | None = None, head: str | None = None, steps: int = 256) -> None:
    """Train, export, decide once by hand, and decode."""
    decoder = SpeculativeDecoder.from_pretrained(
        target or prepare_model(), head or default_draft_path()
    )
    prompts = [decoder.tokenizer(text).input_ids for text in ("One, two,", "A story about a fox:")]
    actions = ActionSpace([TreeParams(1), TreeParams(4, 2, 2), TreeParams(8, 4, 2)])
    env = SpeculativeDecodingEnv(decoder, prompts, actions, cache_steps=4, max_new_tokens=48)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, gamma=0.0, seed=0, device="cpu")
    model.learn(steps)

    # The decision alone, from three layers' features of one token to the parameters of a tree.
    fc, norms = decoder.draft_head.fc, decoder.draft_head.fc_norm or ()
    weights = PolicyWeights.from_sb3(model, actions.tensor, fc=fc, norms=norms)
    low, mid, high = torch.randn(3, 1, fc.in_features // 3)
    print("total_tokens, depth, top_k:", fused_encode(low, mid, high, weights).params.tolist())

    # In the decoding loop, the head's own FC is used.
    policy = FusedPolicy(PolicyWeights.from_sb3(model, actions.tensor), action_cache_steps=4)
    output = decoder.generate(prompts[0], policy, max_new_tokens=48)
    print("trees:", *(cycle.params.total_tokens for cycle in output.statistics.cycles))
    print(decoder.tokenizer.decode(output.new_ids[0]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", nargs="?")
    parser.add_argument("head", nargs="?")
    parser.add_argument("--steps", type=int, default=256)
    main(**vars(parser.parse_args()))
