"""Time that a policy takes per decoding cycle, in real decoding.

    python benchmarks/bench_policy_time.py [--precision native] [--tokens 150] [--rounds 3] \
        [--cost FILE]

Between two decisions the target reads all of its weights, so nothing of the policy is in a cache:
the same calls in a loop take a fifth of the time. For each policy, microseconds per cycle over all
cycles but the first two of each answer: median and 99th percentile, of all cycles, of those that
drafted and of those that did not; and the median in per cent of the median cycle. The time contains
all calls of the policy and the preparation of their inputs. --cost names a table of `eaglerl
calibrate`, with which the online policy is timed as well.
"""

import argparse
import sys

import numpy as np

from eaglerl import SpeculativeDecoder
from eaglerl._ext import build_info
from eaglerl.cli.demo_command import DEMO_PROMPTS
from eaglerl.cost import CostTable
from eaglerl.eagle3.policy import NO_DRAFT, TreePolicy
from eaglerl.policies import AutoPolicy, OnlinePolicy
from eaglerl.prepare import default_draft_path, prepare_model


def measure(
    decoder: SpeculativeDecoder, policy: TreePolicy, tokens: int, rounds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each cycle's microseconds in the policy, whether it drafted, and its seconds."""
    cycles = []
    for _ in range(rounds):
        for prompt in DEMO_PROMPTS:
            messages = [{"role": "user", "content": prompt}]
            ids = decoder.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            output = decoder.generate(ids, policy, max_new_tokens=tokens)
            cycles += output.statistics.cycles[2:]
    return (
        1e6 * np.array([cycle.policy_seconds for cycle in cycles]),
        np.array([cycle.params != NO_DRAFT for cycle in cycles]),
        np.array([cycle.seconds for cycle in cycles]),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--precision", default="native")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cost")
    arguments = parser.parse_args()
    decoder = SpeculativeDecoder.from_pretrained(
        prepare_model(), default_draft_path(), precision=arguments.precision
    )
    policies: dict[str, TreePolicy] = {"auto": AutoPolicy()}
    if arguments.cost is not None:
        policies["online"] = OnlinePolicy(CostTable.from_json(arguments.cost))
    sys.stdout.write(
        f"{build_info()}\n\nus per cycle        all p50   p99   drafted p50   p99   not p50   p99\n"
    )
    for name, policy in policies.items():
        found, drafted, seconds = measure(decoder, policy, arguments.tokens, arguments.rounds)
        columns = [found, found[drafted], found[~drafted]]
        numbers = [
            np.quantile(column, share) if len(column) else np.nan
            for column in columns
            for share in (0.5, 0.99)
        ]
        percent = 100e-6 * np.median(found) / np.median(seconds)
        sys.stdout.write(
            f"{name:18s} {numbers[0]:8.0f} {numbers[1]:5.0f} {numbers[2]:13.0f} {numbers[3]:5.0f}"
            f" {numbers[4]:9.0f} {numbers[5]:5.0f}   {percent:.2f} % of a cycle\n"
        )


if __name__ == "__main__":
    main()
